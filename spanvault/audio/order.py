"""The chunks of a recording in the order they were heard, however they came to be stored.

Storage order is arrival order but for what lay in a spool or in another call's recording; and
arrival is time but where the capture's clock was set back in mid-call, which the sequence numbers
betray. A call of an hour fits in memory; of a longer one only an index stays, and pages are
fetched again. Fetching: spanvault.client.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from spanvault.client import Page
from spanvault.media import rtp
from spanvault.media.chunk import CONTROL, EVENTS, Chunk
from spanvault.media.srtp import Opening
from spanvault.messages import MediaKey, Span

KEEP_BYTES: Final = 64 << 20
SET_BACK_NS: Final = 100_000_000
FEW: Final = 5  # frames: a chunk of fewer may be stragglers, out of their turn


class Pages:
    """Pages by cursor, the last used ones kept. `faults` gathers what could not be read."""

    def __init__(self, fetch: Callable[[int], Page], keep_bytes: int = KEEP_BYTES) -> None:
        self._fetch, self._room = fetch, keep_bytes
        self._kept: OrderedDict[int, list[Chunk]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self.faults: list[str] = []
        self.keys: list[MediaKey] = []  # of the call's SRTP
        self.control: list[Chunk] = []  # RTCP, as heard

    def walk(self) -> Iterator[tuple[int, list[Chunk]]]:
        """Every page once: its cursor and chunks."""
        cursor: int | None = 0
        while cursor is not None:
            page = self._fetch(cursor)
            self.faults += page.faults
            self.keys += page.keys
            self.control += [one for one in page.media.chunks() if _is_control(one)]
            yield cursor, self._keep(cursor, page)
            cursor = page.next

    def at(self, cursor: int) -> list[Chunk]:
        """The chunks of one page, from memory or fetched again."""
        if cursor in self._kept:
            self._kept.move_to_end(cursor)
            return self._kept[cursor]
        return self._keep(cursor, self._fetch(cursor))

    def _keep(self, cursor: int, page: Page) -> list[Chunk]:
        # What lies beside a stream, its RTCP, is no part of what is heard or seen.
        chunks = [one for one in page.media.chunks() if int(one.header["stream"]) < CONTROL]
        self._kept[cursor] = chunks
        self._sizes[cursor] = len(page.media.payload) + page.media.frames.nbytes
        while len(self._kept) > 1 and sum(self._sizes.values()) > self._room:
            gone, _ = self._kept.popitem(last=False)
            del self._sizes[gone]
        return chunks


def _is_control(chunk: Chunk) -> bool:
    return CONTROL <= int(chunk.header["stream"]) < EVENTS


class Entry(NamedTuple):
    """Where a chunk is stored, and what tells its turn."""

    cursor: int
    place: int
    stream: int
    start_ns: int
    sequence: int  # the highest in it
    frames: int


class InTimeOrder:
    """All chunks of a recording, by their earliest arrival.

    srtp: its payloads are opened by the keys that were stored with it; in_clear: but for those of
    these spans that are in the clear.
    set_back: whether the capture's clock was set back in between; times before and after cannot be
    compared then.
    """

    def __init__(self, pages: Pages, *, srtp: bool = False, in_clear: Sequence[Span] = ()) -> None:
        entries = [
            _entry(chunk, cursor, place)
            for cursor, chunks in pages.walk()
            for place, chunk in enumerate(chunks)
        ]
        ages = epochs(entries)
        self._pages = pages
        self._order = sorted(
            range(len(entries)), key=lambda row: (ages[row], entries[row].start_ns, row)
        )
        self._entries = entries
        self.set_back = any(ages)
        self._srtp, self._in_clear = srtp, in_clear
        self.warnings: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Chunk]:
        if not self._srtp:
            return rtp.payloads(self.stored())
        # Anew: it must hear a stream from its beginning.
        opening = Opening(self._pages.keys, self._in_clear)
        self.warnings = opening.warnings
        return opening.open(self.stored())

    def stored(self) -> Iterator[Chunk]:
        """As they were heard: packets with their headers where these were kept."""
        for row in self._order:
            entry = self._entries[row]
            yield self._pages.at(entry.cursor)[entry.place]


def epochs(entries: Sequence[Entry]) -> list[int]:
    """How often the capture's clock had been set back before each chunk, all in storage order.

    Where a stream's sequence goes on but its time falls back, the clock was set. Streams that were
    not there both before and after go by where they are stored.
    """
    streams: dict[int, list[int]] = defaultdict(list)
    for row, entry in enumerate(entries):
        streams[entry.stream].append(row)
    turns = {stream: _turns(entries, rows) for stream, rows in streams.items()}
    known = max(turns.values(), key=len, default=[])
    found = [sum(turn <= row for turn in known) for row in range(len(entries))]
    for stream, rows in streams.items():
        if turns[stream]:
            before = found[rows[0]] if turns[stream] is not known else 0
            limits = [entries[turn].sequence for turn in turns[stream]]
            for row in rows:
                found[row] = before + sum(entries[row].sequence >= one for one in limits)
    return found


def _turns(entries: Sequence[Entry], rows: Sequence[int]) -> list[int]:
    """The chunks of a stream, by rising sequence, that begin well before the one before."""
    turns, last_ns = [], None
    for row in sorted(rows, key=lambda row: entries[row].sequence):
        if entries[row].frames < FEW:
            continue
        if last_ns is not None and entries[row].start_ns < last_ns - SET_BACK_NS:
            turns.append(row)
        last_ns = entries[row].start_ns
    return turns


def _entry(chunk: Chunk, cursor: int, place: int) -> Entry:
    frames = len(chunk.frames)
    sequence = int(chunk.frames["sequence"][-1]) if frames else 0
    stream, start_ns = int(chunk.header["stream"]), int(chunk.header["start_ns"])
    return Entry(cursor, place, stream, start_ns, sequence, frames)
