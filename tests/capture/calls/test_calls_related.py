"""Several calls, one conversation: PBX legs, transfers, forks, a Call-ID used again."""

from tests.support.conversation import A_TO_B, ALICE, B_TO_A, BOB, Leg, Wire, sdp, sounds, talk

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


def test_a_colleague_picks_up_what_rings_elsewhere(wire):
    """RFC 5359 §2.15, as RFC 3891 §7.1 has it: the INVITE that takes over is the colleague's."""
    leg, pickup = Leg(wire), Leg(wire, "pickup", "1003", "1001", ("10.0.0.3:5060", "10.0.0.1:5060"))
    leg.invite(ALICE)
    leg.reply(180)
    early = "Replaces: call-1;to-tag=to-call-1;from-tag=from-call-1;early-only"
    pickup.invite(sdp("10.0.0.3:6000"), early)
    pickup.reply(200, body=ALICE)
    pickup.ack()
    leg.request("CANCEL", in_dialog=False, branch="call-1-1-INVITE")
    leg.reply(487)
    wire.rtp("10.0.0.1:4000", "10.0.0.3:6000", ssrc=1)
    wire.rtp("10.0.0.3:6000", "10.0.0.1:4000", ssrc=2)
    first, second = wire.end()
    assert [(other.kind, other.call_id) for other in first.related] == [("replaces", "pickup")]
    assert [(other.kind, other.call_id) for other in second.related] == [("replaces", "call-1")]
    assert (first.outcome, second.outcome) == ("cancelled", "answered")
    assert sounds(first) == []
    assert sounds(second) == [("callee", "PCMU", 250), ("caller", "PCMU", 250)]


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
    assert [call.ended_ns for call in wire.calls.live()] == [None]
    leg.tags["callee"] = "one"
    wire.rtp(*A_TO_B)
    assert wire.calls.active == 1
    leg.bye()
    [call] = wire.end()
    assert call.end_reason == "bye"
    assert "forked" in call.flags
    assert len(call.streams) == 1
