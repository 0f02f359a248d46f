"""The capture begins, or dies, in the middle of a call."""

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.calls.calls import Calls
from spanvault.daemon.config import CaptureConfig
from tests.support.conversation import A_TO_B, B_TO_A, BOB, NOTHING, Leg, Wire, sounds, talk

# What a capture saved before calls knew ICE's candidates, and keys that are only half of use: one
# transferred, one of SRTP, one ringing, one over and not acknowledged, one met in its midst.
OLDER = (Path(__file__).parents[2] / "data" / "calltable" / "2026-11-22.msgpack").read_bytes()


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


@pytest.mark.parametrize("goes_on_s", [0.8, 2.5, 60])
def test_what_is_heard_on_behind_a_bye_is_another_call_s_be_it_the_only_one(wire, goes_on_s):
    """Its own sound fell into the time when nobody listened; sound of others must not be its."""
    wire.rtp("10.0.0.1:4000", "10.0.0.2:5000", seconds=4 + goes_on_s)
    wire.rtp("10.0.0.2:5000", "10.0.0.1:4000", seconds=4 + goes_on_s)
    wire.wait(4)
    Leg(wire).bye()
    wire.wait(goes_on_s + 5)
    assert list(wire.attached()) == []


def test_of_calls_that_end_one_after_the_other_none_takes_the_next_one_s_sound(wire):
    wire.rtp("10.0.0.1:4000", "10.0.0.2:5000", seconds=4.9)  # of the second
    wire.rtp("10.0.0.1:4002", "10.0.0.2:5002", seconds=8)  # of a third
    wire.wait(4)
    Leg(wire, "first").bye()
    wire.wait(1)
    Leg(wire, "second").bye()
    wire.wait(6)
    calls = {call.call_ids[0]: call for call in wire.end()}
    assert [len(calls[name].streams) for name in ("first", "second")] == [0, 1]
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


def older(wire: Wire) -> Wire:
    """A capture that takes up what the older program saved, a few seconds later."""
    wire.wait(15)
    wire.calls.restore(OLDER)
    wire.wait(1)
    return wire


def test_calls_that_an_older_program_saved_go_on(wire):
    older(wire)
    there, secure = wire.rtp(*A_TO_B, ssrc=1), wire.rtp("10.0.1.1:4000", "10.0.1.2:5000", ssrc=5)
    assert [number for _, number in map(wire.attached().get, (there, secure))] == [2, 1]
    ringing = Leg(wire, "ringing", "3001", "3002", ("10.0.2.1:5060", "10.0.2.2:5060"))
    ringing.reply(200)
    wire.restart()  # what the newer one saves is read again, too
    Leg(wire).bye()
    known = {call.call_ids[0]: call for call in wire.end()}
    assert {name: (call.outcome, call.end_reason) for name, call in known.items()} == {
        "call-1": ("answered", "bye"),
        "secure": ("answered", "capture_end"),
        "ringing": ("answered", "capture_end"),
        "over": ("answered", "bye"),
        "midst": ("answered", "capture_end"),
    }
    assert len(known["secure"].keys) == 1
    assert known["secure"].keys[0].encrypted
    assert "transferred" in known["call-1"].flags


def test_a_table_with_an_address_that_is_none_is_refused(wire):
    table = msgspec.msgpack.decode(OLDER)
    call = table["calls"][0]
    call[8] = bytes(17)  # caller_host
    with pytest.raises(ValueError, match="no call table"):
        wire.calls.restore(msgspec.msgpack.encode(table))
    assert wire.calls.active == 0


@given(st.data())
def test_a_table_of_another_shape_is_taken_up_or_refused_whole(data):
    """A program far older or newer may have had other fields in other places."""
    table = msgspec.msgpack.decode(OLDER)
    call = table["calls"][0]
    at = data.draw(st.integers(0, len(call) - 1))
    call[at] = data.draw(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary() | st.just([[]])
        | st.just({"a": 1}) | st.booleans()
    )  # fmt: skip
    table["calls"][0] = call[: data.draw(st.integers(0, len(call)))]
    wire = Wire()
    with contextlib.suppress(ValueError):
        wire.calls.restore(msgspec.msgpack.encode(table))
        wire.wait(1)
        wire.restart()
        wire.end()
        return
    assert wire.calls.active == 0
