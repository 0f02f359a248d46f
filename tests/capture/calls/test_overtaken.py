"""Replies that are heard before what they reply to: one call, as if they had come in order.

So it is where each direction has a tap, a mirrored port, a worker or an agent of its own, and of
two capture files whose clocks differ.
"""

import pytest

from tests.support.conversation import A_TO_B, ALICE, B_TO_A, BOB, Leg, Wire, sdp, sounds


def replies(leg: Leg, until: int) -> None:
    for status in (100, 180, 183, 200):
        if status <= until:
            leg.reply(status, body=BOB if status >= 183 else b"")


@pytest.mark.parametrize("until", [100, 180, 183, 200])
def test_an_invite_behind_its_replies(wire: Wire, until: int):
    leg = Leg(wire)
    replies(leg, until)
    leg.invite(ALICE)
    leg.reply(200, body=BOB)
    leg.ack()
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    leg.bye()
    (call,) = wire.end()
    assert (call.outcome, call.flags, call.dialled) == ("answered", [], "1002")
    assert sounds(call) == [("caller", "PCMU", 250), ("callee", "PCMU", 250)]


@pytest.mark.parametrize(("status", "outcome"), [(486, "busy"), (603, "declined")])
def test_an_invite_behind_its_refusal(wire: Wire, status: int, outcome: str):
    leg = Leg(wire)
    leg.reply(status)
    leg.request("ACK", branch=f"{leg.call_id}-1-INVITE")
    leg.invite(ALICE)
    (call,) = wire.end()
    assert (call.outcome, call.end_reason, call.flags) == (outcome, "rejected", [])


@pytest.mark.parametrize("late", ["INVITE", "100", "another copy"])
def test_what_is_heard_behind_its_challenge_waits_for_no_answer(wire: Wire, late: str):
    """Nobody logs in: the call failed when it was challenged, not when an answer failed to come."""
    leg = Leg(wire)
    if late != "INVITE":
        leg.invite(ALICE)
    leg.reply(401)
    if late == "100":
        leg.reply(100)
    else:
        leg.invite(ALICE)
    leg.request("ACK", branch=f"{leg.call_id}-1-INVITE")
    wire.wait(300)
    (call,) = wire.end()
    assert (call.outcome, call.end_reason, call.flags) == ("failed", "rejected", [])
    assert call.ended_ns - call.started_ns < 10_000_000


def test_a_login_behind_the_challenge_that_overtook_its_invite(wire: Wire):
    leg = Leg(wire)
    leg.reply(401)
    leg.invite(ALICE)
    leg.cseq = 2
    leg.answer(ALICE, BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    leg.bye()
    (call,) = wire.end()
    assert (call.outcome, call.end_reason, call.flags) == ("answered", "bye", [])
    assert sounds(call) == [("caller", "PCMU", 250), ("callee", "PCMU", 250)]


def test_an_invite_without_offer_behind_its_answer(wire: Wire):
    leg = Leg(wire)
    leg.reply(200, body=BOB)
    leg.invite()
    leg.ack(ALICE)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    (call,) = wire.end()
    assert [party for party, _, _ in sounds(call)] == ["caller", "callee"]
    assert call.flags == ["delayed_offer"]


def test_the_invite_that_calls_on_behind_its_reply(wire: Wire):
    """Its leg through the PBX is known all the same."""
    outer = Leg(wire, "outer", hosts=("10.0.0.1:5060", "10.0.0.9:5060"))
    inner = Leg(wire, "inner", hosts=("10.0.0.9:5060", "10.0.0.2:5060"))
    outer.reply(100)
    outer.invite(ALICE)
    inner.reply(100)
    inner.invite(sdp("10.0.0.9:9000"))
    one, two = wire.end()
    assert [(each.kind, each.call_id) for each in one.related] == [("b2bua", "inner")]
    assert [(each.kind, each.call_id) for each in two.related] == [("b2bua", "outer")]


@pytest.mark.parametrize("by", ["caller", "callee"])
def test_hold_and_resume_by_offers_behind_their_answers(wire: Wire, by: str):
    leg, other = Leg(wire), {"caller": "callee", "callee": "caller"}[by]
    ends = {"caller": "10.0.0.1:4000", "callee": "10.0.0.2:5000"}
    leg.answer(ALICE, BOB)
    held = []
    for way, back in (("sendonly", "recvonly"), ("sendrecv", "sendrecv")):
        leg.cseq += 1
        leg.reply(200, "INVITE", other, sdp(ends[other], more=(f"a={back}",)))
        leg.request("INVITE", by, sdp(ends[by], more=(f"a={way}",)))
        leg.request("ACK", by)
        held += [call.held for call in wire.calls.live()]
    assert held == [True, False]
    (call,) = wire.end()
    assert call.flags == ["hold", "no_media"]


def test_a_line_that_the_answer_before_its_offer_refused(wire: Wire):
    leg = Leg(wire)
    leg.reply(200, body=BOB + b"m=video 0 RTP/AVP 99\r\n")
    leg.invite(ALICE + b"m=video 4002 RTP/AVP 99\r\n")
    wire.rtp("10.0.0.2:5002", "10.0.0.1:4002", ssrc=9)
    wire.wait(1)
    (call,) = wire.end()
    assert call.streams == []


def test_an_invite_hours_behind_is_another_call(wire: Wire):
    leg = Leg(wire)
    leg.request("BYE")
    leg.reply(200, "BYE")
    wire.wait(60)
    leg.invite(ALICE)
    first, second = wire.end()
    assert ("started_mid_call" in first.flags, second.flags) == (True, [])
