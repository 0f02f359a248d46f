"""Packets that were heard and wait to be ordered: a row for each, and their payload bytes.

A row is one piece of memory, so that ordering the packets fetches each from one place. A ring
block goes back to the kernel at once, so payloads are copied out, into places of whole 32 bytes:
one gather for each width instead of one for each length. Rows grow and are used again; fresh
memory would cost a page fault for every 4 KiB. Where payloads lie: capture.media.arena. Ordering:
capture.media.ordering.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from capture.media.arena import WIDTH, WIDTH_BITS, Arena, Slabs
from capture.model import Packets
from capture.packets.columns import gather
from spanvault.media.chunk import FRAME, MARKER, TRUNCATED, WHOLE

# Packets that there is room for at once, 4 s of 1 Gbit/s: untouched pages cost nothing, growing
# copies, and leaves holes behind.
RESERVED: Final = 1 << 21
NOBODY: Final = -1  # slot of a packet that nobody wants any more
# A frame as it will leave, but for its sequence number: 16 bits yet. Then where its payload lies.
ROW: Final = np.dtype([*((name, FRAME[name]) for name in FRAME.names or ()), ("place", "<u4")])


@dataclass(slots=True)
class Batch:
    """Packets, n of them, in order of arrival. A row's place: of its payload, in WIDTH bytes."""

    slabs: Slabs
    slot: NDArray[np.int32]  # of the stream, capture.media.streams
    rows: NDArray[np.void]  # the bytes of a ROW each: those are gathered faster than fields

    @property
    def arena(self) -> NDArray[np.uint8]:
        """What places are in."""
        return self.slabs.arena.data

    @property
    def packets(self) -> NDArray[np.void]:
        """ROW[n]: the rows by their fields."""
        return self.rows.view(ROW)

    def take(self, which: NDArray[Any]) -> "Batch":
        """Some of them; payloads are shared."""
        return Batch(self.slabs, self.slot[which], self.rows[which])


class Held:
    """Packets in order of arrival, appended block by block."""

    def __init__(self, arena: Arena, reserved: int = RESERVED) -> None:
        """reserved: packets; with more it grows."""
        self.count = self.used = 0
        self.first_ns = self.last_ns = 0
        self._newest = 0  # row where the packets appended last begin
        self._slabs = Slabs(arena)
        self._slot = np.empty(reserved, np.int32)
        self._rows = np.empty(reserved, f"V{ROW.itemsize}")

    @property
    def capacity(self) -> int:
        """Packets that fit without growing."""
        return len(self._slot)

    def append(self, packets: Packets, slot: NDArray[np.int32], among: bool = False) -> None:
        """Copy packets in. slot: int32[n], the stream of each.

        among: they were heard among those appended last, not behind them.
        """
        if not len(slot):
            return
        start = self.count
        row = self._room(slot)
        row["sequence"], row["timestamp"] = packets.sequence, packets.timestamp
        row["arrival_ns"], row["payload_type"] = packets.time_ns, packets.payload_type
        row["flags"] = packets.marker.view(np.uint8) * np.uint8(MARKER) + packets.truncated.view(
            np.uint8
        ) * np.uint8(TRUNCATED)
        if packets.whole.any():
            row["flags"] += packets.whole.view(np.uint8) * np.uint8(WHOLE)
        row["length"] = packets.payload_length
        row["place"] = self._copy(packets.data, packets.payload_start, packets.payload_length)
        self._span(packets.time_ns)
        self.count += len(slot)
        if among and start:
            self._interleave()
        else:
            self._newest = start

    def add(self, batch: Batch) -> None:
        """Copy a batch in, with the payloads it holds."""
        if not len(batch.slot):
            return
        row, packets = self._room(batch.slot), batch.packets
        row[:] = packets
        start = packets["place"].astype(np.int64) << WIDTH_BITS
        row["place"] = self._copy(batch.arena, start, packets["length"].astype(np.int64))
        self._span(packets["arrival_ns"])
        self.count += len(batch.slot)

    def batch(self) -> Batch:
        """Everything held, as views."""
        return Batch(self._slabs, self._slot[: self.count], self._rows[: self.count])

    def clear(self) -> Self:
        """Forget everything, keep the rows; payloads stay while chunks that leave need them."""
        self.count = self.used = self._newest = 0
        self._slabs = Slabs(self._slabs.arena)
        return self

    def forget(self, gone: NDArray[np.bool_]) -> None:
        """Mark the packets of streams that have gone. gone: bool[slots]."""
        slot = self.batch().slot
        slot[gone[slot] & (slot >= 0)] = NOBODY

    def _interleave(self) -> None:
        """Put the packets appended last in order of time."""
        newest = slice(self._newest, self.count)
        order = np.argsort(self.batch().packets["arrival_ns"][newest], kind="stable")
        for column in (self._slot, self._rows):
            column[newest] = column[newest][order]

    def _span(self, time_ns: NDArray[np.int64]) -> None:
        first, last = int(time_ns.min()), int(time_ns.max())
        self.first_ns = min(self.first_ns, first) if self.count else first
        self.last_ns = max(self.last_ns, last) if self.count else last

    def _room(self, slot: NDArray[np.int32]) -> NDArray[np.void]:
        """Rows for as many packets more, ROW[n], yet to be filled in."""
        end = self.count + len(slot)
        if end > len(self._slot):
            size = max(end, 2 * len(self._slot))
            self._slot = _grown(self._slot, self.count, size)
            self._rows = _grown(self._rows, self.count, size)
        self._slot[self.count : end] = slot
        return self._rows[self.count : end].view(ROW)

    def _copy(
        self, data: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        """Copy payloads out of data. Returns the place of each."""
        width = length + (WIDTH - 1) >> WIDTH_BITS
        if int(width.min()) == int(width.max()):
            return self._copy_alike(data, start, int(width[0]))
        place = np.empty(len(start), np.uint32)
        for each in np.flatnonzero(np.bincount(width)).tolist():
            which = np.flatnonzero(width == each)
            place[which] = self._copy_alike(data, start[which], each)
        return place

    def _copy_alike(
        self, data: NDArray[np.uint8], start: NDArray[np.int64], width: int
    ) -> NDArray[np.uint32]:
        """Copy payloads of the same width, slab by slab."""
        count, size, slabs = len(start), width << WIDTH_BITS, self._slabs
        if not size:
            return np.zeros(count, np.uint32)
        place = np.arange(count, dtype=np.uint32) * np.uint32(width)
        done = 0
        while done < count:
            if slabs.end - slabs.at < size:
                slabs.next()
            some = slice(done, min(count, done + (slabs.end - slabs.at) // size))
            place[some] += np.uint32((slabs.at >> WIDTH_BITS) - done * width & 0xFFFFFFFF)
            end = slabs.at + (some.stop - done) * size
            gather(data, start[some], size, slabs.arena.data[slabs.at : end])
            slabs.at, done = end, some.stop
        self.used += count * size
        return place


def store(batches: Iterable[Batch]) -> Held:
    """A copy that holds its own payloads, and no more memory for them than that takes."""
    batches = list(batches)
    lengths = [batch.packets["length"].astype(np.int64) for batch in batches]
    size = sum(int((length + (WIDTH - 1) >> WIDTH_BITS).sum()) for length in lengths) * WIDTH
    held = Held(Arena(size, slab=size), reserved=sum(map(len, lengths)))
    for batch in batches:
        held.add(batch)
    return held


def _grown(array: NDArray[Any], used: int, size: int) -> NDArray[Any]:
    grown = np.empty(size, array.dtype)
    grown[:used] = array[:used]
    return grown
