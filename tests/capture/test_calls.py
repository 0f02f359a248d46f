"""Conversations in, attachments and call records out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import calltable
from capture.calls import Calls
from capture.model import Datagram
from spanvault.config import CaptureConfig
from tests.support.conversation import NOTHING, SECOND, START_NS, Leg, Wire, endpoint, sdp, sounds

ALICE, BOB = sdp("10.0.0.1:4000"), sdp("10.0.0.2:5000")
A_TO_B, B_TO_A = ("10.0.0.1:4000", "10.0.0.2:5000"), ("10.0.0.2:5000", "10.0.0.1:4000")


@pytest.fixture
def wire() -> Wire:
    return Wire()


def talk(wire: Wire, leg: Leg) -> None:
    """An answered call with sound both ways for five seconds."""
    leg.answer(ALICE, BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)


# --- a call and its end ---------------------------------------------------------------------


def test_a_plain_call(wire):
    leg = Leg(wire)
    talk(wire, leg)
    leg.bye()
    [call] = wire.end()
    assert (call.caller, call.callee, call.call_ids) == ("1001", "1002", ["call-1"])
    assert (call.outcome, call.end_reason, call.flags) == ("answered", "bye", [])
    assert sounds(call) == [("caller", "PCMU", 250), ("callee", "PCMU", 250)]
    assert call.started_ns < call.answered_ns < call.ended_ns
    assert call.final


def test_a_record_when_it_begins_is_answered_and_ends_and_once_a_minute_between(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    wire.collect()
    leg.reply(200, body=BOB)
    wire.collect()
    wire.wait(61)
    wire.wait(1)
    leg.bye()
    wire.collect()
    wire.wait(3)
    states = [(call.outcome, call.end_reason, call.final) for call in wire.history]
    assert states == [
        ("in_progress", None, False),
        ("answered", None, False),
        ("answered", None, False),
        ("answered", "bye", False),
        ("answered", "bye", True),
    ]
    assert [call.revision for call in wire.history] == [1, 2, 3, 4, 5]


def test_the_final_record_waits_for_the_grace_after_the_bye_and_releases_the_rows(wire):
    leg = Leg(wire)
    talk(wire, leg)
    leg.bye()
    wire.wait(1)
    assert wire.calls.released() == []
    wire.wait(2)
    assert wire.calls.released() == [1, 2]
    assert wire.calls.active == 0


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (486, "busy"), (600, "busy"), (603, "declined"), (404, "not_found"), (484, "not_found"),
        (604, "not_found"), (480, "no_answer"), (408, "no_answer"), (487, "cancelled"),
        (403, "failed"), (503, "failed"),
    ],
)  # fmt: skip
def test_refusals(wire, status, outcome):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(180)
    leg.reply(status)
    leg.ack()
    [call] = wire.end()
    assert (call.outcome, call.answered_ns) == (outcome, None)
    assert call.ended_ns is not None


def test_cancelled_while_ringing(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(180)
    leg.request("CANCEL", in_dialog=False, branch="call-1-1-INVITE")
    leg.reply(200, "CANCEL", branch="call-1-1-INVITE")
    leg.reply(487)
    [call] = wire.end()
    assert (call.outcome, call.end_reason) == ("cancelled", "cancel")


def test_a_200_that_crosses_the_cancel_wins(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.request("CANCEL", in_dialog=False, branch="call-1-1-INVITE")
    leg.reply(200, body=BOB)
    leg.bye()
    [call] = wire.end()
    assert (call.outcome, call.end_reason) == ("answered", "bye")


def test_nobody_replies(wire):
    Leg(wire).invite(ALICE)
    wire.wait(33)
    wire.wait(3)
    [call] = wire.records.values()
    assert (call.outcome, call.end_reason, call.final) == ("no_answer", "timeout", True)


def test_it_rings_until_the_caller_vanishes(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(180)
    wire.wait(100)
    assert wire.calls.active == 1
    wire.wait(100)
    [call] = wire.records.values()
    assert (call.outcome, call.end_reason) == ("no_answer", "timeout")


def test_the_capture_ends_before_the_answer(wire):
    Leg(wire).invite(ALICE)
    [call] = wire.end()
    assert (call.outcome, call.end_reason) == ("in_progress", "capture_end")


def test_a_login_is_one_call(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(407)
    leg.ack()
    leg.cseq = 2
    leg.answer(ALICE, BOB)
    leg.bye()
    [call] = wire.end()
    assert call.outcome == "answered"


def test_a_login_that_is_typed_in_is_one_call(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(407)
    leg.ack()
    wire.wait(51)
    leg.cseq = 2
    leg.invite(ALICE)
    leg.reply(403)
    [call] = wire.end()
    assert (call.outcome, call.end_reason) == ("failed", "rejected")


def test_a_login_that_is_never_tried_again_failed(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(401)
    refused_ns = wire.now_ns
    wire.wait(130)
    assert wire.history[-1].final
    [call] = wire.end()
    assert (call.outcome, call.end_reason, call.ended_ns) == ("failed", "rejected", refused_ns)


def test_retransmissions_and_copies_behind_a_proxy_are_one_call(wire):
    leg = Leg(wire)
    proxied = Leg(wire, hosts=("10.0.0.9:5060", "10.0.0.2:5060"))
    for each in (leg, leg, proxied, proxied):
        each.invite(ALICE)
    for each in (proxied, leg, leg):
        each.reply(200, body=BOB)
    leg.ack()
    proxied.ack()
    leg.bye()
    [call] = wire.end()
    assert call.outcome == "answered"


def test_one_branch_behind_a_forking_proxy_is_busy_and_another_answers(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.request("INVITE", "caller", ALICE, in_dialog=False, branch="fork-1")
    leg.request("INVITE", "caller", ALICE, in_dialog=False, branch="fork-2")
    leg.reply(486, tag="busy", branch="fork-1")
    leg.reply(200, body=BOB, tag="answers", branch="fork-2")
    [call] = wire.end()
    assert call.outcome == "answered"


def test_the_200_was_missed_but_its_ack_was_heard(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(180)
    leg.ack()
    [call] = wire.end()
    assert call.outcome == "answered"


def test_registrations_and_subscriptions_are_no_calls(wire):
    for method in ("REGISTER", "OPTIONS", "SUBSCRIBE", "MESSAGE", "NOTIFY"):
        leg = Leg(wire, method)
        leg.request(method, in_dialog=False)
        leg.reply(200, method)
    assert wire.end() == []


# --- when the BYE is lost -------------------------------------------------------------------


def test_silence_ends_a_call_that_lost_its_bye(wire):
    leg = Leg(wire)
    talk(wire, leg)
    wire.wait(200)
    assert wire.calls.active == 1
    wire.wait(120)
    [call] = wire.records.values()
    assert (call.outcome, call.end_reason) == ("answered", "timeout")
    assert call.ended_ns == max(stream.last_ns for stream in call.streams)


def test_a_call_on_hold_may_be_silent_for_longer(wire):
    leg = Leg(wire)
    talk(wire, leg)
    leg.cseq = 2
    hold = sdp("10.0.0.1:4000", "0", more=("a=sendonly",))
    leg.request("INVITE", "caller", hold)
    leg.reply(200, body=sdp("10.0.0.2:5000", "0", more=("a=recvonly",)))
    leg.ack()
    wire.wait(1000)
    assert wire.calls.active == 1
    leg.cseq = 3
    leg.request("INVITE", "caller", ALICE)
    leg.reply(200, body=BOB)
    wire.wait(400)
    [call] = wire.end()
    assert call.end_reason == "timeout"
    assert "hold" in call.flags


def test_a_bye_after_we_gave_up_begins_no_new_call(wire):
    leg = Leg(wire)
    talk(wire, leg)
    wire.wait(400)
    wire.wait(5)
    leg.bye()
    assert len(wire.end()) == 1


def test_a_call_that_comes_alive_after_we_gave_up_goes_on_as_another(wire):
    leg = Leg(wire)
    talk(wire, leg)
    wire.wait(400)
    wire.wait(5)
    leg.cseq = 5
    leg.request("INVITE", "caller", ALICE)
    assert [call.end_reason for call in wire.end()] == ["timeout", "capture_end"]


# --- which stream is whose ------------------------------------------------------------------


def test_a_stream_is_attached_as_soon_as_it_is_heard(wire):
    leg = Leg(wire)
    leg.answer(ALICE, BOB)
    row = wire.rtp(*A_TO_B)
    assert wire.attached() == {row: ((1).to_bytes(16, "big"), 0)}


def test_rtp_before_the_answer_belongs_to_the_call_from_the_offer_on(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    row = wire.rtp(*B_TO_A)
    assert row in wire.attached()


def test_rtp_before_any_sdp_is_claimed_when_the_sdp_comes(wire):
    row = wire.rtp(*B_TO_A)
    assert wire.attached() == {}
    Leg(wire).answer(ALICE, BOB)
    assert row in wire.attached()


def test_rtp_that_nobody_ever_claims_is_released(wire):
    row = wire.rtp(*B_TO_A, seconds=1)
    wire.wait(20)
    assert wire.calls.released() == []
    wire.wait(20)
    assert wire.calls.released() == [row]


def test_early_media(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(183, body=BOB)
    wire.rtp(*B_TO_A)
    wire.wait(4)
    leg.reply(200, body=BOB)
    leg.bye()
    [call] = wire.end()
    assert "early_media" in call.flags
    assert sounds(call) == [("callee", "PCMU", 250)]


def test_delayed_offer(wire):
    leg = Leg(wire)
    leg.invite()
    leg.reply(200, body=BOB)
    leg.ack(ALICE)
    wire.rtp(*A_TO_B)
    wire.rtp(*B_TO_A)
    leg.bye()
    [call] = wire.end()
    assert [stream.party for stream in call.streams] == ["caller", "callee"]
    assert call.flags == ["delayed_offer"]


def test_hold_and_resume_stay_one_call_without_a_gap_in_its_streams(wire):
    leg = Leg(wire)
    talk(wire, leg)
    wire.attached()
    for cseq, offer in ((2, sdp("0.0.0.0:4000")), (3, ALICE)):
        leg.cseq = cseq
        leg.request("INVITE", "caller", offer)
        leg.reply(200, body=BOB)
        leg.ack()
    assert wire.attached() == {}
    assert wire.closed == {}
    leg.bye()
    [call] = wire.end()
    assert call.flags == ["hold"]
    assert len(call.streams) == 2


def test_a_reinvite_moves_the_media(wire):
    leg = Leg(wire)
    talk(wire, leg)
    leg.cseq = 2
    leg.request("INVITE", "callee", sdp("10.0.0.7:7000"), cseq=10)
    leg.reply(200, by="caller", body=ALICE, cseq=10)
    wire.rtp("10.0.0.7:7000", "10.0.0.1:4000", ssrc=3)
    wire.rtp("10.0.0.1:4000", "10.0.0.7:7000", ssrc=1)
    leg.bye()
    [call] = wire.end()
    assert [stream.party for stream in call.streams] == ["caller", "callee", "callee", "caller"]


def test_a_payload_type_that_changes_its_meaning_ends_the_stream(wire):
    leg = Leg(wire)
    leg.answer(sdp("10.0.0.1:4000", "97 iLBC/8000"), sdp("10.0.0.2:5000", "97 iLBC/8000"))
    row = wire.rtp(*A_TO_B, payload_type=97)
    leg.cseq = 2
    leg.request("INVITE", "caller", sdp("10.0.0.1:4000", "97 opus/48000/2"))
    leg.reply(200, body=sdp("10.0.0.2:5000", "97 opus/48000/2"))
    wire.attached()
    assert row in wire.closed
    wire.rtp(*A_TO_B, payload_type=97)
    [call] = wire.end()
    assert [codec for _, codec, _ in sounds(call)] == ["iLBC", "opus"]
    assert "codec_changed" in call.flags


def test_a_static_payload_type_that_was_never_negotiated_is_known(wire):
    Leg(wire).answer(ALICE, BOB)
    wire.rtp(*A_TO_B, payload_type=18)
    [call] = wire.end()
    assert sounds(call)[0][:2] == ("caller", "G729")


def test_a_refused_video_line_takes_no_stream(wire):
    both = ALICE + b"m=video 4002 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    Leg(wire).answer(both, BOB + b"m=video 0 RTP/AVP 96\r\n")
    wire.rtp("10.0.0.2:5002", "10.0.0.1:4002", payload_type=96)
    [call] = wire.end()
    assert call.streams == []


def test_nat_the_source_is_not_what_the_sdp_says(wire):
    leg = Leg(wire)
    leg.answer(sdp("192.168.1.5:4000"), BOB)
    wire.rtp("10.0.0.1:31000", "10.0.0.2:5000", ssrc=1)
    wire.rtp("10.0.0.2:5000", "10.0.0.1:31000", ssrc=2)
    [call] = wire.end()
    assert [stream.party for stream in call.streams] == ["caller", "callee"]


def test_a_stream_with_one_end_of_ours_is_not_stolen_from_the_call_with_both(wire):
    Leg(wire, "first").answer(ALICE, BOB)
    hosts = ("10.0.0.3:5060", "10.0.0.2:5060")
    Leg(wire, "second", hosts=hosts).answer(sdp("10.0.0.3:4000"), BOB)
    wire.rtp(*A_TO_B)
    first, second = wire.end()
    assert (len(first.streams), len(second.streams)) == (1, 0)


def test_the_next_call_takes_the_ports_over(wire):
    first, second = Leg(wire, "first"), Leg(wire, "second")
    talk(wire, first)
    first.bye()
    [ended] = [call.ended_ns for call in wire.calls._table]
    wire.wait(0.5)
    wire.attached()
    second.invite(ALICE)
    second.reply(200, body=BOB)
    wire.attached()
    assert all(ended < at_ns < ended + 2 * SECOND for at_ns in wire.closed.values())
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    second.bye()
    assert [len(call.streams) for call in wire.end()] == [2, 2]


def test_signalling_that_runs_ahead_of_media_by_a_block(wire):
    """In a replayed file both calls are over before the first packet is looked at."""
    first, second = Leg(wire, "first"), Leg(wire, "second")
    first.answer(ALICE, BOB)
    heard_ns = wire.now_ns + 100_000_000
    wire.now_ns += 5 * SECOND
    first.bye()
    wire.now_ns += SECOND
    second.answer(ALICE, BOB)
    again_ns = wire.now_ns + 100_000_000
    wire.now_ns += 5 * SECOND
    second.bye()
    now_ns = wire.now_ns
    for wire.now_ns in (heard_ns, again_ns):
        wire.rtp(*A_TO_B, ssrc=1)
    wire.now_ns = now_ns
    assert [len(call.streams) for call in wire.end()] == [1, 1]


def test_calls_that_share_their_ports_at_the_same_time_are_told_apart_by_ssrc(wire):
    legs = [Leg(wire, f"call-{number}") for number in range(3)]
    for number, leg in enumerate(legs):
        leg.answer(ALICE, BOB)
        wire.rtp(*A_TO_B, ssrc=number)
        wire.rtp(*B_TO_A, ssrc=number)
        wire.wait(1)
    for leg in legs:
        leg.bye()
    calls = wire.end()
    assert [[stream.ssrc for stream in call.streams] for call in calls] == [[0, 0], [1, 1], [2, 2]]


# --- several calls, one conversation --------------------------------------------------------

PBX = "10.0.0.9:5060"


def b2bua(wire: Wire) -> tuple[Leg, Leg]:
    """1001 calls through a PBX that keeps the media, until it hands them to each other."""
    outer = Leg(wire, "outer", hosts=("10.0.0.1:5060", PBX))
    inner = Leg(wire, "inner", hosts=(PBX.replace("5060", "5080"), "10.0.0.2:5060"))
    outer.invite(ALICE)
    inner.answer(sdp("10.0.0.9:9000"), BOB)
    outer.reply(200, body=sdp("10.0.0.9:9002"))
    outer.ack()
    return outer, inner


def test_two_legs_through_a_pbx_know_each_other(wire):
    b2bua(wire)
    wire.rtp("10.0.0.1:4000", "10.0.0.9:9002")
    wire.rtp("10.0.0.9:9000", "10.0.0.2:5000")
    outer, inner = wire.end()
    assert [(other.kind, other.call_id) for other in outer.related] == [("b2bua", "inner")]
    assert [(other.kind, other.call_id) for other in inner.related] == [("b2bua", "outer")]
    assert [stream.party for stream in (*outer.streams, *inner.streams)] == ["caller", "caller"]


def test_media_that_two_legs_share_is_stored_once_and_listed_twice(wire):
    outer, inner = b2bua(wire)
    inner.cseq = outer.cseq = 2
    inner.request("INVITE", "caller", ALICE)
    outer.request("INVITE", "callee", BOB)
    inner.reply(200, body=BOB)
    outer.reply(200, by="caller", body=ALICE)
    wire.rtp(*A_TO_B)
    wire.rtp(*B_TO_A)
    first, second = wire.end()
    assert [stream.stored_in for stream in first.streams] == [None, None]
    assert [stream.stored_in for stream in second.streams] == [first.id, first.id]
    assert [stream.stored_as for stream in second.streams] == [0, 1]
    assert sounds(first) == sounds(second) == [("caller", "PCMU", 250), ("callee", "PCMU", 250)]


def test_a_pbx_that_gave_up_ringing_means_no_answer_whatever_it_says(wire):
    outer = Leg(wire, "outer", hosts=("10.0.0.1:5060", PBX))
    inner = Leg(wire, "inner", hosts=(PBX, "10.0.0.2:5060"))
    outer.invite(ALICE)
    inner.invite(sdp("10.0.0.9:9000"))
    inner.reply(180)
    inner.request("CANCEL", in_dialog=False, branch="inner-1-INVITE")
    outer.reply(603)
    inner.reply(487)
    assert [call.outcome for call in wire.end()] == ["no_answer", "cancelled"]


def test_blind_transfer(wire):
    leg = Leg(wire)
    talk(wire, leg)
    leg.cseq = 2
    leg.request("REFER", "callee", b"", "Refer-To: <sip:1003@10.0.0.3>")
    leg.reply(202, "REFER", "caller")
    onward = Leg(wire, "onward", callee="1003", hosts=("10.0.0.1:5060", "10.0.0.3:5060"))
    onward.answer(sdp("10.0.0.1:4002"), sdp("10.0.0.3:6000"))
    first, second = wire.end()
    assert [(other.kind, other.call_id) for other in first.related] == [("transfer", "onward")]
    assert [(other.kind, other.call_id) for other in second.related] == [("transfer", "call-1")]
    assert "transferred" in first.flags


def test_attended_transfer(wire):
    leg, consultation = Leg(wire), Leg(wire, "consult", "1002", "1003")
    talk(wire, leg)
    consultation.answer(sdp("10.0.0.2:5002"), sdp("10.0.0.3:6000"))
    leg.cseq = 2
    replaces = "consult%3Bto-tag%3Dto-consult%3Bfrom-tag%3Dfrom-consult"
    target = f"Refer-To: <sip:1003@10.0.0.3?Replaces={replaces}>"
    leg.request("REFER", "callee", b"", target)
    onward = Leg(wire, "onward", callee="1003", hosts=("10.0.0.1:5060", "10.0.0.3:5060"))
    onward.invite(ALICE, "Replaces: consult;to-tag=to-consult;from-tag=from-consult")
    first, second, third = wire.end()
    assert ("transfer", "consult") in [(other.kind, other.call_id) for other in first.related]
    assert ("replaces", "onward") in [(other.kind, other.call_id) for other in second.related]
    assert [(other.kind, other.call_id) for other in third.related] == [
        ("replaces", "consult"), ("transfer", "call-1"),
    ]  # fmt: skip


def test_a_call_id_is_used_again_for_a_later_call(wire):
    leg = Leg(wire)
    talk(wire, leg)
    leg.bye()
    wire.wait(1)
    again = Leg(wire)
    again.tags = {"caller": "another", "callee": "yet-another"}
    again.answer(ALICE, BOB)
    again.bye()
    assert [call.outcome for call in wire.end()] == ["answered", "answered"]


def test_a_busy_line_is_tried_again_under_the_same_call_id(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(486)
    leg.invite(ALICE)  # a late copy
    leg.cseq = 2
    leg.answer(ALICE, BOB)
    assert [call.outcome for call in wire.end()] == ["busy", "answered"]


def test_two_forks_answer_and_one_is_hung_up_at_once(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(200, body=BOB, tag="one")
    leg.reply(200, body=sdp("10.0.0.3:6000"), tag="two")
    leg.tags["callee"] = "two"
    leg.bye()
    wire.wait(1)
    leg.tags["callee"] = "one"
    wire.rtp(*A_TO_B)
    assert wire.calls.active == 1
    leg.bye()
    [call] = wire.end()
    assert call.end_reason == "bye"
    assert "forked" in call.flags
    assert len(call.streams) == 1


# --- the capture begins, or dies, in the middle ---------------------------------------------


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


# --- abuse ----------------------------------------------------------------------------------


def test_a_flood_of_invites_does_not_push_out_a_call_that_is_recorded(wire, monkeypatch):
    monkeypatch.setattr(calltable, "MAX_CALLS", 100)
    leg = Leg(wire)
    talk(wire, leg)
    for number in range(300):
        Leg(wire, f"flood-{number}").invite(ALICE)
    assert wire.calls.active == 100
    assert wire.calls.counters["calls_evicted"] == 201
    wire.rtp(*A_TO_B, ssrc=9)
    leg.bye()
    call = next(call for call in wire.end() if call.call_ids == ["call-1"])
    assert (call.outcome, call.end_reason) == ("answered", "bye")


def test_one_call_id_cannot_be_used_for_calls_without_end(wire):
    for number in range(100):
        leg = Leg(wire)
        leg.tags["caller"] = f"tag-{number}"
        leg.invite(ALICE)
    assert wire.calls.active == calltable.MAX_SAME_CALL_ID


def test_a_clock_that_jumps_by_years_neither_ends_nor_keeps_calls(wire):
    leg = Leg(wire)
    leg.answer(ALICE, BOB)
    for years in (9, -18):
        wire.now_ns += years * 365 * 86_400 * SECOND
        wire.wait(1)
        assert wire.calls.active == 1
    leg.bye()
    wire.wait(3)
    [call] = wire.records.values()
    assert (call.outcome, call.end_reason, call.final) == ("answered", "bye", True)


def test_lost_frames_are_marked_on_every_call_that_was_up(wire):
    Leg(wire).answer(ALICE, BOB)
    wire.calls.dropped()
    Leg(wire, "later").answer(ALICE, BOB)
    assert ["capture_loss" in call.flags for call in wire.end()] == [True, False]


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_datagrams_are_survived(payloads):
    calls = Calls(CaptureConfig(name="x"), lambda row: NOTHING, lambda: bytes(16))
    hosts = (endpoint("10.0.0.1:5060"), endpoint("10.0.0.2:5060"))
    for payload in payloads:
        calls.receive(Datagram(START_NS, *hosts, payload, "udp"))
    calls.tick(START_NS + SECOND)
    assert calls.active == 0


PIECES = st.sampled_from(["invite", "180", "200", "486", "ack", "bye", "rtp", "wait", "cancel"])


@given(st.lists(st.tuples(PIECES, st.integers(0, 2)), max_size=40))
def test_any_order_of_messages_ends_with_one_final_record_a_call(steps):
    wire = Wire()
    legs = [Leg(wire, f"call-{number}") for number in range(3)]
    acts = {
        "invite": lambda leg: leg.invite(ALICE),
        "180": lambda leg: leg.reply(180),
        "200": lambda leg: leg.reply(200, body=BOB),
        "486": lambda leg: leg.reply(486),
        "ack": lambda leg: leg.ack(),
        "bye": lambda leg: leg.bye(),
        "rtp": lambda leg: wire.rtp(*A_TO_B, ssrc=int(leg.call_id[-1])),
        "wait": lambda leg: wire.wait(1),
        "cancel": lambda leg: leg.request("CANCEL", in_dialog=False),
    }
    for piece, number in steps:
        acts[piece](legs[number])
    calls = wire.end()
    assert all(call.final and call.ended_ns is not None for call in calls)
    finals = [call.id for call in wire.history if call.final]
    assert len(finals) == len(set(finals)) == len(calls)
    assert wire.calls.active == 0
    assert wire.calls._association._by_endpoint == {}
    stored = [stream for call in calls for stream in call.streams if stream.stored_in is None]
    assert len(stored) <= len(wire.totals)
