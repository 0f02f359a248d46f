"""Interarrival jitter of all streams of a portion, at the end of each of their seconds.

J += (|D| - J)/16 for each packet is a weighted sum over the packets of a second: the weights are
powers of 15/16. Copies do not count: they would halve it, and add how late they came.
Source: RFC 3550 §6.4.1, A.8.
"""

import numpy as np
from numpy.typing import NDArray

from capture.media.ordering import STREAM, Integers, Timed
from capture.media.streams import StreamTable

SECOND = 1_000_000_000


class Jitter:
    """Packets in order of arrival; brings the streams' jitter up to date."""

    def __init__(
        self, arrivals: Timed, streams: StreamTable, second: Integers | None, copies: Integers
    ) -> None:
        """second: int64[n], of each packet; None if they are all of the same.

        copies: which packets were heard before.
        """
        slots = arrivals.slot
        if len(copies):
            arrivals = arrivals.without(copies)
            second = None if second is None else np.delete(second, copies)
        if not len(arrivals.slot):
            self._key, self._value = np.zeros(1, np.int64), np.zeros(1)  # no chunk will ask
            return
        difference = _differences(arrivals, streams)
        self._key, head = _pieces(arrivals, second)
        count = np.diff(head, append=len(difference))
        decay = np.power(15 / 16, np.arange(int(count.max()) + 1))
        to_end = np.repeat(head + count - 1, count) - np.arange(len(difference))
        gain = np.add.reduceat(difference * decay[to_end], head) / 16
        self._value = np.empty(len(head))
        slot = slots[self._key // STREAM]
        rank = np.arange(len(head)) - np.searchsorted(self._key, self._key // STREAM * STREAM)
        for turn in range(int(rank.max()) + 1):  # once, unless seconds were flushed together
            now = np.flatnonzero(rank == turn)
            streams.jitter[slot[now]] = streams.jitter[slot[now]] * decay[count[now]] + gain[now]
            self._value[now] = streams.jitter[slot[now]]

    def at(self, key: Integers) -> NDArray[np.float64]:
        """The jitter at the end of a stream's second. key: stream × STREAM + second."""
        # Nobody asks for a stream of copies alone: whatever it is given does not matter.
        return self._value[np.maximum(np.searchsorted(self._key, key, side="right") - 1, 0)]


def _pieces(arrivals: Timed, second: Integers | None) -> tuple[Integers, Integers]:
    """The streams' seconds as keys, ascending, and where each begins."""
    if second is None:
        return arrivals.lift, arrivals.head
    # The clock may step back: the seconds of arrival must not, to be stretches of their own.
    key = np.maximum.accumulate(second + arrivals.spread(arrivals.lift))
    head = np.flatnonzero(np.diff(key, prepend=-1))
    return key[head], head


def _differences(arrivals: Timed, streams: StreamTable) -> NDArray[np.float64]:
    """|D| of each packet, in units of its media clock; remembers the last packet of each stream."""
    slot, head = arrivals.slot, arrivals.head
    known = streams.known[slot]
    time_ns = np.where(known, streams.arrival_ns[slot], arrivals.time_ns[head])
    stamp = np.where(known, streams.timestamp[slot], arrivals.timestamp[head])
    elapsed = arrivals.time_ns - arrivals.before(arrivals.time_ns, time_ns)
    ticks = (arrivals.timestamp - arrivals.before(arrivals.timestamp, stamp)).view(np.int32)
    difference = elapsed * arrivals.spread(streams.clock[slot] / SECOND)
    difference -= ticks
    last = head + arrivals.count - 1
    streams.arrival_ns[slot] = arrivals.time_ns[last]
    streams.timestamp[slot] = arrivals.timestamp[last]
    found: NDArray[np.float64] = np.abs(difference, out=difference)
    return found
