"""Chunks by time, whatever order they were stored in, within bounded memory."""

import numpy as np

from spanvault.audio.order import InTimeOrder, Pages
from spanvault.client import Page
from spanvault.media.chunk import CHUNK, FRAME, Media
from tests.support.chunks import START_NS


def media(*seconds: int) -> Media:
    """A chunk of 1000 bytes for each second."""
    table, frames = np.zeros(len(seconds), CHUNK), np.zeros(len(seconds), FRAME)
    table["frames"], table["payload_bytes"], frames["length"] = 1, 1000, 1000
    table["start_ns"] = [START_NS + second * 1_000_000_000 for second in seconds]
    return Media(table, frames, memoryview(bytes(1000 * len(seconds))))


class Store:
    """Pages of a recording, and how often each was asked for."""

    def __init__(self, *pages: Media) -> None:
        self._pages = pages
        self.asked: list[int] = []

    def fetch(self, cursor: int) -> Page:
        self.asked.append(cursor)
        following = cursor + 1 if cursor + 1 < len(self._pages) else None
        faults = ["frame 7 does not open"] if cursor == 1 else []
        return Page(self._pages[cursor], following, faults)


def order(pages: Pages) -> list[int]:
    return [(int(c.header["start_ns"]) - START_NS) // 1_000_000_000 for c in InTimeOrder(pages)]


def test_what_lay_in_a_spool_comes_in_its_turn():
    store = Store(media(0, 1, 4), media(5, 6), media(2, 3))
    pages = Pages(store.fetch)
    assert order(pages) == [0, 1, 2, 3, 4, 5, 6]
    assert store.asked == [0, 1, 2]
    assert pages.faults == ["frame 7 does not open"]


def test_a_long_call_is_fetched_again_rather_than_kept():
    store = Store(*(media(*range(10 * n, 10 * n + 10)) for n in range(20)))
    pages = Pages(store.fetch, keep_bytes=25_000)
    assert order(pages) == list(range(200))
    assert len(pages._kept) <= 3
    assert len(store.asked) < 45


def test_an_empty_recording():
    assert order(Pages(Store(media()).fetch)) == []
