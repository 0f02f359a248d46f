"""Keep every batch until storaged has acknowledged it: in memory, then on disk.

Batches leave in the order of their sequence, a bounded number in flight. Nothing is forgotten for
having been sent: only an Acknowledge (or a Refuse) removes a batch. When storaged restarted, or
has been silent for long, what was in flight is sent again; storaged drops what it has already.
Protocol: spanvault/WIRE.md, "Ingest". The folder on disk: capture.spool. Sockets: capture.link.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from capture.spool import Spool
from spanvault import wire
from spanvault.chunk import FRAME, NO_MEDIA, Media
from spanvault.messages import Batch, Call, Sealed

BATCH_BYTES: Final = 1 << 20
BATCH_CALLS: Final = 500
# Two commits of storaged at full load (1 Gbit/s of G.711), 2 s each: less would hold it up.
IN_FLIGHT_BYTES: Final = 256 << 20
SILENCE_NS: Final = 10_000_000_000  # then what is in flight is sent again, ever more rarely
MAX_SILENCE_NS: Final = 120_000_000_000


class Held(NamedTuple):
    """A batch in memory, as wire frames."""

    frames: list[Any]
    size: int


class Outbox:
    """What storaged has not acknowledged yet.

    memory_bytes, disk_bytes: bounds. first_sequence: higher than any this capture ever used.
    """

    def __init__(
        self, capture: str, spool: Spool, memory_bytes: int, disk_bytes: int, first_sequence: int
    ) -> None:
        self._capture = capture
        self._spool = spool
        self._memory_limit, self._disk_limit = memory_bytes, disk_bytes
        self._memory: dict[int, Held] = {}
        self._on_disk = dict.fromkeys(spool.sequences())
        self._next = max([first_sequence, *(number + 1 for number in self._on_disk)])
        self._queue = deque(self._on_disk)  # not in flight, in order
        self._in_flight: dict[int, int] = {}  # sequence → bytes
        self._in_flight_bytes = 0
        self._finals: dict[int, list[bytes]] = {}  # sequence → calls whose last record it bears
        self._heard_ns: int | None = None
        self._patience_ns = SILENCE_NS
        self.ingest_key: bytes | None = None
        self.memory_bytes = 0
        self.lost_batches = 0
        self.refused_batches = 0

    def add(self, calls: list[Call], media: Media) -> None:
        """Take what the recorder has heard; cut into batches of about a megabyte."""
        for part_calls, part_media in _cut(calls, media):
            message = Batch(self._capture, self._next, part_calls)
            frames = wire.encode_media(message, part_media)
            size = sum(len(frame) for frame in frames)
            self._memory[self._next] = Held(frames, size)
            self._queue.append(self._next)
            self.memory_bytes += size
            if finals := [call.id for call in part_calls if call.final]:
                self._finals[self._next] = finals
            self._next += 1

    def to_send(self) -> Iterator[tuple[int, list[Any]]]:
        """Batches that may leave now, oldest first; call sent() for each before the next."""
        while self._queue and self._in_flight_bytes < IN_FLIGHT_BYTES:
            sequence = self._queue[0]
            if sequence in self._memory:
                yield sequence, self._memory[sequence].frames
            elif sequence in self._on_disk:
                key, sealed = self._spool.get(sequence)
                yield sequence, wire.encode(Sealed(self._capture, sequence, key), sealed)
            else:
                self._queue.popleft()

    def sent(self, sequence: int, size: int, now_ns: int) -> None:
        """The first batch of the queue is on its way."""
        assert self._queue.popleft() == sequence
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
    def waiting(self) -> int:
        """Batches not acknowledged yet."""
        return len(self._memory) + len(self._on_disk)

    @property
    def spooled(self) -> int:
        """Of these, on disk."""
        return len(self._on_disk)

    def _spill(self) -> None:
        """Move the oldest batch in memory to disk, or give it up where there is no room."""
        sequence = next(iter(self._memory))
        held = self._memory[sequence]
        room = self._spool.bytes + held.size <= self._disk_limit
        try:
            if self.ingest_key is None or not room:
                raise OSError("no room in the spool, or no key to seal it with")
            self._spool.put(sequence, held.frames, self.ingest_key)
            self._on_disk[sequence] = None
        except OSError:
            # Recording goes on with what is newest; the loss is counted and shown.
            self.lost_batches += 1
            self._land(sequence)
        del self._memory[sequence]
        self.memory_bytes -= held.size

    def _land(self, sequence: int) -> None:
        self._in_flight_bytes -= self._in_flight.pop(sequence, 0)

    def _forget(self, sequence: int) -> None:
        self._land(sequence)
        if held := self._memory.pop(sequence, None):
            self.memory_bytes -= held.size
        if sequence in self._on_disk:
            del self._on_disk[sequence]
            self._spool.remove(sequence)


def _cut(calls: list[Call], media: Media) -> Iterator[tuple[list[Call], Media]]:
    """Batches of bounded size. A call's last record travels behind all media: it seals."""
    ends = media.table["payload_bytes"].astype("i8").cumsum()
    frames = media.table["frames"].astype("i8").cumsum()
    row = 0
    while row < len(media.table):
        start_byte = int(ends[row - 1]) if row else 0
        start_frame = int(frames[row - 1]) if row else 0
        size = (ends - start_byte) + (frames - start_frame) * FRAME.itemsize
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
