"""A call and its end: conversations in, call records out."""

import pytest

from tests.support.conversation import (
    A_TO_B,
    ALICE,
    B_TO_A,
    BOB,
    Leg,
    Wire,
    sdp,
    sounds,
    talk,
)


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


def test_a_login_under_another_tag_is_one_call(wire):
    """RFC 3261 §22.2 says SHOULD: some phones answer the challenge as if they called anew."""
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(407)
    leg.ack()
    leg.cseq, leg.tags["caller"] = 2, "another"
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


def test_a_login_just_behind_the_end_of_patience_is_a_call_of_its_own(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(407)
    leg.ack()
    wire.wait(121)
    leg.cseq = 2
    leg.answer(ALICE, BOB)
    leg.bye()
    assert [call.outcome for call in wire.end()] == ["failed", "answered"]


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


def test_what_the_rules_of_pools_ask_for_is_kept_with_the_call():
    wire = Wire(headers=["X-Class", "Diversion", "f"])
    leg = Leg(wire, hosts=("10.0.0.1:5060", "[2001:db8::2]:5060"))
    leg.request("INVITE", "caller", ALICE, "x-class: Legal", "X-CLASS: second", "X-Other: no")
    wire.collect()
    [call] = wire.history
    assert call.dialled == "1002"
    assert call.hosts == ["10.0.0.1", "2001:db8::2"]
    assert call.headers["x-class"] == ["Legal", "second"]
    assert set(call.headers) == {"x-class", "from"}


def test_a_call_id_tag_and_cseq_that_are_used_again_within_seconds_are_another_call(wire):
    first, again = Leg(wire), Leg(wire)
    talk(wire, first)
    wire.wait(2)
    first.bye()
    again.tags["callee"] = "another"
    again.request("INVITE", "caller", ALICE, in_dialog=False, branch="another")
    again.reply(200, body=BOB, branch="another")
    first.request("BYE", branch="late copy")
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    calls = wire.end()
    assert [call.end_reason for call in calls] == ["bye", "capture_end"]
    assert [len(call.streams) for call in calls] == [2, 2]


def test_a_late_copy_of_an_invite_is_no_call(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(200, body=BOB)
    wire.wait(6)
    leg.bye()
    leg.invite(ALICE, cseq=1)
    assert len(wire.end()) == 1
