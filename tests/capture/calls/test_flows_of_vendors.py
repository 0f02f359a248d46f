"""Flows as call servers, SBCs and mobile networks really send them: who talked, heard in what.

Sources: RFC 3725 (third-party call control), RFC 3312 and 3GPP TS 24.229 annex (preconditions),
RFC 3665, 5359 (flows), 5853 (SBCs); Cisco's, Avaya's and Asterisk's own guides for the rest.
"""

import pytest

from tests.support.conversation import A_TO_B, ALICE, B_TO_A, BOB, Leg, Wire, sdp, sounds

CUCM, MOH, MTP = "10.9.0.1:5060", "10.9.0.2:24576", "10.9.0.3:26000"


def relations(call):
    return sorted((other.kind, other.call_id) for other in call.related)


def reinvite(leg: Leg, by: str, offer: bytes = b"", answer: bytes = b"", ack: bytes = b"") -> None:
    """An INVITE inside the dialog; the offer rides in it, or in its 200."""
    leg.cseq += 1
    other = "callee" if by == "caller" else "caller"
    leg.request("INVITE", by, offer)
    leg.reply(200, "INVITE", other, answer)
    leg.request("ACK", by, ack)


def inactive(at: str) -> bytes:
    return sdp(at, more=("a=inactive",))


def test_call_manager_holds_with_inactive_plays_music_and_resumes_on_new_ports(wire: Wire):
    """CUCM: delayed offers throughout; the media of a phone is moved by INVITEs without SDP."""
    leg = Leg(wire, hosts=(CUCM, "10.0.0.2:5060"))
    leg.invite()
    leg.reply(180)
    leg.reply(200, body=BOB)
    leg.ack(ALICE)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    reinvite(leg, "caller", inactive("10.0.0.1:4000"), inactive("10.0.0.2:5000"))
    reinvite(leg, "caller", b"", BOB, sdp(MOH, more=("a=sendonly",)))
    wire.rtp(MOH, "10.0.0.2:5000", ssrc=3)
    wire.wait(5)
    reinvite(leg, "caller", inactive(MOH), inactive("10.0.0.2:5000"))
    reinvite(leg, "caller", b"", sdp("10.0.0.2:5002"), sdp("10.0.0.1:4002"))
    wire.rtp("10.0.0.1:4002", "10.0.0.2:5002", ssrc=4)
    wire.rtp("10.0.0.2:5002", "10.0.0.1:4002", ssrc=5)
    wire.wait(5)
    leg.bye()
    (call,) = wire.end()
    assert [party for party, _, _ in sounds(call)] == [
        "caller", "callee", "caller", "caller", "callee",
    ]  # fmt: skip
    assert {"delayed_offer", "hold"} <= set(call.flags)
    assert call.outcome == "answered"


def test_third_party_call_control_makes_one_conversation_of_two_calls(wire: Wire):
    """RFC 3725 flow I: the controller asks A for an offer and gives it to B."""
    controller = "10.0.0.9:5060"
    first = Leg(wire, "first", "click", "1001", (controller, "10.0.0.1:5060"))
    second = Leg(wire, "second", "1001", "1002", (controller, "10.0.0.2:5060"))
    first.invite()
    first.reply(180)
    first.reply(200, body=ALICE)
    second.invite(ALICE)
    second.reply(200, body=BOB)
    second.ack()
    first.ack(BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    first.bye("callee")
    second.bye("caller")
    one, two = wire.end()
    assert relations(one) == [("b2bua", "second")]
    assert [party for party, _, _ in sounds(one)] == ["callee", "caller"]
    assert [party for party, _, _ in sounds(two)] == ["caller", "callee"]


def test_third_party_call_control_that_begins_with_no_media_at_all(wire: Wire):
    """RFC 3725 flow IV: first without media, then re-INVITEd with what the other one offers."""
    controller = "10.0.0.9:5060"
    first = Leg(wire, "first", "click", "1001", (controller, "10.0.0.1:5060"))
    second = Leg(wire, "second", "1001", "1002", (controller, "10.0.0.2:5060"))
    nothing = b"v=0\r\no=- 1 1 IN IP4 10.0.0.9\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
    first.answer(nothing, nothing)
    second.invite()
    second.reply(200, body=BOB)
    reinvite(first, "caller", BOB, ALICE)
    second.ack(ALICE)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    first.bye("callee")
    second.bye("caller")
    one, two = wire.end()
    assert relations(two) == [("b2bua", "first")]
    assert sorted(party for party, _, _ in sounds(one)) == ["callee", "caller"]


def test_media_shuffled_from_the_gateway_to_the_phones_is_each_callers_own(wire: Wire):
    """Avaya's shuffling, Asterisk's direct media: two legs through a gateway, then none."""
    outer = Leg(wire, "outer", hosts=("10.0.0.1:5060", "10.0.0.9:5060"))
    inner = Leg(wire, "inner", hosts=("10.0.0.9:5060", "10.0.0.2:5060"))
    outer.invite(ALICE)
    inner.answer(sdp("10.0.0.8:9000"), BOB)
    outer.reply(200, body=sdp("10.0.0.8:9002"))
    outer.ack()
    wire.rtp("10.0.0.1:4000", "10.0.0.8:9002", ssrc=1)
    wire.rtp("10.0.0.8:9002", "10.0.0.1:4000", ssrc=2)
    wire.rtp("10.0.0.8:9000", "10.0.0.2:5000", ssrc=3)
    wire.rtp("10.0.0.2:5000", "10.0.0.8:9000", ssrc=4)
    wire.wait(5)
    reinvite(outer, "callee", b"", ALICE, BOB)
    reinvite(inner, "caller", ALICE, BOB)
    direct = [wire.rtp(*A_TO_B, ssrc=5), wire.rtp(*B_TO_A, ssrc=6)]
    wire.wait(5)
    owners = {owner for row, (owner, _) in wire.attached().items() if row in direct}
    outer.bye()
    inner.bye()
    one, two = wire.end()
    assert len(owners) == 1
    assert [party for party, _, _ in sounds(one)] == ["caller", "callee", "caller", "callee"]
    assert [party for party, _, _ in sounds(two)] == ["caller", "callee", "caller", "callee"]


def test_preconditions_of_a_mobile_network(wire: Wire):
    """IMS: 183, PRACK and UPDATE agree on media long before the 200, which has none."""
    leg = Leg(wire, caller="+491701234567", callee="+491707654321")
    qos = ("a=curr:qos local none", "a=des:qos mandatory local sendrecv", "a=inactive")
    wide = ("97 AMR-WB/16000", "101 telephone-event/16000")
    leg.invite(sdp("10.0.0.1:4000", *wide, more=qos), "Require: precondition, 100rel")
    leg.reply(100)
    leg.reply(183, "INVITE", "callee", sdp("10.0.0.2:5000", *wide, more=qos), "RSeq: 1")
    leg.cseq = 2
    leg.request("PRACK", "caller", b"", "RAck: 1 1 INVITE")
    leg.reply(200, "PRACK")
    leg.cseq = 3
    leg.request("UPDATE", "caller", sdp("10.0.0.1:4000", *wide))
    leg.reply(200, "UPDATE", body=sdp("10.0.0.2:5000", *wide))
    leg.reply(180, cseq=1)
    wire.rtp(*B_TO_A, ssrc=2, payload_type=97)
    wire.wait(3)
    leg.reply(200, cseq=1)
    leg.request("ACK", cseq=1)
    wire.rtp(*A_TO_B, ssrc=1, payload_type=97)
    wire.wait(5)
    leg.bye()
    (call,) = wire.end()
    assert sounds(call) == [("callee", "AMR-WB", 250), ("caller", "AMR-WB", 250)]
    assert (call.outcome, "early_media" in call.flags, "hold" in call.flags) == (
        "answered", True, False,
    )  # fmt: skip


def test_an_sbc_with_two_faces_and_rewritten_numbers(wire: Wire):
    """It is called at one address and calls on from another; RFC 7989 names the session."""
    session = "Session-ID: ab30317f1a784dc48ff824d0d3715d86;remote=00000000000000000000000000000000"
    outer = Leg(wire, "outer", "+493012345", "+49891001", ("198.51.100.7:5060", "203.0.113.2:5060"))
    inner = Leg(wire, "inner", "003012345", "1001", ("10.0.0.9:5060", "10.0.0.2:5060"))
    outer.invite(sdp("198.51.100.7:4000"), session)
    inner.invite(sdp("10.0.0.9:9000"), session)
    inner.reply(200, body=BOB)
    inner.ack()
    outer.reply(200, body=sdp("203.0.113.2:9002"))
    outer.ack()
    wire.wait(1)
    one, two = wire.end()
    assert relations(one) == [("b2bua", "inner")]
    assert relations(two) == [("b2bua", "outer")]


def test_a_pbx_that_writes_the_callers_number_as_its_phones_dial_it(wire: Wire):
    outer = Leg(wire, "outer", "+493012345678", "1001", ("10.0.0.1:5060", "10.0.0.9:5060"))
    inner = Leg(wire, "inner", "0003012345678", "1001", ("10.0.0.9:5060", "10.0.0.2:5060"))
    outer.invite(ALICE)
    inner.invite(sdp("10.0.0.9:9000"))
    one, _ = wire.end()
    assert relations(one) == [("b2bua", "inner")]


def test_an_sbc_that_keeps_the_call_id_on_both_sides(wire: Wire):
    outer = Leg(wire, "same", hosts=("10.0.0.1:5060", "10.0.0.9:5060"))
    inner = Leg(wire, "same", hosts=("10.0.0.9:5060", "10.0.0.2:5060"))
    inner.tags = {"caller": "sbc", "callee": "bob"}
    outer.invite(ALICE)
    inner.answer(sdp("10.0.0.9:9000"), BOB)
    outer.reply(200, body=sdp("10.0.0.9:9002"))
    outer.ack()
    wire.rtp("10.0.0.1:4000", "10.0.0.9:9002", ssrc=1)
    wire.rtp("10.0.0.9:9002", "10.0.0.1:4000", ssrc=2)
    wire.rtp("10.0.0.9:9000", "10.0.0.2:5000", ssrc=1)
    wire.rtp("10.0.0.2:5000", "10.0.0.9:9000", ssrc=2)
    wire.wait(5)
    inner.bye()
    outer.bye()
    one, two = wire.end()
    assert [party for party, _, _ in sounds(one)] == ["caller", "callee"]
    assert [party for party, _, _ in sounds(two)] == ["caller", "callee"]
    assert [one.end_reason, two.end_reason] == ["bye", "bye"]
    assert relations(one) == relations(two) == [("b2bua", "same")]


def test_a_gateway_of_teams_is_referred_to_a_host_and_whom_to_replace_there(wire: Wire):
    """Direct routing: Refer-To has no user; media had gone past the cloud by a re-INVITE."""
    sbc, cloud = "10.0.0.9:5061", "52.114.75.24:5061"
    first = Leg(wire, "first", hosts=(sbc, cloud))
    first.answer(sdp("10.0.0.9:9000"), sdp("52.112.0.1:50000"))
    wire.rtp("10.0.0.9:9000", "52.112.0.1:50000", ssrc=1)
    reinvite(first, "callee", sdp("10.9.9.9:50020"), sdp("10.0.0.9:9000"))
    wire.rtp("10.0.0.9:9000", "10.9.9.9:50020", ssrc=1)
    wire.rtp("10.9.9.9:50020", "10.0.0.9:9000", ssrc=3)
    wire.wait(5)
    consult = Leg(wire, "consult", "1002", "1003", (cloud, sbc))
    consult.answer(sdp("52.112.0.1:50010"), sdp("10.0.0.9:9010"))
    first.cseq += 1
    replaces = "consult%3Bto-tag%3Dto-consult%3Bfrom-tag%3Dfrom-consult"
    first.request("REFER", "callee", b"", f"Refer-To: <sip:sbc.example.net?Replaces={replaces}>")
    new = Leg(wire, "new", "1001", "1003", (sbc, cloud))
    new.invite(sdp("10.0.0.9:9000"), "Replaces: consult;to-tag=to-consult;from-tag=from-consult")
    one, _, three = wire.end()
    assert [party for party, _, _ in sounds(one)] == ["caller", "caller", "callee"]
    assert relations(one) == [("transfer", "consult"), ("transfer", "new")]
    assert relations(three) == [("replaces", "consult"), ("transfer", "first")]


def test_a_call_manager_transfers_by_joining_two_legs_without_any_refer(wire: Wire):
    """CUCM: the one who transfers hangs up, the others are re-INVITEd to each other."""
    first = Leg(wire, "first", hosts=("10.0.0.1:5060", CUCM))
    second = Leg(wire, "second", hosts=(CUCM, "10.0.0.2:5060"))
    first.invite(ALICE)
    second.answer(ALICE, BOB)
    first.reply(200, body=BOB)
    first.ack()
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    asking, asked = ("10.0.0.2:5010", "10.0.0.3:6000")
    third = Leg(wire, "third", "1002", "1003", ("10.0.0.2:5060", CUCM))
    fourth = Leg(wire, "fourth", "1002", "1003", (CUCM, "10.0.0.3:5060"))
    third.invite(sdp(asking))
    fourth.answer(sdp(asking), sdp(asked))
    third.reply(200, body=sdp(asked))
    third.ack()
    wire.rtp(asking, asked, ssrc=3)
    wire.wait(5)
    second.bye()
    third.bye()
    reinvite(first, "callee", b"", ALICE, sdp(asked))
    reinvite(fourth, "caller", b"", sdp(asked), ALICE)
    wire.rtp("10.0.0.1:4000", asked, ssrc=5)
    wire.rtp(asked, "10.0.0.1:4000", ssrc=6)
    wire.wait(5)
    known = {call.call_ids[0]: call for call in wire.end()}
    assert relations(known["fourth"]) == [("b2bua", "first"), ("b2bua", "third")]
    stored = [
        (call.id, stream.number)
        for call in known.values()
        for stream in call.streams
        if stream.stored_in is None
    ]
    assert len(stored) == 5  # of five streams, each once
    assert [party for party, _, _ in sounds(known["first"])] == [
        "caller", "callee", "caller", "callee",
    ]  # fmt: skip
    assert len(known["fourth"].streams) == 3


def test_ice_that_agrees_on_other_than_the_default_addresses(wire: Wire):
    """Teams with media bypass, WebRTC: the m= line names the relay, the phones talk directly."""
    leg = Leg(wire)

    def offer(relay: str, *more: str) -> bytes:
        return sdp(relay, more=("a=ice-ufrag:abcd", "a=ice-pwd:0123456789012345678901", *more))

    leg.answer(
        offer(
            "192.0.2.1:3478",
            "a=candidate:1 1 UDP 2130706431 10.0.0.1 4000 typ host",
            "a=candidate:1 2 UDP 2130706430 10.0.0.1 4001 typ host",
            "a=candidate:2 1 UDP 16777215 192.0.2.1 3478 typ relay raddr 10.0.0.1 rport 4000",
        ),
        offer("192.0.2.1:3480", "a=candidate:1 1 udp 2130706431 10.0.0.2 5000 typ host"),
    )
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    leg.bye()
    (call,) = wire.end()
    assert [party for party, _, _ in sounds(call)] == ["caller", "callee"]


def test_a_description_for_older_peers_stands_before_the_real_one(wire: Wire):
    """Lync: multipart/alternative, the last part is the one that counts (RFC 2046 §5.1.4)."""
    old, new = sdp("10.0.0.1:4998").decode(), ALICE.decode()
    parts = "".join(
        f"--x\r\nContent-Type: application/sdp\r\n\r\n{part}\r\n" for part in (old, new)
    )
    body = f"{parts}--x--\r\n".encode()
    leg = Leg(wire)
    leg._say(  # a body of another type
        "INVITE sip:1002@10.0.0.2 SIP/2.0", "caller", "callee", "caller", "INVITE", 1, "b1", b"",
        (f"Content-Type: multipart/alternative;boundary=x\r\n\r\n{body.decode()}",), False,
    )  # fmt: skip
    leg.reply(200, body=BOB)
    leg.ack()
    wire.rtp("198.51.100.1:7000", "10.0.0.1:4000", ssrc=2)
    wire.wait(5)
    (call,) = wire.end()
    assert sounds(call) == [("callee", "PCMU", 250)]


def anonymous(wire: Wire, *headers: str) -> Leg:
    leg = Leg(wire, "hidden", "anonymous", "1002", ("10.0.0.1:5060", "10.0.0.2:5060"))
    leg.invite(ALICE, "Privacy: id", *headers)
    return leg


@pytest.mark.parametrize(
    "header",
    [
        'P-Asserted-Identity: "Ann, A." <sip:+49301234@ims.example;user=phone>, <tel:+49301234>',
        "P-Asserted-Identity: tel:+49301234",
        "P-Asserted-Identity: <tel:+49301234;phone-context=example.net>",
        "Remote-Party-ID: <sip:+49301234@10.0.0.1>;party=calling;privacy=full",
    ],
)
def test_who_an_anonymous_caller_is_the_network_says(wire: Wire, header: str):
    anonymous(wire, header)
    (call,) = wire.end()
    assert (call.caller, call.flags) == ("+49301234", ["anonymous"])


def test_nobody_says_who_an_anonymous_caller_is(wire: Wire):
    anonymous(wire)
    (call,) = wire.end()
    assert (call.caller, call.flags) == ("anonymous", ["anonymous"])


def test_the_identity_is_asserted_behind_the_first_proxy(wire: Wire):
    leg = anonymous(wire)
    leg.hosts = {"caller": "10.0.0.5:5060", "callee": "10.0.0.6:5060"}
    leg.request(
        "INVITE", "caller", ALICE, "P-Asserted-Identity: <sip:1001@example.net>",
        in_dialog=False, branch="behind",
    )  # fmt: skip
    (call,) = wire.end()
    assert call.caller == "1001"


def test_a_menu_has_answered_before_an_agent_is_called(wire: Wire):
    outer = Leg(wire, "outer", callee="860", hosts=("10.0.0.1:5060", "10.0.0.9:5060"))
    outer.answer(ALICE, sdp("10.0.0.9:9002"))
    wire.rtp("10.0.0.1:4000", "10.0.0.9:9002", ssrc=1, seconds=200)
    wire.wait(120)
    first = Leg(wire, "agent-1", callee="1002", hosts=("10.0.0.9:5060", "10.0.0.2:5060"))
    first.invite(sdp("10.0.0.9:9004"))
    first.reply(486)
    wire.wait(1)
    second = Leg(wire, "agent-2", callee="1003", hosts=("10.0.0.9:5060", "10.0.0.3:5060"))
    second.answer(sdp("10.0.0.9:9006"), sdp("10.0.0.3:6000"))
    wire.wait(1)
    one, *_ = wire.end()
    assert relations(one) == [("b2bua", "agent-1"), ("b2bua", "agent-2")]


def test_one_number_for_all_callers_of_a_company(wire: Wire):
    """Two calls at once through a trunk: whom they are for tells which leg is whose."""
    pairs = [
        (Leg(wire, f"in-{n}", "+493000", callee, ("10.0.0.1:506" + str(n), "10.0.0.9:5060")),
         Leg(wire, f"out-{n}", "+493000", callee, ("10.0.0.9:5060", "10.0.0.2:5060")))
        for n, callee in enumerate(("+49891", "+49892"))
    ]  # fmt: skip
    for inner, _ in pairs:
        inner.invite(ALICE)
    for _, outer in pairs:
        outer.invite(sdp("10.0.0.9:9000"))
    found = {call.call_ids[0]: relations(call) for call in wire.end()}
    assert found["in-0"] == [("b2bua", "out-0")]
    assert found["in-1"] == [("b2bua", "out-1")]
