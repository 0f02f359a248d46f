"""Sealed recordings by their trailer: as quick as it is, it hides nothing. FORMAT.md §4.4."""

import struct
from collections.abc import Callable

import pytest

from spanvault.messages import Call
from storaged.format import seeking, walk
from storaged.format.sealing import ENTRY, LAST, LOCATOR_BYTES, ObjectWriter
from storaged.format.walk import Bytes, Layout, Place
from storaged.recordings.reading import Reader
from tests.storaged.format.test_sealing import DEK, FRAMES, OBJECT, RECORDING, flipped, packed
from tests.support.vault import SECOND, START, Parts, at, call_id, chunk_keys, make_call

ONE = call_id(1)
Spoil = Callable[[ObjectWriter], None]


def listed(data: Bytes, from_ns: int | None = None) -> list[Place]:
    return list(seeking.contents(data, lambda _: DEK).places(data, 0, from_ns))


def walked(data: Bytes) -> list[Place]:
    return [place for place in walk.walk(data).places if place.flag != LAST]


def gone_on() -> bytes:
    """Three segments: one that a crash ended, one of a header alone, one behind a LAST frame."""
    writer = ObjectWriter(RECORDING, 7, 0)
    parts = [writer.begin(DEK, START, bytes(16)), writer.data(packed(0), *at(0))]
    parts += [writer.begin(DEK, START, bytes(15) + b"1")]
    parts += [writer.begin(DEK, START, bytes(15) + b"2"), writer.data(packed(1), *at(1))]
    parts += [writer.last(b""), writer.begin(DEK, START, bytes(15) + b"3")]
    parts += [writer.data(packed(2), *at(2)), writer.last(b"")]
    return b"".join(parts)


def test_trailer_gives_the_frames_that_a_walk_finds():
    for data in (OBJECT, gone_on()):
        assert listed(data) == walked(data)
    nothing = ObjectWriter(RECORDING, 7, 0)
    assert listed(nothing.begin(DEK, START, bytes(16)) + nothing.last(b"")) == []


def test_any_changed_byte_is_found_or_changes_nothing():
    """What does not fit is a ValueError: then the object is walked."""
    data, found = gone_on(), 0
    for byte in range(len(data)):
        changed = flipped(data, byte)
        try:
            places = listed(changed)
        except ValueError:
            found += 1
            continue
        assert places == walked(data)
    assert found > LOCATOR_BYTES


def test_locator_of_an_earlier_end_is_not_believed():
    """It leads to a LAST frame that opens, and all that came behind would be hidden."""
    data = gone_on()
    earlier, _ = [place.end for place in walk.walk(data).places if place.flag == LAST]
    changed = data[:-LOCATOR_BYTES] + data[earlier : earlier + LOCATOR_BYTES]
    with pytest.raises(ValueError, match="does not point to the LAST frame before it"):
        listed(changed)


def test_only_what_the_page_holds_is_read():
    class Counted(bytes):
        read = 0

        def __getitem__(self, part: slice) -> bytes:  # type: ignore[override]
            self.read += 1
            return super().__getitem__(part)

    data = Counted(OBJECT)
    found = seeking.contents(data, lambda _: DEK)
    data.read = 0
    next(found.places(data, walked(OBJECT)[FRAMES - 2].offset, None))
    assert data.read == 1


# --- a trailer that lies, as only who has the DEK could write it ----------------------------------


def drop(writer: ObjectWriter, row: int) -> None:
    del writer.entries[row * ENTRY.itemsize : (row + 1) * ENTRY.itemsize]


def renumber(writer: ObjectWriter) -> None:
    struct.pack_into("<I", writer.entries, ENTRY.itemsize + 12, 7)


LIES: dict[str, Spoil] = {
    "first frame left out": lambda writer: drop(writer, 0),
    "frame left out": lambda writer: drop(writer, 2),
    "last frame left out": lambda writer: drop(writer, 5),
    "nothing listed": lambda writer: writer.entries.clear(),
    "another sequence": renumber,
    "a place within a frame": lambda writer: struct.pack_into("<Q", writer.entries, 32, 300),
    "a place beyond the end": lambda writer: struct.pack_into("<Q", writer.entries, 160, 1 << 63),
    "out of order": lambda writer: writer.entries.reverse(),
    "no segments": lambda writer: writer.segments.insert(0, 0),
    "a segment beyond the end": lambda writer: writer.segments.insert(0, 1 << 63),
}  # fmt: skip


def sealed(parts: Parts, spoil: Spoil) -> Call:
    """A recording of six frames, its trailer spoilt before it is sealed."""
    for second in range(6):
        parts.commit([(ONE, 1, second)])
    writer = parts.writer._recordings.find(ONE).writer
    assert writer is not None
    spoil(writer)
    parts.commit(calls=[make_call(1)])
    return make_call(1)


def read(parts: Parts, call: Call, from_ns: int | None = None) -> tuple[list[int], list[str]]:
    """Seconds and faults of all pages."""
    reader, cursor = Reader(parts.index, parts.vaults), 0
    seconds: list[int] = []
    faults: list[str] = []
    while cursor is not None:
        page = reader.fetch(call, cursor, from_ns=from_ns)
        seconds += [key[2] for key in chunk_keys(page.media)]
        faults += page.damaged
        cursor = page.cursor
    return seconds, faults


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storaged.recordings.reading.PAGE_BYTES", 500)


@pytest.mark.parametrize("lie", LIES)
def test_a_trailer_that_lies_hides_nothing_and_is_told_of(parts, lie):
    seconds, faults = read(parts, sealed(parts, LIES[lie]))
    assert seconds == list(range(6))
    assert len(faults) == 1


def test_a_recording_that_is_whole_is_not_walked(parts, monkeypatch):
    call = sealed(parts, lambda writer: None)
    monkeypatch.setattr("storaged.format.walk.walking", lambda data: pytest.fail("walked"))
    assert read(parts, call) == (list(range(6)), [])


def test_damage_behind_the_first_page_is_told_once_and_the_rest_plays(parts):
    call = sealed(parts, lambda writer: None)
    path = parts.pool.path(ONE)
    data = path.read_bytes()
    path.write_bytes(flipped(data, walk.walk(data).places[4].start))
    seconds, faults = read(parts, call)
    assert seconds == [0, 1, 2, 3, 5]
    assert ["frame 4 does not authenticate" in fault for fault in faults] == [True]


# --- from a moment on -----------------------------------------------------------------------------


def test_listening_from_a_moment_passes_over_what_lies_long_before(parts):
    for second in range(0, 90, 10):
        parts.commit([(ONE, 1, second)])
    growing = read(parts, make_call(1), START + 60 * SECOND)
    assert growing == (list(range(0, 90, 10)), [])  # it has no trailer yet
    parts.commit(calls=[make_call(1)])
    assert read(parts, make_call(1), START + 65 * SECOND) == ([60, 70, 80], [])
    assert read(parts, make_call(1), -(1 << 63))[0] == list(range(0, 90, 10))
    assert read(parts, make_call(1), (1 << 64) - 1) == ([], [])


def test_media_that_came_late_is_found_by_its_moment(parts):
    for second in (0, 30, 60, 90):
        parts.commit([(ONE, 1, second)])
    parts.commit(calls=[make_call(1)])
    parts.commit([(ONE, 1, 95), (ONE, 1, 20)])  # a spool that came late, sealed anew
    assert read(parts, make_call(1), START + 91 * SECOND) == ([90, 95, 20], [])


def test_layout_and_contents_open_alike():
    data = gone_on()
    found, layout = seeking.contents(data, lambda _: DEK), walk.walk(data)
    assert isinstance(layout, Layout)
    for headed in (found, layout):
        opener = walk.Opener(data, headed, lambda _: DEK)
        assert [opener.open(place) for place in listed(data)] == [
            b"".join(packed(second)) for second in range(3)
        ]
