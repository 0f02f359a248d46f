"""The streams that are known: which packet belongs to which, and what each has heard.

A stream is a source, a destination and an SSRC. Its slot is found for all packets of a block at
once in an open-addressed table (7 ns a packet; a binary search takes 81). Slots are used again,
so the number that the other rooms know a stream by carries a generation.
What is done with a stream's packets: capture.media.chunks. When streams come and go:
capture.media.engine.
"""

import secrets
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.model import Packets, StreamTotals

FREE, UNATTACHED, ATTACHED, LEAVING, DISCARDED = range(5)
GENERATION: Final = 1 << 24  # slots below it
FOREVER: Final = (1 << 63) - 1
WINDOW: Final = 128  # sequence numbers remembered of each stream, to know a late duplicate
# RFC 3551 §6: clock rates of static payload types that are not 8000 Hz.
CLOCK_RATES: Final = {
    6: 16000,
    10: 44100,
    11: 44100,
    14: 90000,
    16: 11025,
    17: 22050,
} | dict.fromkeys((25, 26, 28, 31, 32, 33, 34), 90000)
DEFAULT_CLOCK: Final = 8000
CLOCKS: Final = np.array([CLOCK_RATES.get(kind, DEFAULT_CLOCK) for kind in range(128)], np.float64)
COLUMNS: Final[dict[str, tuple[Any, ...]]] = {
    "state": (np.uint8,),
    "generation": (np.int64,),
    "fingerprint": (np.uint64,),
    "close_at_ns": (np.int64,),
    "heard_ns": (np.int64,),  # last packet received, flushed or not
    "waiting": (np.bool_,),  # older packets wait for signalling to claim them
    "recording_id": ("V16",),
    "number": (np.uint16,),
    "ssrc": (np.uint32,),
    "clock": (np.float64,),
    "clock_ns": (np.int64,),  # what its times of arrival are ahead as they leave: capture.clock
    # While nobody claims it: capture.media.probation.
    "unclaimed": (np.int64,),  # packets
    "octets": (np.int64,),  # of their payloads
    "orderly": (np.int64,),  # packets that followed their predecessor as RTP's do
    "seen": (np.uint64,),  # sequence number << 32 | timestamp of the last one
    "asked_ns": (np.int64,),  # signalling was last asked whether it shall be kept
    "kinds": (np.uint8, 128),  # what each payload type may carry: capture.media.events
    "whole": (np.bool_,),  # what is held with its header leaves with it
    # From here on: what has been flushed.
    "known": (np.bool_,),  # anything at all
    "base": (np.int64,),  # lowest extended sequence number
    "highest": (np.int64,),
    "skipped": (np.int64,),  # numbers between the end of a run and a restart: nobody sent them
    "packets": (np.int64,),
    "duplicates": (np.int64,),
    "late": (np.int64,),
    "jitter": (np.float64,),
    "arrival_ns": (np.int64,),  # of the packet that came last, for the jitter
    "timestamp": (np.uint32,),
    "first_ns": (np.int64,),
    "last_ns": (np.int64,),
    "chunk_ns": (np.int64,),  # start of the last chunk
    "events": (np.int64,),  # packets of telephone events, among `packets`
    "events_first_ns": (np.int64,),
    "events_last_ns": (np.int64,),
    "payload_type": (np.uint8,),  # of its first packet, and of most that follow
    "others": (np.int32,),  # where packets of other types are counted; 0: there were none
    "window": (np.uint64, WINDOW),  # extended sequence number << 32 | timestamp
}
# Rows of its widest column that there is room for at once: untouched pages cost nothing, while
# growing copies, and leaves holes behind that nothing fits into.
RESERVED: Final = 1 << 16
# What a stream begins with 0 in. Without an Attach, nobody reads its recording_id and number.
BLANK: Final = [name for name in COLUMNS if name not in ("generation", "recording_id", "number")]


class StreamTable:
    """Columns of all streams; a stream's slot is its row in each of them."""

    state: NDArray[np.uint8]
    generation: NDArray[np.int64]
    fingerprint: NDArray[np.uint64]
    close_at_ns: NDArray[np.int64]
    heard_ns: NDArray[np.int64]
    waiting: NDArray[np.bool_]
    recording_id: NDArray[np.void]
    number: NDArray[np.uint16]
    ssrc: NDArray[np.uint32]
    clock: NDArray[np.float64]
    clock_ns: NDArray[np.int64]
    unclaimed: NDArray[np.int64]
    octets: NDArray[np.int64]
    orderly: NDArray[np.int64]
    seen: NDArray[np.uint64]
    asked_ns: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    whole: NDArray[np.bool_]
    known: NDArray[np.bool_]
    base: NDArray[np.int64]
    highest: NDArray[np.int64]
    skipped: NDArray[np.int64]
    packets: NDArray[np.int64]
    duplicates: NDArray[np.int64]
    late: NDArray[np.int64]
    jitter: NDArray[np.float64]
    arrival_ns: NDArray[np.int64]
    timestamp: NDArray[np.uint32]
    first_ns: NDArray[np.int64]
    last_ns: NDArray[np.int64]
    chunk_ns: NDArray[np.int64]
    events: NDArray[np.int64]
    events_first_ns: NDArray[np.int64]
    events_last_ns: NDArray[np.int64]
    payload_type: NDArray[np.uint8]
    others: NDArray[np.int32]
    window: NDArray[np.uint64]

    def __init__(self, capacity: int = 1024, seed: int | None = None) -> None:
        self.capacity = capacity
        for name, (dtype, *shape) in COLUMNS.items():
            setattr(self, name, np.zeros((capacity, *shape), dtype))
        self._windows = np.zeros((max(RESERVED, capacity), WINDOW), np.uint64)
        self.window = self._windows[:capacity]
        self._other_types = np.zeros((1, 128), np.uint32)  # row 0 is nobody's
        self._free_others: list[int] = []
        self._free = list(range(capacity - 1, -1, -1))
        self.index = Index(seed)

    def open(
        self,
        fingerprints: NDArray[np.uint64],
        ssrc: NDArray[np.uint32],
        payload_type: NDArray[np.uint8],
        time_ns: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Slots for streams that were heard for the first time, int64[n]; arguments of n as well.

        No two fingerprints may be alike.
        """
        count = len(fingerprints)
        while len(self._free) < count:
            self._grow()
        slot = np.array(self._free[len(self._free) - count :][::-1], np.int64)
        del self._free[len(self._free) - count :]
        for name in BLANK:
            getattr(self, name)[slot] = 0
        self.generation[slot] += 1
        self.state[slot] = UNATTACHED
        self.fingerprint[slot] = fingerprints
        self.close_at_ns[slot] = FOREVER
        self.heard_ns[slot] = time_ns
        self.ssrc[slot] = ssrc
        self.clock[slot] = CLOCKS[payload_type]
        self.payload_type[slot] = payload_type
        self.index.insert(fingerprints, slot)
        return slot

    def leave(self, slot: int, state: int) -> None:
        """The stream takes no more packets. state: LEAVING or DISCARDED."""
        self.state[slot] = state
        self.index.remove(int(self.fingerprint[slot]), slot)

    def recycle(self, slot: int) -> None:
        """Nothing refers to the slot any more."""
        self.state[slot] = FREE
        self._free.append(slot)
        if row := self.others.item(slot):
            self.others[slot] = 0
            self._free_others.append(row)

    def rows(self, slot: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers that other rooms know these streams by, never used twice."""
        return self.generation[slot] * GENERATION + slot

    def slot(self, row: int) -> int | None:
        """The stream's slot, None if it has gone."""
        generation, slot = divmod(row, GENERATION)
        if slot < self.capacity and self.generation[slot] == generation and self.state[slot]:
            return slot
        return None

    def flags(self, slots: list[int]) -> NDArray[np.bool_]:
        """True for these slots: bool[capacity]."""
        flags = np.zeros(self.capacity, np.bool_)
        flags[slots] = True
        return flags

    def totals(self, slot: int) -> StreamTotals:
        """What has been flushed of a stream; last_ns is what was heard."""
        # item() gives Python's numbers at once: asked for each stream of each record.
        packets, sent = self.packets.item(slot), 0
        if self.known.item(slot):
            numbers = self.highest.item(slot) - self.base.item(slot) + 1
            sent = numbers - self.skipped.item(slot)
        return StreamTotals(
            packets=packets,
            lost=max(0, sent - packets),
            duplicates=self.duplicates.item(slot),
            late=self.late.item(slot),
            jitter=self.jitter.item(slot),
            first_ns=self.first_ns.item(slot),
            last_ns=max(self.last_ns.item(slot), self.heard_ns.item(slot)),
            payload_types=self._types(slot, packets),
            events=self.events.item(slot),
            events_first_ns=self.events_first_ns.item(slot),
            events_last_ns=self.events_last_ns.item(slot),
        )

    def count_types(
        self, slot: NDArray[np.int64], kind: NDArray[np.int64], count: NDArray[np.uint32]
    ) -> None:
        """So many packets of a payload type were flushed; beside this, `packets` counts them all.

        A stream has its own row of counts only once it has sent another type than at first.
        """
        other = np.flatnonzero(kind != self.payload_type[slot])
        if not len(other):
            return
        slot = slot[other]
        for each in np.unique(slot[self.others[slot] == 0]).tolist():
            self.others[each] = self._row_of_counts()
        np.add.at(self._other_types, (self.others[slot], kind[other]), count[other])

    def types_of(
        self, slots: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
        """Packets by payload type of several streams: which of them, the type, how many."""
        heard = self._other_types[self.others[slots]]
        first = self.packets[slots] - heard.sum(axis=1, dtype=np.int64)
        heard[np.arange(len(slots)), self.payload_type[slots]] = first
        at, kind = np.nonzero(heard)
        return at, kind, heard[at, kind]

    def expected(self, slot: Any) -> Any:
        """Packets that were sent, by the sequence numbers heard. RFC 3550 §A.3."""
        sent = self.highest[slot] - self.base[slot] + 1 - self.skipped[slot]
        return np.where(self.known[slot], sent, 0)

    def _types(self, slot: int, packets: int) -> dict[int, int]:
        """One stream's packets by payload type. packets: of all types."""
        first, row = self.payload_type.item(slot), self.others.item(slot)
        if not row:
            return {first: packets} if packets else {}
        heard = self._other_types[row]
        types = {each: heard.item(each) for each in heard.nonzero()[0].tolist()}
        if rest := packets - sum(types.values()):
            types[first] = rest
        return types

    def _row_of_counts(self) -> int:
        """A row of zeros for a stream's payload types."""
        if not self._free_others:
            count = len(self._other_types)
            fresh = np.zeros((count, 128), np.uint32)
            self._other_types = np.concatenate((self._other_types, fresh))
            self._free_others += range(2 * count - 1, count - 1, -1)
        row = self._free_others.pop()
        self._other_types[row] = 0
        return row

    def _grow(self) -> None:
        if 2 * self.capacity > len(self._windows):
            grown = np.zeros((4 * self.capacity, WINDOW), np.uint64)
            grown[: self.capacity] = self.window
            self._windows = grown
        self.window = self._windows[: 2 * self.capacity]
        for name in COLUMNS:
            column = getattr(self, name)
            if len(column) == 2 * self.capacity:
                continue
            # Zeros that were never written take no memory; joining arrays would write them.
            grown = np.zeros((2 * self.capacity, *column.shape[1:]), column.dtype)
            grown[: self.capacity] = column
            setattr(self, name, grown)
        self._free += range(2 * self.capacity - 1, self.capacity - 1, -1)
        self.capacity *= 2


class Index:
    """Fingerprint → slot, open-addressed with linear probing."""

    def __init__(self, seed: int | None = None) -> None:
        random = np.random.default_rng(secrets.randbits(128) if seed is None else seed)
        self._factors = random.integers(0, 1 << 64, 3, np.uint64) | np.uint64(1)
        self._allocate(12)

    def fingerprints(self, packets: Packets) -> NDArray[np.uint64]:
        """One number for source, destination and SSRC of each packet.

        64 bits mixed with secret factors: of 100,000 streams, two meet once in 3 billion tries,
        and nobody outside can make them.
        """
        mixed: NDArray[np.uint64] = packets.source_key * self._factors[0]
        mixed ^= mixed >> np.uint64(32)
        mixed += packets.destination_key
        mixed *= self._factors[1]
        mixed ^= mixed >> np.uint64(29)
        mixed += packets.ssrc
        mixed *= self._factors[2]
        return mixed

    def find(self, fingerprints: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The slot of each, -1 where there is none."""
        place = (fingerprints >> self._shift).astype(np.int64)
        slot = self._slots[place]
        astray = np.flatnonzero((self._keys[place] != fingerprints) & (slot >= 0))
        while len(astray):
            at = place[astray] = (place[astray] + 1) & self._mask
            slot[astray] = self._slots[at]
            astray = astray[(self._keys[at] != fingerprints[astray]) & (slot[astray] >= 0)]
        return slot

    def insert(self, fingerprints: NDArray[np.uint64], slots: NDArray[np.int64]) -> None:
        """Point each to a slot, instead of any other one. No two may be alike."""
        if 4 * (self._count + len(slots)) > len(self._slots):
            self._rebuild(self._count + len(slots))
        place = (fingerprints >> self._shift).astype(np.int64)
        left = np.arange(len(slots))
        while len(left):
            at, key = place[left], fingerprints[left]
            vacant = self._slots[at] < 0
            self._keys[at[vacant]] = key[vacant]  # of several that want a place, one gets it
            won = self._keys[at] == key
            self._count += int(np.count_nonzero(won & vacant))
            self._slots[at[won]] = slots[left[won]]
            left = left[~won]
            place[left] = (place[left] + 1) & self._mask

    def remove(self, fingerprint: int, slot: int) -> None:
        """Forget, unless it points to another slot meanwhile."""
        hole = self._place(fingerprint)
        if self._slots[hole] != slot:
            return
        self._slots[hole] = -1
        self._count -= 1
        # Move up what was displaced by it, or a search would stop at the hole.
        at = (hole + 1) & self._mask
        while self._slots[at] >= 0:
            home = int(self._keys[at]) >> int(self._shift)
            if (at - home) & self._mask >= (at - hole) & self._mask:
                self._keys[hole], self._slots[hole] = self._keys[at], self._slots[at]
                self._slots[at] = -1
                hole = at
            at = (at + 1) & self._mask

    def _place(self, fingerprint: int) -> int:
        """Where it lies, or would."""
        at = fingerprint >> int(self._shift)
        while self._slots[at] >= 0 and int(self._keys[at]) != fingerprint:
            at = (at + 1) & self._mask
        return at

    def _allocate(self, bits: int) -> None:
        self._count = 0
        self._shift = np.uint64(64 - bits)
        self._mask = (1 << bits) - 1
        self._keys = np.zeros(1 << bits, np.uint64)
        self._slots = np.full(1 << bits, -1, np.int32)

    def _rebuild(self, count: int) -> None:
        """Make room for so many: a quarter of the places at most."""
        keys, slots = self._keys, self._slots
        used = np.flatnonzero(slots >= 0)
        self._allocate((4 * count).bit_length())
        self.insert(keys[used], slots[used].astype(np.int64))
