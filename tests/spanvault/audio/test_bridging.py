"""Behind a loss the words are clear again at once; of what was lost nothing is heard."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.audio.bridging import AGAIN, AMR_NARROW, G723, G729, MOST, OPUS, Missing, speex
from spanvault.audio.codecs import open_decoder
from spanvault.audio.foreign import decode_all
from spanvault.audio.plain import Samples
from tests.support.encoded import CASES

# Of each codec, how alike that what was not lost must be to what it is without a loss: of nine
# packets one lost; of 29 six in a row. Without a bridge it is 0.1 to 0.3 less.
ONE_OF_NINE: Final = {
    "GSM": 0.96, "G.729A": 0.9, "G.723.1 6.3 kbit/s": 0.97, "Speex 8 kHz": 0.95,
    "Speex 16 kHz": 0.94, "Speex 32 kHz": 0.95, "Opus mono": 0.97, "Opus stereo": 0.97,
    "Opus FEC": 0.97, "Opus 60 ms": 0.99, "AMR, bandwidth-efficient": 0.88,
    "AMR-WB, bandwidth-efficient": 0.93,
}  # fmt: skip
SIX_IN_A_ROW: Final = {
    "G.729A": 0.86, "Speex 8 kHz": 0.93, "Speex 16 kHz": 0.93, "Speex 32 kHz": 0.93,
    "Opus mono": 0.9, "Opus FEC": 0.9, "AMR, bandwidth-efficient": 0.83,
    "AMR-WB, bandwidth-efficient": 0.79,
}  # fmt: skip


def one_of_nine(number: int) -> bool:
    return number % 9 == 8


def six_in_a_row(number: int) -> bool:
    return number % 29 in range(11, 17)


def joined(sounds: Sequence[Samples | None]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([one for one in sounds if one is not None]).astype(np.float64)


@pytest.mark.parametrize(
    ("name", "lost", "least"),
    [
        *((name, one_of_nine, least) for name, least in ONE_OF_NINE.items()),
        *((name, six_in_a_row, least) for name, least in SIX_IN_A_ROW.items()),
    ],
)
def test_what_follows_a_loss_is_clear(name: str, lost: Callable[[int], bool], least: float):
    spoken = CASES[name]()
    payloads = [one for one in spoken.payloads if one]
    kept = [number for number in range(len(payloads)) if not lost(number)]
    whole = decode_all(open_decoder(spoken.codec), payloads)
    missing = Missing().before(np.array(kept))
    heard = decode_all(open_decoder(spoken.codec), [payloads[n] for n in kept], missing)
    ours, theirs = joined(heard), joined([whole[n] for n in kept])
    assert len(ours) == len(theirs)
    assert (ours @ theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs)) >= least
    assert np.abs(ours).max() <= 1.5 * np.abs(theirs).max()


def test_missing_packets_are_counted_once():
    missing = Missing()
    assert missing.before(np.array([65_540, 65_541, 65_544])) == [0, 0, 2]
    # One that came late was counted as missing; what follows it has lost nothing.
    assert missing.before(np.array([65_543, 65_545, 65_547])) == [0, 0, 1]
    assert missing.before(np.array([70_000])) == [MOST]


def test_a_pause_is_not_bridged():
    assert list(G729.frames([bytes(range(10)), b""], 0.02, 3)) == []


@pytest.mark.parametrize(
    ("bridge", "before", "lost", "frames"),
    [
        (AGAIN, [b"a", b"b"], 1, [b"a", b"b"]),
        (AGAIN, [b"a"], 2, []),  # twice the same is a drone
        (G729, [b"0123456789"], 2, [b"0123456789", bytes(10)]),
        (AMR_NARROW, [b"a", b"b"], 2, [b"\x7c"] * 4),
        (OPUS, [b"\x78abc"], 2, [b"\x78abc", b"\x78"]),
        (OPUS, [b"\x79abcd"], 2, [b"\x79abcd", b"\x78", b"\x78"]),
        (OPUS, [b"\x7b\x03abc"], 2, [b"\x7b\x03abc", b"\x78", b"\x78", b"\x78"]),
    ],
)
def test_what_stands_for_a_packet(bridge, before, lost, frames):
    assert list(bridge.frames(before, 0.02, lost)) == frames


def test_a_packet_of_two_frames_of_speex_stands_for_both():
    assert len(list(speex(16000).frames([b"two frames"], 0.04, 3))) == 1 + 2 * 2


def test_a_long_packet_is_not_said_twice():
    assert list(OPUS.frames([b"\x78abc"], 0.06, 1)) == [b"\x78"]
    assert list(AGAIN.frames([b"a"], 0.06, 1)) == []


@given(st.binary(min_size=1, max_size=20), st.integers(1, 10_000))
def test_any_payload_is_bridged_within_bounds(payload: bytes, lost: int):
    for bridge in (AGAIN, OPUS, G723, G729, AMR_NARROW):
        assert len(list(bridge.frames([payload], 0.02, lost))) <= 63 * MOST
