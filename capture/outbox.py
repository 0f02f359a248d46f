"""Keep every batch until storaged has acknowledged it: in memory, then on disk.

Batches leave in the order of their sequence, a bounded number in flight. Nothing is forgotten for
having been sent: only an Acknowledge (or a Refuse) removes a batch. When storaged restarted, or
has been silent for long, what was in flight is sent again; storaged drops what it has already.
Protocol: spanvault/WIRE.md, "Ingest". The folder on disk: capture.spool. Sockets: capture.link.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from msgspec import structs

from capture.spool import Spool
from spanvault import wire
from spanvault.chunk import CHUNK, FRAME, NO_MEDIA, Media
from spanvault.messages import Batch, Call, Sealed, Slot
from spanvault.slots import SLOT_BYTES, Slots

BATCH_BYTES: Final = SLOT_BYTES
BATCH_CALLS: Final = 500
# Two commits of storaged at full load (1 Gbit/s of G.711), 2 s each: less would hold it up.
IN_FLIGHT_BYTES: Final = 256 << 20
SILENCE_NS: Final = 10_000_000_000  # then what is in flight is sent again, ever more rarely
MAX_SILENCE_NS: Final = 120_000_000_000


class Held(NamedTuple):
    """A batch in memory, as wire frames; if slot is given, its media lies there instead."""

    frames: list[Any]
    size: int
    slot: Slot | None = None


class Outbox:
    """What storaged has not acknowledged yet.

    memory_bytes, disk_bytes: bounds. first_sequence: higher than any this capture ever used.
    slots: where media is put that storaged may read there, if it is on this host.
    """

    def __init__(
        self, capture: str, spool: Spool, memory_bytes: int, disk_bytes: int, first_sequence: int,
        slots: Slots | None = None,
    ) -> None:  # fmt: skip
        self._capture = capture
        self._spool, self._slots = spool, slots
        self._memory_limit, self._disk_limit = memory_bytes, disk_bytes
        self._memory: dict[int, Held] = {}
        self._on_disk = dict.fromkeys(spool.sequences())
        self._next = max([first_sequence, *(number + 1 for number in self._on_disk)])
        self._queue = deque(self._on_disk)  # not in flight, in order
        self._in_flight: dict[int, int] = {}  # sequence → bytes
        self._in_flight_bytes = 0
        self._told: set[int] = set()  # sequences whose slot storaged was told
        self._finals: dict[int, list[bytes]] = {}  # sequence → calls whose last record it bears
        self._heard_ns: int | None = None
        self._patience_ns = SILENCE_NS
        self.ingest_key: bytes | None = None
        self.handed_over = False  # storaged can read the slots
        self.memory_bytes = 0
        self.lost_batches = 0
        self.refused_batches = 0

    def add(self, calls: list[Call], media: Media) -> None:
        """Take what the recorder has heard; cut into batches of about a megabyte."""
        for part_calls, part_media in _cut(calls, media):
            held = self._hold(Batch(self._capture, self._next, part_calls), part_media)
            self._memory[self._next] = held
            self._queue.append(self._next)
            self.memory_bytes += held.size
            if finals := [call.id for call in part_calls if call.final]:
                self._finals[self._next] = finals
            self._next += 1

    def to_send(self) -> Iterator[tuple[int, list[Any]]]:
        """Batches that may leave now, oldest first; call sent() for each before the next."""
        while self._queue and self._in_flight_bytes < IN_FLIGHT_BYTES:
            sequence = self._queue[0]
            if sequence in self._memory:
                yield sequence, self._outgoing(sequence)
            elif sequence in self._on_disk:
                key, sealed = self._spool.get(sequence)
                yield sequence, wire.encode(Sealed(self._capture, sequence, key), sealed)
            else:
                self._queue.popleft()

    def sent(self, sequence: int, now_ns: int) -> None:
        """The first batch of the queue is on its way."""
        assert self._queue.popleft() == sequence
        held = self._memory.get(sequence)
        size = held.size if held else self._spool.size(sequence)
        if held and held.slot:
            self._told.add(sequence)
        self._in_flight[sequence] = size
        self._in_flight_bytes += size
        if self._heard_ns is None:
            self._heard_ns = now_ns

    def acknowledged(self, sequences: list[int], now_ns: int) -> list[bytes]:
        """Forget what is safe. Returns the ids of calls whose last record now is."""
        self._heard_ns, self._patience_ns = now_ns, SILENCE_NS
        settled: list[bytes] = []
        for sequence in sequences:
            settled += self._finals.pop(sequence, [])
            self._forget(sequence)
        return settled

    def refused(self, sequence: int, now_ns: int) -> None:
        """storaged set this batch aside for good: sending it again would not help."""
        self._heard_ns = now_ns
        self.refused_batches += 1
        self._finals.pop(sequence, None)
        self._forget(sequence)

    def send_again(self) -> None:
        """storaged is new or back: nothing counts as in flight."""
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._queue = deque(sorted([*self._on_disk, *self._memory]))
        self._heard_ns = None

    def tick(self, now_ns: int) -> None:
        """Send again after long silence; move the oldest batches to disk when memory is full."""
        waited = now_ns - self._heard_ns if self._heard_ns is not None else 0
        if self._in_flight and waited > self._patience_ns:
            self.handed_over = False  # if that was what it could not read: frames it always can
            self.send_again()
            self._patience_ns = min(2 * self._patience_ns, MAX_SILENCE_NS)
        while self.memory_bytes > self._memory_limit and self._memory:
            self._spill()

    def put_away(self) -> tuple[int, int]:
        """Seal everything that is left to disk, for the next start.

        Returns how many batches lie there now, and how many could not be put there.
        """
        lost = self.lost_batches
        while self._memory:
            self._spill()
        self._spool.sync()
        return len(self._on_disk), self.lost_batches - lost

    @property
    def in_doubt(self) -> bool:
        """Nothing has been acknowledged since batches had to be sent again for silence."""
        return self._patience_ns > SILENCE_NS

    @property
    def waiting(self) -> int:
        """Batches not acknowledged yet."""
        return len(self._memory) + len(self._on_disk)

    @property
    def spooled(self) -> int:
        """Of these, on disk."""
        return len(self._on_disk)

    def _hold(self, batch: Batch, media: Media) -> Held:
        frames = wire.encode_media(batch, media)
        size = sum(len(frame) for frame in frames)
        slot = self._slots.put(frames[2:]) if self._slots and len(media.table) else None
        if slot is None:
            return Held(frames, size)
        # The media is held in the slot from now on, and nowhere else.
        return Held(wire.encode(structs.replace(batch, slot=slot)), size, slot)

    def _outgoing(self, sequence: int) -> list[Any]:
        """A batch as it may leave now.

        storaged is told a slot once only: answers come in order, so it has read the slot by the
        time that the batch is acknowledged and the slot is used again.
        """
        held = self._memory[sequence]
        if held.slot is None or (self.handed_over and sequence not in self._told):
            return held.frames
        return self._without_slot(sequence, held.slot)

    def _without_slot(self, sequence: int, slot: Slot) -> list[Any]:
        assert self._slots
        # What is in a slot is media only: calls travel in batches of their own.
        return wire.encode(Batch(self._capture, sequence), *self._slots.get(slot))

    def _release(self, sequence: int) -> None:
        """Forget a batch that is in memory."""
        if held := self._memory.pop(sequence, None):
            self.memory_bytes -= held.size
            self._told.discard(sequence)
            if held.slot and self._slots:
                self._slots.free(held.slot)

    def _spill(self) -> None:
        """Move the oldest batch in memory to disk, or give it up where there is no room."""
        sequence = next(iter(self._memory))
        held = self._memory[sequence]
        room = self._spool.bytes + held.size <= self._disk_limit
        try:
            if self.ingest_key is None or not room:
                raise OSError("no room in the spool, or no key to seal it with")
            frames = self._without_slot(sequence, held.slot) if held.slot else held.frames
            self._spool.put(sequence, frames, self.ingest_key)
            self._on_disk[sequence] = None
        except OSError:
            # Recording goes on with what is newest; the loss is counted and shown.
            self.lost_batches += 1
            self._land(sequence)
        self._release(sequence)

    def _land(self, sequence: int) -> None:
        self._in_flight_bytes -= self._in_flight.pop(sequence, 0)

    def _forget(self, sequence: int) -> None:
        self._land(sequence)
        self._release(sequence)
        if sequence in self._on_disk:
            del self._on_disk[sequence]
            self._spool.remove(sequence)


def _cut(calls: list[Call], media: Media) -> Iterator[tuple[list[Call], Media]]:
    """Batches of bounded size. A call's last record travels behind all media: it seals."""
    ends = media.table["payload_bytes"].astype("i8").cumsum()
    frames = media.table["frames"].astype("i8").cumsum()
    rows = np.arange(1, len(media.table) + 1)
    row = 0
    while row < len(media.table):
        start_byte = int(ends[row - 1]) if row else 0
        start_frame = int(frames[row - 1]) if row else 0
        size = (ends - start_byte) + (frames - start_frame) * FRAME.itemsize
        size += (rows - row) * CHUNK.itemsize
        stop = max(row + 1, int(size.searchsorted(BATCH_BYTES, "right")))
        part = Media(
            media.table[row:stop],
            media.frames[start_frame : int(frames[stop - 1])],
            media.payload[start_byte : int(ends[stop - 1])],
        )
        yield [], part
        row = stop
    for start in range(0, len(calls), BATCH_CALLS):
        yield calls[start : start + BATCH_CALLS], NO_MEDIA
