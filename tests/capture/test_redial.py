"""Who owns a stream where a B2BUA's calls follow each other on the same ports and SSRCs.

Each call is two legs, which both name both phones: once by the phone itself, once by the B2BUA.
One call's sound in another's recording would be heard by who must not hear it.
"""

from dataclasses import replace

import pytest

from tests.support.callgen import (
    ANSWERED_NS,
    SECOND,
    START_NS,
    Frame,
    Phone,
    around,
    phones,
    rtp,
    sdp,
    udp_frame,
)
from tests.support.conversation import A_TO_B, ALICE, B_TO_A, BOB, Leg, Wire
from tests.support.running import Run

PHONE_A, PBX, PHONE_B = "10.0.0.1:5060", "10.0.0.9:5060", "10.0.0.2:5060"


class Through:
    """A call through a B2BUA that stays out of the media's way."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.inner = Leg(wire, f"{name}-inner", hosts=(PHONE_A, PBX))
        self.outer = Leg(wire, f"{name}-outer", hosts=(PBX, PHONE_B))

    def set_up(self) -> None:
        self.inner.invite(ALICE)
        self.outer.invite(ALICE)
        for leg in (self.outer, self.inner):
            leg.reply(180)
            leg.reply(200, body=BOB)
            leg.ack()

    def bye(self, heard: str) -> None:
        for leg in (self.inner, self.outer):
            if heard in (leg.call_id.rpartition("-")[2], "both"):
                leg.bye()


def owners(wire: Wire) -> dict[str, set[int]]:
    """Which SSRCs each call lists."""
    return {call.call_ids[0]: {s.ssrc for s in call.streams} for call in wire.end()}


@pytest.mark.parametrize("gap_s", [0.3, 1.5, 5, 20, 40])
@pytest.mark.parametrize("byes", ["none", "inner", "outer", "both"])
def test_two_legs_share_their_own_streams_and_none_of_the_call_before(byes, gap_s):
    wire = Wire()
    first, second = Through(wire, "first"), Through(wire, "second")
    first.set_up()
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    first.bye(byes)
    wire.wait(gap_s)
    second.set_up()
    wire.rtp(*A_TO_B, ssrc=3)
    wire.rtp(*B_TO_A, ssrc=4)
    wire.wait(5)
    assert owners(wire) == {
        "first-inner": {1, 2}, "first-outer": {1, 2},
        "second-inner": {3, 4}, "second-outer": {3, 4},
    }  # fmt: skip


def silent_between(start_ns: int, speaker: Phone, listener: Phone, parts) -> list[Frame]:
    """A voice with silence in it: numbers go on, timestamps count (DTX). parts: seconds."""
    ends = [(phone.address, phone.rtp_port) for phone in (speaker, listener)]
    at = [number for begin, end in parts for number in range(int(begin * 50), int(end * 50))]
    return [
        udp_frame(
            start_ns + place * 20_000_000, ends[0], ends[1],
            rtp(1000 + number, 160 * place, speaker.ssrc, bytes(160)),
        )
        for number, place in enumerate(at)
    ]  # fmt: skip


@pytest.mark.parametrize("resumes_s", [5.5, 8, 12])
def test_who_is_silent_keeps_its_stream_as_another_call_begins_on_the_same_ports(resumes_s):
    """Two calls at once between two servers' one port each, told apart by SSRC alone."""
    caller, callee = phones(0.1)
    other, another = replace(caller, ssrc=77), replace(callee, ssrc=78)
    talk_ns = START_NS + ANSWERED_NS
    media = silent_between(talk_ns, caller, callee, [(0, 2), (resumes_s, 15)])
    media += silent_between(talk_ns, callee, caller, [(0, 15)])
    later_ns = START_NS + 4 * SECOND
    second = silent_between(later_ns + ANSWERED_NS, other, another, [(0, 5)])
    second += silent_between(later_ns + ANSWERED_NS, another, other, [(0, 5)])
    bodies = (sdp(caller), sdp(callee))
    frames = around(media, START_NS, caller, callee, "first", bodies, 15.0)
    frames += around(second, later_ns, other, another, "second", bodies, 5.0)
    calls = Run().part(sorted(frames)).end().calls()
    heard = {call.call_ids[0]: {s.ssrc for s in call.streams} for call in calls}
    assert heard == {"first": {caller.ssrc, callee.ssrc}, "second": {77, 78}}
