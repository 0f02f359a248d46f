"""Keep every batch until storaged has acknowledged it: in memory, then on disk.

Batches leave in the order of their sequence, a bounded number in flight. Nothing is forgotten for
having been sent: only an Acknowledge (or a Refuse) removes a batch. When storaged restarted, or
has been silent for long, what was in flight is sent again, and so is a batch that was left
unanswered while a later one was acknowledged; storaged drops what it has already.
What is newest goes to disk, and nothing in flight: the rest is likely to be acknowledged first. All
that waits for the disk is done aside (capture.delivery.aside): the loop that empties the ring never
waits. Protocol: spanvault/WIRE.md, "Ingest". The folder on disk: capture.delivery.spool. Sockets:
capture.delivery.link.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
from msgspec import structs

from capture.delivery.aside import Aside
from capture.delivery.spool import Lying, Spool
from spanvault import wire
from spanvault.media.chunk import CHUNK, FRAME, NO_MEDIA, Media
from spanvault.messages import Batch, Call, Sealed, Slot
from spanvault.slots import SLOT_BYTES, Slots
from spanvault.spool import key_id

BATCH_BYTES: Final = SLOT_BYTES
BATCH_CALLS: Final = 500
# Two commits of storaged at full load (1 Gbit/s of G.711), 2 s each: less would hold it up.
IN_FLIGHT_BYTES: Final = 384 << 20
LEAST_IN_FLIGHT_BYTES: Final = 8 << 20
LEAST_ROOM_BYTES: Final = 64 << 20  # for what is being written, however little memory there is
SEALING: Final = 16  # batches at once on their way to disk; more of them would only wait there
READ_AHEAD: Final = 16  # batches read from disk before their turn
SILENCE_NS: Final = 10_000_000_000  # then what is in flight is sent again, ever more rarely
MAX_SILENCE_NS: Final = 120_000_000_000
PROBE_NS: Final = 2_000_000_000  # a spool's disk that failed is tried so often


class Held(NamedTuple):
    """A batch in memory, as wire frames; if slot is given, its media lies there instead."""

    frames: list[Any]
    size: int
    slot: Slot | None = None


class Outbox:
    """What storaged has not acknowledged yet.

    memory_bytes: beyond it batches go to disk; while they are written, it may be a third more
    (at least 64 MiB).
    disk_bytes: a bound. first_sequence: higher than any this capture ever used.
    slots: where media is put that storaged may read there, if it is on this host.
    aside: does what waits for the disk, of the outbox and of whoever else has a file to write.
    """

    def __init__(
        self, capture: str, spool: Spool, memory_bytes: int, disk_bytes: int, first_sequence: int,
        slots: Slots | None = None, aside: Aside | None = None,
    ) -> None:  # fmt: skip
        self._capture = capture
        self._spool, self._slots, self.aside = spool, slots, aside or Aside()
        self._memory_limit, self._disk_limit = memory_bytes, disk_bytes
        self._most_bytes = memory_bytes + max(memory_bytes // 3, LEAST_ROOM_BYTES)
        self._flight_limit = max(LEAST_IN_FLIGHT_BYTES, min(IN_FLIGHT_BYTES, memory_bytes))
        # A batch is in one of these three.
        self._memory: dict[int, Held] = {}
        self._sealing: dict[int, Held] = {}  # on their way to disk, still in memory
        self._sealing_to: dict[int, bytes] = {}  # the ingest key of each of these
        self._on_disk = dict.fromkeys(spool.sequences())
        self._next = max([first_sequence, *(number + 1 for number in self._on_disk)])
        self._queue = deque(self._on_disk)  # not in flight, in order
        self._in_flight: dict[int, int] = {}  # sequence → bytes
        self._in_flight_bytes = 0
        self._told: set[int] = set()  # sequences whose slot storaged was told
        self._lent: dict[int, Slot] = {}  # of these, slots of batches that are not in memory
        self._settled: set[int] = set()  # sequences that are being sealed in vain
        self._read: dict[int, tuple[str, bytes] | None] = {}  # from disk; None: being read
        self._finals: dict[int, list[bytes]] = {}  # sequence → calls whose last record it bears
        self._heard_ns: int | None = None
        self._patience_ns = SILENCE_NS
        self._probe_ns: int | None = 0  # when the disk may be tried; None: it is
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
        while self._queue and self._in_flight_bytes < self._flight_limit:
            sequence = self._queue[0]
            if sequence in self._memory:
                yield sequence, self._outgoing(sequence)
            elif sequence in self._on_disk:
                read = self._from_disk(sequence)
                if read is None:
                    return  # those behind it must not overtake it
                key, sealed = read
                yield sequence, wire.encode(Sealed(self._capture, sequence, key), sealed)
            elif sequence in self._sealing and sequence not in self._settled:
                return
            else:
                self._queue.popleft()

    def sent(self, sequence: int, now_ns: int) -> None:
        """The first batch of the queue is on its way."""
        assert self._queue.popleft() == sequence
        held = self._memory.get(sequence)
        size = held.size if held else self._spool.file(sequence).size
        self._read.pop(sequence, None)
        if held and held.slot and self.handed_over:
            self._told.add(sequence)
        self._in_flight[sequence] = size
        self._in_flight_bytes += size
        if self._heard_ns is None:
            self._heard_ns = now_ns

    def acknowledged(self, sequences: list[int], now_ns: int) -> list[bytes]:
        """Forget what is safe. Returns the ids of calls whose last record now is."""
        self._heard_ns, self._patience_ns = now_ns, SILENCE_NS
        overtaken = self._overtaken(sequences)
        settled: list[bytes] = []
        for sequence in sequences:
            settled += self._finals.pop(sequence, [])
            self._forget(sequence)
        for sequence in overtaken:
            self._in_flight_bytes -= self._in_flight.pop(sequence)
        self._queue.extendleft(reversed(overtaken))
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
        sealing = self._sealing.keys() - self._settled
        self._queue = deque(sorted([*self._on_disk, *self._memory, *sealing]))
        self._heard_ns = None

    def storaged_gone(self) -> None:
        """The storaged that was told of slots reads none of them any more."""
        while self._lent and self._slots:
            self._slots.free(self._lent.popitem()[1])

    def tick(self, now_ns: int) -> None:
        """Send again after long silence; move the newest batches to disk when memory is full."""
        self.aside.settle()
        waited = now_ns - self._heard_ns if self._heard_ns is not None else 0
        if self._in_flight and waited > self._patience_ns:
            self.handed_over = False  # if that was what it could not read: frames it always can
            self.send_again()
            self._patience_ns = min(2 * self._patience_ns, MAX_SILENCE_NS)
        self._bound_memory()
        self._probe(now_ns)

    def put_away(self) -> tuple[int, int]:
        """Seal everything that is left to disk, for the next start. Waits for the disk.

        Returns how many batches lie there now, and how many could not be put there.
        """
        lost = self.lost_batches
        self.aside.wait()
        self.send_again()
        for sequence in list(self._memory):
            if self._room_for(self._memory[sequence].size):
                self._seal(sequence)
        self.aside.wait()
        while self._memory:
            self._give_up(next(iter(self._memory)))
        with suppress(OSError):  # the spool's fault tells of it
            self._spool.sync()
        return len(self._on_disk), self.lost_batches - lost

    def close(self) -> None:
        """Nothing more will be asked."""
        self.aside.close()

    @property
    def in_doubt(self) -> bool:
        """Nothing has been acknowledged since batches had to be sent again for silence."""
        return self._patience_ns > SILENCE_NS

    @property
    def waiting(self) -> int:
        """Batches not acknowledged yet."""
        return len(self._memory) + len(self._sealing) - len(self._settled) + len(self._on_disk)

    @property
    def spooled(self) -> int:
        """Of these, on disk."""
        return len(self._on_disk)

    @property
    def sealed_to(self) -> set[str] | None:
        """Ids of the ingest keys that batches not acknowledged are, or would be, sealed to.

        None: nobody can tell what lies on disk.
        """
        lying, keys = self._spool.key_ids, {*self._sealing_to.values()}
        if self.ingest_key is not None:
            keys.add(self.ingest_key)
        return None if lying is None else lying | {key_id(key) for key in keys}

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

    # --- to disk and back ----------------------------------------------------------------------

    def _bound_memory(self) -> None:
        """Have the newest batches sealed, or give up the oldest if the disk takes none."""
        while self.memory_bytes - self._sealing_bytes > self._memory_limit:
            newest = next(reversed(self._memory), None)
            if newest is None or newest in self._in_flight:
                break  # what is in flight will soon be acknowledged, or sent again
            if not self._room_for(self._memory[newest].size):
                self._give_up_oldest()
            elif len(self._sealing) < SEALING:
                self._seal(newest)
            else:
                break
        while self.memory_bytes > self._most_bytes and self._give_up_oldest():
            pass  # the disk is slower than what is heard

    def _overtaken(self, acknowledged: list[int]) -> list[int]:
        """What left before one of these and was not answered: it must leave again.

        storaged answers in the order in which batches come, so it did not get those, or could not
        take them then. As long as others are acknowledged there is no silence to tell it by.
        """
        answered = self._in_flight.keys() & set(acknowledged)
        overtaken: list[int] = []
        for sequence in self._in_flight if answered else ():
            if sequence not in answered:
                overtaken.append(sequence)
                continue
            answered.remove(sequence)
            if not answered:
                break
        return overtaken

    @property
    def _sealing_bytes(self) -> int:
        return sum(held.size for held in self._sealing.values())

    def _room_for(self, size: int) -> bool:
        """Whether a batch may go to disk: there is a key to seal it with, and room."""
        taken = self._spool.bytes + self._sealing_bytes + size
        return self.ingest_key is not None and taken <= self._disk_limit

    def _seal(self, sequence: int) -> None:
        """Begin to move a batch to disk."""
        assert self.ingest_key is not None
        held = self._sealing[sequence] = self._memory.pop(sequence)
        self._sealing_to[sequence] = self.ingest_key
        work = partial(self._write, sequence, held, self.ingest_key)
        self.aside.do(work, partial(self._sealed, sequence))

    def _write(self, sequence: int, held: Held, ingest_key: bytes) -> Lying:
        """Aside: nothing but the batch itself is looked at."""
        frames = self._without_slot(sequence, held.slot) if held.slot else held.frames
        return self._spool.seal(sequence, frames, ingest_key)

    def _sealed(self, sequence: int, lying: Lying | Exception) -> None:
        """A batch lies on disk, or cannot; it may have been acknowledged meanwhile."""
        held = self._sealing.pop(sequence)
        del self._sealing_to[sequence]
        if isinstance(lying, Lying):
            self._spool.put(sequence, lying)
            self._on_disk[sequence] = None
            self._release(sequence, held)
        else:
            self._memory[sequence] = held
        if sequence in self._settled:
            self._settled.remove(sequence)
            self._forget(sequence)
        elif isinstance(lying, OSError | ValueError):  # of the disk, or of storaged's key
            if self.memory_bytes > self._memory_limit:
                self._give_up_oldest()
        elif isinstance(lying, Exception):
            raise lying

    def _probe(self, now_ns: int) -> None:
        """Have a disk that failed tried again, once at a time: it may hang."""
        if self._spool.fault and self._probe_ns is not None and now_ns >= self._probe_ns:
            self._probe_ns = None
            self.aside.do(self._spool.probe, partial(self._probed, now_ns))

    def _probed(self, begun_ns: int, _: Exception | None) -> None:
        self._probe_ns = begun_ns + PROBE_NS

    def _from_disk(self, sequence: int) -> tuple[str, bytes] | None:
        """A batch, if it has been read; those whose turn comes next are read meanwhile."""
        for ahead in islice(self._queue, READ_AHEAD):
            if ahead in self._on_disk and ahead not in self._read:
                self._read[ahead] = None
                work = partial(self._spool.read, self._spool.file(ahead))
                self.aside.do(work, partial(self._was_read, ahead))
        return self._read[sequence]

    def _was_read(self, sequence: int, read: tuple[str, bytes] | Exception) -> None:
        if sequence not in self._read:
            return  # acknowledged meanwhile
        if isinstance(read, OSError):  # the file stays, and is tried again by the next life
            self.lost_batches += 1
            del self._on_disk[sequence], self._read[sequence]
            self._spool.give_up(sequence)
        elif isinstance(read, Exception):
            raise read
        else:
            self._read[sequence] = read

    # --- let go --------------------------------------------------------------------------------

    def _give_up_oldest(self) -> bool:
        """Recording goes on with what is newest; the loss is counted and shown."""
        oldest = next((each for each in self._memory if each not in self._in_flight), None)
        if oldest is None:
            return False
        self._give_up(oldest)
        return True

    def _give_up(self, sequence: int) -> None:
        self.lost_batches += 1
        self._release(sequence, self._memory.pop(sequence))

    def _forget(self, sequence: int) -> None:
        """storaged has a batch, or will never take it."""
        self._in_flight_bytes -= self._in_flight.pop(sequence, 0)
        self._told.discard(sequence)
        if slot := self._lent.pop(sequence, None):
            assert self._slots
            self._slots.free(slot)
        if held := self._memory.pop(sequence, None):
            self._release(sequence, held)
        elif sequence in self._sealing:
            self._settled.add(sequence)
        elif sequence in self._on_disk:
            del self._on_disk[sequence]
            self._read.pop(sequence, None)
            self.aside.do(partial(self._spool.delete, self._spool.forget(sequence)))

    def _release(self, sequence: int, held: Held) -> None:
        """A batch is not in memory any more; its slot is, for as long as storaged may read it."""
        self.memory_bytes -= held.size
        if held.slot is None or self._slots is None:
            return
        if sequence in self._told:
            self._lent[sequence] = held.slot
        else:
            self._slots.free(held.slot)


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
