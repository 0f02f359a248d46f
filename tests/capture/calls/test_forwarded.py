"""An SBC that hides all of one leg in the other but the sound, which it hands on as it is."""

from dataclasses import replace

import pytest

from tests.support.callgen import START_NS, answered, phones
from tests.support.conversation import Leg, Wire, sdp, sounds
from tests.support.running import Run


def relations(call):
    return sorted((other.kind, other.call_id) for other in call.related)


OUTER, INNER = ("198.51.100.7:4000", "203.0.113.2:9002"), ("192.168.1.9:9000", "10.0.0.2:5000")


def hidden_legs(wire: Wire) -> tuple[Leg, Leg]:
    """An SBC that leaves nothing of one leg in the other: no host, number or header."""
    outer = Leg(wire, "outer", "+4930111", "+4989222", ("198.51.100.7:5060", "203.0.113.2:5060"))
    inner = Leg(wire, "inner", "trunk", "77", ("192.168.1.9:5060", "10.0.0.2:5060"))
    outer.invite(sdp(OUTER[0]))
    inner.answer(sdp(INNER[0]), sdp(INNER[1]))
    outer.reply(200, body=sdp(OUTER[1]))
    outer.ack()
    return outer, inner


def test_legs_that_share_nothing_but_the_sound_that_an_sbc_hands_on(wire: Wire):
    """RFC 3550 §7: who only forwards leaves SSRC and timestamps as they are."""
    outer, inner = hidden_legs(wire)
    wire.rtp(*OUTER, ssrc=0x51C0FFEE, timestamp=2**32 - 4000)
    wire.wait(1)  # the timestamps wrap meanwhile
    wire.rtp(*INNER, ssrc=0x51C0FFEE, timestamp=4008)
    wire.rtp(*reversed(INNER), ssrc=0x0BADF00D, timestamp=70)
    wire.rtp(*reversed(OUTER), ssrc=0x0BADF00D, timestamp=70)
    wire.wait(5)
    inner.bye()
    outer.bye()
    one, two = wire.end()
    assert relations(one) == [("b2bua", "inner")]
    assert relations(two) == [("b2bua", "outer")]
    for call in (one, two):
        assert sounds(call) == [("caller", "PCMU", 250), ("callee", "PCMU", 250)]
        assert [stream.stored_in for stream in call.streams] == [None, None]


def test_a_leg_that_comes_hours_later_is_found_though_the_senders_clock_drifted(wire: Wire):
    hidden_legs(wire)
    wire.rtp(*OUTER, ssrc=0x51C0FFEE, timestamp=0, seconds=4 * 3600)
    wire.rtp(*reversed(INNER), ssrc=7, seconds=4 * 3600)
    wire.wait(3 * 3600)
    wire.rtp(*INNER, ssrc=0x51C0FFEE, timestamp=3 * 3600 * 8001)  # 125 ppm
    one, two = wire.end()
    assert relations(one) == [("b2bua", "inner")]
    assert relations(two) == [("b2bua", "outer")]


@pytest.mark.parametrize(
    ("ssrc", "timestamp", "why"),
    [
        (0x51C0FFEE, 20_000, "another moment of the same file"),
        (0x51C0FFEE, None, "nobody knows when"),
        (1, 8, "an SSRC that was not chosen at random"),
    ],
)
def test_one_ssrc_alone_makes_no_legs_of_two_calls(
    wire: Wire, ssrc: int, timestamp: int | None, why: str
):
    hidden_legs(wire)
    wire.rtp(*OUTER, ssrc=ssrc, timestamp=0)
    wire.rtp(*INNER, ssrc=ssrc, timestamp=timestamp)
    assert [relations(call) for call in wire.end()] == [[], []], why


def test_a_load_generator_that_plays_one_file_in_all_calls_makes_no_legs_of_them(wire: Wire):
    for n in range(3):
        leg = Leg(wire, f"load-{n}", f"caller{n}", f"callee{n}")
        ours, theirs = f"10.0.0.1:{4000 + 2 * n}", f"10.0.0.2:{5000 + 2 * n}"
        leg.answer(sdp(ours), sdp(theirs))
        wire.rtp(ours, theirs, ssrc=0x51C0FFEE, timestamp=0)
    assert [relations(call) for call in wire.end()] == [[], [], []]


def test_both_legs_are_recorded_whole_and_know_each_other():
    """As packets: 30 ms between the legs, and another call of the same minute."""
    ann, bob = phones(3.0)
    face = replace(bob, number="9900", address="203.0.113.2", rtp_port=9002)
    back = replace(ann, number="trunk", address="192.168.1.9", rtp_port=9000)
    frames = answered(START_NS, ann, face, "outer")
    frames += answered(START_NS + 30_000_000, back, bob, "inner")
    frames += answered(START_NS + 400_000_000, *phones(3.0, 1), "other")
    calls = {call.call_ids[0]: call for call in Run().part(sorted(frames)).end().calls()}
    assert {name: relations(call) for name, call in calls.items()} == {
        "outer": [("b2bua", "inner")], "inner": [("b2bua", "outer")], "other": [],
    }  # fmt: skip
    for call in calls.values():
        heard = [(stream.party, stream.packets, stream.stored_in) for stream in call.streams]
        assert heard == [("caller", 150, None), ("callee", 150, None)]
