"""Packets that were heard and wait to be ordered: columns, and one arena of payload bytes.

A ring block goes back to the kernel at once, so payloads are copied out, into slots of whole
32 bytes: one gather for each width instead of one for each length. Buffers grow and are used
again; fresh memory would cost a page fault for every 4 KiB of sound. Ordering: capture.chunks.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from capture.columns import rows
from capture.model import Packets
from spanvault.chunk import MARKER, TRUNCATED

WIDTH: Final = 32  # bytes; G.711, G.722 and G.726 at 20 ms, and G.729's 20 bytes, waste little
NOBODY: Final = -1  # slot of a packet that nobody wants any more
COLUMNS: Final[dict[str, Any]] = {
    "slot": np.int32,
    "sequence": np.uint16,
    "timestamp": np.uint32,
    "time_ns": np.int64,
    "payload_type": np.uint8,
    "flags": np.uint8,
    "length": np.uint16,
    "offset": np.int64,
}


@dataclass(slots=True)
class Batch:
    """Packets as columns of n, in order of arrival. offset: of the payload in the arena."""

    arena: NDArray[np.uint8]
    slot: NDArray[np.int32]  # of the stream, capture.streams
    sequence: NDArray[np.uint16]
    timestamp: NDArray[np.uint32]
    time_ns: NDArray[np.int64]
    payload_type: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    length: NDArray[np.uint16]
    offset: NDArray[np.int64]

    def take(self, which: NDArray[Any]) -> "Batch":
        """Some of them, or all in another order; the arena is shared."""
        return Batch(self.arena, *(getattr(self, name)[which] for name in COLUMNS))


class Held:
    """Packets in order of arrival, appended block by block."""

    def __init__(self) -> None:
        self.count = self.used = 0
        self.first_ns = self.last_ns = 0
        self._arena = np.empty(1 << 16, np.uint8)
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(1024, dtype) for name, dtype in COLUMNS.items()
        }

    def append(self, packets: Packets, slot: NDArray[np.int32]) -> None:
        """Copy packets in. slot: int32[n], the stream of each."""
        start, end = self.count, self.count + len(slot)
        if start == end:
            return
        self._grow(end)
        column = self._columns
        column["slot"][start:end] = slot
        column["sequence"][start:end] = packets.sequence
        column["timestamp"][start:end] = packets.timestamp
        column["time_ns"][start:end] = packets.time_ns
        column["payload_type"][start:end] = packets.payload_type
        flags = column["flags"][start:end]
        np.multiply(packets.marker, MARKER, out=flags, casting="unsafe")
        flags |= packets.truncated.view(np.uint8) * np.uint8(TRUNCATED)
        column["length"][start:end] = packets.payload_length
        self._copy(packets, column["offset"][start:end])
        self._span(packets.time_ns)
        self.count = end

    def batch(self) -> Batch:
        """Everything held, as views."""
        return Batch(self._arena, *(self._columns[name][: self.count] for name in COLUMNS))

    def clear(self) -> Self:
        """Forget everything, keep the memory."""
        self.count = self.used = 0
        return self

    def reassign(self, slot: int, after_ns: int, to: int) -> tuple[int, int] | None:
        """Give a stream's packets later than a time to another. Their first and last time."""
        batch = self.batch()
        later = np.flatnonzero((batch.slot == slot) & (batch.time_ns > after_ns))
        if not len(later):
            return None
        batch.slot[later] = to
        times = batch.time_ns[later]
        return int(times.min()), int(times.max())

    def forget(self, gone: NDArray[np.bool_]) -> None:
        """Mark the packets of streams that have gone. gone: bool[slots]."""
        slot = self.batch().slot
        slot[gone[slot] & (slot >= 0)] = NOBODY

    def _span(self, time_ns: NDArray[np.int64]) -> None:
        first, last = int(time_ns.min()), int(time_ns.max())
        self.first_ns = min(self.first_ns, first) if self.count else first
        self.last_ns = max(self.last_ns, last) if self.count else last

    def _grow(self, count: int) -> None:
        capacity = len(self._columns["slot"])
        if count > capacity:
            for name, column in self._columns.items():
                grown = np.empty(max(count, 2 * capacity), column.dtype)
                grown[: self.count] = column[: self.count]
                self._columns[name] = grown

    def _copy(self, packets: Packets, offset: NDArray[np.int64]) -> None:
        """Copy the payloads into the arena and note where each one lies."""
        width = packets.payload_length + (WIDTH - 1) >> 5
        size = int(width.sum()) * WIDTH
        if self.used + size > len(self._arena):
            arena = np.empty(max(self.used + size, 2 * len(self._arena)), np.uint8)
            arena[: self.used] = self._arena[: self.used]
            self._arena = arena
        if int(width.min()) == int(width.max()):
            self._copy_alike(packets, slice(None), int(width[0]) * WIDTH, offset)
            return
        for each in np.flatnonzero(np.bincount(width)).tolist():
            self._copy_alike(packets, np.flatnonzero(width == each), each * WIDTH, offset)

    def _copy_alike(
        self, packets: Packets, which: Any, width: int, offset: NDArray[np.int64]
    ) -> None:
        start = packets.payload_start[which]
        end = self.used + len(start) * width
        offset[which] = np.arange(len(start)) * width + self.used
        if width:
            payload = rows(packets.data, start, width)
            self._arena[self.used : end] = payload.view(np.uint8)
        self.used = end


def store(batch: Batch) -> Held:
    """A copy of a batch that holds its own payloads, and no more memory than that takes."""
    held = Held()
    flags = batch.flags
    held.append(
        Packets(
            batch.arena, batch.time_ns, *(np.empty(0, np.uint64),) * 2, np.empty(0, np.uint32),
            batch.sequence, batch.timestamp, batch.payload_type, flags & MARKER != 0,
            batch.offset, batch.length.astype(np.int64), flags & TRUNCATED != 0, batch.offset,
        ),
        batch.slot,
    )  # fmt: skip
    return held


def join(batches: list[Batch]) -> Batch:
    """Several batches as one, with one arena."""
    if len(batches) == 1:
        return batches[0]
    bases = np.cumsum([0, *(len(batch.arena) for batch in batches)])
    joined = Batch(
        np.concatenate([batch.arena for batch in batches]),
        *(np.concatenate([getattr(batch, name) for batch in batches]) for name in COLUMNS),
    )
    joined.offset += np.repeat(bases[:-1], [len(batch.slot) for batch in batches])
    return joined
