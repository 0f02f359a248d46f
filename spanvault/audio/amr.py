"""AMR and AMR-WB payloads to the frames a decoder takes: one table-of-contents byte and speech.

Both packings: octet-aligned and bandwidth-efficient (the default). Interleaving and robust sorting
spread a frame over packets; no telephone was seen to use them, and codecs.py refuses them.
Source: RFC 4867 §4.3, §4.4, §5.3, §8.1.
"""

from collections.abc import Iterator
from typing import Final

# Speech bits by frame type; RFC 4867 §3.6. The type behind them is comfort noise (SID).
NARROW_BITS: Final = (95, 103, 118, 134, 148, 159, 204, 244)
WIDE_BITS: Final = (132, 177, 253, 285, 317, 365, 397, 461, 477)
NARROW_SID_BITS, WIDE_SID_BITS = 39, 40
NARROW_SID, WIDE_SID = len(NARROW_BITS), len(WIDE_BITS)
SPEECH_LOST, NO_DATA = 14, 15  # the latter also for AMR; the former for AMR-WB alone
MISSING: Final = frozenset({SPEECH_LOST, NO_DATA})
MAX_FRAMES: Final = 500  # ten seconds: no packet means so much


class Bits:
    """Bits of a payload, first one first."""

    def __init__(self, data: bytes) -> None:
        self._value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits as a number. Raises ValueError where the payload is too short."""
        if count > self.left:
            raise ValueError(f"AMR: {count} bits wanted, {self.left} are left")
        self.left -= count
        return (self._value >> self.left) & ((1 << count) - 1)


def frames(payload: bytes, *, wide: bool, aligned: bool, crc: bool = False) -> Iterator[bytes]:
    """The payload's frames in storage form (§5.3); damaged ones as if they had not been sent.

    Raises ValueError for a payload that is not what its table of contents says, bit by bit.
    """
    bits = Bits(payload)
    bits.take(8 if aligned else 4)  # the codec mode request is for the other side
    contents = [(kind, good, _size(kind, wide)) for kind, good in _contents(bits, aligned)]
    if crc:
        bits.take(8 * sum(size > 0 for _, _, size in contents))  # §4.4.2.1: one byte a frame
    found = []
    for type_, good, size in contents:
        speech = bits.take(size)
        if aligned:
            bits.take(-size % 8)
        padded = (speech << (-size % 8)).to_bytes((size + 7) // 8, "big")
        found.append(_head(type_) + padded if good else _head(NO_DATA))
    if bits.left > 7:
        raise ValueError(f"AMR: {bits.left} bits more than the table of contents says")
    yield from found


def either(payload: bytes, *, wide: bool, aligned: bool, crc: bool = False) -> Iterator[bytes]:
    """The frames in the packing that was signalled; in the other where only that one fits.

    Some phones send octet-aligned what they offered without a parameter.
    """
    try:
        yield from frames(payload, wide=wide, aligned=aligned, crc=crc)
    except ValueError:
        if crc:
            raise
        yield from frames(payload, wide=wide, aligned=not aligned)


def kind(frame: bytes) -> int:
    """The type of a frame in storage form."""
    return frame[0] >> 3 & 15


def _head(kind: int) -> bytes:
    return bytes([kind << 3 | 1 << 2])


def _size(kind: int, wide: bool) -> int:
    """Bits of a frame type. Raises ValueError for a reserved one."""
    speech, sid = (WIDE_BITS, WIDE_SID_BITS) if wide else (NARROW_BITS, NARROW_SID_BITS)
    if kind < len(speech):
        return speech[kind]
    if kind == len(speech):
        return sid
    if kind == NO_DATA or (wide and kind == SPEECH_LOST):
        return 0
    raise ValueError(f"AMR: frame type {kind} is reserved")


def _contents(bits: Bits, aligned: bool) -> Iterator[tuple[int, int]]:
    """Frame type and quality of each frame. Source: §4.3.2."""
    follows, count = 1, 0
    while follows:
        follows, kind, good = bits.take(1), bits.take(4), bits.take(1)
        if aligned:
            bits.take(2)
        count += 1
        if count > MAX_FRAMES:
            raise ValueError(f"AMR: more than {MAX_FRAMES} frames in a packet")
        yield kind, good
