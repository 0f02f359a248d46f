"""Where the frames of a sealed object lie, by its trailer: any moment of it, without a walk.

The trailer is sealed like any frame, and yet it is not believed blindly: each frame that is read
must end where the next thing begins that it lists, so nothing lies hidden between two. Whatever
does not fit is a ValueError, and the caller walks the object instead (storaged.format.walk), which
needs no list. Source: FORMAT.md §4.4. Who reads pages: storaged.recordings.reading. Pure.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storaged.format.sealing import (
    FRAME_HEAD_BYTES,
    HEADER_BYTES,
    LAST,
    LOCATOR_BYTES,
    Header,
    Locator,
    SegmentKey,
    Trailer,
    parse_frame_head,
)
from storaged.format.walk import Bytes, FindKey, Place

# A frame's row says when its chunks start, not when they end. A chunk is about a second (WIRE.md
# §1); another capture's may be longer, and a few frames too many cost a listener nothing.
_LONGEST_CHUNK_NS: Final = 10 * 10**9


class Contents(NamedTuple):
    """A sealed object's table of contents. entries: ENTRY[n], in order, as the trailer has them.

    last: offset of the LAST frame. segments: int64[s], offsets of the headers. record: the call's,
    MessagePack; empty if none was known.
    """

    headers: list[tuple[int, Header]]
    entries: NDArray[np.void]
    segments: NDArray[np.int64]
    last: int
    record: bytes

    def places(self, data: Bytes, offset: int, from_ns: int | None) -> Iterator[Place]:
        """The frames of chunks at or behind an offset, in order, each checked as it is given.

        from_ns: leaves out frames that have nothing from then on. Raises ValueError where the
        object is not as the trailer says.
        """
        starts = self.entries["offset"].astype(np.int64)
        wanted = starts >= offset
        if from_ns is not None:
            wanted &= self.entries["last_ns"] >= from_ns - _LONGEST_CHUNK_NS
        bounds = [*starts.tolist(), self.last]
        if not offset:
            self._check_between(data, 0, bounds[0])
        rows = np.flatnonzero(wanted)
        segments = np.searchsorted(self.segments, starts[rows], "right") - 1
        for row, segment in zip(rows.tolist(), segments.tolist(), strict=True):
            length, flag = _frame_head(data, at := bounds[row])
            start = at + FRAME_HEAD_BYTES
            if flag == LAST:
                raise ValueError(f"the trailer lists the LAST frame at byte {at} as one of chunks")
            self._check_between(data, start + length, bounds[row + 1])
            sequence = int(self.entries["sequence"][row])
            yield Place(at, start, start + length, segment, sequence, flag)

    def _check_between(self, data: Bytes, at: int, bound: int) -> None:
        """Raise ValueError unless only ends and beginnings of segments lie between two frames."""
        begun = at
        while at < bound:
            row = int(np.searchsorted(self.segments, at))
            if row < len(self.segments) and self.segments[row] == at:
                at += HEADER_BYTES
                continue
            length, flag = _frame_head(data, at)
            if flag != LAST:
                break
            at += FRAME_HEAD_BYTES + length + LOCATOR_BYTES
        if at != bound:
            raise ValueError(f"the trailer does not list what lies at bytes {begun}-{bound}")


def contents(data: Bytes, find_key: FindKey) -> Contents:
    """Read a sealed object's trailer. Raises ValueError if it does not open, or cannot be true."""
    locator = Locator.parse(data[max(0, len(data) - LOCATOR_BYTES) : len(data)])
    last = locator.frame_offset
    length, flag = _frame_head(data, last)
    start = last + FRAME_HEAD_BYTES
    if flag != LAST or start + length + LOCATOR_BYTES != len(data):
        raise ValueError("the locator does not point to the LAST frame before it")
    header = _header(data, locator.header_offset)
    key = SegmentKey.open(header, find_key(header.key_id))
    plain = key.open_frame(locator.sequence, LAST, data[start : start + length])
    trailer = Trailer.parse(plain)
    headers = [(offset, _header(data, offset)) for offset in trailer.segments]
    segments = np.array(trailer.segments, np.int64)
    found = Contents(headers, trailer.entries, segments, last, trailer.record)
    _check(found, header, locator.header_offset)
    return found


def _check(found: Contents, header: Header, header_at: int) -> None:
    """Raise ValueError for a trailer that no object could have."""
    offsets = found.entries["offset"]
    if not len(found.segments) or found.segments[0] or found.segments[-1] != header_at:
        raise ValueError("the trailer does not list the segments that are there")
    if np.any(np.diff(found.segments) <= 0) or np.any(offsets[1:] <= offsets[:-1]):
        raise ValueError("the trailer is not in order")
    if len(offsets) and not HEADER_BYTES <= offsets[0] <= offsets[-1] < found.last:
        raise ValueError("the trailer lists a frame outside of the object")
    named = {(one.recording_id, one.key_id) for _, one in found.headers}
    if named != {(header.recording_id, header.key_id)}:
        raise ValueError("the trailer lists a segment of another recording")


def _header(data: Bytes, at: int) -> Header:
    return Header.parse(data[at : at + HEADER_BYTES])


def _frame_head(data: Bytes, at: int) -> tuple[int, int]:
    return parse_frame_head(data[at : at + FRAME_HEAD_BYTES])
