"""Who owns a stream where a B2BUA's calls follow each other on the same ports and SSRCs.

Each call is two legs, which both name both phones: once by the phone itself, once by the B2BUA.
One call's sound in another's recording would be heard by who must not hear it.
"""

import pytest

from tests.support.conversation import A_TO_B, ALICE, B_TO_A, BOB, Leg, Wire

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
