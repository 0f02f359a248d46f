"""One call table over several ears: their words in, orders and call records out.

Signalling of one call may reach several ears, its media others. Their words are put in order of
time: nothing is taken in before every ear has told that it has no more from before. Once a second
the table ticks; its records are written when all ears have carried out what it ordered before, so
that a call's last record counts, and follows, all of its media.
A stream's row, as the table knows it, tells the ear: row of the ear times their number, plus ear.
No clock, socket or file here. An ear: capture.ear. The processes: capture.team.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np

from capture.calls.calls import Calls
from capture.ear import TICK_NS, TOTALS, Orders, Report
from capture.media.engine import NO_TOTALS
from capture.media.leaving import Leaving
from capture.media.streams import GENERATION
from capture.model import Attach, Close, Datagram, NewStream, Overdue, StreamTotals
from capture.recorder import Heard
from spanvault.daemon.config import CaptureConfig

BEGINNING: Final = 0  # what an ear that has told nothing yet has heard up to

Event = TypeVar("Event", Datagram, NewStream)
Known = TypeVar("Known", NewStream, Overdue)


class Ensemble:
    """The call table of some ears. Feed it their reports; give each ear its orders."""

    def __init__(self, settings: CaptureConfig, ears: int, new_id: Callable[[], bytes]) -> None:
        self.calls = Calls(settings, self._totals, new_id)
        self._ears = [_Told() for _ in range(ears)]
        self._datagrams: list[Datagram] = []  # not taken in yet
        self._opened: list[NewStream] = []
        self._control: list[Datagram] = []  # RTCP
        self._now_ns = self._next_tick_ns = BEGINNING
        self._ticked = False  # records wait for the ears to have obeyed
        self._at_the_end: list[Overdue] = []

    def receive(self, ear: int, report: Report) -> Heard:
        """Take an ear's report in; what became due leaves."""
        self._ears[ear].take(report)
        word = report.word
        self._datagrams += word.datagrams
        self._control += word.control
        self.calls.sip_tls.sighted(word.secure)
        self._opened += [self._known(ear, stream) for stream in word.opened]
        if word.flooded:
            self.calls.dropped(slow=True)
        if word.lossy:
            self.calls.dropped()
        heard = Heard(media=report.media, ticked=bool(report.media))
        if word.clock_ns != self._ears[ear].clock_ns:
            self._set(ear, word.clock_ns)
        self._now_ns = max(self._now_ns, min(each.time_ns for each in self._ears))
        self._take_in(self._now_ns)
        overdue = [self._known(ear, stream) for stream in word.overdue]
        if word.ending:
            self._at_the_end += overdue  # the table may not know of them before all have told
            return heard
        self.calls.overdue(overdue)
        heard.add(self._tick())
        return heard

    def orders(self, ear: int, stop: bool = False, last: bool = False) -> Orders | None:
        """What an ear is to do, since last asked.

        stop: and then to tell all it has.  last: and then to say its last word.
        """
        self._command()
        self._ears[ear].orders.stop, self._ears[ear].orders.last = stop, last
        return self._ears[ear].give()

    def conclude(self) -> None:
        """All ears have told all they have: decide on what waits. The last orders follow."""
        self._take_in(None)
        overdue, self._at_the_end = self._at_the_end, []
        self.calls.overdue(overdue)

    def pause(self) -> Heard:
        """The daemon stops, the calls go on: all ears have told their last word."""
        self._take_in(None)
        self.calls.renew()
        return Heard(
            self.calls.records(everything=True), Leaving([self.calls.media()]), ticked=True
        )

    def counters(self) -> dict[str, int]:
        """Everything counted by all, for status and journal."""
        total: Counter[str] = Counter(self.calls.counters)
        for each in self._ears:
            total.update(each.counters)
        return dict(total)

    def _set(self, ear: int, clock_ns: int) -> None:
        """An ear has followed the host's clock, which was set. All will, within a moment."""
        self._ears[ear].clock_ns = clock_ns
        if self.calls.clock.offset_ns != clock_ns:
            self.calls.clock.offset_ns = clock_ns
            self.calls.clock_set()

    def _known(self, ear: int, stream: Known) -> Known:
        """As the table knows it."""
        return stream._replace(row=stream.row * len(self._ears) + ear)

    def _totals(self, row: int) -> StreamTotals:
        """For the call table: what has been heard on a row."""
        own, ear = divmod(row, len(self._ears))
        return self._ears[ear].totals(own)

    def _take_in(self, until_ns: int | None) -> None:
        """What was heard until a time, signalling first: its answers are dated. RTCP last."""
        datagrams, self._datagrams = _due(self._datagrams, until_ns)
        opened, self._opened = _due(self._opened, until_ns)
        control, self._control = _due(self._control, until_ns)
        for datagram in datagrams:
            self.calls.receive(datagram)
        for stream in opened:
            self.calls.opened(stream)
        for datagram in control:
            self.calls.control(datagram)

    def _tick(self) -> Heard:
        """Once a second; its records leave when every ear has done what was ordered until then."""
        if not self._ticked and self._now_ns >= self._next_tick_ns and self._now_ns > BEGINNING:
            self._next_tick_ns = self._now_ns + TICK_NS
            self.calls.tick(min(each.counted_ns for each in self._ears))
            self._command()
            self._ticked = True
        if not self._ticked or any(each.busy for each in self._ears):
            return Heard()
        self._ticked = False
        heard = Heard(media=Leaving([self.calls.media()]), ticked=True)
        heard.calls = self.calls.records()
        for row in self.calls.released():
            own, ear = divmod(row, len(self._ears))
            self._ears[ear].orders.release.append(own)
        return heard

    def _command(self) -> None:
        """Hand the table's commands to the ears whose streams they are about."""
        for command in self.calls.commands():
            own, ear = divmod(command.row, len(self._ears))
            orders = self._ears[ear].orders
            if isinstance(command, Attach):
                orders.attach.append(command._replace(row=own))
            elif isinstance(command, Close):
                orders.close.append(command._replace(row=own))
            else:
                orders.contest.append(command._replace(row=own))


class _Told:
    """What one ear has told, and what it is to do."""

    def __init__(self) -> None:
        self.time_ns = self.counted_ns = BEGINNING
        self.clock_ns = 0
        self.counters: dict[str, int] = {}
        self.orders = Orders(1)
        self._given = self._done = 0
        self._totals = np.zeros(1024, TOTALS)  # by slot; the row tells which stream it is of
        self._types = np.zeros((1024, 128), np.uint32)

    @property
    def busy(self) -> bool:
        """Whether it has still to do what it was, or is to be, told."""
        return self._done < self._given or _any(self.orders)

    def take(self, report: Report) -> None:
        """Follow what it says of itself and its streams."""
        word = report.word
        self.time_ns, self.counted_ns = word.time_ns, word.counted_ns
        self.counters, self._done = word.counters, word.done
        for stream in word.opened:
            self._opened(stream)
        slot = report.totals["row"] % GENERATION
        self._totals[slot] = report.totals
        self._types[slot] = 0
        self._types[slot[report.types["at"]], report.types["payload_type"]] = report.types[
            "packets"
        ]

    def totals(self, row: int) -> StreamTotals:
        """What it last told of a stream."""
        told, types = self._totals[row % GENERATION], self._types[row % GENERATION]
        if told["row"] != row:
            return NO_TOTALS
        return StreamTotals(
            packets=int(told["packets"]), lost=int(told["lost"]),
            duplicates=int(told["duplicates"]), late=int(told["late"]),
            jitter=float(told["jitter"]), first_ns=int(told["first_ns"]),
            last_ns=int(told["last_ns"]),
            payload_types={each: int(types[each]) for each in np.flatnonzero(types).tolist()},
            events=int(told["events"]), events_first_ns=int(told["events_first_ns"]),
            events_last_ns=int(told["events_last_ns"]),
        )  # fmt: skip

    def give(self) -> Orders | None:
        """The orders that have gathered."""
        if not _any(self.orders):
            return None
        orders, self.orders = self.orders, Orders(self.orders.number + 1)
        self._given = orders.number
        return orders

    def _opened(self, stream: NewStream) -> None:
        """Until its totals are told, a stream has been heard and not counted."""
        slot = stream.row % GENERATION
        while slot >= len(self._totals):
            self._totals = np.concatenate((self._totals, np.zeros_like(self._totals)))
            self._types = np.concatenate((self._types, np.zeros_like(self._types)))
        self._totals[slot] = np.zeros((), TOTALS)
        self._totals[slot]["row"], self._totals[slot]["last_ns"] = stream.row, stream.time_ns
        self._types[slot] = 0


def _any(orders: Orders) -> bool:
    told = orders.attach or orders.close or orders.contest or orders.release
    return bool(told or orders.stop or orders.last)


def _due(events: list[Event], until_ns: int | None) -> tuple[list[Event], list[Event]]:
    """Those up to a time, in order of time, and the others. None: all are due."""
    events = sorted(events, key=lambda event: event.time_ns)
    if until_ns is None:
        return events, []
    due = bisect_right(events, until_ns, key=lambda event: event.time_ns)
    return events[:due], events[due:]
