"""AMR and AMR-WB payloads to the frames a decoder takes: one table-of-contents byte and speech.

Both packings: octet-aligned and bandwidth-efficient (the default). Interleaving and CRCs, which
no telephone was seen to use, are refused by length. Source: RFC 4867 §4.3, §4.4, §5.3.
"""

from collections.abc import Iterator
from typing import Final

# Speech bits by frame type; RFC 4867 §3.6. Types 9 and above of AMR-WB carry no speech.
NARROW_BITS: Final = (95, 103, 118, 134, 148, 159, 204, 244, 39)
WIDE_BITS: Final = (132, 177, 253, 285, 317, 365, 397, 461, 477, 40)


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


def frames(payload: bytes, *, wide: bool, aligned: bool) -> Iterator[bytes]:
    """The payload's frames in storage form (§5.3); an empty one where no speech was sent.

    Raises ValueError for a payload that does not hold what its table of contents says.
    """
    sizes = WIDE_BITS if wide else NARROW_BITS
    bits = Bits(payload)
    bits.take(8 if aligned else 4)  # the codec mode request is for the other side
    for kind, good in list(_contents(bits, aligned)):
        size = sizes[kind] if kind < len(sizes) else 0
        speech = bits.take(size)
        if aligned:
            bits.take(-size % 8)
        padding = -size % 8
        head = bytes([kind << 3 | good << 2])
        yield head + (speech << padding).to_bytes((size + 7) // 8, "big") if size else b""


def _contents(bits: Bits, aligned: bool) -> Iterator[tuple[int, int]]:
    """Frame type and quality of each frame. Source: §4.3.2."""
    follows = 1
    while follows:
        follows, kind, good = bits.take(1), bits.take(4), bits.take(1)
        if aligned:
            bits.take(2)
        yield kind, good
