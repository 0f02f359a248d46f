"""The chunks of a recording in the order they were heard, however they came to be stored.

Storage order is arrival order but for what lay in a spool or in another call's recording. A call
of an hour fits in memory; of a longer one only an index stays, and pages are fetched again.
Fetching: spanvault.client.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from spanvault.chunk import Chunk
from spanvault.client import Page

KEEP_BYTES: Final = 64 << 20


class Pages:
    """Pages by cursor, the last used ones kept. `faults` gathers what could not be read."""

    def __init__(self, fetch: Callable[[int], Page], keep_bytes: int = KEEP_BYTES) -> None:
        self._fetch, self._room = fetch, keep_bytes
        self._kept: OrderedDict[int, list[Chunk]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self.faults: list[str] = []

    def walk(self) -> Iterator[tuple[int, list[Chunk]]]:
        """Every page once: its cursor and chunks."""
        cursor: int | None = 0
        while cursor is not None:
            page = self._fetch(cursor)
            self.faults += page.faults
            yield cursor, self._keep(cursor, page)
            cursor = page.next

    def at(self, cursor: int) -> list[Chunk]:
        """The chunks of one page, from memory or fetched again."""
        if cursor in self._kept:
            self._kept.move_to_end(cursor)
            return self._kept[cursor]
        return self._keep(cursor, self._fetch(cursor))

    def _keep(self, cursor: int, page: Page) -> list[Chunk]:
        chunks = list(page.media.chunks())
        self._kept[cursor] = chunks
        self._sizes[cursor] = len(page.media.payload) + page.media.frames.nbytes
        while len(self._kept) > 1 and sum(self._sizes.values()) > self._room:
            gone, _ = self._kept.popitem(last=False)
            del self._sizes[gone]
        return chunks


def in_time_order(pages: Pages) -> Iterator[Chunk]:
    """All chunks by their earliest arrival."""
    index = sorted(
        (int(chunk.header["start_ns"]), cursor, place)
        for cursor, chunks in pages.walk()
        for place, chunk in enumerate(chunks)
    )
    for _, cursor, place in index:
        yield pages.at(cursor)[place]
