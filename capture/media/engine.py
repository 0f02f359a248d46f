"""Streams from their first packet to their last chunk.

Packets are held for about two seconds: one to fill, one in which signalling may still say that a
call ended and the next began on the same addresses. Then they leave as chunks if a call has
claimed their stream, or wait for one that will. Time is the packets' time.
Counting: capture.media.chunks. Known streams: capture.media.streams. Held packets:
capture.media.held. Those that wait for a call: capture.media.unclaimed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.media.arena import Arena
from capture.media.chunks import assemble
from capture.media.continuity import step_between
from capture.media.ending import NEVER, part
from capture.media.held import NOBODY, Batch, Held, store
from capture.media.leaving import Leaving
from capture.media.streams import (
    ATTACHED,
    DISCARDED,
    GENERATION,
    LEAVING,
    UNATTACHED,
    StreamTable,
)
from capture.media.turnover import decide
from capture.media.unclaimed import Unclaimed
from capture.model import (
    Attach,
    Block,
    Close,
    Contest,
    Endpoint,
    NewStream,
    Overdue,
    Packets,
    StreamTotals,
)
from spanvault.daemon.config import CaptureConfig

SECOND: Final = 1_000_000_000
HOLD_NS: Final = SECOND // 2  # a full second stays so long: signalling is heard before it leaves
BLOCK_NS: Final = SECOND // 10  # a second reaches on so far at most, to its last block's end
MAX_FULL: Final = 3  # seconds that wait, whatever the clock says: it may have been set back
MAX_UNATTACHED: Final = 32_768  # streams nobody has claimed; 2 KB each
CROWDED: Final = 8_192  # of them, and it is asked at once whether those that prove RTP shall stay
MAX_UNHEARD: Final = 64  # losses of the link that a stream which is silent for long may meet yet
HOUR_NS: Final = 3600 * SECOND
MAX_EVICTED: Final = 1000  # a second: a flood of invented streams must not take our time either
NO_TOTALS: Final = StreamTotals(0, 0, 0, 0, 0.0, 0, 0, {})

Endpoints = Callable[[int], tuple[Endpoint, Endpoint]]


class Media:
    """Packets in, chunks out; in between, signalling says whose they are."""

    def __init__(self, settings: CaptureConfig, seed: int | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self.streams = StreamTable(seed=seed)
        self._opened: dict[int, NewStream] = {}  # by slot
        self._unattached: dict[int, None] = {}  # slots, oldest first
        self._evicted = 0
        self._arena = Arena()
        self._filling = Held(self._arena)
        self._full: list[Held] = []
        self._spare: list[Held] = []
        self._unclaimed = Unclaimed(settings, self.streams, self._opened, self.counters)
        self._contests: dict[int, Contest] = {}  # by slot
        self._leaving: list[tuple[Held, int]] = []  # free once this has been flushed
        self._loss: list[tuple[int, int]] = []  # when the capture itself lost packets: from, to
        self._unheard: dict[int, int] = {}  # from when to when nothing reached it
        self._loss_reaches_on = False  # to the next packet: it may lie between two seconds

    def losses(self, block: Block) -> bool:
        """Note what the capture itself lost before a block or among it. Returns whether it did.

        To be told before receive() is given the block's packets, if there are any.
        """
        self._unheard.update(block.unheard)
        for begin in list(self._unheard)[:-MAX_UNHEARD]:
            del self._unheard[begin]
        if block.dropped:
            self.lost(block.dropped, int(block.time_ns.min()), int(block.time_ns.max()))
        return bool(block.unheard or block.dropped)

    def lost(self, frames: int, first_ns: int, last_ns: int) -> None:
        """The ring had no room for so many frames before or among those of this time."""
        self.counters["capture_dropped"] += frames
        self._loss.append((first_ns, last_ns))
        filling = self._filling
        self._loss_reaches_on = not filling.count or first_ns > filling.last_ns

    def receive(
        self, packets: Packets, endpoints: Endpoints, among: bool = False
    ) -> list[NewStream]:
        """Take a block's packets in; returns the streams heard for the first time.

        endpoints: source and destination of a packet, by its row.
        among: the packets are of the same block as those received last.
        """
        if not len(packets.ssrc):
            return []
        first = int(packets.time_ns.min())
        if self._loss_reaches_on:
            begin, end = self._loss[-1]
            self._loss[-1], self._loss_reaches_on = (begin, max(end, first)), False
        fingerprint = self.streams.index.fingerprints(packets)
        slot = self.streams.index.find(fingerprint)
        stale = (slot < 0) | (packets.time_ns > self.streams.close_at_ns[slot])
        new: list[NewStream] = []
        if stale.any():
            new = self._open(packets, fingerprint, slot, np.flatnonzero(stale), endpoints)
            packets, slot = self._known_only(packets, slot)
        self.streams.heard_ns[slot] = packets.time_ns
        # abs: the clock may have been set back, or another file begins.
        if self._filling.count and abs(first - self._filling.first_ns) >= SECOND and not among:
            self._next()
        self._filling.append(packets, slot, among)
        return new

    def attach(self, attach: Attach) -> None:
        """A call claims a stream. One that has gone meanwhile is counted."""
        slot = self.streams.slot(attach.row)
        if slot is None or self.streams.state[slot] not in (UNATTACHED, ATTACHED):
            self.counters["attached_too_late"] += 1
            return
        streams = self.streams
        streams.state[slot] = ATTACHED
        streams.recording_id[slot] = np.void(attach.recording_id)
        streams.number[slot] = attach.number
        streams.clock_ns[slot] = attach.clock_ns
        streams.kinds[slot] = np.frombuffer(attach.kinds, np.uint8)
        streams.whole[slot] = attach.whole
        if attach.clock_rate:
            streams.clock[slot] = attach.clock_rate
        self._unattached.pop(slot, None)
        self._unclaimed.claim(slot)

    def close(self, closes: Sequence[Close]) -> list[NewStream]:
        """These streams end, each at a time; what was heard of them later are others, returned.

        All at once: everything that is held is looked through once, however many they are.
        """
        new: list[NewStream] = []
        while closes:
            now: dict[int, tuple[int, int]] = {}  # fingerprint → slot, end
            later: list[Close] = []  # of a stream that a stream of these goes on from
            for close in closes:
                slot = self.streams.slot(close.row)
                if slot is None:
                    continue
                fingerprint = int(self.streams.fingerprint[slot])
                if fingerprint in now:
                    later.append(close)
                elif self._ends_before_its_last(slot, close.at_ns):
                    now[fingerprint] = slot, close.at_ns
            if now:
                new += self._go_on_apart(*zip(*now.values(), strict=True))
            closes = later
        return new

    def _ends_before_its_last(self, slot: int, at_ns: int) -> bool:
        """Note when a stream ends. Whether something of it is held that was heard later."""
        streams = self.streams
        streams.close_at_ns[slot] = at_ns
        if streams.heard_ns[slot] <= at_ns:
            return False
        # If it has gone already nothing of it is kept any more that could go on.
        return bool(streams.state[slot] in (UNATTACHED, ATTACHED))

    def _go_on_apart(self, ended: Sequence[int], at_ns: Sequence[int]) -> list[NewStream]:
        """Have what was heard of some streams behind their ends be others', which are returned."""
        slots = np.array(ended, np.int64)
        following = self._following(slots)
        held = (*self._unclaimed.waiting, *self._full, self._filling)
        ends = part(held, self.streams, slots, np.array(at_ns, np.int64), following)
        self.streams.heard_ns[slots] = ends.last_ns
        return [
            opened
            for slot, new, first_ns in zip(
                ended, following.tolist(), ends.from_ns.tolist(), strict=True
            )
            if (opened := self._split(slot, new, first_ns))
        ]

    def contest(self, contest: Contest) -> None:
        """A newer call may have taken a stream's addresses over: its packets will tell."""
        slot = self.streams.slot(contest.row)
        if slot is not None and self.streams.state[slot] == ATTACHED:
            self._contests[slot] = contest

    def contested(self) -> list[NewStream]:
        """Close the streams that turned out to be a newer call's; what goes on there is returned.

        To be asked before anything leaves, for that cannot be given back, and no more often: all
        that is held is looked through.
        """
        if not self._contests:
            return []
        told = decide(self._contests, (*self._full, self._filling), self.streams)
        for slot in told.done:
            del self._contests[slot]
        return self.close(told.closes)

    def tick(self, now_ns: int) -> Leaving:
        """The chunks that are due at a packet time, in parts; none of them is empty."""
        if self._filling.count and now_ns >= self._filling.first_ns + SECOND:
            self._next()
        due = max(0, len(self._full) - MAX_FULL)
        while due < len(self._full) and now_ns >= _due_ns(self._full[due]):
            due += 1
        flushed, self._full = self._full[:due], self._full[due:]
        media = self._flush(flushed)
        self._expire(now_ns)
        return media

    def overdue(self, everything: bool = False) -> list[Overdue]:
        """Streams whose packets are about to go, each asked about once in `unmatched_s`.

        What is attached before the next tick stays. everything: all that wait, for it is the end.
        """
        return self._unclaimed.overdue(everything)

    def due_ns(self, now_ns: int) -> int:
        """The packet time at which the next second will be due, or the one that is filling now."""
        if self._full:  # now: the clock may have been set back
            return min(_due_ns(self._full[0]), now_ns + SECOND)
        begun_ns = self._filling.first_ns if self._filling.count else now_ns
        return min(begun_ns, now_ns) + SECOND + HOLD_NS

    def counted_ns(self, now_ns: int) -> int:
        """The packet time before which all media is counted in totals."""
        held = (part.first_ns for part in (*self._full, self._filling) if part.count)
        return min(now_ns, min(held, default=now_ns))

    def step(self, packets: Packets, on_hold: Iterable[int]) -> int | None:
        """By how much the clock was set before these packets, by what they say; None: not at all.

        on_hold: rows of which silence is expected.
        """
        slot = self.streams.index.find(self.streams.index.fingerprints(packets))
        held = [part.batch() for part in (*self._full, self._filling)]
        if not any(len(batch.slot) for batch in held):
            return None
        silent = [one for row in on_hold if (one := self.streams.slot(row)) is not None]
        before = store(held).batch()
        return step_between(before, packets, slot, self.streams.clock, np.array(silent, np.int64))

    def flush(self) -> Leaving:
        """All chunks there are, due or not."""
        self._next()
        flushed, self._full = self._full, []
        return self._flush(flushed)

    def totals(self, row: int) -> StreamTotals:
        """What a stream has heard; packets that were not flushed yet count in last_ns only."""
        slot = self.streams.slot(row)
        return NO_TOTALS if slot is None else self.streams.totals(slot)

    def unclaimed(self, row: int) -> int:
        """Packets heard of a stream while no call had claimed it, copies among them."""
        slot = self.streams.slot(row)
        return 0 if slot is None else int(self.streams.unclaimed[slot])

    def release(self, row: int) -> None:
        """Nobody asks for this stream any more; what is held of it still leaves."""
        slot = self.streams.slot(row)
        if slot is not None and self.streams.state[slot] in (UNATTACHED, ATTACHED):
            attached = self.streams.state[slot] == ATTACHED
            self._leave(slot, LEAVING if attached else DISCARDED)

    def _open(
        self,
        packets: Packets,
        fingerprint: NDArray[np.uint64],
        slot: NDArray[np.int32],
        stale: NDArray[np.int64],
        endpoints: Endpoints,
    ) -> list[NewStream]:
        """Open a stream for packets that have none, once each; fills in their slots."""
        _, first, which = np.unique(fingerprint[stale], return_index=True, return_inverse=True)
        by_time = np.argsort(first)
        by_time = by_time[: self._make_room(len(first))]
        row = stale[first[by_time]]
        new = self._new_slots(
            fingerprint[row], packets.ssrc[row], packets.payload_type[row], packets.time_ns[row],
            [endpoints(each) for each in row.tolist()], packets.timestamp[row],
        )  # fmt: skip
        opened = np.full(len(first), NOBODY, np.int32)
        opened[by_time] = [stream.row % GENERATION for stream in new]
        slot[stale] = opened[which]
        return new

    def _new_slots(
        self,
        fingerprint: NDArray[np.uint64],
        ssrc: NDArray[np.uint32],
        payload_type: NDArray[np.uint8],
        time_ns: NDArray[np.int64],
        ends: list[tuple[Endpoint, Endpoint]],
        timestamp: NDArray[np.uint32] | None = None,
    ) -> list[NewStream]:
        """Open streams, one for each of the arguments' n."""
        slot = self.streams.open(fingerprint, ssrc, payload_type, time_ns)
        columns = (self.streams.rows(slot), time_ns, ssrc, payload_type)
        stamps = repeat(None, len(ends)) if timestamp is None else timestamp.tolist()
        told = zip(*(column.tolist() for column in columns), ends, stamps, strict=True)
        new = [
            NewStream(row, time, source, destination, number, kind, stamp)
            for row, time, number, kind, (source, destination), stamp in told
        ]
        slots = slot.tolist()
        self._opened.update(zip(slots, new, strict=True))
        self._unattached.update(dict.fromkeys(slots))
        self.counters["streams"] += len(new)
        return new

    def _make_room(self, wanted: int) -> int:
        """How many more unclaimed streams may be remembered; the oldest ones go for them."""
        room = MAX_UNATTACHED - len(self._unattached)
        granted = min(wanted, MAX_UNATTACHED, room + MAX_EVICTED - self._evicted)
        for slot in list(islice(self._unattached, max(0, granted - room))):
            self._evicted += 1
            self._discard(slot)
        return max(0, granted)

    def _known_only(
        self, packets: Packets, slot: NDArray[np.int32]
    ) -> tuple[Packets, NDArray[np.int32]]:
        """Without those for which there was no room."""
        known = slot >= 0
        if known.all():
            return packets, slot
        self.counters["unmatched_ignored"] += len(slot) - int(known.sum())
        columns = (getattr(packets, name)[known] for name in Packets.__slots__[1:])
        return Packets(packets.data, *columns), slot[known]

    def _following(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slots of new streams that go on where others were closed."""
        streams = self.streams
        opened = [self._opened[slot] for slot in slots.tolist()]
        new = self._new_slots(
            streams.fingerprint[slots], streams.ssrc[slots],
            np.array([each.payload_type for each in opened], np.uint8), streams.heard_ns[slots],
            [(each.source, each.destination) for each in opened],
        )  # fmt: skip
        return np.array([each.row % GENERATION for each in new], np.int64)

    def _split(self, slot: int, following: int, first_ns: int) -> NewStream | None:
        """Tell of the stream that begins where another was closed, if any of it is still held."""
        if first_ns == NEVER:
            self._leave(following, DISCARDED)
            self.streams.index.insert(self.streams.fingerprint[[slot]], np.array([slot]))
            return None
        self.streams.waiting[following] = self.streams.waiting[slot]
        self._opened[following] = self._opened[following]._replace(time_ns=first_ns)
        return self._opened[following]

    def _next(self) -> None:
        """The second that was filling is full."""
        if self._filling.count:
            self._full.append(self._filling)
            self._filling = self._spare.pop() if self._spare else Held(self._arena)

    def _flush(self, flushed: list[Held]) -> Leaving:
        """Chunks of the claimed waiting packets, then of these; unclaimed ones begin to wait."""
        media = Leaving()
        if claimed := self._unclaimed.claimed():
            media += self._assemble(claimed.batch(), claimed.first_ns, claimed.last_ns)
        for held in flushed:
            batch = held.batch()
            state = self.streams.state[batch.slot]
            state[batch.slot < 0] = DISCARDED
            keep = (state == ATTACHED) | (state == LEAVING)
            chosen = batch if keep.all() else batch.take(keep)
            media += self._assemble(chosen, held.first_ns, held.last_ns)
            if (unclaimed := state == UNATTACHED).any():
                self._unclaimed.wait(batch.take(unclaimed))
            dropped = (state == DISCARDED) & (batch.slot >= 0)
            self.counters["unmatched_dropped"] += int(np.count_nonzero(dropped))
        self._recycle(flushed)
        for held in flushed:
            held.clear()
        # One is enough: while one second waits, the next fills. The roomiest is used again.
        self._spare = sorted([*self._spare, *flushed], key=lambda held: held.capacity)[-1:]
        return media

    def _assemble(self, batch: Batch, first_ns: int, last_ns: int) -> Leaving:
        unheard = list(self._unheard.items())
        spans = (*self._loss, *unheard)
        lossy = any(begin <= last_ns and first_ns <= end for begin, end in spans)
        self._loss = [span for span in self._loss if span[1] >= first_ns - 10 * SECOND]
        self._unheard = dict(span for span in unheard if span[1] >= first_ns - HOUR_NS)
        media = assemble(batch, self.streams, first_ns, lossy, unheard, self.counters)
        self.counters["flushed"] += media.frames
        self.counters["duplicates"] += len(batch.slot) - media.frames
        return media

    def _expire(self, now_ns: int) -> None:
        self._evicted = 0
        for slot in self._unclaimed.expire(now_ns, crowded=len(self._unattached) > CROWDED):
            self._discard(slot)

    def _discard(self, slot: int) -> None:
        self._leave(slot, DISCARDED)

    def _leave(self, slot: int, state: int) -> None:
        self.streams.leave(slot, state)
        self._unattached.pop(slot, None)
        self._opened.pop(slot, None)
        self._contests.pop(slot, None)
        self._leaving.append((self._filling, slot))

    def _recycle(self, flushed: list[Held]) -> None:
        """Free the slots that nothing held refers to any more."""
        done = {id(held) for held in flushed}
        if not self._full and not self._filling.count:
            done.add(id(self._filling))
        free = [slot for held, slot in self._leaving if id(held) in done]
        if not free:
            return
        self._leaving = [each for each in self._leaving if id(each[0]) not in done]
        self._unclaimed.forget(free)
        for slot in free:
            self.streams.recycle(slot)


def _due_ns(full: Held) -> int:
    """When a second may leave: if its last block made it a little longer, no later for that."""
    beyond_ns = full.last_ns - full.first_ns - SECOND
    return full.last_ns + HOLD_NS - (beyond_ns if 0 < beyond_ns <= BLOCK_NS else 0)
