"""Packets whose stream no call has claimed yet wait: for a bounded time, in bounded memory.

Before any go, it is asked whether those of streams that have proved to be RTP shall be kept: the
call table may make recordings of them. Proving: capture.media.probation. Who asks:
capture.recorder. Recordings without signalling: capture.calls.orphans.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.media.held import NOBODY, Batch, Held, store
from capture.media.probation import watch
from capture.media.streams import UNATTACHED, StreamTable
from capture.model import NewStream, Overdue
from spanvault.daemon.config import CaptureConfig

SECOND: Final = 1_000_000_000
ASK_NS: Final = 5 * SECOND  # so long before it goes: the answer may take a moment


class Unclaimed:
    """What waits, oldest first.

    opened: the streams, by slot. counters: where it is counted what went.
    """

    def __init__(
        self,
        settings: CaptureConfig,
        streams: StreamTable,
        opened: Mapping[int, NewStream],
        counters: Counter[str],
    ) -> None:
        self._streams, self._opened, self._counters = streams, opened, counters
        self._patience_ns = int(settings.unmatched_s * SECOND)
        self._most_bytes = settings.unmatched_mb << 20
        self._probation = settings.orphan_packets if settings.orphans else None
        self.waiting: list[Held] = []
        self._asked = 0  # of the waiting, about so many it was asked whether they shall be kept
        self._overdue: list[Overdue] = []
        self._claimed: list[int] = []  # attached slots with packets among the waiting

    def wait(self, batch: Batch) -> None:
        """Have a second's packets wait, of streams that nobody has claimed."""
        held = store([batch])
        self.waiting.append(held)
        self._streams.waiting[batch.slot] = True
        watch(held.batch(), self._streams)

    def claim(self, slot: int) -> None:
        """A call has claimed a stream: what waits of it is to leave."""
        if self._streams.waiting[slot]:
            self._claimed.append(slot)

    def claimed(self) -> Held | None:
        """What was claimed since last asked, in order of arrival; it waits no more."""
        if not self._claimed:
            return None
        claimed = self._streams.flags(self._claimed)
        self._streams.waiting[self._claimed] = False
        self._claimed = []
        batches = []
        for held in self.waiting:
            batch = held.batch()
            mine = claimed[batch.slot] & (batch.slot >= 0)
            if mine.any():
                batches.append(batch.take(mine))
                batch.slot[mine] = NOBODY
        return store(batches) if batches else None

    def forget(self, slots: list[int]) -> None:
        """These slots are about to be used again."""
        if self._streams.waiting[slots].any():
            gone = self._streams.flags(slots)
            for held in self.waiting:
                held.forget(gone)

    def expire(self, now_ns: int, crowded: bool) -> list[int]:
        """Let go of what waited too long, or is too much, once it was asked about.

        crowded: there are many streams, so ask at once. Returns the slots that have fallen silent.
        """
        limit_ns = now_ns - self._patience_ns
        size = sum(held.used for held in self.waiting)
        while self._asked and (self.waiting[0].last_ns < limit_ns or size > self._most_bytes):
            held = self.waiting.pop(0)
            self._asked -= 1
            size -= held.used
            self._counters["unmatched_dropped"] += int(np.count_nonzero(held.batch().slot >= 0))
        size -= sum(held.used for held in self.waiting[: self._asked])
        for held in self.waiting[self._asked :]:
            full = size > self._most_bytes // 2
            if not (full or crowded or held.last_ns < limit_ns + min(ASK_NS, self._patience_ns)):
                break
            self._ask(np.unique(held.batch().slot), now_ns)
            size -= held.used
            self._asked += 1
        streams = self._streams
        silent = (streams.state == UNATTACHED) & (streams.heard_ns < limit_ns)
        silent &= streams.asked_ns != now_ns  # the answer comes before the next tick
        return np.flatnonzero(silent).tolist()

    def overdue(self, everything: bool = False) -> list[Overdue]:
        """What is to be asked about, since last asked. everything: all, for it is the end."""
        if everything:
            self._ask(np.flatnonzero(self._streams.state == UNATTACHED), None)
        overdue, self._overdue = self._overdue, []
        return overdue

    def _ask(self, slot: NDArray[Any], now_ns: int | None) -> None:
        """Ask about those of some streams that have proved to be RTP. now_ns: None at the end."""
        if self._probation is None:
            return
        streams, slot = self._streams, slot[slot >= 0]
        proved = (streams.state[slot] == UNATTACHED) & (streams.orderly[slot] >= self._probation)
        if now_ns is not None:
            asked_ns = streams.asked_ns[slot]
            proved &= (asked_ns == 0) | (abs(now_ns - asked_ns) >= self._patience_ns)
            streams.asked_ns[slot[proved]] = now_ns
        held_ns = self.waiting[0].first_ns if self.waiting else 0
        for each in slot[proved].tolist():
            opened = self._opened[each]
            self._overdue.append(
                Overdue(
                    opened.row, int(streams.unclaimed[each]), int(streams.octets[each]),
                    opened.time_ns, int(streams.heard_ns[each]), max(held_ns, opened.time_ns),
                )
            )  # fmt: skip
