"""Ledgers: appended to, cut back, and read past whatever does not belong there."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.format import ledger
from storaged.format.ledger import DAY_KEY, RECORD, SEALED, Entry, Placed, Seal
from storaged.pools import ledgerfile
from storaged.pools.ledgerfile import Ledger
from tests.support.vault import START, Parts, call_id, make_call

STORE, KEY = bytes(range(16)), ledger.key_of(b"i" * 32)
HEAD = ledger.head(STORE, 0, b"s" * 16)
ENTRIES = [Entry(RECORD, call_id(n), b"sealed record %d" % n) for n in range(4)]
DAY_NS = 86400 * 10**9


def written(entries=ENTRIES) -> bytes:
    return HEAD + ledger.serialize(entries, HEAD, len(HEAD), KEY)


def read(data: bytes, key: bytes | None = KEY) -> tuple[list[Entry], list[str]]:
    found = list(ledger.walk(data, HEAD, key))
    return [one.entry for one in found if one.entry], [one.fault for one in found if one.fault]


def test_what_was_written_is_read():
    assert read(written()) == (ENTRIES, [])


def test_without_the_key_entries_are_read_and_not_checked():
    assert read(written(), None) == (ENTRIES, [])


@pytest.mark.parametrize(
    ("change", "left", "fault"),
    [
        (lambda data: data[:-3], [0, 1, 2], "entry cut"),
        (lambda data: data.replace(b"record 1", b"record 9"), [0, 2, 3], "does not authenticate"),
        (lambda data: data + b"what somebody appended", [0, 1, 2, 3], "entry cut"),
        (lambda data: data + data[len(HEAD) :], [0, 1, 2, 3], "does not authenticate"),
        (lambda data: data[:48] + bytes(4096) + data[48:], [], "no entry begins here"),
    ],
)
def test_what_does_not_belong_there_is_told_of_and_passed_over(change, left, fault):
    entries, faults = read(change(written()))
    assert entries == [ENTRIES[number] for number in left]
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (HEAD[:40], "ledger cut"),
        (b"SVLEDGR9" + HEAD[8:], "wrong magic"),
        (ledger.head(b"x" * 16, 0, b"s" * 16), "another store"),
        (ledger.head(STORE, 2, b"s" * 16), "another store or pool"),
    ],
)
def test_a_file_that_is_none_of_ours(data, fault):
    with pytest.raises(ValueError, match=fault):
        ledger.check_head(data, STORE, 0)


@given(st.binary(max_size=300), st.integers(0, 250))
@settings(deadline=None)
def test_any_bytes_are_survived(noise, at):
    data = written()
    entries, _ = read(data[:at] + noise + data[at:])
    assert all(entry in ENTRIES for entry in entries)


@given(st.binary(max_size=100))
def test_any_body_is_read_or_refused(body):
    for parse in (Seal.parse, Placed.parse):
        try:
            assert parse(body).serialize() == body
        except ValueError:
            continue


def entries_in(folder) -> list[Entry]:
    return [
        found.entry
        for path in Ledger(folder, 0).files()
        for found in ledgerfile.walk(path, STORE, 0, KEY)
    ]


def test_a_day_is_a_file_and_a_clock_set_back_begins_none_before_it(tmp_path):
    one = Ledger(tmp_path, 0)
    for number, day in enumerate([1, 1, 2, 1]):
        one.committed(one.append([ENTRIES[number]], STORE, KEY, START + day * DAY_NS))
    one.close()
    again = Ledger(tmp_path, 0)
    again.append([ENTRIES[0]], STORE, KEY, START)
    assert [path.name for path in again.files()] == [
        "20231115-000000.svl", "20231116-000000.svl", "20231116-000001.svl"
    ]  # fmt: skip
    assert entries_in(tmp_path) == [*ENTRIES, ENTRIES[0]]


def test_what_was_not_acknowledged_is_gone_also_from_its_blocks(tmp_path):
    one = Ledger(tmp_path, 0)
    place = one.append(ENTRIES[:1], STORE, KEY, START)
    one.committed(place)
    one.append(ENTRIES[1:2], STORE, KEY, START)
    overwritten = []
    real = os.ftruncate

    def truncate(descriptor: int, size: int) -> None:
        overwritten.append(one.files()[-1].read_bytes()[size:])
        real(descriptor, size)

    again = Ledger(tmp_path, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "ftruncate", truncate)
        again.recover(place)
    assert entries_in(tmp_path) == ENTRIES[:1]
    assert overwritten
    assert not any(b"sealed record" in data for data in overwritten)


def test_files_behind_the_acknowledged_one_are_overwritten_too(tmp_path):
    """Seen by a second name: what the disk has at their place."""
    one = Ledger(tmp_path / "ledger", 0)
    place = one.append(ENTRIES[:1], STORE, KEY, START)
    one.committed(place)
    one.append(ENTRIES[1:2], STORE, KEY, START + DAY_NS)
    newer = one.files()[-1]
    os.link(newer, tmp_path / "kept")
    Ledger(tmp_path / "ledger", 0).recover(place)
    assert entries_in(tmp_path / "ledger") == ENTRIES[:1]
    assert not newer.exists()
    assert b"sealed record" not in (tmp_path / "kept").read_bytes()


def test_the_first_file_whose_commit_fails_is_overwritten_too(tmp_path):
    one = Ledger(tmp_path / "ledger", 0)
    one.append(ENTRIES[:1], STORE, KEY, START)
    os.link(one.files()[0], tmp_path / "kept")
    one.cut_back()
    assert one.files() == []
    assert b"sealed record" not in (tmp_path / "kept").read_bytes()


def test_first_file_that_a_kill_on_a_full_disk_left_without_its_head_is_none(tmp_path):
    whole = Ledger(tmp_path, 0)
    whole.append(ENTRIES[:1], STORE, KEY, START)
    torn = whole.files()[0].with_name("20231115-000000.svl")
    torn.write_bytes(HEAD[:47])
    Ledger(tmp_path, 0).recover(None)
    assert (torn.exists(), entries_in(tmp_path)) == (False, ENTRIES[:1])


def test_what_is_overwritten_is_synced_before_it_is_cut_off(tmp_path, monkeypatch):
    """Else its blocks might be given back as they were."""
    one = Ledger(tmp_path, 0)
    one.append(ENTRIES[:1], STORE, KEY, START)
    done: list[str] = []
    for name in ("write", "fsync", "ftruncate"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, real=real: (done.append(name), real(*a))[1]
        )
    Ledger(tmp_path, 0).recover(ledger.Place(one.files()[0].name, len(HEAD)))
    assert done == ["write", "fsync", "ftruncate", "fsync"]


def test_a_restart_begins_a_new_file(tmp_path):
    """Of one that it did not write itself it does not know what lies behind the end."""
    one = Ledger(tmp_path, 0)
    place = one.append(ENTRIES[:1], STORE, KEY, START)
    one.committed(place)
    again = Ledger(tmp_path, 0)
    again.recover(place)
    again.committed(again.append(ENTRIES[1:2], STORE, KEY, START))
    assert [path.name for path in again.files()] == ["20231114-000000.svl", "20231114-000001.svl"]


def test_a_commit_that_fails_takes_its_entries_back(tmp_path, monkeypatch):
    parts = Parts(tmp_path / "store")
    parts.commit([(call_id(1), 1, 0)], [make_call(1)])
    before = [path.read_bytes() for path in parts.pool.ledger.files()]
    monkeypatch.setattr(parts.index, "write", full)
    with pytest.raises(OSError, match="full"):
        parts.commit([], [make_call(2)])
    assert [path.read_bytes() for path in parts.pool.ledger.files()] == before


def full(change: object) -> None:
    raise OSError(28, "full")


def test_a_commit_notes_records_sealings_and_the_key_of_a_day_once(tmp_path):
    parts = Parts(tmp_path / "store")
    parts.commit([(call_id(1), 1, 0)], [make_call(1, final=False)])
    parts.commit([(call_id(1), 1, 1)], [make_call(1, revision=1)])  # its record is in the object
    parts.commit([], [make_call(2)])
    parts.commit([], [make_call(2)])  # comes again
    ring = parts.keyring
    found = [
        (one.entry.kind, one.entry.id)
        for path in parts.pool.ledger.files()
        for one in ledgerfile.walk(path, ring.store_id, 0, ring.ledger_key)
    ]
    assert found == [
        (DAY_KEY, bytes(16)), (RECORD, call_id(1)), (SEALED, call_id(1)), (RECORD, call_id(2)),
    ]  # fmt: skip
