"""Chunks in, stereo out: every test is a short call."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from spanvault.audio.plain import A_LAW
from spanvault.audio.render import Lane, Renderer, output_rate
from spanvault.media.chunk import TRUNCATED, Chunk
from spanvault.messages import Codec, Stream
from tests.support.chunks import Packet, seconds, steady, stream

LOUD = int(A_LAW[0x2A])  # one A-law code, so that a constant payload is a constant sound
CALLER, CALLEE = b"\x2a" * 160, b"\xaa" * 160


def render(
    streams: list[Stream], chunks: Iterable[Chunk], rate: int = 8000
) -> tuple[NDArray[np.int16], Renderer]:
    renderer = Renderer(streams, rate)
    in_order = sorted(chunks, key=lambda one: int(one.header["start_ns"]))
    blocks = list(renderer.render(in_order))
    return np.concatenate([np.zeros((0, 2), np.int16), *blocks]), renderer


def runs(side: NDArray[np.int16]) -> list[tuple[int, int, int]]:
    """Where each stretch of sound begins and ends (ms), and what it is."""
    edges = np.flatnonzero(np.diff(side, prepend=0, append=0)) // 8
    stretches = [(int(a), int(b), int(side[a * 8])) for a, b in pairwise(edges)]
    return [stretch for stretch in stretches if stretch[2]]


def test_caller_left_callee_right_on_one_time_line():
    sound, _ = render(
        [stream(0), stream(1, "callee", first_ms=500)],
        [*seconds(steady([CALLER] * 100), 0), *seconds(steady([CALLEE] * 50, at_ms=500), 1)],
    )
    assert runs(sound[:, 0]) == [(0, 2000, LOUD)]
    assert runs(sound[:, 1]) == [(500, 1500, -LOUD)]
    assert len(sound) == 16000


def test_a_first_packet_that_waited_costs_no_sound():
    packets = steady([CALLER] * 50)
    packets[0] = packets[0]._replace(at_ms=30)
    sound, _ = render(
        [stream(0, first_ms=20), stream(1, "callee", first_ms=500)],
        [*seconds(packets, 0), *seconds(steady([CALLEE] * 5, at_ms=500), 1)],
    )
    assert runs(sound[:, 0]) == [(0, 1000, LOUD)]
    assert runs(sound[:, 1]) == [(500, 600, -LOUD)]


def test_lost_packets_are_silence_of_their_length():
    packets = steady([CALLER] * 10)
    del packets[4:7]
    sound, _ = render([stream()], seconds(packets))
    assert runs(sound[:, 0]) == [(0, 80, LOUD), (140, 200, LOUD)]


def test_digits_and_comfort_noise_are_silence():
    codecs = {8: Codec("PCMA", 8000), 13: Codec("CN", 8000), 101: Codec("telephone-event", 8000)}
    one = stream()
    one.codecs = codecs
    packets = [
        *steady([CALLER] * 5),
        *steady([b"\x40"] * 1, at_ms=100, sequence=5, timestamp=800, payload_type=13),
        *steady([b"\x05\x0a\x00\xa0"] * 5, at_ms=200, sequence=6, timestamp=1600, ticks=0,
                payload_type=101),
        *steady([CALLER] * 5, at_ms=300, sequence=11, timestamp=2400),
    ]  # fmt: skip
    sound, renderer = render([one], seconds(packets))
    assert runs(sound[:, 0]) == [(0, 100, LOUD), (300, 400, LOUD)]
    assert not renderer.warnings


@pytest.mark.parametrize(
    "timestamp", [8_000, 240_000, 3_000_000_000], ids=["stood still", "went on", "began anew"]
)
def test_a_hold_keeps_its_length_whatever_the_timestamp_did(timestamp):
    """Neither by arrival and timestamp both, nor by one of them alone."""
    again = steady([CALLER] * 50, at_ms=30_000, sequence=50, timestamp=timestamp)
    sound, _ = render([stream()], seconds([*steady([CALLER] * 50), *again]))
    assert runs(sound[:, 0]) == [(0, 1000, LOUD), (30_000, 31_000, LOUD)]


@pytest.mark.parametrize("ptime_ms", [10, 30, 40, 60])
def test_packets_last_as_long_as_their_payload_says(ptime_ms):
    size, count = 8 * ptime_ms, 1_200 // ptime_ms
    usual = steady([CALLER] * 30, at_ms=1_200, sequence=count, timestamp=9_600)
    packets = steady([b"\x2a" * size] * count, ptime_ms=ptime_ms, ticks=size)
    del packets[5]
    sound, _ = render([stream()], seconds([*packets, *usual]))
    gap = 5 * ptime_ms
    assert runs(sound[:, 0]) == [(0, gap, LOUD), (gap + ptime_ms, 1_800, LOUD)]


def test_streams_of_one_party_follow_each_other():
    sound, _ = render(
        [stream(0), stream(1, first_ms=1000)],
        [*seconds(steady([CALLER] * 50), 0),
         *seconds(steady([CALLEE] * 50, at_ms=1000, sequence=7, timestamp=99), 1)],
    )  # fmt: skip
    assert runs(sound[:, 0]) == [(0, 1000, LOUD), (1000, 2000, -LOUD)]


def test_streams_of_one_party_at_the_same_time_are_mixed_without_wrapping():
    loudest = b"\xaa" * 160  # code 0xAA: the loudest positive one
    sound, _ = render(
        [stream(number) for number in range(3)],
        [one for n in range(3) for one in seconds(steady([loudest] * 5), n)],
    )
    assert set(sound[:800, 0].tolist()) <= {32767, -32768}


def test_unknown_parties_take_the_free_side():
    known, other = stream(0, "callee"), stream(1, "unknown")
    sound, _ = render(
        [known, other], [*seconds(steady([CALLEE] * 5), 0), *seconds(steady([CALLER] * 5), 1)]
    )
    assert (runs(sound[:, 0]), runs(sound[:, 1])) == ([(0, 100, LOUD)], [(0, 100, -LOUD)])


def test_two_unknown_senders_take_a_side_each():
    sound, _ = render(
        [stream(0, "unknown"), stream(1, "unknown", first_ms=20)],
        [*seconds(steady([CALLER] * 5), 0), *seconds(steady([CALLEE] * 4, at_ms=20), 1)],
    )
    assert (runs(sound[:, 0]), runs(sound[:, 1])) == ([(0, 100, LOUD)], [(20, 100, -LOUD)])


def test_an_unknown_codec_is_silence_and_named():
    lpc = stream(0, codec=Codec("LPC", 8000), payload_type=7)
    sound, renderer = render(
        [lpc, stream(1, "callee")],
        [*seconds(steady([CALLER] * 5, payload_type=7), 0), *seconds(steady([CALLEE] * 10), 1)],
    )
    assert runs(sound[:, 0]) == []
    assert len(sound) == 1600
    assert dict(renderer.warnings) == {
        "packets of codec LPC (payload type 7) cannot be decoded: silence": 5
    }


def test_encrypted_payloads_are_never_noise():
    renderer = Renderer([stream()], 8000, encrypted=True)
    sound = np.concatenate(list(renderer.render(seconds(steady([CALLER] * 50)))))
    assert len(sound) == 49 * 160
    assert not sound.any()
    assert "are encrypted" in next(iter(renderer.warnings))


def test_video_is_not_heard():
    video = stream(0, codec=Codec("H264", 90000), payload_type=96)
    video.media = "video"
    sound, renderer = render([video], seconds(steady([CALLER] * 5, payload_type=96)))
    assert len(sound) == 0
    assert not renderer.warnings


def test_a_packet_cut_by_the_snap_length_gives_what_is_there():
    whole, cut = Packet(0, 0, 0, CALLER), Packet(20, 1, 160, CALLER[:40], flags=TRUNCATED)
    sound, _ = render([stream()], seconds([whole, cut]))
    assert runs(sound[:, 0]) == [(0, 25, LOUD)]


def test_any_shuffle_of_late_packets_gives_the_same_sound():
    packets = steady([bytes([0x20 + n]) * 160 for n in range(50)])
    plain, _ = render([stream()], seconds(packets))
    random = np.random.default_rng(5)
    late = [one._replace(at_ms=one.at_ms + random.uniform(0, 300)) for one in packets]
    late[0] = packets[0]
    shuffled, _ = render([stream()], seconds(late))
    assert np.array_equal(plain, shuffled)


def test_a_clock_that_leapt_by_a_year_costs_no_silence():
    year = 365 * 86_400_000
    packets = [
        *steady([CALLER] * 50),
        *steady([CALLER] * 50, at_ms=year, sequence=50, timestamp=8000),
    ]
    chunks = [*seconds(packets[:50]), *seconds(packets[50:])]
    sound, renderer = render([stream()], chunks)
    assert len(sound) < 3 * 8000
    assert len(renderer.warnings) == 1


def test_wideband_beside_narrowband_is_aligned():
    wide = stream(1, "callee", Codec("L16", 16000), payload_type=96)
    click = np.zeros(320, ">i2")
    click[0] = 20000
    narrow = bytes([0x2A]) + b"\xd5" * 159
    rate = output_rate([stream(0), wide])
    sound, _ = render(
        [stream(0), wide],
        [*seconds(steady([narrow] * 100), 0),
         *seconds(steady([click.tobytes()] * 100, ticks=320, payload_type=96), 1)],
        rate,
    )  # fmt: skip
    assert rate == 16000
    left, right = (np.argmax(np.abs(sound[16000:16300, side])) for side in (0, 1))
    assert abs(int(left) - int(right)) <= 1
    assert abs(len(sound) - 32000) <= 2


def test_output_rate_is_the_least_that_loses_nothing():
    assert output_rate([stream()]) == 8000
    assert output_rate([stream(), stream(1, codec=Codec("G722", 8000), payload_type=9)]) == 16000
    assert output_rate([stream(1, codec=Codec("opus", 48000, 2), payload_type=96)]) == 48000
    assert output_rate([]) == 8000


def test_an_hour_costs_little_memory():
    renderer, longest = Renderer([stream()], 8000), 0
    for second in range(3600):
        packets = steady(
            [CALLER] * 50, at_ms=second * 1000, sequence=50 * second, timestamp=8000 * second
        )
        for one in seconds(packets):
            for _ in renderer.receive(one):
                pass
        longest = max([longest, *(len(lane._buffer) for lane in renderer._lanes.values())])
    assert longest < 60 * 8000


def test_a_frame_of_a_false_time_costs_no_memory_and_none_of_the_rest() -> None:
    lane = Lane(0, 8000, 8000, 0)
    said = np.full(160, 1000, np.int16)
    lane.place(0, said)
    lane.place(1 << 48, said)
    assert lane.end == 160
    assert np.array_equal(lane.block()[:160], said)
