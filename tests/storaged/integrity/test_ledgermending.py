"""A ledger's file that is gone, cut or damaged: what it held is written anew, and nothing is lost
with the index then."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from spanvault import messages as m
from storaged.format import ledger, record
from storaged.index import callrows, damage, labels, ledgerheads
from storaged.index.environment import Index
from storaged.integrity import checks, ledgerlacking, ledgermending, reindexing
from storaged.integrity.ledgercheck import LedgerCheck
from storaged.integrity.ledgermending import LedgerMending
from storaged.integrity.rebuilding import Rebuilder, Report
from storaged.pools import ledgerfile
from tests.support.checked import Checked
from tests.support.desk import REPLICATOR, Counter
from tests.support.vault import Parts, call_id, make_call

DAY = 19_675


class Ledger(Counter):
    """A store with calls of each kind in three files of its ledger, two erasures and a target."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        parts.commit([(call_id(1), 1, 0)], [make_call(1, final=False)])
        parts.commit([(call_id(1), 1, 1)], [make_call(1, revision=1)])
        parts.commit([], [make_call(2), make_call(3), make_call(4)])
        self.again()
        parts.commit([(call_id(5), 1, 0)], [make_call(5)])
        parts.commit([], [make_call(1, revision=2, end_reason="heard twice")])
        assert self.ask(m.Erase([call_id(3)], "one of them")).erased == 1
        self.ask(m.Feed(0, target="siteb"), who=REPLICATOR)
        self.again()
        parts.commit([(call_id(6), 1, 0)], [make_call(6, final=False)])
        assert len(self.files) == 3

    def again(self) -> None:
        """As after a restart: the next entry begins another file."""
        self.parts.pool.ledger.close()

    @property
    def files(self) -> list[Path]:
        return self.parts.pool.ledger.files()

    def check(self) -> list[str]:
        check = LedgerCheck(self.parts.index, self.parts.vaults, lambda: 1)
        for name in check.names():
            list(check.checking(name))
        with self.parts.index.reading() as view:
            return damage.told_files(view, damage.LEDGERS)

    def mend(self) -> LedgerMending:
        made = LedgerMending(self.parts.index, self.parts.vaults, lambda: 1_700_000_000 * 10**9)
        list(made.mending())
        return made

    def dek(self, key_id: int) -> bytes:
        return self.parts.keyring.dek(key_id)

    def rows(self, index: Index) -> dict[str, dict[bytes, Any]]:
        """What an index knows of calls, days, erasures and targets."""
        names = (b"record", b"time", b"shared", b"erased", b"erasure", b"target", b"day", b"placed")
        with index.reading() as view:
            found: dict[str, dict[bytes, Any]] = {
                name.decode(): {bytes(key): bytes(value) for key, value in view.cursor(name)}
                for name in names
            }
            # One that was sealed into its recording may be under another nonce.
            found["record"] = {
                key: record.open_call(key, sealed, self.dek(record.parse_head(sealed).key_id))
                for key, sealed in found["record"].items()
            }
            found["state"] = {
                bytes(key): bytes(view.get(b"state", bytes(key)) or b"")[:54]
                for key in view.cursor(b"state").iternext(values=False)
            }
        return found

    def rebuilt(self, folder: Path) -> tuple[dict[str, dict[bytes, Any]], int]:
        """What an index made anew has, and faults."""
        index, report = Index(folder), Report(1)
        made = Rebuilder(index, self.parts.vaults.base, report, lambda *_: None, lambda: 1)

        def keep(days: Iterable[int]) -> None:
            """Days have the keys that the ledger names, or any: it is to be read, not added to."""
            index.write(lambda writing: [
                labels.put_key_ids(writing, day, 0, made._days.get(day, [0])) for day in days
            ])  # fmt: skip

        made._give_keys = keep  # type: ignore[method-assign]
        made.ledger()
        made.objects()
        made.records()
        rows = self.rows(index)
        index.close()
        return rows, report.faults


@pytest.fixture
def store(parts: Parts):
    made = Ledger(parts)
    yield made
    made.access.close()


def gone(path: Path) -> None:
    path.unlink()


def cut_between_entries(path: Path) -> None:
    """Where nothing else tells: each entry that is left is whole."""
    os.truncate(path, 48)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def garbled(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50] + bytes(path.stat().st_size - 50))


@pytest.mark.parametrize("harm", [gone, cut_between_entries, cut, garbled])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_a_file_held_is_in_the_ledger_again(store, tmp_path, caplog, harm, number):
    wanted, _ = store.rebuilt(tmp_path / "whole")
    assert wanted == store.rows(store.parts.index)
    path = store.files[number]
    harm(path)
    lost, _ = store.rebuilt(tmp_path / "lacking")
    assert lost != wanted  # the negative control
    assert store.check() == [f"base/{path.name}"]
    assert store.mend().mended == [f"base/{path.name}"]
    assert store.check() == []
    assert path.name not in [one.name for one in store.files]
    found, faults = store.rebuilt(tmp_path / "anew")
    assert (found, faults) == (wanted, 0)
    assert found == store.rows(store.parts.index)
    assert "Files of a ledger are replaced: what they held was written anew" in caplog.messages
    folders = [store.files[0].parent] * 3
    store.parts.index.close()
    assert reindexing._lacking(store.parts.folder / "index", folders) == -1


def test_whole_ledger_can_go_while_its_index_is_there(store, tmp_path):
    wanted = store.rows(store.parts.index)
    for path in store.files:
        path.unlink()
    assert len(store.check()) == 3
    store.mend()
    assert store.check() == []
    assert store.rebuilt(tmp_path / "anew") == (wanted, 0)


def test_rolling_check_does_it_and_status_says_so(store):
    checked = Checked(store.parts)
    checked.round()
    store.files[0].unlink()
    fields = checked.round()
    assert fields["damaged_ledgers"] == []
    assert len(fields["mended_ledgers"]) == 1


def test_asked_for_check_does_it_at_once_and_says_what_it_did(store, monkeypatch):
    monkeypatch.setattr(checks, "MENDED", 1)  # as of a store that takes many answers
    name = f"base/{store.files[0].name}"
    store.files[0].unlink()
    replies, cursor = [], b""
    while cursor is not None:
        replies.append(store.ask(m.Check("ledgers", cursor)))
        cursor = replies[-1].cursor
    assert len(replies) > 5
    assert sum(one.checked for one in replies) == 3
    assert (replies[-1].faults, replies[-1].mended) == ({}, [name])
    store.parts.vaults.lock("base")
    store.files[0].unlink()
    assert store.ask(m.Check("ledgers")).checked == 1
    reply = store.ask(m.Check("ledgers", checks.MENDING))
    assert (len(reply.faults), reply.unchecked) == (1, ["base"])


def test_recording_goes_on_meanwhile_and_after(store, tmp_path):
    store.files[-1].unlink()
    assert store.check()
    steps = LedgerMending(store.parts.index, store.parts.vaults, lambda: 1).mending()
    for number in range(7, 12):
        next(steps, None)
        store.parts.commit([(call_id(number), 1, 0)], [make_call(number)])
    list(steps)
    assert store.check() == []
    assert store.rebuilt(tmp_path / "anew") == (store.rows(store.parts.index), 0)


def test_nothing_is_written_of_a_call_that_is_erased_meanwhile(store, monkeypatch):
    """Its key is named by nothing then: what was sealed under it must be nowhere."""
    store.files[0].unlink()
    store.check()
    at_work = LedgerMending(store.parts.index, store.parts.vaults, lambda: 1)
    write = at_work._write

    def erased_before(*args):
        monkeypatch.setattr(at_work, "_write", write)
        assert store.ask(m.Erase([call_id(2)], "meanwhile")).erased == 1
        return write(*args)

    monkeypatch.setattr(at_work, "_write", erased_before)
    list(at_work.mending())
    assert store.check() == []
    ring, kinds = store.parts.keyring, []
    for path in store.files:
        walked = ledgerfile.walk(path, ring.store_id, 0, ring.ledger_key)
        kinds += [one.entry.kind for one in walked if one.entry and one.entry.id == call_id(2)]
    assert kinds == []


def test_damaged_record_is_not_written_and_the_file_stays_missed(store, caplog):
    store.parts.index.write(lambda writing: writing.put(b"record", call_id(2), b"SVM1" + bytes(60)))
    name = store.files[0].name
    store.files[0].unlink()
    store.check()
    assert store.mend().mended == []
    assert store.check() == [f"base/{name}"]
    assert "A ledger cannot be made whole: records of calls are damaged, too" in caplog.messages
    store.parts.index.write(lambda writing: callrows.remove_call(writing, call_id(2), None))
    assert store.mend().mended == [f"base/{name}"]


def test_restart_goes_on_and_writes_nothing_twice(store, monkeypatch, tmp_path):
    monkeypatch.setattr(ledgerlacking, "WINDOW", 1)
    monkeypatch.setattr(ledgerlacking, "_ROWS", 1)
    store.files[0].unlink()
    store.check()
    steps, went = LedgerMending(store.parts.index, store.parts.vaults, lambda: 1).mending(), 0
    written = []
    while next(steps, None) is not None:
        went += 1
        if went in (2, 5, 9, 14, 20, 27, 35):  # killed; the next goes on
            store.again()
            steps = LedgerMending(store.parts.index, store.parts.vaults, lambda: 1).mending()
        assert went < 1000
    ring = store.parts.keyring
    for path in store.files:
        for found in ledgerfile.walk(path, ring.store_id, 0, ring.ledger_key):
            if found.entry and found.entry.kind in (ledger.RECORD, ledger.SEALED):
                written.append((found.entry.kind, found.entry.id, found.entry.body))
    assert len(written) == len(set(written))
    assert store.check() == []
    assert store.rebuilt(tmp_path / "anew") == (store.rows(store.parts.index), 0)


def test_locked_pool_waits_until_it_is_open(store):
    store.files[0].unlink()
    store.check()
    store.parts.vaults.lock("base")
    assert store.mend().mended == []
    assert store.check() != []


def test_what_waits_in_an_intake_is_known_to_a_new_index(store, tmp_path):
    waiting, held = call_id(40), call_id(1)
    store.parts.index.write(lambda writing: writing.put_placed(waiting, 2, 0))
    store.parts.index.write(lambda writing: writing.put(b"shared", held, waiting))
    store.files[0].unlink()
    store.check()
    store.mend()
    found, _ = store.rebuilt(tmp_path / "anew")
    assert found["placed"] == {waiting: b"\2"}
    assert found["shared"] == {held: waiting}


def test_all_keys_of_a_day_are_in_the_ledger_again(store, tmp_path):
    with store.parts.index.reading() as view:
        ids = labels.key_ids(view, DAY, 0)
    ids = (store.parts.vaults.base.take_key(store.parts.index), *ids)
    store.parts.index.write(lambda writing: labels.put_key_ids(writing, DAY, 0, ids))
    store.files[0].unlink()
    store.check()
    store.mend()
    anew = Index(tmp_path / "anew")
    Rebuilder(anew, store.parts.vaults.base, Report(1), lambda *_: None, lambda: 1).ledger()
    with anew.reading() as view:
        assert sorted(labels.key_ids(view, DAY, 0)[1:]) == sorted(ids)
    anew.close()


def test_new_file_never_takes_the_name_of_one_that_is_missed(store):
    """Else it would seem to be there again, and what it held would be missed by nobody."""
    name = store.files[-1].name
    store.files[-1].unlink()
    store.again()
    store.parts.commit([], [make_call(20)])
    assert store.files[-1].name > name
    assert f"base/{name}" in store.check()


def test_file_that_was_cut_beneath_the_writer_is_gone_on_with_in_another(store):
    store.parts.commit([], [make_call(20)])
    name = store.files[-1].name
    cut_between_entries(store.files[-1])
    store.parts.commit([], [make_call(21)])
    assert store.files[-1].name > name
    assert store.check() == [f"base/{name}"]


def test_sizes_of_files_of_a_store_of_before_are_known_once_they_were_read(store):
    with store.parts.index.reading() as view:
        wanted = ledgerheads.sizes(view)
    assert wanted == {f"base/{one.name}": one.stat().st_size for one in store.files[:2]}
    store.parts.index.write(ledgerheads.forget)
    assert store.check() == []
    with store.parts.index.reading() as view:
        assert ledgerheads.sizes(view) == wanted


def test_damaged_file_is_kept_aside_and_is_no_stranger(store):
    path = store.files[0]
    cut(path)
    shutil.copy(path, path.with_name("mine.txt"))
    store.check()
    store.mend()
    assert path.with_name(f"{path.name}.damaged").exists()
    assert [one.name for one in store.parts.pool.ledger.strangers()] == ["mine.txt"]


def test_what_a_mending_is_told_in_parts_costs_is_told(store):
    """It is paced by the bytes that it says, so it must say something."""
    store.files[0].unlink()
    store.check()
    steps = list(LedgerMending(store.parts.index, store.parts.vaults, lambda: 1).mending())
    assert sum(steps) >= ledgermending._COST
