"""RTCP of streams that no call has claimed yet, until one does.

A stream waits for its SDP, and a report may come before the packets it speaks of: both are heard
when the stream is claimed. Bounded for each stream and for all, in time and in bytes.
What is done with it then: capture.calls.control.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from capture.calls.rows import Row
from capture.model import Datagram

EACH: Final = 32  # datagrams of a stream: two minutes of reports
MOST_BYTES: Final = 4 << 20  # of all
EARLY_NS: Final = 5_000_000_000  # a report comes so long before the packets it speaks of
EARLY: Final = 256


class Unclaimed:
    """Datagrams by the row they are of. count: of those that are let go."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._held: dict[int, tuple[Row, list[Datagram]]] = {}
        self._early: deque[Datagram] = deque()
        self._bytes = 0

    def hold(self, row: Row | None, datagram: Datagram) -> None:
        """Keep it, if there is room. row: None where nothing has been heard that it is of."""
        waiting = self._held.get(row.stream.row, (row, []))[1] if row else self._early
        full = len(waiting) >= (EACH if row else EARLY)
        if full or self._bytes + len(datagram.payload) > MOST_BYTES:
            self._count("rtcp_unmatched")
            return
        self._bytes += len(datagram.payload)
        waiting.append(datagram)
        if row is not None and isinstance(waiting, list):
            self._held[row.stream.row] = row, waiting

    def take(self, row: Row) -> list[Datagram]:
        """What was held of a stream, in order."""
        _, datagrams = self._held.pop(row.stream.row, (row, []))
        self._bytes -= sum(len(datagram.payload) for datagram in datagrams)
        return sorted(datagrams, key=lambda datagram: datagram.time_ns)

    def claimed(self) -> Iterator[Datagram]:
        """What is held of streams that have been claimed since."""
        for row, _ in list(self._held.values()):
            if row.call is not None:
                yield from self.take(row)

    def early(self) -> list[Datagram]:
        """What came before its stream, to be looked at again."""
        datagrams = [*self._early]
        self._early.clear()
        self._bytes -= sum(len(datagram.payload) for datagram in datagrams)
        return datagrams

    def release(self, number: int) -> None:
        """The row is gone, unclaimed or not."""
        if number in self._held:
            for _ in self.take(self._held[number][0]):
                self._count("rtcp_unmatched")
