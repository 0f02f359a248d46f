"""Flows of hosted PBXs and call centres: calls clicked for, forwarded, barged into, agents kept.

Sources: published guides to BroadWorks (SIP access interface, shared call appearance, click to
dial) and Genesys SIP Server (3pcc, nailed-up connections, X-Genesys-CallUUID); RFC 3911 (Join),
4579 (conferences: isfocus), 5806 and 7044 (Diversion, History-Info), 3515 §2.1 (what a REFER may
ask for), 2543 §B.5 (hold by 0.0.0.0).
"""

from tests.capture.calls.test_flows_of_vendors import inactive, reinvite, relations
from tests.support.conversation import A_TO_B, ALICE, BOB, Leg, Wire, sdp, sounds

SERVER, MIXER = "10.9.0.1:5060", "10.9.0.2"
NOWHERE = sdp("0.0.0.0:4000")
CAROL = sdp("10.0.0.3:6000")


def parties(call) -> list[str]:
    return [party for party, _, _ in sounds(call)]


def both_ways(wire: Wire, one: str, other: str, ssrc: int) -> None:
    wire.rtp(one, other, ssrc=ssrc)
    wire.rtp(other, one, ssrc=ssrc + 1)
    wire.wait(5)


def test_a_click_rings_the_phone_with_a_hold_description_first(wire: Wire):
    """BroadWorks: A is INVITEd to 0.0.0.0, then B without SDP; A is re-INVITEd with B's offer."""
    same = "X-BroadWorks-Correlation-Info: 76a5b2d1-93a1-4d0c-8f1e-6d5f"
    first = Leg(wire, "first", "1002", "1001", (SERVER, "10.0.0.1:5060"))
    second = Leg(wire, "second", "1001", "1002", (SERVER, "10.0.0.2:5060"))
    first.invite(NOWHERE, same)
    first.reply(180)
    first.reply(200, body=inactive("10.0.0.1:4000"))
    first.ack()
    second.invite(b"", same)
    second.reply(180)
    second.reply(200, body=BOB)
    reinvite(first, "caller", BOB, ALICE)
    second.ack(ALICE)
    both_ways(wire, *A_TO_B, ssrc=1)
    first.bye("callee")
    second.bye()
    one, two = wire.end()
    assert relations(one) == [("b2bua", "second")]
    assert parties(one) == ["callee", "caller"]
    assert parties(two) == ["caller", "callee"]
    assert "hold" not in one.flags  # nobody was put on hold: he had not been heard yet


def test_an_old_phone_holds_by_0_0_0_0_and_takes_the_call_back_on_its_port(wire: Wire):
    leg = Leg(wire)
    leg.answer(ALICE, BOB)
    both_ways(wire, *A_TO_B, ssrc=1)
    reinvite(leg, "caller", NOWHERE, BOB)
    assert [call.held for call in wire.calls.live()] == [True]
    wire.wait(60)
    reinvite(leg, "caller", ALICE, BOB)
    both_ways(wire, *A_TO_B, ssrc=1)
    leg.bye()
    (call,) = wire.end()
    assert "hold" in call.flags
    assert (call.outcome, call.end_reason) == ("answered", "bye")


def test_a_blind_transfer_that_the_server_carries_out_by_moving_the_one_who_stays(wire: Wire):
    """A mid-call INVITE without SDP asks A for an offer, which goes to C."""
    outer = Leg(wire, "outer", hosts=("10.0.0.1:5060", SERVER))
    inner = Leg(wire, "inner", hosts=(SERVER, "10.0.0.2:5060"))
    outer.invite(ALICE)
    inner.answer(ALICE, BOB)
    outer.reply(200, body=BOB)
    outer.ack()
    both_ways(wire, *A_TO_B, ssrc=1)
    wire.wait(60)
    inner.cseq += 1
    inner.request("REFER", "callee", b"", "Refer-To: <sip:1003@10.9.0.1;user=phone>")
    inner.reply(202, "REFER", "caller")
    outer.cseq += 1
    outer.request("INVITE", "callee")
    outer.reply(200, "INVITE", "caller", ALICE)
    third = Leg(wire, "third", "1001", "1003", (SERVER, "10.0.0.3:5060"))
    third.invite(ALICE, "Diversion: <sip:1002@10.9.0.1>;reason=unconditional;counter=1")
    third.reply(180)
    inner.bye("caller")
    third.reply(200, body=CAROL)
    third.ack()
    outer.request("ACK", "callee", CAROL)
    both_ways(wire, "10.0.0.1:4000", "10.0.0.3:6000", ssrc=11)
    outer.bye()
    third.bye()
    known = {call.call_ids[0]: call for call in wire.end()}
    assert ("transfer", "third") in relations(known["inner"])
    assert ("b2bua", "third") in relations(known["outer"])
    assert parties(known["outer"]) == ["caller", "callee", "caller", "callee"]
    assert parties(known["third"]) == ["caller", "callee"]
    assert parties(known["inner"]) == ["caller", "callee"]


def test_a_call_that_is_forwarded_twice_is_one_chain(wire: Wire):
    """A phone answers 302, the next does not answer at all; History-Info tells what happened."""
    outer = Leg(wire, "outer", "+49301234", "1001", ("198.51.100.7:5060", SERVER))
    outer.invite(ALICE)
    outer.reply(100)
    first = Leg(wire, "first", "+49301234", "1001", (SERVER, "10.0.0.2:5060"))
    first.invite(ALICE)
    first.reply(302, "INVITE", "callee", b"", "Contact: <sip:1002@10.9.0.1>")
    second = Leg(wire, "second", "+49301234", "1002", (SERVER, "10.0.0.3:5060"))
    second.invite(ALICE, "Diversion: <sip:1001@x>;reason=unconditional")
    second.reply(180)
    wire.wait(20)
    second.request("CANCEL")
    second.reply(487)
    third = Leg(wire, "third", "+49301234", "1003", (SERVER, "10.0.0.4:5060"))
    third.invite(
        ALICE,
        "Diversion: <sip:1002@x>;reason=no-answer, <sip:1001@x>;reason=unconditional",
        "History-Info: <sip:1001@x>;index=1, <sip:1002@x?Reason=SIP%3Bcause%3D302>;index=1.1",
    )
    third.reply(200, body=BOB)
    outer.reply(200, body=BOB)
    wire.wait(1)
    known = {call.call_ids[0]: call for call in wire.end()}
    assert relations(known["outer"]) == [
        ("b2bua", "first"), ("b2bua", "second"), ("b2bua", "third"),
    ]  # fmt: skip
    assert ("b2bua", "outer") in relations(known["third"])


def test_a_colleague_barges_in_and_all_hear_each_other_through_a_mixer(wire: Wire):
    """A shared line: the third INVITE is answered by the focus, the others are moved to it."""
    leg = Leg(wire, "line", hosts=("10.0.0.1:5060", SERVER))
    leg.answer(ALICE, BOB)
    both_ways(wire, *A_TO_B, ssrc=1)
    barge = Leg(wire, "barge", "1002", "1002", ("10.0.0.3:5060", SERVER))
    barge.invite(
        CAROL,
        "Call-Info: <sip:10.9.0.1>;appearance-index=1",
        "Join: line;to-tag=to-line;from-tag=from-line",
    )
    barge.reply(200, "INVITE", "callee", sdp(f"{MIXER}:7002"), "Contact: <sip:focus@x>;isfocus")
    barge.ack()
    reinvite(leg, "callee", sdp(f"{MIXER}:7000"), ALICE)
    both_ways(wire, "10.0.0.1:4000", f"{MIXER}:7000", ssrc=11)
    both_ways(wire, "10.0.0.3:6000", f"{MIXER}:7002", ssrc=21)
    barge.bye()
    leg.bye()
    one, two = wire.end()
    assert parties(one) == ["caller", "callee", "caller", "callee"]
    assert parties(two) == ["caller", "callee"]
    assert ("conference" in one.flags, "conference" in two.flags) == (False, True)
    assert relations(one) == [("joins", "barge")]
    assert relations(two) == [("joins", "line")]


def test_a_focus_told_to_send_somebody_away_transfers_nobody(wire: Wire):
    """REFER may name another method (RFC 3515 §2.1): BYE as RFC 4579 §5.11, or SUBSCRIBE."""
    leg = Leg(wire, hosts=("10.0.0.1:5060", SERVER))
    leg.answer(ALICE, BOB)
    for asked in ("<sip:1003@x;method=BYE>", "<sip:1003@x?a=1>;method=SUBSCRIBE", "<cid:list@x>"):
        leg.cseq += 1
        leg.request("REFER", "caller", b"", f"Refer-To: {asked}")
    leg.bye()
    (call,) = wire.end()
    assert "transferred" not in call.flags


def test_an_agents_line_stays_up_from_caller_to_caller(wire: Wire):
    """Nailed-up: the server re-INVITEs it with whoever calls next, and holds it in between."""
    agent = Leg(wire, "agent", "acd", "2001", (SERVER, "10.0.0.9:5060"))
    agent.answer(NOWHERE, sdp("10.0.0.9:9000"))
    wire.wait(600)
    for number in (1, 2):
        at = f"198.51.100.{number}:4000"
        name, caller = f"caller-{number}", f"+4930123{number}"
        leg = Leg(wire, name, caller, "800", (f"198.51.100.{number}:5060", SERVER))
        leg.invite(sdp(at))
        reinvite(agent, "caller", sdp(at), sdp("10.0.0.9:9000"))
        leg.reply(200, body=sdp("10.0.0.9:9000"))
        leg.ack()
        both_ways(wire, at, "10.0.0.9:9000", ssrc=10 * number)
        leg.bye()
        reinvite(agent, "caller", inactive(f"{MIXER}:7000"), inactive("10.0.0.9:9000"))
        wire.wait(300)
    agent.bye()
    known = {call.call_ids[0]: call for call in wire.end()}
    heard = {name: [stream.ssrc for stream in call.streams] for name, call in known.items()}
    assert heard == {"agent": [10, 11, 20, 21], "caller-1": [10, 11], "caller-2": [20, 21]}
    assert relations(known["agent"]) == [("b2bua", "caller-1"), ("b2bua", "caller-2")]


def test_a_call_that_an_agents_desktop_makes_through_music(wire: Wire):
    """Genesys 3pcc: the agent hears the media server until the customer answers."""
    same = "X-Genesys-CallUUID: 00EVKQ6T5OC2B1Q4A8S0A2LAES000001"
    agent = Leg(wire, "agent", "2001", "2001", (SERVER, "10.0.0.9:5060"))
    agent.invite(b"", same)
    agent.reply(200, body=sdp("10.0.0.9:9000"))
    agent.ack(sdp(f"{MIXER}:7000"))
    wire.rtp(f"{MIXER}:7000", "10.0.0.9:9000", ssrc=1)
    customer = Leg(wire, "customer", "2001", "+49301234", (SERVER, "198.51.100.7:5060"))
    customer.invite(b"", same)
    customer.reply(183, body=sdp("198.51.100.7:4000"))
    wire.wait(5)
    customer.reply(200, body=sdp("198.51.100.7:4000"))
    reinvite(agent, "caller", sdp("198.51.100.7:4000"), sdp("10.0.0.9:9000"))
    customer.ack(sdp("10.0.0.9:9000"))
    both_ways(wire, "10.0.0.9:9000", "198.51.100.7:4000", ssrc=11)
    agent.bye("callee")
    customer.bye()
    one, two = wire.end()
    assert parties(one) == ["caller", "callee", "caller"]
    assert [stream.ssrc for stream in two.streams] == [11, 12]
    assert relations(one) == [("b2bua", "customer")]
