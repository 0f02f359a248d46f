"""What crosses on the wire, is refused, or comes from two at once: RFC 5407, 3261 §14, 3960."""

import pytest

from tests.support.conversation import A_TO_B, ALICE, B_TO_A, BOB, Leg, Wire, sdp, sounds, talk


def parties(call):
    return [(stream.party, stream.source) for stream in call.streams]


def test_both_reinvite_at_once_and_are_told_to_wait(wire: Wire):
    """491 to both (RFC 3261 §14.1); the one who tries again moves its media."""
    leg = Leg(wire)
    talk(wire, leg)
    moved = sdp("10.0.0.1:4002")
    leg.request("INVITE", "caller", moved, cseq=2, branch="ours")
    leg.request("INVITE", "callee", sdp("10.0.0.2:5002"), cseq=7, branch="theirs")
    leg.reply(491, "INVITE", "callee", cseq=2, branch="ours")
    leg.reply(491, "INVITE", "caller", cseq=7, branch="theirs")
    wire.wait(2)
    leg.cseq = 3
    leg.request("INVITE", "caller", moved)
    leg.reply(200, body=BOB)
    wire.rtp("10.0.0.1:4002", "10.0.0.2:5000", ssrc=1)
    wire.wait(5)
    leg.bye()
    [call] = wire.end()
    assert (call.outcome, call.end_reason) == ("answered", "bye")
    assert [source for _, source in parties(call)] == [
        "10.0.0.1:4000", "10.0.0.2:5000", "10.0.0.1:4002",
    ]  # fmt: skip


def test_of_two_reinvites_with_one_number_the_refused_one_holds_nobody(wire: Wire):
    leg = Leg(wire)
    talk(wire, leg)
    hold = sdp("10.0.0.1:4000", more=("a=sendonly",))
    leg.request("INVITE", "caller", hold, cseq=2, branch="ours")
    leg.request("INVITE", "callee", sdp("10.0.0.2:5002"), cseq=2, branch="theirs")
    leg.reply(491, "INVITE", "callee", cseq=2, branch="ours")
    leg.reply(200, "INVITE", "caller", ALICE, cseq=2, branch="theirs")
    wire.rtp("10.0.0.1:4000", "10.0.0.2:5002", ssrc=9)
    wire.wait(5)
    leg.bye()
    [call] = wire.end()
    assert "hold" not in call.flags
    assert [party for party, _, _ in sounds(call)] == ["caller", "callee", "caller"]


@pytest.mark.parametrize("cancelled", ["before the answer", "behind it"])
def test_a_cancel_that_crosses_the_answer_cancels_nothing(wire: Wire, cancelled: str):
    """RFC 5407 §3.1.2: the caller acknowledges the 200 and hangs up."""
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(180)
    said = [
        lambda: leg.request("CANCEL", in_dialog=False, branch="call-1-1-INVITE"),
        lambda: leg.reply(200, body=BOB),
    ]
    for say in said if cancelled == "before the answer" else reversed(said):
        say()
    leg.reply(481, "CANCEL", branch="call-1-1-INVITE")
    leg.ack()
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(1)
    leg.bye()
    [call] = wire.end()
    assert (call.outcome, call.end_reason) == ("answered", "bye")
    assert sounds(call) == [("callee", "PCMU", 250)]


@pytest.mark.parametrize("status", [488, 408, 500])
def test_a_refused_reinvite_leaves_media_as_it_was(wire: Wire, status: int):
    leg = Leg(wire)
    talk(wire, leg)
    leg.cseq = 2
    leg.request("INVITE", "caller", sdp("10.0.0.1:4002", more=("a=sendonly",)))
    leg.reply(status)
    leg.request("ACK")
    wire.rtp(*A_TO_B, ssrc=9)
    other = Leg(wire, "other", "1001", "1009", ("10.0.0.1:5060", "10.0.0.3:5060"))
    other.answer(sdp("10.0.0.1:4002"), sdp("10.0.0.3:6000"))  # the port that was not moved to
    wire.rtp("10.0.0.1:4002", "10.0.0.3:6000", ssrc=11)
    wire.rtp("10.0.0.3:6000", "10.0.0.1:4002", ssrc=12)
    wire.wait(5)
    leg.bye()
    first, second = wire.end()
    assert [party for party, _ in parties(first)] == ["caller", "callee", "caller"]
    assert [party for party, _ in parties(second)] == ["caller", "callee"]
    assert "hold" not in first.flags


def test_the_callee_moves_its_media_before_it_answers(wire: Wire):
    """RFC 3311 §5.1: UPDATE in an early dialog; the 200 then repeats nothing."""
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(183, body=BOB)
    leg.request("UPDATE", "callee", sdp("10.0.0.2:5006"), cseq=5)
    leg.reply(200, "UPDATE", "caller", sdp("10.0.0.1:4006"), cseq=5)
    wire.rtp("10.0.0.2:5006", "10.0.0.1:4006", ssrc=3)
    leg.reply(200)
    leg.ack()
    wire.wait(5)
    leg.bye()
    [call] = wire.end()
    assert parties(call) == [("callee", "10.0.0.2:5006")]


def test_two_forks_are_heard_early_and_one_of_them_answers(wire: Wire):
    leg, second = Leg(wire), sdp("10.0.0.3:6000")
    leg.invite(ALICE)
    leg.reply(183, body=BOB, tag="one")
    wire.rtp(*B_TO_A, ssrc=1)
    leg.reply(183, body=second, tag="two")
    wire.rtp("10.0.0.3:6000", "10.0.0.1:4000", ssrc=2)
    wire.wait(3)
    leg.reply(200, body=second, tag="two")
    leg.tags["callee"] = "two"
    leg.ack()
    wire.rtp("10.0.0.1:4000", "10.0.0.3:6000", ssrc=3)
    wire.wait(5)
    leg.bye()
    [call] = wire.end()
    assert {"forked", "early_media"} <= set(call.flags)
    assert parties(call) == [
        ("callee", "10.0.0.2:5000"), ("callee", "10.0.0.3:6000"), ("caller", "10.0.0.1:4000"),
    ]  # fmt: skip


def forked(wire: Wire, one: str, two: str, *, answer: bool = True) -> Leg:
    """Two phones are rung and heard, and the second one answers."""
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(183, body=sdp(one), tag="one")
    leg.reply(183, body=sdp(two), tag="two")
    for end in dict.fromkeys((one, two)):
        wire.rtp(end, "10.0.0.1:4000", ssrc=int(end[-4:]))
    wire.wait(3)
    if answer:
        leg.reply(200, body=sdp(two), tag="two")
    leg.tags["callee"] = "two"
    leg.request("ACK")
    return leg


@pytest.mark.parametrize("answer", [True, False])
def test_who_was_heard_and_did_not_answer_is_told(wire: Wire, answer: bool):
    """Also where the 200 was lost: whom the caller acknowledges has answered."""
    leg = forked(wire, "10.0.0.2:5000", "10.0.0.3:6000", answer=answer)
    wire.rtp("10.0.0.1:4000", "10.0.0.2:5000", ssrc=3)
    leg.bye()
    [call] = wire.end()
    assert [(one.source, one.lost_fork) for one in call.streams] == [
        ("10.0.0.2:5000", True), ("10.0.0.3:6000", False), ("10.0.0.1:4000", True),
    ]  # fmt: skip


def test_a_relay_that_speaks_for_all_phones_is_none_that_did_not_answer(wire: Wire):
    """Not even once the one who answered has moved elsewhere."""
    leg = forked(wire, "10.0.0.9:7000", "10.0.0.9:7000")
    leg.cseq += 1
    leg.request("INVITE", "callee", sdp("10.0.0.3:6000"))
    leg.reply(200, "INVITE", "caller", ALICE)
    wire.rtp("10.0.0.3:6000", "10.0.0.1:4000", ssrc=3)
    leg.bye()
    [call] = wire.end()
    assert [(one.source, one.lost_fork) for one in call.streams] == [
        ("10.0.0.9:7000", False), ("10.0.0.3:6000", False),
    ]  # fmt: skip


def test_a_challenge_is_answered_under_another_call_id(wire: Wire):
    """RFC 3261 §22.2 says SHOULD be the same: the first is then a call attempt of its own."""
    first, second = Leg(wire, "first"), Leg(wire, "second")
    first.invite(ALICE)
    first.reply(407)
    first.ack()
    second.answer(ALICE, BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    second.bye()
    one, two = wire.end()
    assert (one.outcome, parties(one)) == ("failed", [])
    assert sounds(two) == [("caller", "PCMU", 250), ("callee", "PCMU", 250)]


def test_hold_by_each_custom_ends_with_the_resume(wire: Wire):
    for custom in (("[::]:4000", ()), ("[fd00::1]:4000", ("a=inactive",))):
        leg = Leg(wire, f"held by {custom[0]}")
        alice, bob = "[fd00::1]:4000", "[fd00::2]:5000"
        leg.answer(sdp(alice), sdp(bob))
        wire.rtp(alice, bob, ssrc=1)
        for body in (sdp(custom[0], more=custom[1]), sdp(alice)):
            leg.cseq += 1
            leg.request("INVITE", "caller", body)
            leg.reply(200, body=sdp(bob))
            leg.request("ACK")
            wire.wait(6)
        wire.rtp(alice, bob, ssrc=2)
        wire.wait(5)
        leg.bye()
        wire.wait(3)
    for call in wire.end():
        assert "hold" in call.flags
        assert [party for party, _ in parties(call)] == ["caller", "caller"]
