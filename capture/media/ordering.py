"""Order a portion of packets, all its streams at once, and tell what is late or a copy.

No loop over packets or streams: packets lie stream by stream, and everything a stream needs is a
running sum or maximum within its stretch. Late packets are placed, never dropped.
Source: RFC 3550 §5.1, A.1. Counting and cutting: capture.media.chunks.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.media.held import ROW, Batch
from capture.media.streams import WINDOW, StreamTable

MAX_DROPOUT: Final = 3000  # numbers ahead: more is a restart of the sequence, not loss (A.1)
# Numbers behind: more is a restart too. A.1 has 100, which is less than a video stream's
# reordering within a second.
MAX_MISORDER: Final = 1000
# Lifts each stream's numbers above those of the one before. The lower 32 bits stay the number's.
STREAM: Final = 1 << 40

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Timed:
    """Packets stream by stream, each in order of arrival, and when. n packets of m streams."""

    def __init__(
        self, time_ns: Integers, timestamp: NDArray[np.uint32], slot: Integers, count: Integers,
        lift: Integers,
    ) -> None:  # fmt: skip
        """slot, count, lift: int64[m], of which stream, how many, and what its numbers begin at."""
        self.time_ns, self.timestamp = time_ns, timestamp
        self.slot, self.count, self.lift = slot, count, lift
        self.head = np.cumsum(count) - count  # [m] a stream's first packet
        self.each = np.repeat(np.arange(len(slot)), count)  # [n] which of the m it belongs to

    def without(self, which: Integers) -> "Timed":
        """All but some; a stream of which none is left is left out. Lifts stay as they are."""
        keep = np.ones(len(self.time_ns), np.bool_)
        keep[which] = False
        count = self.count - np.bincount(self.each[which], minlength=len(self.slot))
        left = np.flatnonzero(count)
        return Timed(
            self.time_ns[keep], self.timestamp[keep], self.slot[left], count[left], self.lift[left]
        )

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value per stream, for each of its packets."""
        return values[self.each]

    def before(self, values: NDArray[Any], first: NDArray[Any]) -> NDArray[Any]:
        """Each one's predecessor within its stream; first[m] for the heads."""
        previous = np.empty_like(values)
        previous[1:] = values[:-1]
        previous[self.head] = first
        return previous


class Arrivals(Timed):
    """The same with what they are."""

    def __init__(self, batch: Batch, which: NDArray[np.intp], slot: Integers, count: Integers):
        """which: int[n], the packets.  slot, count: int[m], of which stream, and how many."""
        self.rows = batch.rows[which]  # held.ROW, as bytes
        packets = self.rows.view(ROW)
        self.sequence = packets["sequence"].astype(np.uint16)
        super().__init__(
            packets["arrival_ns"].copy(), packets["timestamp"].copy(), slot, count,
            np.arange(len(slot)) * STREAM,
        )  # fmt: skip


@dataclass(slots=True)
class Ordered:
    """The same packets by stream and extended sequence number. Rows are those of this order."""

    order: NDArray[np.intp] | None  # which arrival each is; None: as they arrived
    number: Integers  # [n] extended sequence number + the stream's lift
    late: Integers  # rows that came behind a higher number, and are no copies
    copies: Integers  # rows that were heard before
    skips: Integers  # rows in front of which a restart jumped over numbers, and over how many
    skipped: Integers

    def arrived(self, rows: Integers) -> Integers:
        """Which arrivals these rows are."""
        return rows if self.order is None else self.order[rows]

    def put(self, arrivals: NDArray[Any]) -> NDArray[Any]:
        """A column of the arrivals, in this order."""
        return arrivals if self.order is None else arrivals[self.order]


def order(arrivals: Arrivals, streams: StreamTable) -> Ordered:
    """Bring a portion into order, and tell what is late, a copy, or behind a restart."""
    number, before = extend(arrivals, streams)
    late = number < before
    ahead = number - before
    skips = np.flatnonzero(ahead > MAX_DROPOUT)
    none = np.empty(0, np.int64)
    found = Ordered(None, number, none, none, skips, ahead[skips] - 1)
    if late.any() and (number[1:] < number[:-1]).any():
        found.order = _by_number(arrivals, number)
        found.number, late = number[found.order], late[found.order]
        if len(skips):
            place = np.empty(len(number), np.int64)
            place[found.order] = np.arange(len(number))
            found.skips = place[skips]
    found.copies = _copies(arrivals, found, streams)
    late[found.copies] = False
    found.late = np.flatnonzero(late)
    return found


def extend(arrivals: Arrivals, streams: StreamTable) -> tuple[Integers, Integers]:
    """Unwrap the 16-bit sequence numbers of packets in order of arrival.

    Returns int64[n] each, with the stream's lift added: extended numbers, and the highest number
    before each. A stream begins at 65536 + its first number. Source: RFC 3550 §A.1, except that a
    jump is believed at once: all packets are kept, so a stray one costs nothing.
    """
    head, slot, sequence = arrivals.head, arrivals.slot, arrivals.sequence
    first = sequence[head].astype(np.int64) + 65536
    highest = np.where(streams.known[slot], streams.highest[slot], first)
    short = (sequence - arrivals.before(sequence, highest.astype(np.uint16))).view(np.int16)
    step = short.astype(np.int64)
    if int(short.min()) < -MAX_MISORDER:
        step[step < -MAX_MISORDER] += 65536
    start = highest + arrivals.lift
    number = np.cumsum(step)
    number += arrivals.spread(start - number[head] + step[head])
    top = number.copy()
    top[head] = np.maximum(top[head], start)
    return number, arrivals.before(np.maximum.accumulate(top, out=top), start)


def _by_number(arrivals: Arrivals, number: Integers) -> NDArray[np.intp]:
    """The order by stream and number. Numbers that fit into 16 bits are sorted by radix."""
    lowest = np.minimum.reduceat(number, arrivals.head)
    span = np.maximum.reduceat(number, arrivals.head) - lowest + 1
    if int(span.sum()) > 1 << 16:
        return np.argsort(number, kind="stable")
    close = number - arrivals.spread(lowest - np.cumsum(span) + span)
    return np.argsort(close.astype(np.uint16), kind="stable")


def _copies(arrivals: Arrivals, found: Ordered, streams: StreamTable) -> Integers:
    """Which packets were heard before, here or in one of the last flushes: same number and time.

    A number that comes again with another timestamp is another packet.
    """
    number, timestamp = found.number, found.put(arrivals.timestamp)
    copy = np.zeros(len(number), np.bool_)
    again = np.flatnonzero(number[1:] == number[:-1]) + 1
    copy[again] = timestamp[again] == timestamp[again - 1]
    slot = arrivals.slot
    highest = np.where(streams.known[slot], streams.highest[slot], np.int64(-1)) + arrivals.lift
    old = np.flatnonzero(number <= arrivals.spread(highest))
    remembered = streams.window[slot[arrivals.each[old]], number[old] % WINDOW]
    copy[old] |= remembered == memory(number[old], timestamp[old])
    return np.flatnonzero(copy)


def memory(number: Integers, timestamp: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """What is remembered of a packet, to know a copy: extended number and timestamp."""
    return number.astype(np.uint64) << np.uint64(32) | timestamp
