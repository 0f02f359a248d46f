"""Payloads lie in slabs that are lent; chunks on their way out keep theirs as they were."""

from capture.media.arena import SLAB, Arena, Slabs
from capture.media.engine import Media
from capture.model import Attach
from spanvault.daemon.config import CaptureConfig
from tests.support.rtpstreams import Sent, endpoints, packets, steady


def hear(media: Media, sent: list[Sent]) -> None:
    for stream in media.receive(packets(sent), endpoints):
        media.attach(Attach(stream.row, b"recording-number", 0))


def test_what_leaves_is_read_long_after_others_took_the_place_in_the_row() -> None:
    media, sent = Media(CaptureConfig()), steady(range(100))
    hear(media, sent[:50])
    leaving = media.flush()
    for again in range(2, 6):
        hear(media, steady(range(50 * again, 50 * again + 50), begin=float(again)))
        media.flush()
    first, second = (b"".join(bytes(part.payload) for part in leaving) for _ in range(2))
    assert first == second == b"".join(each.content for each in sent[:50])


def test_a_slab_is_lent_again_once_nobody_refers_to_it_the_lowest_first() -> None:
    arena = Arena(reserved=4 * SLAB)
    older, newer = Slabs(arena), Slabs(arena)
    older.next()
    newer.next()
    older.next()
    del older
    newer.next()
    assert (newer.at, newer.end) == (0, SLAB)


def test_more_than_was_reserved_is_held_all_the_same() -> None:
    arena = Arena(reserved=SLAB)
    slabs = Slabs(arena)
    slabs.next()
    arena.data[:3] = (1, 2, 3)
    slabs.next()
    assert slabs.at == SLAB
    assert len(arena.data) >= 2 * SLAB
    assert arena.data[:3].tolist() == [1, 2, 3]
