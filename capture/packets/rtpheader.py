"""Where RTP payloads lie in their packets: behind CSRCs and header extension, before padding.

A packet whose header is more than its twelve bytes is held whole, with chunk.WHOLE among its flags:
were it encrypted, nobody could open it without all of its header. Where it surely is not, the
payload alone leaves. No loop over packets.
Sources: RFC 3550 §5.1, §5.3.1; RFC 3711 §3.1 (what is authenticated). One packet at a time, for
who reads a recording: spanvault.media.rtp.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.packets.columns import rows
from spanvault.media.chunk import TRUNCATED, WHOLE

FIXED: Final = 12  # bytes of a header without CSRCs and extension
PADDING, EXTENSION, CSRC_COUNT = 0x20, 0x10, 0x0F  # of the first byte
MORE: Final = PADDING | EXTENSION | CSRC_COUNT

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]


def lengths(data: Bytes, start: Offsets, first: NDArray[np.uint8]) -> Offsets:
    """Bytes of each header. data: uint8[*].  start: int64[n], of packets.  first: their first byte.

    Of a packet that was cut before its extension the result means nothing.
    """
    length = FIXED + 4 * (first & CSRC_COUNT).astype(np.int64)
    extended = np.flatnonzero(first & EXTENSION)
    words = rows(data, start[extended] + length[extended] + 2, 2).view(">u2")
    length[extended] += 4 + 4 * words.astype(np.int64)
    return length


def payloads(
    data: Bytes, start: Offsets, size: Offsets, truncated: NDArray[np.bool_]
) -> tuple[Offsets, Offsets, int]:
    """Where each packet's payload begins, how long it is, and of how many the padding cannot be.

    size: int64[n], bytes of each packet.  truncated: bool[n], it was longer on the wire.
    """
    first = rows(data, start, 1).view(np.uint8)
    header = lengths(data, start, first)
    length = np.maximum(size - header, 0)
    padded = np.flatnonzero((first & PADDING != 0) & ~truncated & (length > 0))
    padding = rows(data, (start + size)[padded] - 1, 1).view(np.uint8).astype(np.int64)
    right = (padding > 0) & (padding <= length[padded])
    length[padded[right]] -= padding[right]
    # A count that cannot be is somebody's fault, not a reason to lose the sound.
    return start + header, length, len(padded) - int(right.sum())


def unwrap(
    frames: NDArray[np.void], place: Offsets, arena: Bytes, whole: NDArray[np.intp]
) -> tuple[NDArray[np.uint16], Offsets, int]:
    """Of frames that are held whole the payload's bytes and place; and impossible paddings.

    frames: FRAME[n].  place: int64[n], of each in the arena.  whole: which of them are so held.
    """
    some = frames[whole]
    start, length, bad = payloads(
        arena, place[whole], some["length"].astype(np.int64), some["flags"] & TRUNCATED != 0
    )
    size, at = frames["length"].copy(), place.copy()
    size[whole], at[whole] = length, start
    return size, at, bad


def strip(
    frames: NDArray[np.void], place: Offsets, size: NDArray[np.uint16], at: Offsets,
    which: NDArray[np.intp],
) -> None:  # fmt: skip
    """Leave of these frames the payload alone. size, at: as `unwrap` gives them."""
    frames["length"][which], place[which] = size[which], at[which]
    frames["flags"][which] &= np.uint8(0xFF ^ WHOLE)
