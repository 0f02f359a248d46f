"""Order one flush of packets, count them and cut them into chunks, all streams at once.

No loop over packets or streams: packets are sorted by stream, and everything a stream needs is a
running sum, maximum or reduction within its stretch. Late packets are placed, never dropped; only
exact copies are left out, and counted.
Source: RFC 3550 §5.1, §6.4.1, A.1, A.3, A.8. Bytes of a chunk: spanvault.chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.columns import rows
from capture.held import Batch
from capture.streams import WINDOW, StreamTable
from spanvault.chunk import CAPTURE_LOSS, CHUNK, FRAME, NO_MEDIA, Media

MAX_DROPOUT: Final = 3000  # numbers ahead: more is a restart of the sequence, not loss (A.1)
# Numbers behind: more is a restart too. A.1 has 100, which is less than a video stream's
# reordering within a second.
MAX_MISORDER: Final = 1000
SECOND: Final = 1_000_000_000
PORTION: Final = 1 << 15  # packets
STREAM: Final = 1 << 40  # lifts each stream's numbers above those of the one before

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(slots=True)
class Stretches:
    """Where the packets of each stream lie, in an array sorted by stream. m streams, n packets."""

    slot: NDArray[np.int32]  # [m]
    head: Integers  # [m] index of its first packet
    count: Integers  # [m]
    each: Integers  # [n] which stretch a packet belongs to
    lift: Integers  # [n] each × STREAM

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value per stretch, for each of its packets."""
        return values[self.each]


@dataclass(slots=True)
class Ordered:
    """Packets sorted by stream and extended sequence number."""

    batch: Batch
    stretches: Stretches
    extended: Integers
    skipped: Integers  # numbers that a restart jumped over, before this packet
    late: Flags  # came behind a higher number
    copy: Flags  # heard before
    second: Integers  # of the flush, never falling within a stream


def assemble(batch: Batch, streams: StreamTable, start_ns: int, lossy: bool) -> Media:
    """The chunks of these packets, and the streams' totals brought up to date.

    batch: in order of arrival, of attached streams only.  start_ns: where its seconds begin.
    lossy: the capture itself lost packets meanwhile.
    """
    if not len(batch.slot):
        return NO_MEDIA
    order = _by_stream(batch.slot)
    last = _last_second(batch.time_ns, start_ns)
    output = _Output(batch)
    for portion in _portions(batch.slot[order]):
        part = batch.take(order[portion])
        stretches = _stretches(part.slot)
        second = np.clip((part.time_ns - start_ns) // SECOND, 0, last)
        jitter = _jitter(part, stretches, streams, second)
        ordered = _order(part, stretches, streams, second)
        _Cut(ordered, streams, jitter).write(output, lossy)
    return output.media()


def _portions(slot: NDArray[np.int32]) -> Iterator[slice]:
    """Whole streams, together about so many packets that their columns stay in the cache."""
    head = _heads(slot)
    wanted = np.searchsorted(head, np.arange(PORTION, len(slot), PORTION))
    cuts = [0, *np.unique(head[wanted[wanted < len(head)]]).tolist(), len(slot)]
    return (slice(start, end) for start, end in pairwise(cuts))


def _by_stream(slot: NDArray[np.int32]) -> NDArray[np.intp]:
    """A stable order by stream. 16-bit numbers are sorted by radix, ten times faster."""
    small = int(slot.max()) < 1 << 16
    return np.argsort(slot.astype(np.uint16) if small else slot, kind="stable")


def _stretches(slot: NDArray[np.int32]) -> Stretches:
    head = _heads(slot)
    count = np.diff(head, append=len(slot))
    each = np.repeat(np.arange(len(head)), count)
    return Stretches(slot[head], head, count, each, each * STREAM)


def _heads(values: NDArray[Any]) -> Integers:
    """Where a sorted array changes; 0 is always among them."""
    return np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))


def _before(values: NDArray[Any], head: Integers, first: NDArray[Any]) -> NDArray[Any]:
    """Each one's predecessor within its stretch; first[m] for the heads."""
    previous = np.empty_like(values)
    previous[1:] = values[:-1]
    previous[head] = first
    return previous


def _last_second(time_ns: Integers, start_ns: int) -> int:
    """The last whole second of the flush; less than half of one joins it."""
    return max(0, (int(time_ns.max()) - start_ns + SECOND // 2) // SECOND - 1)


def extend(batch: Batch, stretches: Stretches, streams: StreamTable) -> tuple[Integers, ...]:
    """Unwrap the 16-bit sequence numbers of packets in order of arrival.

    Returns int64[n] each: extended numbers, the highest number before each, numbers skipped by a
    restart. A stream begins at 65536 + its first number. Source: RFC 3550 §A.1, except that a
    jump is believed at once: all packets are kept, so a stray one costs nothing.
    """
    head, known = stretches.head, streams.known[stretches.slot]
    first = batch.sequence[head]
    highest = np.where(known, streams.highest[stretches.slot], first.astype(np.int64) + 65536)
    previous = _before(batch.sequence, head, highest.astype(np.uint16))
    step = (batch.sequence - previous).view(np.int16).astype(np.int64)
    step[step < -MAX_MISORDER] += 65536
    total = np.cumsum(step)
    extended = total + stretches.spread(highest - total[head] + step[head])
    lifted = extended + stretches.lift
    start = highest + stretches.lift[head]
    top = np.maximum.accumulate(lifted)
    before = np.maximum(_before(top, head, start), stretches.spread(start)) - stretches.lift
    ahead = extended - before
    return extended, before, np.where(ahead > MAX_DROPOUT, ahead - 1, 0)


def _order(batch: Batch, stretches: Stretches, streams: StreamTable, second: Integers) -> Ordered:
    extended, before, skipped = extend(batch, stretches, streams)
    lifted = extended + stretches.lift
    late = extended < before
    if (lifted[1:] < lifted[:-1]).any():
        order = _by_number(extended, stretches)
        batch, late, lifted = batch.take(order), late[order], lifted[order]
        extended, skipped, second = extended[order], skipped[order], second[order]
        if second.any():
            # A late packet goes to the second it belongs to: none behind it is of an earlier one.
            tail = (second + stretches.lift)[::-1]
            second = np.minimum.accumulate(tail)[::-1] - stretches.lift
    copy = _copies(batch, stretches, streams, extended, lifted)
    return Ordered(batch, stretches, extended, skipped, late & ~copy, copy, second)


def _by_number(extended: Integers, stretches: Stretches) -> NDArray[np.intp]:
    """The order by stream and number: by radix, least significant 16 bits first."""
    lowest = np.minimum.reduceat(extended, stretches.head)
    relative = extended - stretches.spread(lowest)
    if int(relative.max()) >= 1 << 16:
        return np.argsort(extended + stretches.lift, kind="stable")
    order = np.argsort(relative.astype(np.uint16), kind="stable")
    return order[_by_stream(stretches.each[order].astype(np.int32))]


def _copies(
    batch: Batch, stretches: Stretches, streams: StreamTable, extended: Integers, lifted: Integers
) -> Flags:
    """Which packets were heard before, in this flush or in one of the last: same number and time.

    A number that comes again with another timestamp is another packet.
    """
    copy = np.zeros(len(lifted), np.bool_)
    copy[1:] = (lifted[1:] == lifted[:-1]) & (batch.timestamp[1:] == batch.timestamp[:-1])
    highest = np.where(streams.known[stretches.slot], streams.highest[stretches.slot], np.int64(-1))
    old = np.flatnonzero(extended <= stretches.spread(highest))
    if len(old):
        remembered = streams.window[batch.slot[old], extended[old] % WINDOW]
        copy[old] |= remembered == _memory(extended[old], batch.timestamp[old])
    return copy


def _memory(extended: Integers, timestamp: NDArray[np.uint32]) -> NDArray[np.uint64]:
    return extended.astype(np.uint64) << np.uint64(32) | timestamp


def _jitter(batch: Batch, stretches: Stretches, streams: StreamTable, second: Integers) -> "Jitter":
    """Interarrival jitter, RFC 3550 §A.8, of packets in order of arrival; updates the streams."""
    slot, head = stretches.slot, stretches.head
    known = streams.known[slot]
    time_ns = np.where(known, streams.arrival_ns[slot], batch.time_ns[head])
    stamp = np.where(known, streams.timestamp[slot], batch.timestamp[head])
    elapsed = batch.time_ns - _before(batch.time_ns, head, time_ns)
    ticks = (batch.timestamp - _before(batch.timestamp, head, stamp)).view(np.int32)
    clock = stretches.spread(streams.clock[slot] / SECOND)
    difference = np.abs(elapsed * clock - ticks)
    last = head + stretches.count - 1
    streams.arrival_ns[slot], streams.timestamp[slot] = batch.time_ns[last], batch.timestamp[last]
    return Jitter(stretches, streams, difference, second)


class Jitter:
    """J += (|D| - J)/16 for each packet, as a weighted sum over each stream's seconds."""

    def __init__(
        self, stretches: Stretches, streams: StreamTable, difference: NDArray[Any], second: Integers
    ) -> None:
        # The clock may step back: the seconds of arrival must not, to be stretches of their own.
        key = np.maximum.accumulate(second + stretches.lift)
        head = _heads(key)
        count = np.diff(head, append=len(key))
        decay = np.power(15 / 16, np.arange(int(count.max()) + 1))
        to_end = np.repeat(head + count - 1, count) - np.arange(len(key))
        gain = np.add.reduceat(difference * decay[to_end], head) / 16
        self._key = key[head]
        self._value = np.empty(len(head))
        slot = stretches.slot[self._key // STREAM]
        rank = np.arange(len(head)) - np.repeat(*_runs(slot))
        for turn in range(int(rank.max()) + 1):  # once, unless seconds were flushed together
            now = np.flatnonzero(rank == turn)
            streams.jitter[slot[now]] = streams.jitter[slot[now]] * decay[count[now]] + gain[now]
            self._value[now] = streams.jitter[slot[now]]

    def at(self, key: Integers) -> NDArray[np.float64]:
        """The jitter at the end of a stream's second. key: stretch × STREAM + second."""
        return self._value[np.searchsorted(self._key, key, side="right") - 1]


def _runs(values: NDArray[Any]) -> tuple[Integers, Integers]:
    head = _heads(values)
    return head, np.diff(head, append=len(values))


class _Cut:
    """Ordered packets, cut where stream or second changes. c pieces, some of copies only."""

    def __init__(self, ordered: Ordered, streams: StreamTable, jitter: Jitter) -> None:
        self.ordered, self.streams = ordered, streams
        self.key = ordered.second + ordered.stretches.lift
        self.head = _heads(self.key)
        self.stretch = ordered.stretches.each[self.head]
        self.slot = ordered.stretches.slot[self.stretch]
        self.first = _heads(self.stretch)  # a stream's first piece
        self.last = np.append(self.first[1:], len(self.head)) - 1
        self.jitter = jitter.at(self.key[self.head])
        self.unique = self._sum(~ordered.copy)

    def write(self, output: "_Output", lossy: bool) -> None:
        """Put the chunks out; the streams' totals become those of their last chunk."""
        totals = self._totals()
        keep = ~self.ordered.copy
        batch = self.ordered.batch
        extended = self.ordered.extended
        if not keep.all():
            batch, extended = batch.take(keep), extended[keep]
        table = self._table(totals, batch, lossy)
        self._update(totals, batch, extended)
        output.append(table, batch, extended)

    def _sum(self, values: NDArray[Any]) -> Integers:
        return np.add.reduceat(values, self.head, dtype=np.int64)

    def _running(self, values: Integers, before: Integers) -> Integers:
        """A stream's total up to each piece. before: int64[slots], up to this flush."""
        total = np.cumsum(values)
        base = before[self.slot[self.first]] - total[self.first] + values[self.first]
        return total + np.repeat(base, self.last - self.first + 1)

    def _totals(self) -> dict[str, Integers]:
        ordered, streams = self.ordered, self.streams
        slot, known = self.slot, streams.known[self.slot]
        end = np.append(self.head[1:], len(self.key)) - 1
        # Sorted by number: a piece ends with its highest, and a stream begins with its lowest.
        highest = ordered.extended[end]
        highest = np.where(known, np.maximum(highest, streams.highest[slot]), highest)
        lowest = ordered.extended[ordered.stretches.head][self.stretch]
        return {
            "highest": highest,
            "base": np.where(known, np.minimum(lowest, streams.base[slot]), lowest),
            "packets": self._running(self.unique, streams.packets),
            "duplicates": self._running(self._sum(ordered.copy), streams.duplicates),
            "late": self._running(self._sum(ordered.late), streams.late),
            "skipped": self._running(self._sum(ordered.skipped), streams.skipped),
        }

    def _table(self, totals: dict[str, Integers], batch: Batch, lossy: bool) -> NDArray[np.void]:
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
        table["payload_bytes"] = np.add.reduceat(batch.length, head, dtype=np.int64)
        table["start_ns"] = self._starts(slot, np.minimum.reduceat(batch.time_ns, head))
        for name in ("packets", "duplicates", "late"):
            table[name] = totals[name][used]
        sent = totals["highest"] - totals["base"] + 1 - totals["skipped"]
        table["lost"] = np.maximum(0, sent - totals["packets"])[used]
        table["jitter"] = self.jitter[used]
        return table

    def _starts(self, slot: NDArray[np.int32], start_ns: Integers) -> Integers:
        """When each chunk began: of one stream no two alike, for storaged knows them by it."""
        before = _before(start_ns, (head := _heads(slot)), self.streams.chunk_ns[slot[head]])
        for late in np.flatnonzero(start_ns <= before).tolist():
            following = late and slot[late - 1] == slot[late]
            previous = start_ns[late - 1] if following else self.streams.chunk_ns[slot[late]]
            start_ns[late] = max(start_ns[late], previous + 1)
        self.streams.chunk_ns[slot] = start_ns  # the last one of each stays
        return start_ns

    def _update(self, totals: dict[str, Integers], batch: Batch, extended: Integers) -> None:
        streams, stretches = self.streams, self.ordered.stretches
        slot = stretches.slot
        time_ns = self.ordered.batch.time_ns
        first = np.minimum.reduceat(time_ns, stretches.head)
        last = np.maximum.reduceat(time_ns, stretches.head)
        known = streams.known[slot]
        streams.first_ns[slot] = np.where(known, np.minimum(first, streams.first_ns[slot]), first)
        streams.last_ns[slot] = np.where(known, np.maximum(last, streams.last_ns[slot]), last)
        for name, values in totals.items():
            getattr(streams, name)[slot] = values[self.last]
        streams.known[slot] = True
        recent = np.flatnonzero(extended > streams.highest[batch.slot] - WINDOW)
        place, number = batch.slot[recent], extended[recent]
        streams.window[place, number % WINDOW] = _memory(number, batch.timestamp[recent])
        kind = batch.slot.astype(np.int64) << 7 | batch.payload_type
        head, count = _runs(kind) if len(kind) else (kind, kind)
        np.add.at(streams.payload_types.reshape(-1), kind[head], count.astype(np.uint32))


class _Output:
    """One flush's chunks, written portion by portion into three buffers."""

    def __init__(self, batch: Batch) -> None:
        self._tables: list[NDArray[np.void]] = []
        self._frames = np.empty(len(batch.slot), FRAME)
        self._payload = np.empty(int(batch.length.sum(dtype=np.int64)), np.uint8)
        self._frame_count = self._size = 0

    def append(self, table: NDArray[np.void], batch: Batch, extended: Integers) -> None:
        """Add chunks and their packets, in the order of both."""
        self._tables.append(table)
        frames = self._frames[self._frame_count : self._frame_count + len(extended)]
        frames["sequence"] = extended.astype(np.uint32)
        frames["timestamp"], frames["arrival_ns"] = batch.timestamp, batch.time_ns
        frames["payload_type"], frames["flags"] = batch.payload_type, batch.flags
        frames["length"] = batch.length
        size = int(batch.length.sum(dtype=np.int64))
        if size:
            _copy_payloads(batch, self._payload[self._size : self._size + size])
        self._frame_count += len(extended)
        self._size += size

    def media(self) -> Media:
        """What was written."""
        return Media(
            np.concatenate(self._tables),
            self._frames[: self._frame_count],
            self._payload[: self._size].data,
        )


def _copy_payloads(batch: Batch, out: NDArray[np.uint8]) -> None:
    """Payloads one after the other: one gather for each length that occurs."""
    length = batch.length.astype(np.int64)
    if int(length.min()) == int(length.max()):
        out[:] = rows(batch.arena, batch.offset, int(length[0])).view(np.uint8)
        return
    place = np.cumsum(length) - length
    order = np.argsort(batch.length, kind="stable")
    head, count = _runs(length[order])
    for start, size in zip(head.tolist(), count.tolist(), strict=True):
        which = order[start : start + size]
        if width := int(length[which[0]]):
            view = np.ndarray((len(out) - width + 1,), f"V{width}", out, strides=(1,))
            view[place[which]] = rows(batch.arena, batch.offset[which], width)
