"""The capture begins, or dies, in the middle of a call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.calls.calls import Calls
from spanvault.config import CaptureConfig
from tests.support.conversation import A_TO_B, B_TO_A, BOB, NOTHING, Leg, sounds, talk


def test_only_rtp_and_a_bye_were_heard(wire):
    there, back = wire.rtp(*A_TO_B, ssrc=1, seconds=4), wire.rtp(*B_TO_A, ssrc=2, seconds=4)
    wire.wait(4)
    Leg(wire).bye()
    wire.wait(1)
    assert set(wire.attached()) == {there, back}
    [call] = wire.end()
    assert (call.outcome, call.end_reason) == ("answered", "bye")
    assert call.flags == ["started_mid_call"]
    assert [stream.party for stream in call.streams] == ["caller", "callee"]


def test_of_many_streams_between_two_hosts_a_bye_takes_only_the_one_that_ended_with_it(wire):
    wire.rtp("10.0.0.1:4000", "10.0.0.2:5000", seconds=4)
    for port in range(4002, 4010, 2):
        wire.rtp(f"10.0.0.1:{port}", "10.0.0.2:5000", seconds=60)
    wire.wait(4)
    Leg(wire).bye()
    wire.wait(1)
    assert list(wire.attached()) == [1]


def test_of_several_that_cannot_be_told_apart_it_takes_none(wire):
    wire.rtp("10.0.0.1:4000", "10.0.0.2:5000", seconds=4)
    wire.rtp("10.0.0.1:4002", "10.0.0.2:5002", seconds=4)
    wire.wait(4)
    Leg(wire).bye()
    [call] = wire.end()
    assert call.streams == []
    assert "ambiguous_media" in call.flags


def test_only_one_side_of_the_signalling_is_mirrored(wire):
    leg = Leg(wire)
    leg.reply(180)
    leg.reply(200, body=BOB)
    wire.rtp(*B_TO_A)
    leg.reply(200, "BYE", cseq=2)
    [call] = wire.end()
    assert (call.outcome, call.end_reason) == ("answered", "bye")
    assert sounds(call) == [("callee", "PCMU", 250)]
    assert "one_way" in call.flags


def test_a_restarted_capture_goes_on_with_the_same_recording_under_new_stream_numbers(wire):
    leg = Leg(wire)
    talk(wire, leg)
    wire.wait(1)
    wire.restart()
    row = wire.rtp(*A_TO_B, ssrc=1)
    assert wire.attached() == {row: ((1).to_bytes(16, "big"), 2)}
    leg.bye()
    [call] = wire.end()
    assert call.flags == ["capture_restarted"]
    assert [stream.number for stream in call.streams] == [0, 1, 2]
    assert [stream.packets for stream in call.streams] == [250, 250, 250]
    assert call.revision > 1


def test_a_final_record_that_was_not_acknowledged_is_sent_again_after_a_restart(wire):
    leg = Leg(wire)
    talk(wire, leg)
    leg.bye()
    wire.wait(3)
    [final] = [call for call in wire.history if call.final]
    wire.restart()
    wire.collect()
    assert wire.history[-1] == final
    wire.calls.settled([final.id])
    wire.history.clear()
    wire.restart()
    wire.collect()
    assert wire.history == []


@given(st.binary(max_size=300))
def test_any_bytes_restore_or_raise_value_error(data):
    calls = Calls(CaptureConfig(name="x"), lambda row: NOTHING, lambda: bytes(16))
    with pytest.raises(ValueError, match="no call table"):
        calls.restore(data)
