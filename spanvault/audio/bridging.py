"""Packets that never came: what leads a decoder's memory over them, as in any telephone.

Speech codecs go by what they decoded before: pitch, gains. If a decoder is simply given the next
packet that was heard, that memory is too old by the gap, and the words behind it are garbled. So
it is given something in place of what was lost, and what it makes of that is left out: an export
invents no sound. Sources: GSM 06.11 (the last frame once more); ITU-T G.729 §4.4, 3GPP TS 26.091
and 26.191, RFC 6716 §4.4 (concealment); how FFmpeg is told of a frame that is
missing: its g729dec.c, g723_1dec.c, opusdec.c. Which codec takes which: codecs.py.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spanvault.audio import amr

MOST: Final = 10  # packets; decoders have faded by then
SHORT_S: Final = 0.04  # a longer packet is not much like the next one

# A frame, and its seconds → what to decode if one like it is missing.
Erasures = Callable[[bytes, float], Sequence[bytes]]


class Bridge(NamedTuple):
    """How a decoder is led over a gap.

    erased: by frames that it takes to be missing; None where it knows none.
    repeated: the packet before the gap once more does better, for the first that is lost.
    """

    erased: Erasures | None
    repeated: bool

    def frames(self, before: Sequence[bytes], packet_s: float, lost: int) -> Iterator[bytes]:
        """What to decode instead of lost packets. before: the frames of the packet before them."""
        if not all(before):
            return  # there was a pause
        # By itself, repeated once and then nothing, it would be no better than nothing.
        repeat = self.repeated and packet_s <= SHORT_S and (lost == 1 or self.erased is not None)
        for place in range(min(lost, MOST)):
            for frame in before:
                if repeat and not place:
                    yield frame
                elif self.erased is not None:
                    yield from self.erased(frame, packet_s / len(before))


def _opus(packet: bytes, _: float) -> Sequence[bytes]:
    """As many frames without a byte as the packet had. Source: RFC 6716 §3.1, §3.2."""
    code = packet[0] & 3
    count = packet[1] & 63 if code == 3 and len(packet) > 1 else min(code, 1) + 1
    return [bytes([packet[0] & ~3])] * count


# 24 bytes with a pitch lag of 127, which G.723.1 forbids: 7 bits behind 2 of kind and 24 of LSP.
_NO_PITCH: Final = b"\0\0\0\xfc\x01".ljust(24, b"\0")
_NO_DATA: Final = bytes([amr.NO_DATA << 3 | 1 << 2])

AGAIN: Final = Bridge(None, True)
G729: Final = Bridge(lambda frame, _: [bytes(len(frame))], True)  # without a bit that is set
G723: Final = Bridge(lambda *_: [_NO_PITCH], True)
OPUS: Final = Bridge(_opus, True)
AMR_NARROW: Final = Bridge(lambda *_: [_NO_DATA], False)
AMR_WIDE: Final = Bridge(lambda *_: [_NO_DATA], True)


def speex(rate: int) -> Bridge:
    """By packets of submode 0 (no transmission) and the terminator (15). Source: Speex manual."""
    bands = {8000: 0, 16000: 1, 32000: 2}[
        rate
    ]  # above the narrow one: 1, and three bits of submode
    bits = "00000" + "1000" * bands + "01111"
    packet = int(bits.ljust(24, "1"), 2).to_bytes(3)
    return Bridge(lambda _, seconds: [packet] * round(seconds / 0.02), True)


class Missing:
    """How many packets of one stream were lost before each that was heard."""

    def __init__(self) -> None:
        self._last: int | None = None

    def before(self, sequence: NDArray[Any]) -> list[int]:
        """sequence: extended numbers, n ≥ 1, rising; of a chunk behind those given before."""
        numbers = sequence.astype(np.int64)
        last = int(numbers[0]) - 1 if self._last is None else self._last
        highest = np.maximum.accumulate(np.append(last, numbers))
        self._last = int(highest[-1])
        gaps: list[int] = np.clip(numbers - highest[:-1] - 1, 0, MOST).tolist()
        return gaps
