"""Ledgers are read back: a flipped bit is found, and what the index still has is written anew."""

import time

import pytest

from storaged.format import ledger
from storaged.format.ledger import DAY_KEY, RECORD, SEALED, DayKey, Entry, Place
from storaged.index import labels, ledgerheads
from storaged.index.writing import Writing
from storaged.integrity import reindexing
from storaged.integrity.ledgercheck import LedgerCheck
from storaged.pools import ledgerfile
from tests.support.checked import Checked
from tests.support.vault import START, Parts, call_id, make_call


class Ledgers:
    """A store with a call without media and one that was recorded, and a check of its ledger."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        parts.commit([(call_id(1), 1, 0)], [make_call(1, final=False)])
        ended = make_call(1, revision=1, end_reason="bye, heard twice")
        parts.commit([(call_id(1), 1, 1)], [ended])
        parts.commit([], [make_call(2)])
        (self.path,) = parts.pool.ledger.files()
        self.sound = self.path.read_bytes()
        ring = parts.keyring
        walked = ledgerfile.walk(self.path, ring.store_id, 0, ring.ledger_key)
        self.entries = [(found.offset, found.entry) for found in walked]

    @property
    def name(self) -> str:
        return f"base/{self.path.name}"

    def check(self) -> list[str]:
        """Read all; gives what is known to be damaged then."""
        check = LedgerCheck(self.parts.index, self.parts.vaults, lambda: 1)
        for name in check.names():
            list(check.checking(name))
        check.forget(check.names())
        return self.damaged()

    def damaged(self) -> list[str]:
        with self.parts.index.reading() as view:
            return [bytes(name).decode() for name, _ in view.cursor(b"damagedledger")]

    def flip(self, at: int) -> None:
        data = bytearray(self.path.read_bytes())
        data[at] ^= 1
        self.path.write_bytes(data)

    def offset(self, kind: int, number: int) -> int:
        (at,) = [
            at for at, one in self.entries if one and (one.kind, one.id) == (kind, call_id(number))
        ]
        return at


@pytest.fixture
def ledgers(parts: Parts) -> Ledgers:
    return Ledgers(parts)


def test_whole_ledger_is_read_and_nothing_is_told_or_written(ledgers):
    check = LedgerCheck(ledgers.parts.index, ledgers.parts.vaults, lambda: 1)
    assert check.names() == [ledgers.name]
    assert sum(check.checking(ledgers.name)) == check.size() == len(ledgers.sound)
    assert ledgers.check() == []
    assert ledgers.path.read_bytes() == ledgers.sound


@pytest.mark.parametrize(("kind", "number"), [(RECORD, 2), (SEALED, 1)])
def test_flipped_bit_is_written_anew_from_the_index_byte_for_byte(ledgers, caplog, kind, number):
    for behind in (30, 60, 80):  # body or tag
        ledgers.flip(ledgers.offset(kind, number) + behind)
        assert ledgers.check() == []
        assert ledgers.path.read_bytes() == ledgers.sound
    assert caplog.messages.count("A damaged entry of a ledger was written anew from the index") == 3


def test_key_of_a_day_is_written_anew_where_its_day_can_be_told(ledgers):
    (at,) = [at for at, one in ledgers.entries if one and one.kind == DAY_KEY]
    for behind in (34, 45):  # key id, tag
        ledgers.flip(at + behind)
        assert ledgers.check() == []
        assert ledgers.path.read_bytes() == ledgers.sound
    for behind in (15, 28):  # id, day
        ledgers.flip(at + behind)
        assert ledgers.check() == [ledgers.name]
        ledgers.path.write_bytes(ledgers.sound)
        assert ledgers.check() == []


def test_each_key_of_a_day_is_written_anew_as_it_was(ledgers):
    """A day that was converted has several: one that the ledger lost no erasure would reach."""
    day = labels.day_of(START)

    def another(writing: Writing, place: Place) -> None:
        writing.put_ledger(0, place)
        labels.put_key_ids(writing, day, 0, [9, *labels.key_ids(writing, day, 0)])

    (base,) = ledgers.parts.vaults
    with base.noting([DayKey(day, 9).entry()], time.time_ns()) as place:
        ledgers.parts.index.write(lambda writing: another(writing, place))
    sound = ledgers.path.read_bytes()
    (first,) = [at for at, one in ledgers.entries if one and one.kind == DAY_KEY]
    for at in (first, len(ledgers.sound)):
        for behind in (34, 45):  # key id, tag
            ledgers.flip(at + behind)
            assert ledgers.check() == []
            assert ledgers.path.read_bytes() == sound


def test_without_its_row_it_is_damage_told_once_and_gone_when_the_bytes_are_back(ledgers, caplog):
    """The negative control: nothing else than the row made it whole."""
    ledgers.parts.index.write(lambda writing: writing.delete(b"record", call_id(2)))
    ledgers.flip(ledgers.offset(RECORD, 2) + 60)
    checked = Checked(ledgers.parts)
    for _ in range(2):
        assert checked.round()["damaged_ledgers"] == [ledgers.name]
    (error,) = [one for one in caplog.records if one.msg == "A ledger is damaged"]
    fault = f"at byte {ledgers.offset(RECORD, 2)}: entry does not authenticate"
    assert fault == error.FAULT
    assert "do not run spanvault reindex" in error.REMEDY
    ledgers.path.write_bytes(ledgers.sound)
    assert checked.round()["damaged_ledgers"] == []


@pytest.mark.parametrize("at", [0, 10, 24])
def test_damaged_head_is_told(ledgers, at):
    ledgers.flip(at)
    assert ledgers.check() == [ledgers.name]


@pytest.mark.parametrize("at", [0, 24, 25, 40])
def test_damaged_head_is_put_back_where_the_file_was_read_whole_once(ledgers, caplog, at):
    assert ledgers.check() == []
    ledgers.path.write_bytes(bytes(48) + ledgers.sound[48:])
    assert ledgers.check() == []
    ledgers.flip(at)
    assert ledgers.check() == []
    assert ledgers.path.read_bytes() == ledgers.sound
    assert "The head of a ledger's file was written anew from the index" in caplog.messages


def test_head_of_another_file_is_not_put_there(ledgers):
    """Its first entry does not fit: a damaged index must not make it worse."""
    assert ledgers.check() == []
    strange = ledgers.sound[:32] + bytes(16)
    ledgerheads.keep(ledgers.parts.index, ledgers.name, strange)
    assert ledgers.check() == []
    assert ledgers.path.read_bytes() == ledgers.sound


def test_older_file_that_is_gone_is_missed_within_a_day_and_reindex_refuses(ledgers, caplog):
    assert Checked(ledgers.parts).round()["damaged_ledgers"] == []
    ledgers.parts.pool.ledger.close()  # as a restart: the next entry begins another file
    ledgers.parts.commit([], [make_call(3)])
    assert len(ledgers.parts.pool.ledger.files()) == 2
    ledgers.path.unlink()
    check = LedgerCheck(ledgers.parts.index, ledgers.parts.vaults, lambda: 1)
    assert ledgers.name in check.new_or_gone()
    assert ledgers.check() == [ledgers.name]
    assert "do not run spanvault reindex" in caplog.records[-1].REMEDY
    folders = [ledgers.path.parent] * 3
    ledgers.parts.index.close()
    assert reindexing._lacking(ledgers.parts.folder / "index", folders) == 0
    ledgers.path.write_bytes(ledgers.sound)
    assert reindexing._lacking(ledgers.parts.folder / "index", folders) == -1


def test_entry_whose_owner_or_length_is_damaged_is_told_and_its_neighbours_stay(ledgers):
    for behind in (5, 12):
        ledgers.flip(ledgers.offset(RECORD, 2) + behind)
        damaged = ledgers.path.read_bytes()
        assert ledgers.check() == [ledgers.name]
        assert ledgers.path.read_bytes() == damaged
        ledgers.path.write_bytes(ledgers.sound)
        assert ledgers.check() == []


def test_record_that_a_later_one_replaced_is_missed_by_nobody(ledgers):
    """It is not overwritten either: what the index has is of another length."""
    ledgers.flip(ledgers.offset(RECORD, 1) + 60)
    damaged = ledgers.path.read_bytes()
    assert ledgers.check() == []
    assert ledgers.path.read_bytes() == damaged


def test_what_lies_behind_the_acknowledged_end_is_no_damage_and_less_is(ledgers):
    ledgers.path.write_bytes(ledgers.sound + b"SVLE half an entry")
    assert ledgers.check() == []
    last = ledgers.entries[-1][0]
    ledgers.path.write_bytes(ledgers.sound[:last])
    assert ledgers.check() == [ledgers.name]
    ledgers.path.unlink()
    assert ledgers.check() == [ledgers.name]


@pytest.mark.parametrize("acknowledged", [True, False])
def test_file_that_went_with_a_commit_that_failed_is_no_damage(ledgers, acknowledged):
    """It was listed, and is gone when it is to be read: its disk was full."""
    parts, began = (
        ledgers.parts,
        f"base/{ledgers.path.with_stem(ledgers.path.stem[:-1] + '9').name}",
    )
    if not acknowledged:
        parts.index.write(lambda writing: writing.delete(b"meta", b"ledger/0"))
        ledgers.path.unlink()
        began = ledgers.name
    list(LedgerCheck(parts.index, parts.vaults, lambda: 1).checking(began))
    assert ledgers.damaged() == []


def test_of_a_locked_pool_structure_alone_tells_and_nothing_is_written_or_cleared(ledgers):
    ledgers.parts.vaults.lock("base")
    body = ledgers.offset(RECORD, 2) + 60
    ledgers.flip(body)
    assert ledgers.check() == []
    ledgers.flip(body)
    ledgers.flip(ledgers.offset(SEALED, 1))
    assert ledgers.check() == [ledgers.name]
    ledgers.path.write_bytes(ledgers.sound)
    assert ledgers.check() == [ledgers.name]


def test_lock_in_mid_check_lets_the_key_go(ledgers, monkeypatch):
    monkeypatch.setattr("storaged.integrity.medium.BLOCK", 64)
    steps = LedgerCheck(ledgers.parts.index, ledgers.parts.vaults, lambda: 1).checking(ledgers.name)
    next(steps)
    ledgers.parts.vaults.lock("base")
    assert list(steps) == []


def test_round_reads_ledgers_first_and_a_restart_goes_on_behind_them(ledgers):
    checked = Checked(ledgers.parts)
    fields = checked.round()
    assert fields["read_bytes"] > len(ledgers.sound)
    with ledgers.parts.index.reading() as view:
        assert ledgers.name.encode() in view.get(b"meta", b"scrub")


def test_mended_ledger_gives_the_same_index_anew(ledgers):
    """What is written anew is what a new index is made of."""
    ledgers.flip(ledgers.offset(RECORD, 2) + 60)
    ledgers.check()
    ring = ledgers.parts.keyring
    walked = ledgerfile.walk(ledgers.path, ring.store_id, 0, ring.ledger_key)
    assert [(found.offset, found.entry) for found in walked] == ledgers.entries


def test_entry_of_a_kind_to_come_is_no_damage_and_nothing_else_is_made_of_it(ledgers):
    ring, at = ledgers.parts.keyring, len(ledgers.sound)
    to_come = Entry(200, call_id(1), bytes(48))  # as long as a seal of that call
    later = ledger.serialize([to_come], ledgers.sound[:48], at, ring.ledger_key)
    ledgers.path.write_bytes(ledgers.sound + later)
    ledgers.parts.index.write(lambda writing: writing.put_ledger(
        0, Place(ledgers.path.name, at + len(later))))  # fmt: skip
    assert ledgers.check() == []
    ledgers.flip(at + 40)
    hurt = ledgers.path.read_bytes()
    assert ledgers.check() == [ledgers.name]
    assert ledgers.path.read_bytes() == hurt


def test_bytes_that_only_look_like_an_entry_are_not_written_over(ledgers):
    """A length that was changed so that it ends elsewhere must not cost what lies there."""
    data = ledgers.sound
    at, _ = ledgers.entries[0]
    for size in range(1, 200):
        changed = bytearray(data)
        changed[at + 4 : at + 8] = size.to_bytes(4, "little")
        claimed = ledger.claimed(bytes(changed), at)
        assert claimed is None or ledger.length(claimed) == ledgers.entries[1][0] - at
