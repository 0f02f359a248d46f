"""The two sides of a relay: one voice, of which nothing is heard twice and nothing is missing."""

import random

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from spanvault.audio.relayed import Relayed
from spanvault.audio.render import Renderer
from spanvault.media.chunk import Chunk
from spanvault.messages import Stream
from tests.support.chunks import START_NS, Packet, seconds, steady, stream

SSRC, SAMPLES = 0x5EED, 150 * 160
LATE_MS, LATE = 0.4, 3  # the relay holds packets up: samples by which its side is heard later
VOICE = [random.Random(n).randbytes(160) for n in range(150)]
RELAYED = [one._replace(at_ms=one.at_ms + LATE_MS) for one in steady(VOICE)]


def hop(number: int, packets: list[Packet], party: str = "caller") -> Stream:
    """A stream of the one SSRC between ends of its own."""
    return msgspec.structs.replace(
        stream(number, party, first_ms=packets[0].at_ms),
        ssrc=SSRC,
        packets=len(packets),
        last_ns=START_NS + round(packets[-1].at_ms * 1e6),
    )


def heard(*hops: list[Packet]) -> NDArray[np.int16]:
    chunks = [one for number, packets in enumerate(hops) for one in seconds(packets, number)]
    renderer = Renderer([hop(number, packets) for number, packets in enumerate(hops)], 8000)
    in_order = sorted(chunks, key=lambda one: int(one.header["start_ns"]))
    return np.concatenate(list(renderer.render(in_order)))


def test_what_both_sides_carry_is_heard_once():
    assert (heard(steady(VOICE), RELAYED) == heard(steady(VOICE))).all()


def test_a_relay_that_counts_anew_says_the_same():
    """Its numbers need not be the sender's, nor on the same side of 65,536."""
    far = [one._replace(sequence=one.sequence + 66_000) for one in RELAYED]
    near = steady(VOICE)
    del near[70:75]
    assert (heard(near, far)[LATE:] == heard(steady(VOICE))).all()


def test_what_one_side_lacks_comes_from_the_other():
    """Also where it is the fuller side that lacks it."""
    near, far = steady(VOICE), list(RELAYED)
    del near[70:75], far[20:40]
    assert (heard(near, far)[:SAMPLES] == heard(steady(VOICE))).all()


def test_phones_of_one_ssrc_that_say_different_things_are_all_heard():
    other = steady(VOICE[::-1])
    alone = heard(steady(VOICE))[:, 0].astype(int) + heard(other)[:, 0]
    assert (heard(steady(VOICE), other)[:, 0] == np.clip(alone, -32768, 32767)).all()


def test_gateways_of_one_ssrc_that_begin_alike_keep_their_own_voices():
    """The same silence from timestamp 0, and then each its party's words."""
    silence = [b"\xd5" * 160] * 60
    one, other = steady([*silence, *VOICE]), steady([*silence, *VOICE[::-1]])
    chunks = [*seconds(one, 0), *seconds(other, 1)]
    relayed = Relayed([hop(0, one), hop(1, other)])
    in_order = sorted(chunks, key=lambda each: int(each.header["start_ns"]))
    kept = [each for chunk in in_order for each in relayed.receive(chunk)]
    kept += relayed.finish()
    frames = {0: 0, 1: 0}
    for chunk in kept:
        frames[int(chunk.header["stream"])] += len(chunk.frames)
    assert frames == {0: len(one), 1: len(other) - len(silence)}


def test_what_two_parties_say_to_each_other_is_not_one_voice():
    there, back = hop(0, RELAYED, "unknown"), hop(1, RELAYED, "unknown")
    there = msgspec.structs.replace(there, source="a:1", destination="b:2")
    back = msgspec.structs.replace(back, source="b:2", destination="a:1")
    assert next(Relayed([there, back]).receive(next(iter(seconds(RELAYED, 0))))) is not None


def test_a_voice_that_moves_on_one_side_alone():
    """The relay goes on to the one party as the other one changes its port."""
    before, after = steady(VOICE)[:60], steady(VOICE)[60:]
    assert (heard(before, RELAYED, after)[LATE:] == heard(steady(VOICE))).all()


@pytest.mark.parametrize("streams", [
    [hop(0, RELAYED), hop(1, RELAYED, "callee")],  # a call to oneself
    [hop(0, RELAYED[:50]), hop(1, RELAYED[50:])],  # one after the other
    [hop(0, RELAYED), msgspec.structs.replace(hop(1, RELAYED), ssrc=1)],
])  # fmt: skip
def test_of_other_streams_nothing_is_held_back(streams: list[Stream]):
    relayed = Relayed(streams)
    chunks: list[Chunk] = [*seconds(RELAYED, 0), *seconds(RELAYED, 1)]
    assert [next(relayed.receive(one)) is one for one in chunks] == [True] * len(chunks)
    assert list(relayed.finish()) == []
