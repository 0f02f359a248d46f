"""What a commit leaves on disk, and what a restart makes of it. FORMAT.md §8."""

import errno
import os
import shutil
from typing import Any

import pytest

from spanvault import messages as m
from storaged.index.rows import FINAL, OBJECT, SEALED
from storaged.recordings.gathering import Gathered, Group
from storaged.recordings.reading import Reader
from tests.support.vault import Parts, call_id, chunk_keys, make_call, make_media

ONE, TWO = call_id(1), call_id(2)


def stored(parts: Parts, recording: bytes) -> list[tuple[int, int]]:
    """(stream, second) of what can be read back, payloads compared."""
    reader = Reader(parts.index, parts.vaults)
    page = reader.fetch(make_call(0, id=recording), 0)
    assert page.cursor is None
    assert not page.damaged
    truth = make_media([key[:3] for key in chunk_keys(page.media)])
    assert chunk_keys(page.media) == chunk_keys(truth)
    return [key[1:3] for key in chunk_keys(page.media)]


def stored_call(parts: Parts) -> m.Call:
    with parts.index.reading() as view:
        call = parts.writer._stored_call(view, ONE)
    assert call is not None
    return call


def failing() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def bits(parts: Parts, recording: bytes) -> int:
    with parts.index.reading() as view:
        state = view.state(recording)
    assert state is not None
    return state.bits


def test_commit_is_read_back(parts):
    counts = parts.commit([(ONE, 1, 0), (TWO, 1, 0), (ONE, 2, 0)], [make_call(1, final=False)])
    assert (counts.chunks, counts.duplicates, counts.sealed) == (3, 0, 0)
    assert stored(parts, ONE) == [(1, 0), (2, 0)]
    assert stored(parts, TWO) == [(1, 0)]
    assert bits(parts, ONE) == OBJECT


@pytest.mark.parametrize("within", [False, True])
def test_nothing_is_acknowledged_in_another_folder_at_the_pool_s_place(parts, monkeypatch, within):
    """Its disk was unmounted, before a commit or within one; what lies below stays as it was."""
    parts.commit([(ONE, 1, 0)])
    objects, away = parts.pool.objects, parts.pool.objects.with_name("away")

    def unmount() -> None:
        objects.rename(away)
        objects.mkdir()

    append = parts.pool.append

    def append_elsewhere(*what: Any) -> None:
        monkeypatch.undo()
        unmount()
        append(*what)

    if within:
        monkeypatch.setattr(parts.pool, "append", append_elsewhere)
    else:
        unmount()
    with pytest.raises(OSError, match="Stale file handle") as caught:
        parts.commit([(TWO, 1, 0)])
    assert caught.value.filename == str(objects)
    assert [path for path in objects.rglob("*") if path.is_file()] == []
    shutil.rmtree(objects)
    away.rename(objects)
    parts.commit([(TWO, 1, 0), (ONE, 1, 1)])
    assert (stored(parts, ONE), stored(parts, TWO)) == ([(1, 0), (1, 1)], [(1, 0)])


def test_chunk_that_comes_again_is_dropped(parts):
    parts.commit([(ONE, 1, 0), (ONE, 1, 1)])
    assert parts.commit([(ONE, 1, 1), (ONE, 1, 2)]).duplicates == 1
    assert stored(parts, ONE) == [(1, 0), (1, 1), (1, 2)]


def test_chunk_that_comes_again_after_a_restart_is_dropped(parts):
    parts.commit([(ONE, 1, 0), (ONE, 1, 1)])
    again = parts.again()
    assert again.commit([(ONE, 1, 0), (ONE, 1, 2), (ONE, 1, 1)]).duplicates == 2
    assert stored(again, ONE) == [(1, 0), (1, 1), (1, 2)]


def test_final_record_seals(parts):
    parts.commit([(ONE, 1, 0)])
    assert parts.commit(calls=[make_call(1)]).sealed == 1
    assert bits(parts, ONE) == OBJECT | SEALED | FINAL
    with parts.index.reading() as view:
        assert view.committed(ONE) is None
    report = Reader(parts.index, parts.vaults).verify(ONE)
    assert (report.sealed, report.frames, report.faults) == (True, 2, [])


def test_final_record_after_a_restart_seals(parts):
    parts.commit([(ONE, 1, 0)])
    again = parts.again()
    assert again.commit(calls=[make_call(1)]).sealed == 1
    assert Reader(again.index, again.vaults).verify(ONE).faults == []
    assert stored(again, ONE) == [(1, 0)]


def test_final_record_that_comes_again_changes_nothing(parts):
    parts.commit([(ONE, 1, 0)], [make_call(1)])
    position = parts.index.position
    counts = parts.commit([(ONE, 1, 0)], [make_call(1)])
    assert (counts.duplicates, counts.sealed) == (1, 0)
    assert parts.index.position == position


def test_late_chunk_of_a_sealed_recording_opens_a_segment(parts):
    parts.commit([(ONE, 1, 1)], [make_call(1)])
    assert parts.commit([(ONE, 1, 0)]).sealed == 1
    assert stored(parts, ONE) == [(1, 1), (1, 0)]
    report = Reader(parts.index, parts.vaults).verify(ONE)
    assert (report.sealed, report.faults) == (True, [])


def test_late_chunk_is_sealed_though_a_crash_cut_off_its_sealing(parts, monkeypatch):
    """Its LAST frame is in the file, the index does not know of it: acknowledged, it must play."""
    parts.commit([(ONE, 1, 0)], [make_call(1)])
    with monkeypatch.context() as patched:
        patched.setattr(parts.pool, "sync", lambda: (_ for _ in ()).throw(PowerCut))
        with pytest.raises(PowerCut):
            parts.commit([(ONE, 1, 1)])
    again = parts.again()
    assert again.commit([(ONE, 1, 1)]).sealed == 1
    assert stored(again, ONE) == [(1, 0), (1, 1)]
    report = Reader(again.index, again.vaults).verify(ONE)
    assert (report.sealed, report.faults) == (True, [])


def test_call_without_media_has_no_object(parts):
    parts.commit(calls=[make_call(1)])
    assert bits(parts, ONE) == FINAL
    assert not parts.pool.path(ONE).exists()


def test_media_without_a_record_is_listed_until_its_record_comes(parts):
    parts.commit([(ONE, 3, 0)])
    call = stored_call(parts)
    assert (call.revision, call.flags, call.streams[0].number) == (-1, ["record_missing"], 3)
    parts.commit(calls=[make_call(1, final=False)])
    assert stored_call(parts) == make_call(1, final=False)


def test_lower_revision_does_not_replace(parts):
    parts.commit(calls=[make_call(1, revision=2)])
    parts.commit(calls=[make_call(1, revision=1, caller="other")])
    assert stored_call(parts).revision == 2


class PowerCut(BaseException):
    """The process ends here: nothing is cleaned up."""


# Where a commit can be cut off, in the order of FORMAT.md §8, by the call that does not return.
CRASH_POINTS = {
    "before the header": ("pool", "append", 0),
    "behind the header": ("pool", "append", 1),
    "behind the first frame": ("pool", "append", 2),
    "behind a LAST frame": ("pool", "append", 4),
    "at syncfs": ("pool", "sync", 0),
    "at the index": ("index", "write", 0),
}


@pytest.mark.parametrize("point", CRASH_POINTS)
@pytest.mark.parametrize("torn", [False, True])
def test_crash_at_any_point_loses_nothing_acknowledged(parts, monkeypatch, point, torn):
    parts.commit([(ONE, 1, 0)])
    where, what, calls = CRASH_POINTS[point]
    real, left = getattr(getattr(parts, where), what), [calls]

    def until_then(*arguments: object) -> object:
        if not left[0]:
            if torn and what == "append":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])  # type: ignore[index]
            raise PowerCut
        left[0] -= 1
        return real(*arguments)

    batch = [(ONE, 1, 1), (TWO, 1, 0)], [make_call(1), make_call(2)]
    with monkeypatch.context() as patched:
        patched.setattr(getattr(parts, where), what, until_then)
        with pytest.raises(PowerCut):
            parts.commit(*batch)
    again = parts.again()
    assert stored(again, ONE) == [(1, 0)]
    again.commit(*batch)
    assert stored(again, ONE) == [(1, 0), (1, 1)]
    assert stored(again, TWO) == [(1, 0)]
    for recording in (ONE, TWO):
        report = Reader(again.index, again.vaults).verify(recording)
        assert (report.sealed, report.faults) == (True, [])


def test_failed_commit_leaves_what_was_acknowledged(parts, monkeypatch):
    """The disk is full in the middle of the second commit; then there is room again."""
    parts.commit([(ONE, 1, 0)])
    size = parts.pool.path(ONE).stat().st_size
    append, room = parts.pool.append, [200]

    def full(recording_id: bytes, data: bytes) -> None:
        if len(data) > room[0]:
            append(recording_id, data[: room[0]])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(recording_id, data)

    monkeypatch.setattr(parts.pool, "append", full)
    with pytest.raises(OSError, match="No space"):
        parts.commit([(ONE, 1, 1), (TWO, 1, 0)])
    assert parts.pool.path(ONE).stat().st_size == size
    assert not parts.pool.path(TWO).exists()
    for _ in range(300):
        with pytest.raises(OSError, match="No space"):
            parts.commit([(TWO, 1, 0)])
    assert parts.index.reserved_keys() == 256
    room[0] = 1 << 30
    parts.commit([(ONE, 1, 1), (TWO, 1, 0)])
    assert stored(parts, ONE) == [(1, 0), (1, 1)]
    assert stored(parts, TWO) == [(1, 0)]


def test_torn_tail_is_cut_and_its_nonce_not_used_again(parts):
    parts.commit([(ONE, 1, 0)])
    path = parts.pool.path(ONE)
    torn = path.read_bytes()
    with path.open("ab") as file:
        file.write(torn[104:-5])
    again = parts.again()
    again.commit([(ONE, 1, 1)])
    assert stored(again, ONE) == [(1, 0), (1, 1)]
    salts = path.read_bytes().count(b"\x89SVR\r\n\x1a\n")
    assert salts == 2


def test_object_that_was_never_acknowledged_is_gone_on_with(parts):
    """Killed between the frames and the index: the file is there, its row is not."""
    parts.commit([(TWO, 1, 0)])
    group = Group()
    group.add(b"x", m.Batch("test", 1), make_media([(ONE, 1, 0)]))
    parts.writer._recordings.look_up([ONE])
    parts.writer._append_all(Gathered(group.batches))
    again = parts.again()
    again.commit([(ONE, 1, 0), (ONE, 1, 1)], [make_call(1)])
    assert stored(again, ONE) == [(1, 0), (1, 1)]
    assert Reader(again.index, again.vaults).verify(ONE).faults == []


def test_file_cut_within_its_header_is_begun_anew(parts):
    path = parts.pool.path(ONE)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x89SVR\r\n")
    parts.commit([(ONE, 1, 0)], [make_call(1)])
    assert stored(parts, ONE) == [(1, 0)]


def test_object_with_a_destroyed_header_is_set_aside_not_lost(parts):
    parts.commit([(ONE, 1, 0)])
    path = parts.pool.path(ONE)
    path.write_bytes(b"?" * 104 + path.read_bytes()[104:])
    again = parts.again()
    again.commit([(ONE, 1, 1)], [make_call(1)])
    assert stored(again, ONE) == [(1, 1)]
    assert len(list(path.parent.glob("*.damaged"))) == 1


def test_damaged_key_page_does_not_stop_recording(parts):
    parts.commit([(ONE, 1, 0)], [make_call(1, final=False)])
    page = parts.folder / "keys" / "page-000000.0"
    page.write_bytes(page.read_bytes()[:-1] + b"?")
    again = parts.again()
    again.commit([(ONE, 1, 1), (TWO, 1, 0)], [make_call(1, revision=1), make_call(2)])
    assert stored(again, ONE) == [(1, 1)]
    assert stored(again, TWO) == [(1, 0)]
    assert stored_call(again) == make_call(1, revision=1)
    assert len(list(again.pool.objects.glob("*/*.damaged"))) == 1


def test_key_of_a_call_whose_commit_failed_is_no_other_call_s(parts, monkeypatch):
    """What LMDB wrote of its record lies in free pages: it must not open when the call is gone."""
    parts.commit([], [make_call(1)])
    taken, take = [], parts.keyring.take
    monkeypatch.setattr(parts.keyring, "take", lambda *how: taken.append(take(*how)) or taken[-1])
    with monkeypatch.context() as patched:
        patched.setattr(parts.pool, "sync", failing)
        with pytest.raises(OSError, match="Input/output"):
            parts.commit([], [make_call(2)])
    parts.commit([], [make_call(3)])
    parts.commit([], [make_call(2)])
    with parts.index.reading() as view:
        keys = [view.state(call_id(number)).key_id for number in (2, 3)]
    assert keys == [key_id for key_id, _ in taken]


def test_unreadable_object_does_not_stop_recording(parts, monkeypatch):
    parts.commit([(ONE, 1, 0)])
    again = parts.again()

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr("storaged.pools.pool.ObjectFile.__getitem__", failing)
        again.commit([(ONE, 1, 1), (TWO, 1, 0)])
    assert stored(again, ONE) == [(1, 1)]
    assert stored(again, TWO) == [(1, 0)]


def test_more_recordings_than_open_files(parts):
    recordings = [call_id(number) for number in range(40)]
    for second in range(3):
        parts.commit([(recording, 1, second) for recording in recordings])
    assert len(parts.pool._open) == 8
    assert all(stored(parts, one) == [(1, 0), (1, 1), (1, 2)] for one in recordings)


def test_recordings_forgotten_for_want_of_memory_go_on(parts, monkeypatch):
    """Nine in ten of as many as may be remembered stay, those with the latest news."""
    monkeypatch.setattr("storaged.recordings.growing._REMEMBERED", 20)
    recordings = [call_id(number) for number in range(30)]
    for start in (0, 10):
        parts.commit([(recording, 1, 0) for recording in recordings[start : start + 10]])
    parts.commit([(one, 1, 0) for one in [recordings[0], *recordings[20:]]])
    assert [parts.writer._recordings.known(one) is None for one in recordings].count(True) == 12
    assert all(parts.writer._recordings.known(one) for one in [recordings[0], *recordings[20:]])
    counts = parts.commit([(one, 1, second) for one in recordings for second in (0, 1)])
    assert (counts.chunks, counts.duplicates) == (30, 30)
    assert all(stored(parts, one) == [(1, 0), (1, 1)] for one in recordings)
    report = Reader(parts.index, parts.vaults).verify(recordings[0])
    assert (report.sealed, report.faults) == (False, [])


def test_what_is_remembered_of_a_recording_is_what_was_committed(parts, monkeypatch):
    """Rows are kept in memory: a commit that fails must leave them as they were."""
    parts.commit([(ONE, 1, 0)], [make_call(1, revision=3, final=False)])
    with monkeypatch.context() as patched:
        patched.setattr(parts.index, "write", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            parts.commit([(ONE, 1, 1)], [make_call(1, revision=9)])
    parts.commit([(ONE, 1, 1)], [make_call(1, revision=6, final=False, caller="later")])
    parts.commit([(ONE, 1, 2)], [make_call(1, revision=5, caller="earlier")])
    assert (stored_call(parts).revision, stored_call(parts).caller) == (6, "later")
    assert stored(parts, ONE) == [(1, 0), (1, 1), (1, 2)]


def test_map_grows_when_it_is_full(tmp_path):
    parts = Parts(tmp_path / "small", map_bytes=256 << 10)
    for start in range(0, 2000, 100):
        parts.commit(calls=[make_call(number) for number in range(start, start + 100)])
    with parts.index.reading() as view:
        assert view.count(b"record") == 2000
    parts.close()
