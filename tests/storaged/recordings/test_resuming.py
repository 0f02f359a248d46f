"""Recordings go on from their rows after a restart, read no further than needed. FORMAT.md §9."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.media.chunk import EVENTS
from storaged.format.sealing import ObjectWriter
from storaged.index.environment import Index
from storaged.index.rows import Reach
from storaged.recordings.gathering import Have
from storaged.recordings.reading import Reader
from storaged.recordings.resuming import MOST_STREAMS, reach
from tests.support.vault import Parts, call_id, chunk_keys, make_call, make_media

ONE = call_id(1)
DEK = bytes(range(32))


class PowerCut(BaseException):
    """The process is gone: nothing cleans up."""


def cut_off(parts: Parts, chunks) -> Parts:
    """A group is written, and the process ends before it is synced."""
    sync = parts.pool.sync
    parts.pool.sync = lambda: (_ for _ in ()).throw(PowerCut)  # type: ignore[method-assign]
    undo = parts.writer._undo
    parts.writer._undo = lambda touched: None  # type: ignore[method-assign]
    with pytest.raises(PowerCut):
        parts.commit(chunks)
    parts.pool.sync, parts.writer._undo = sync, undo  # type: ignore[method-assign]
    return parts.again()


@contextmanager
def bytes_read() -> Iterator[list[int]]:
    counted: list[int] = []
    pread = os.pread

    def counting(descriptor: int, size: int, at: int) -> bytes:
        data = pread(descriptor, size, at)
        counted.append(len(data))
        return data

    os.pread = counting
    try:
        yield counted
    finally:
        os.pread = pread


def stored(parts: Parts) -> list[tuple[int, int]]:
    page = Reader(parts.index, parts.vaults).fetch(make_call(0, id=ONE), 0)
    assert (page.cursor, page.damaged) == (None, [])
    truth = make_media([key[:3] for key in chunk_keys(page.media)])
    assert chunk_keys(page.media) == chunk_keys(truth)
    return [key[1:3] for key in chunk_keys(page.media)]


def sealed_well(parts: Parts) -> bool:
    report = Reader(parts.index, parts.vaults).verify(ONE)
    return report.sealed and report.faults == []


@pytest.fixture
def long(parts: Parts) -> Parts:
    """A recording of twenty commits, and a restart."""
    for second in range(20):
        parts.commit([(ONE, 1, second), (ONE, 2, second)])
    return parts.again()


def test_a_recording_goes_on_without_being_read(long):
    with bytes_read() as counted:
        assert long.commit([(ONE, 1, 20), (ONE, 2, 20)]).duplicates == 0
    assert 0 < sum(counted) < 500
    assert len(stored(long)) == 42


def test_what_is_new_is_told_by_stream_and_what_is_old_needs_the_whole_object(long):
    with bytes_read() as counted:
        counts = long.commit([(ONE, 1, 19), (ONE, 1, 20), (ONE, 2, 19), (ONE, 3, 0)])
    assert (counts.chunks, counts.duplicates) == (2, 2)  # 19 is each stream's latest
    assert sum(counted) < 500
    with bytes_read() as counted:
        counts = long.commit([(ONE, 1, 3), (ONE, 2, 21)])
    assert (counts.chunks, counts.duplicates) == (1, 1)
    assert sum(counted) > 10_000
    assert len(stored(long)) == 43


def test_it_ends_though_it_was_never_read_before(long):
    long.commit([(ONE, 1, 20)])
    assert long.commit([(ONE, 1, 21)], [make_call(1)]).sealed == 1
    assert sealed_well(long)
    assert len(stored(long)) == 42


def test_it_is_read_when_there_is_time_and_then_not_again(long):
    long.commit([(ONE, 1, 20)])
    assert long.writer.read_next()
    assert not long.writer.read_next()
    long.commit([(ONE, 1, 21)])
    with bytes_read() as counted:
        assert long.commit([(ONE, 1, 5)], [make_call(1)]).sealed == 1
    assert not counted
    assert sealed_well(long)


def test_what_was_written_and_not_acknowledged_is_kept_and_comes_again_in_vain(long):
    long.commit([(ONE, 1, 20)])
    again = cut_off(long, [(ONE, 1, 21), (ONE, 2, 20)])
    with bytes_read() as counted:
        counts = again.commit([(ONE, 1, 21), (ONE, 2, 20), (ONE, 1, 22)])
    assert (counts.chunks, counts.duplicates) == (1, 2)
    assert sum(counted) < 3000  # what lies behind, nothing else
    assert again.commit(calls=[make_call(1)]).sealed == 1
    assert sealed_well(again)
    assert len(stored(again)) == 44


def test_a_second_restart_after_nothing_but_duplicates_reads_nothing_either(long):
    again = cut_off(long, [(ONE, 1, 20)]).again()
    assert again.commit([(ONE, 1, 20)]).duplicates == 1
    again = again.again()
    with bytes_read() as counted:
        assert again.commit([(ONE, 1, 20), (ONE, 1, 21)]).duplicates == 1
    assert sum(counted) < 500
    assert again.commit(calls=[make_call(1)]).sealed == 1
    assert sealed_well(again)


@pytest.mark.parametrize("left", [1, 30, 104, 150, 548])
def test_a_tail_torn_anywhere_is_cut_and_a_new_segment_follows(long, left):
    path, size = long.pool.path(ONE), long.pool.path(ONE).stat().st_size
    again = cut_off(long, [(ONE, 1, 20)])
    assert path.stat().st_size > size + left
    os.truncate(path, size + left)
    assert again.commit([(ONE, 1, 20), (ONE, 2, 20)]).chunks == 2
    assert again.commit(calls=[make_call(1)]).sealed == 1
    assert sealed_well(again)
    assert len(stored(again)) == 42


def test_a_clock_set_back_by_years_between_crash_and_start_costs_nothing(long):
    again = cut_off(long, [(ONE, 1, 20)])
    again.writer._clock_ns = lambda: 0  # 1970: a host without a battery
    assert again.commit([(ONE, 1, 20), (ONE, 1, 21)]).chunks == 1
    again = again.again()
    again.writer._clock_ns = lambda: 10**9
    assert again.commit([(ONE, 1, 22)], [make_call(1)]).sealed == 1
    assert sealed_well(again)
    assert len(stored(again)) == 43


def test_no_salt_comes_twice_over_restarts(long):
    for second in range(20, 23):
        long.commit([(ONE, 1, second)])
        long = cut_off(long, [(ONE, 1, second + 100)])
    long.commit([(ONE, 1, 23)])
    data = long.pool.path(ONE).read_bytes()
    salts = [data[at + 56 : at + 72] for at in range(len(data)) if data.startswith(b"\x89SVR", at)]
    assert len(salts) == len(set(salts)) > 4
    segments = [data[at + 14] for at in range(len(data)) if data.startswith(b"\x89SVR", at)]
    assert segments == list(range(len(segments)))


@pytest.mark.parametrize(
    "wrong", [{"header": 5}, {"segments": 7}, {"sequence": 3}, {"size": 10**9}, {"header": 10**9}]
)
def test_a_row_that_does_not_fit_the_object_leads_to_reading_it(long, wrong):
    """A sequence that does not fit shows in what lies behind only: it was never acknowledged."""
    with long.index.reading() as view:
        known = view.reach(ONE)
    assert isinstance(known, Reach)
    row = (ONE, known._replace(**wrong))
    long.index.write(lambda writing: writing.put_committed([row]))
    long.commit([(ONE, 1, 20)])
    assert long.commit(calls=[make_call(1)]).sealed == 1
    page = Reader(long.index, long.vaults).fetch(make_call(0, id=ONE), 0)
    assert len(chunk_keys(page.media)) == 41


def test_a_row_of_an_older_store_tells_the_size_alone(long):
    size = long.pool.path(ONE).stat().st_size
    long.index.write(lambda writing: writing.put_committed([(ONE, size)]))
    assert long.commit([(ONE, 1, 19), (ONE, 1, 20)]).duplicates == 1
    assert long.commit(calls=[make_call(1)]).sealed == 1
    assert sealed_well(long)


def test_damage_in_what_was_acknowledged_is_told_when_it_is_read_and_stops_nothing(long, caplog):
    path = long.pool.path(ONE)
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    long.commit([(ONE, 1, 20)])
    assert long.writer.read_next()
    messages = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert set(messages) == {"Damage in a recording that goes on"}
    assert long.commit(calls=[make_call(1)]).sealed == 1


def test_an_object_that_cannot_be_read_any_more_is_set_aside_at_its_end(long):
    long.commit([(ONE, 1, 20)])
    path = long.pool.path(ONE)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert long.writer.read_next()  # told of, and left for the end
    assert long.commit([(ONE, 1, 21)], [make_call(1)]).sealed == 0
    assert [each.suffix for each in path.parent.iterdir()] == [".damaged"]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: path.unlink(), "the object is missing, "),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "it was cut: "),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "wrong magic"),
        (lambda path: path.write_bytes(b""), "header cut: 0 of 104 bytes"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
    ids=["no name", "cut", "no blocks", "no bytes", "a folder"],
)  # fmt: skip
def test_what_a_filesystem_lost_of_it_is_told_and_the_call_is_recorded_on(
    parts, caplog, spoil, fault
):
    for second in range(5):
        parts.commit([(ONE, 1, second)])
    again = parts.again()
    spoil(again.pool.path(ONE))
    again.commit([(ONE, 1, 20)])
    again.writer.read_next()
    told = [str(record.FAULT) for record in caplog.records if record.levelno == logging.ERROR]
    assert any(fault in text for text in told), told
    assert again.commit([], [make_call(1)]).sealed == 1
    assert (1, 20) in stored(again)
    assert sealed_well(again)


# --- the row --------------------------------------------------------------------------------------

REACHES = st.builds(
    Reach,
    size=st.integers(0, 2**64 - 1), header=st.integers(0, 2**64 - 1),
    sequence=st.integers(0, 2**32 - 1), segments=st.integers(0, 2**16 - 1),
    latest=st.lists(
        st.tuples(st.integers(0, 2**16 - 1), st.integers(-(2**63), 2**63 - 1)), max_size=64
    ).map(tuple),
)  # fmt: skip


@given(row=REACHES | st.integers(0, 2**64 - 1))
def test_a_row_is_read_as_it_was_written(tmp_path_factory, row):
    index = _index(tmp_path_factory)
    index.write(lambda writing: writing.put_committed([(ONE, row)]))
    with index.reading() as view:
        assert view.reach(ONE) == row
        assert view.committed(ONE) == (row if isinstance(row, int) else row.size)


_made: list[Index] = []


def _index(tmp_path_factory) -> Index:
    if not _made:
        _made.append(Index(tmp_path_factory.mktemp("index")))
    return _made[0]


def test_the_row_of_very_many_streams_tells_the_size_alone():
    writer = ObjectWriter(ONE, 1, 0)
    writer.begin(DEK, 0, bytes(16))
    few = Have((stream, 7) for stream in range(MOST_STREAMS))
    assert reach(writer, few) == Reach(104, 0, 0, 1, tuple(few.latest()))
    assert reach(writer, Have((stream, 7) for stream in range(MOST_STREAMS + 1))) == 104


# --- digits ---------------------------------------------------------------------------------------

DIGITS = EVENTS + 1


def dialled(parts: Parts) -> list[tuple[int, int]]:
    page = Reader(parts.index, parts.vaults).fetch(make_call(0, id=ONE), 0, digits=True)
    assert (page.cursor, page.damaged) == (None, [])
    return [key[1:3] for key in chunk_keys(page.media)]


def test_digits_survive_a_crash_come_again_in_vain_and_may_come_late(parts):
    """Torn off behind sound and digits, gone on with, sealed, and opened once more for a key."""
    parts.commit([(ONE, 1, 0), (ONE, DIGITS, 0)])
    again = cut_off(parts.again(), [(ONE, 1, 1), (ONE, DIGITS, 1)])
    counts = again.commit([(ONE, 1, 1), (ONE, DIGITS, 1), (ONE, DIGITS, 2)])
    assert (counts.chunks, counts.duplicates) == (1, 2)
    assert again.commit(calls=[make_call(1)]).sealed == 1
    assert again.commit([(ONE, DIGITS, 0), (ONE, DIGITS, 3)]).sealed == 1
    assert sealed_well(again)
    assert stored(again) == [(1, 0), (1, 1)]
    assert dialled(again) == [(DIGITS, second) for second in range(4)]


@pytest.mark.parametrize("left", [1, 300, 560, 700])
def test_a_tail_torn_within_digits_costs_nothing_acknowledged(parts, left):
    parts.commit([(ONE, DIGITS, 0)])
    path, size = parts.pool.path(ONE), parts.pool.path(ONE).stat().st_size
    again = cut_off(parts.again(), [(ONE, 1, 1), (ONE, DIGITS, 1)])
    assert path.stat().st_size > size + left
    os.truncate(path, size + left)
    again.commit([(ONE, 1, 1), (ONE, DIGITS, 1)])
    assert again.commit(calls=[make_call(1)]).sealed == 1
    assert sealed_well(again)
    assert (stored(again), dialled(again)) == ([(1, 1)], [(DIGITS, 0), (DIGITS, 1)])
