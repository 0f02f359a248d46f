"""Codecs with a memory, of which the network loses 5 % in bursts: heard on, without a bang.

One side of a call is sent with holes, the other whole, by an encoder that is not the product's, and
both are exported from the store. What is lost may be concealed or silent; it must not move what
follows, part the channels, or sound louder.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.encoded import CASES, Spoken
from tests.support.spoken import Heard, call, record
from tests.support.voices import likeness

NAMES: Final = [
    "G.722", "G.726 32 kbit/s, RFC 3551", "G.726 32 kbit/s, AAL2", "G.726 16 kbit/s, RFC 3551",
    "G.723.1 6.3 kbit/s", "G.729A", "G.729A+B", "GSM", "iLBC 20 ms", "iLBC 30 ms",
    "Speex 8 kHz", "Speex 16 kHz", "Speex 32 kHz", "Opus mono", "Opus stereo", "Opus FEC",
    "AMR, bandwidth-efficient", "AMR, octet-aligned",
    "AMR-WB, bandwidth-efficient", "AMR-WB, octet-aligned, 4 frames",
]  # fmt: skip
HOLES_S: Final = ((0.40, 0.44), (1.10, 1.16))  # of two seconds: 5 %
SETTLES_S: Final = 0.3  # a decoder's memory is right again
LOUDER: Final = 1.5  # than anything near by: what no hole may be
WINDOW_S: Final = 0.02


def with_holes(spoken: Spoken) -> Spoken:
    """What begins within a hole is lost."""

    def lost(number: int) -> bool:
        at_s = number * spoken.ticks / spoken.codec.clock_rate
        return any(start - 1e-9 <= at_s < stop - 1e-9 for start, stop in HOLES_S)

    kept = [None if lost(number) else one for number, one in enumerate(spoken.payloads)]
    return spoken._replace(payloads=kept)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Heard]:
    """Each codec's call: the caller's packets have holes, the callee says the same without."""
    calls = [
        call(number, name, with_holes(CASES[name]()), CASES[name]())
        for number, name in enumerate(NAMES)
    ]
    return dict(zip(NAMES, record(tmp_path_factory.mktemp("loss"), calls), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_lost_moves_nothing_and_is_not_loud(name: str, heard: dict[str, Heard]):
    one, spoken = heard[name], CASES[name]()
    holed, whole = one.sound[:, 0], one.sound[:, 1]
    lost = {channel["party"]: channel["lost"] for channel in one.line["channels"]}
    assert lost["caller"] == with_holes(spoken).payloads.count(None)
    packet_s = spoken.ticks / spoken.codec.clock_rate
    assert abs(len(whole) / one.rate - len(spoken.payloads) * packet_s) <= max(0.06, packet_s)
    alike, later_s = likeness(holed, whole)
    assert alike > 0.8
    assert later_s == 0
    for ours, around in windows(holed, whole, one.rate):
        assert np.abs(ours).max() <= LOUDER * np.abs(around).max()
        assert power(ours) <= LOUDER**2 * max(power(part) for part in parts(around, one.rate))


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_finds_its_way_again(name: str, heard: dict[str, Heard]):
    one = heard[name]
    for start_s, stop_s in ((0.0, 0.35), (0.44 + SETTLES_S, 1.05), (1.16 + SETTLES_S, 1.95)):
        ours, theirs = one.sound[round(start_s * one.rate) : round(stop_s * one.rate)].T / 32768
        assert (ours @ theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs)) > 0.9


Sound = NDArray[np.float64]


def windows(
    holed: NDArray[np.int16], whole: NDArray[np.int16], rate: int
) -> Iterator[tuple[Sound, Sound]]:
    """Each window in and behind a hole, and what is heard around it where nothing is lost."""
    for start_s, stop_s in HOLES_S:
        near = slice(round((start_s - 0.2) * rate), round((stop_s + SETTLES_S + 0.1) * rate))
        here = slice(round(start_s * rate), round((stop_s + SETTLES_S) * rate))
        for part in parts(holed[here].astype(float), rate):
            yield part, whole[near].astype(float)


def parts(sound: Sound, rate: int) -> list[Sound]:
    """The sound in windows."""
    return np.array_split(sound, max(1, round(len(sound) / rate / WINDOW_S)))


def power(sound: Sound) -> float:
    return float((sound**2).mean())
