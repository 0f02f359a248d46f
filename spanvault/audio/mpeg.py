"""MPEG-1 and MPEG-2 audio, layers I to III: RTP payloads to frames.

A payload is whole frames, or a fragment of one that is too long for a packet.
Sources: RFC 2250 §3.2, §3.5; ISO/IEC 11172-3 §2.4.1.3, ISO/IEC 13818-3 §2.4.2.3 (lower rates).
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

SYNC: Final = 0x7FF
MPEG_1, MPEG_25 = 3, 0  # in two bits; 2 is MPEG-2, 1 is reserved
# kbit/s by index, of MPEG-1's layers I, II, III, then of layer I and of the others at lower rates.
KBIT: Final = (
    (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
RATES: Final = (44_100, 48_000, 32_000)  # of MPEG-1; MPEG-2 has half of it, MPEG-2.5 a quarter


class Bits(NamedTuple):
    """What of a frame's header tells its length. kbit, rate: as they are written."""

    version: int
    layer: int
    kbit: int
    rate: int
    padded: int


class Frames:
    """The frames of one stream's payloads; a fragment waits for those that follow it."""

    def __init__(self) -> None:
        self._begun = bytearray()  # a frame of which fragments are still to come
        self._offset = 0  # of the next one

    def split(self, payload: bytes) -> Iterator[bytes]:
        """Raises ValueError for what is no MPEG audio, and for a fragment without its beginning."""
        if len(payload) < 5:
            raise ValueError(f"MPA: a payload of {len(payload)} bytes")
        (offset,) = struct.unpack_from(">H", payload, 2)
        if offset == 0:
            self._begun = bytearray()
        elif not self._begun or offset != self._offset:
            self._begun = bytearray()
            raise ValueError(f"MPA: a fragment at {offset} without what is before it")
        self._offset = offset + len(payload) - 4
        data, self._begun = bytes(self._begun) + payload[4:], bytearray()
        at = 0
        while at < len(data):
            size = length(data[at : at + 4])
            if at + size > len(data):
                self._begun = bytearray(data[at:])
                return
            yield data[at : at + size]
            at += size


def length(header: bytes) -> int:
    """Bytes of the frame that begins with these four. Raises ValueError where none does."""
    bits = _bits(header)
    lower = bits.version != MPEG_1
    kbit = KBIT[(3 if bits.layer == 1 else 4) if lower else bits.layer - 1][bits.kbit - 1]
    rate = RATES[bits.rate] >> (2 if bits.version == MPEG_25 else lower)
    if bits.layer == 1:
        return (12_000 * kbit // rate + bits.padded) * 4
    samples = 576 if lower and bits.layer == 3 else 1152
    return samples // 8 * 1000 * kbit // rate + bits.padded


def _bits(header: bytes) -> Bits:
    if len(header) < 4:
        raise ValueError(f"MPA: {len(header)} bytes are no header")
    (word,) = struct.unpack(">I", header)
    bits = Bits(
        word >> 19 & 3, 4 - (word >> 17 & 3), word >> 12 & 15, word >> 10 & 3, word >> 9 & 1
    )
    # A free format (kbit 0) does not tell its length.
    if word >> 21 != SYNC or bits.version == 1 or bits.layer == 4 or bits.rate == 3:
        raise ValueError("MPA: no frame begins here")
    if bits.kbit in (0, 15):
        raise ValueError("MPA: a frame that does not tell its length")
    return bits
