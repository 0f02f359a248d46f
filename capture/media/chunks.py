"""Count one flush of packets and cut them into chunks, all streams at once.

Portion by portion, so that the columns stay in the processor's cache. Only exact copies are left
out, and counted. Source: RFC 3550 §6.4.1, A.3. Ordering: capture.media.ordering. Bytes of a chunk:
spanvault.media.chunk.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.media.arena import WIDTH
from capture.media.events import events_among, set_apart
from capture.media.held import ROW, Batch
from capture.media.jitter import SECOND, Jitter
from capture.media.leaving import Leaving, Part
from capture.media.ordering import STREAM, Arrivals, Integers, Ordered, memory, order
from capture.media.streams import WINDOW, StreamTable
from capture.packets.rtpheader import strip, unwrap
from spanvault.media.chunk import CAPTURE_LOSS, CHUNK, FRAME, WHOLE

Span = tuple[int, int]

PORTION: Final = 1 << 14  # packets
# Of payload. glibc gives more than 32 MiB back to the system as soon as it is freed, and a page
# that comes anew costs as much as the copy into it (spanvault.daemon.memory). Two are there at
# once: the one that is made, and the one before it.
PART_BYTES: Final = 2 << 20
FRAME_BYTES: Final = np.dtype(f"V{FRAME.itemsize}")  # what a held row begins with


def assemble(
    batch: Batch,
    streams: StreamTable,
    start_ns: int,
    lossy: bool,
    unheard: Sequence[Span],
    counters: Counter[str],
) -> Leaving:
    """The chunks of these packets, and the streams' totals brought up to date.

    batch: in order of arrival, of attached streams only.  start_ns: where its seconds begin.
    lossy: the capture itself lost packets meanwhile.  unheard: from when to when it heard nothing:
    a stream that was silent over that may have lost some, whenever it goes on.
    counters: of packets whose padding cannot be.  They come in parts of about PART_BYTES.
    """
    if not len(batch.slot):
        return Leaving()
    by_stream = _by_stream(batch.slot)
    last = _last_second(batch.packets["arrival_ns"], start_ns)
    output = _Output(batch)
    for slot, count, part in _portions(batch.slot):
        arrivals = Arrivals(batch, by_stream[part], slot, count)
        second = np.clip((arrivals.time_ns - start_ns) // SECOND, 0, last) if last else None
        ordered = order(arrivals, streams)
        jitter = Jitter(arrivals, streams, second, ordered.arrived(ordered.copies))
        cut = _Cut(arrivals, ordered, second, streams, jitter)
        if bad := cut.write(output, lossy, unheard):
            counters["bad_padding"] += bad
    output.close()
    return Leaving(output.parts)


def _by_stream(slot: NDArray[np.int32]) -> NDArray[np.intp]:
    """A stable order by stream. 16-bit numbers are sorted by radix, ten times faster."""
    small = int(slot.max()) < 1 << 16
    return np.argsort(slot.astype(np.uint16) if small else slot, kind="stable")


def _portions(slot: NDArray[np.int32]) -> Iterator[tuple[Integers, Integers, slice]]:
    """Whole streams, together about PORTION packets: which, how many each has, where they lie."""
    packets = np.bincount(slot)
    used = np.flatnonzero(packets)
    count = packets[used]
    ends = np.cumsum(count)
    cuts = np.searchsorted(ends, np.arange(PORTION, len(slot), PORTION))
    for first, last in pairwise(np.unique([0, *cuts, len(used)]).tolist()):
        start = int(ends[first] - count[first])
        yield used[first:last], count[first:last], slice(start, int(ends[last - 1]))


def _last_second(time_ns: Integers, start_ns: int) -> int:
    """The last whole second of the flush; less than half of one joins it."""
    return max(0, (int(time_ns.max()) - start_ns + SECOND // 2) // SECOND - 1)


class _Cut:
    """Ordered packets, cut where stream or second changes. c pieces, some of copies only."""

    def __init__(
        self, arrivals: Arrivals, ordered: Ordered, second: Integers | None,
        streams: StreamTable, jitter: Jitter,
    ) -> None:  # fmt: skip
        self.arrivals, self.ordered, self.streams = arrivals, ordered, streams
        key, self.head = _pieces(arrivals, ordered, second)
        self.count = np.diff(self.head, append=len(ordered.number))
        self.stretch = key // STREAM
        self.slot = arrivals.slot[self.stretch]
        self.first = np.searchsorted(self.stretch, np.arange(len(arrivals.slot)))
        self.last = np.append(self.first[1:], len(self.head)) - 1
        self.jitter = jitter.at(key)
        self.copies = self._among(ordered.copies)
        self.unique = self.count - self.copies

    def write(self, output: "_Output", lossy: bool, unheard: Sequence[Span]) -> int:
        """Put the chunks out; the streams' totals become those of their last chunk.

        Returns how many packets had a padding that cannot be.
        """
        totals = self._totals()
        ordered, arrivals = self.ordered, self.arrivals
        which, number, each = ordered.order, ordered.number, arrivals.each
        if len(ordered.copies):
            keep = np.ones(len(number), np.bool_)
            keep[ordered.copies] = False
            which = np.flatnonzero(keep) if which is None else which[keep]
            number, each = number[keep], each[keep]
        frames, place = output.append(arrivals.rows, which, number)
        size, at, bad = self._unwrap(output.arena, frames, place, each)
        table = self._table(totals, frames, lossy, unheard)
        self._update(totals)
        if len(frames):
            runs = _Runs(frames["payload_type"].copy(), each, arrivals.slot)
            self._remember(frames, number, each, runs)
            self._set_clock(table, frames)
            table = self._set_events_apart(output.arena, table, frames, place, each, runs, size, at)
        output.add(table)
        return bad

    def _unwrap(
        self, arena: NDArray[np.uint8], frames: NDArray[np.void], place: Integers, each: Integers
    ) -> tuple[NDArray[np.uint16], Integers, int]:
        """Take headers off what is held whole and need not leave so; see rtpheader.unwrap."""
        whole = np.flatnonzero(frames["flags"] & WHOLE)
        if not len(whole):
            return frames["length"], place, 0
        size, at, bad = unwrap(frames, place, arena, whole)
        clear = whole[~self.streams.whole[self.arrivals.slot[each[whole]]]]
        strip(frames, place, size, at, clear)
        return size, at, bad

    def _set_events_apart(
        self, arena: NDArray[np.uint8], table: NDArray[np.void], frames: NDArray[np.void],
        place: Integers, each: Integers, runs: "_Runs", size: NDArray[np.uint16], at: Integers,
    ) -> NDArray[np.void]:  # fmt: skip
        """Digits leave in chunks of their own; few streams have any. size, at: of payloads."""
        kinds = self.streams.kinds.reshape(-1)[runs.types]
        if not kinds.any():
            return table
        slot, kind = self.arrivals.slot[each], np.repeat(kinds, runs.count)
        events = events_among(size, kind, slot, at, arena, self.streams)
        if not events.any():
            return table
        slot = self.slot[np.flatnonzero(self.unique)]
        return set_apart(table, frames, place, events, slot, self.streams)

    def _set_clock(self, table: NDArray[np.void], frames: NDArray[np.void]) -> None:
        """Tell times by the clock that the streams' calls began with."""
        ahead_ns = self.streams.clock_ns[self.slot[np.flatnonzero(self.unique)]]
        if ahead_ns.any():
            table["start_ns"] += ahead_ns
            frames["arrival_ns"] += np.repeat(ahead_ns, table["frames"])

    def _among(self, rows: Integers, weights: Integers | None = None) -> Integers:
        """How many of these rows each piece has, or the sum of their weights."""
        found = np.zeros(len(self.head), np.int64)
        place = np.searchsorted(self.head, rows, side="right") - 1
        np.add.at(found, place, 1 if weights is None else weights)
        return found

    def _running(self, values: Integers, before: Integers) -> Integers:
        """A stream's total up to each piece. before: int64[slots], up to this flush."""
        total = np.cumsum(values)
        base = before[self.slot[self.first]] - total[self.first] + values[self.first]
        return total + np.repeat(base, self.last - self.first + 1)

    def _totals(self) -> dict[str, Integers]:
        ordered, streams = self.ordered, self.streams
        slot, known = self.slot, streams.known[self.slot]
        lift = self.arrivals.lift[self.stretch]
        # Sorted by number: a piece ends with its highest, and a stream begins with its lowest.
        highest = ordered.number[self.head + self.count - 1] - lift
        highest = np.where(known, np.maximum(highest, streams.highest[slot]), highest)
        lowest = ordered.number[self.arrivals.head][self.stretch] - lift
        return {
            "highest": highest,
            "base": np.where(known, np.minimum(lowest, streams.base[slot]), lowest),
            "packets": self._running(self.unique, streams.packets),
            "duplicates": self._running(self.copies, streams.duplicates),
            "late": self._running(self._among(ordered.late), streams.late),
            "skipped": self._running(self._among(ordered.skips, ordered.skipped), streams.skipped),
        }

    def _table(
        self,
        totals: dict[str, Integers],
        frames: NDArray[np.void],
        lossy: bool,
        unheard: Sequence[Span],
    ) -> NDArray[np.void]:
        used = np.flatnonzero(self.unique)
        slot, streams = self.slot[used], self.streams
        table = np.zeros(len(used), CHUNK)
        if not len(used):
            return table
        count = self.unique[used]
        head = np.cumsum(count) - count
        table["recording_id"], table["stream"] = streams.recording_id[slot], streams.number[slot]
        table["flags"] = CAPTURE_LOSS if lossy else 0
        table["ssrc"], table["frames"] = streams.ssrc[slot], count
        table["payload_bytes"] = np.add.reduceat(frames["length"].astype(np.int64), head)
        start_ns = np.minimum.reduceat(frames["arrival_ns"], head)
        for begin, end in unheard:
            table["flags"][self._silent_over(slot, start_ns, begin, end)] = CAPTURE_LOSS
        table["start_ns"] = self._starts(slot, start_ns)
        for name in ("packets", "duplicates", "late"):
            table[name] = totals[name][used]
        sent = totals["highest"] - totals["base"] + 1 - totals["skipped"]
        table["lost"] = np.maximum(0, sent - totals["packets"])[used]
        table["jitter"] = self.jitter[used]
        return table

    def _silent_over(
        self, slot: Integers, start_ns: Integers, begin: int, end: int
    ) -> NDArray[np.bool_]:
        """Which chunks are the first of their streams behind a time, and not the first at all."""
        before = self.streams.known[slot] & (self.streams.last_ns[slot] < end)
        before[1:] &= slot[1:] != slot[:-1]
        silent: NDArray[np.bool_] = before & (start_ns > begin)
        return silent

    def _starts(self, slot: Integers, start_ns: Integers) -> Integers:
        """When each chunk began: of one stream no two alike, for storaged knows them by it."""
        head = np.flatnonzero(np.diff(slot, prepend=-1))
        before = np.concatenate(([0], start_ns[:-1]))
        before[head] = self.streams.chunk_ns[slot[head]]
        for late in np.flatnonzero(start_ns <= before).tolist():
            following = late and slot[late - 1] == slot[late]
            previous = start_ns[late - 1] if following else self.streams.chunk_ns[slot[late]]
            start_ns[late] = max(start_ns[late], previous + 1)
        self.streams.chunk_ns[slot] = start_ns  # the last one of each stays
        return start_ns

    def _update(self, totals: dict[str, Integers]) -> None:
        streams, arrivals = self.streams, self.arrivals
        slot = arrivals.slot
        first = np.minimum.reduceat(arrivals.time_ns, arrivals.head)
        last = np.maximum.reduceat(arrivals.time_ns, arrivals.head)
        known = streams.known[slot]
        streams.first_ns[slot] = np.where(known, np.minimum(first, streams.first_ns[slot]), first)
        streams.last_ns[slot] = np.where(known, np.maximum(last, streams.last_ns[slot]), last)
        for name, values in totals.items():
            getattr(streams, name)[slot] = values[self.last]
        streams.known[slot] = True

    def _remember(
        self, frames: NDArray[np.void], number: Integers, each: Integers, runs: "_Runs"
    ) -> None:
        """Note numbers and payload types of what leaves. each: which of the streams it is of."""
        streams, slot = self.streams, self.arrivals.slot
        streams.count_types(runs.types >> 7, runs.types & 0x7F, runs.count)
        stamp = frames["timestamp"]
        oldest = streams.highest[slot] + self.arrivals.lift - WINDOW
        old = number <= oldest[each]
        if old.any():
            recent = np.flatnonzero(~old)
            number, each, stamp = number[recent], each[recent], stamp[recent]
        place = (slot * WINDOW)[each] + number % WINDOW
        streams.window.reshape(-1)[place] = memory(number, stamp)


class _Runs:
    """Frames of one stream and payload type, one behind the other. r runs.

    types: int64[r], slot × 128 + payload type.  count: uint32[r].
    """

    def __init__(self, kind: NDArray[np.uint8], each: Integers, slot: Integers) -> None:
        other = np.ones(len(kind), np.bool_)
        other[1:] = (kind[1:] != kind[:-1]) | (each[1:] != each[:-1])
        head = np.flatnonzero(other)
        self.types = slot[each[head]] << 7 | kind[head]
        self.count = np.diff(head, append=len(kind)).astype(np.uint32)


def _pieces(
    arrivals: Arrivals, ordered: Ordered, second: Integers | None
) -> tuple[Integers, Integers]:
    """Keys of the pieces, stream × STREAM + second, and where each begins."""
    if second is None:
        return arrivals.lift, arrivals.head
    lift = arrivals.spread(arrivals.lift)
    key = ordered.put(second) + lift
    # A late packet goes to the second it belongs to: none behind it is of an earlier one.
    key = np.minimum.accumulate(key[::-1])[::-1]
    head = np.flatnonzero(np.diff(key, prepend=-1))
    return key[head], head


class _Output:
    """One flush's chunks, written portion by portion."""

    def __init__(self, batch: Batch) -> None:
        self.parts: list[Part] = []
        self._slabs = batch.slabs
        self._frames = np.empty(len(batch.slot), FRAME)
        self._place = np.empty(len(batch.slot), np.int64)
        self._count = 0
        self._begin()

    @property
    def arena(self) -> NDArray[np.uint8]:
        """What places are in."""
        return self._slabs.arena.data

    def append(
        self, rows: NDArray[np.void], which: NDArray[np.intp] | None, number: Integers
    ) -> tuple[NDArray[np.void], Integers]:
        """Add frames, those of `which` rows in that order; returns them and their payloads' places.

        Both may be put into another order.
        """
        part = slice(self._count, self._count + len(number))
        self._count = part.stop
        frames = self._frames[part]
        leaving = np.ndarray(len(rows), FRAME_BYTES, rows, strides=rows.strides)
        place = rows.view(ROW)["place"]
        frames.view(FRAME_BYTES)[:] = leaving if which is None else leaving[which]
        frames["sequence"] = number.astype(np.uint32)  # without the stream's lift
        np.multiply(place if which is None else place[which], WIDTH, out=self._place[part])
        return frames, self._place[part]

    def add(self, table: NDArray[np.void]) -> None:
        """Add the chunks of the frames that were appended last. table: CHUNK[c]."""
        self._tables.append(table)
        self._size += int(table["payload_bytes"].sum(dtype=np.int64))
        if self._size >= PART_BYTES:
            self.close()

    def close(self) -> None:
        """Make a part of what was written since the last one."""
        part = slice(self._first, self._count)
        if self._first == self._count:
            return
        table = np.concatenate(self._tables)
        self.parts.append(
            Part(table, self._frames[part], self._place[part], self._size, self._slabs)
        )
        self._begin()

    def _begin(self) -> None:
        self._tables: list[NDArray[np.void]] = []
        self._first, self._size = self._count, 0
