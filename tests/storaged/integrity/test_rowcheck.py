"""Rows of the index that have no checksum: a flipped bit in any of them is mended by the rolling
check, and each call is found again by all that it should be found by."""

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from spanvault import messages as m
from storaged.faults import Fault
from storaged.index import erasures, labels
from storaged.index.rows import OBJECT, SEALED, serialize_state
from storaged.integrity import labelcheck, rowcheck, rowsweep
from tests.support.checked import Checked
from tests.support.desk import Counter
from tests.support.vault import START, Parts, call_id, make_call

DAY_NS = 86_400 * 10**9
ROWS = (b"time", b"expires", b"shared", b"state", b"record")
HOUSE = "+493012345678"


def stream(number: int, stored_in: bytes) -> m.Stream:
    return m.Stream(number, "caller", "audio", 7, "", "", {}, stored_in=stored_in, stored_as=1)


CALLS = {
    call_id(1): make_call(1),
    call_id(2): make_call(2, outcome="busy", answered_ns=None, expires_ns=START + 9 * DAY_NS),
    call_id(3): make_call(3, streams=[stream(1, call_id(1))]),
    call_id(4): make_call(4, started_ns=START - DAY_NS, caller=HOUSE),
    call_id(5): make_call(5, final=False, ended_ns=None, outcome="in_progress"),
}


class Rows(Counter):
    """A desk on a store with calls of two days: with media, without, shared, one that goes on."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        media = [(call_id(number), 1, 0) for number in (1, 3, 5)]
        parts.commit(media, list(CALLS.values()))
        self.checked = Checked(parts, days=0.01)
        self.checked.round()

    def table(self, name: bytes) -> list[tuple[bytes, bytes]]:
        with self.parts.index.reading() as view:
            return [(bytes(key), bytes(value)) for key, value in view.cursor(name)]

    def replace(self, name: bytes, row: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> None:
        def put(writing: Any) -> None:
            writing.delete(name, row[0], row[1] if name == b"shared" else b"")
            writing.put(name, *other)

        self.parts.index.write(put)

    def mend(self) -> dict[str, Any]:
        """A round, days that have to come under other keys, and a round more."""
        fields = self.checked.round()
        self.convert()
        self.checked.round()
        return fields

    def found(self) -> dict[str, set[bytes]]:
        """Which calls each search finds."""
        wanted = {"all": m.Search()}
        for call in CALLS.values():
            for number in (call.caller, call.callee):
                wanted[number] = m.Search(number=number)
            for one in call.call_ids:
                wanted[one] = m.Search(call_id=one)
        found = {}
        for name, search in wanted.items():
            calls = self.ask(search).calls
            assert len(calls) == len({call.id for call in calls}), f"{name}: one is found twice"
            found[name] = {call.id for call in calls}
        return found

    def told(self) -> set[tuple[str, bytes, str]]:
        """What a replica that asks for everything is told."""
        changes, position = [], 0
        while reply := self.ask(m.Feed(position)):
            if not reply.changes:
                break
            changes += reply.changes
            position = reply.position
        assert len(changes) == len({(one.kind, one.id, one.name) for one in changes})
        return {(one.kind, one.id, one.name) for one in changes}


WANTED = {
    "all": set(CALLS),
    **{call.call_ids[0]: {one} for one, call in CALLS.items()},
    **{call.caller: {one} for one, call in CALLS.items()},
    HOUSE: set(CALLS),
}


@pytest.fixture
def rows(parts: Parts) -> Iterator[Rows]:
    made = Rows(parts)
    yield made
    made.access.close()


def flips(row: tuple[bytes, bytes], step: int) -> Iterator[tuple[bytes, bytes]]:
    """The row with a bit of its key, or of its value, changed."""
    for part in (0, 1):
        for at in range(0, len(row[part]), step):
            changed = bytearray(row[part])
            changed[at] ^= 1 << at % 8
            yield (bytes(changed), row[1]) if part == 0 else (row[0], bytes(changed))


def test_whole_rows_are_left_and_nothing_is_said(rows, caplog):
    before = {name: rows.table(name) for name in (*ROWS, b"label", b"day", b"feed", b"fed", b"due")}
    assert rows.mend()["mended_rows"] == 0
    assert {name: rows.table(name) for name in before} == before
    assert [one.msg for one in caplog.records if one.levelname == "WARNING"] == []
    assert rows.found() == WANTED


@pytest.mark.parametrize("table", [b"time", b"expires", b"shared"])
def test_flipped_bit_of_what_a_record_says_is_mended(rows, table):
    before, told = rows.table(table), rows.told()
    for row in before:
        for other in flips(row, 3):
            rows.replace(table, row, other)
            assert rows.checked.round()["mended_rows"] >= 1
            assert rows.table(table) == before
    assert rows.found() == WANTED
    assert rows.told() == told


@pytest.mark.parametrize("table", [b"feed", b"fed"])
def test_flipped_bit_in_the_feed_is_announced_anew(rows, table):
    told = rows.told()
    for number in range(len(rows.table(table))):
        for at in (0, 1, 3, 9, 20, 25):
            row = rows.table(table)[number]
            for other in list(flips(row, 1))[at : at + 1]:
                rows.replace(table, row, other)
                rows.checked.round()
                assert rows.told() == told
    feed, fed = rows.table(b"feed"), rows.table(b"fed")
    assert sorted((value, key) for key, value in feed) == fed
    rows.parts.index.write(lambda writing: writing.set_number(b"position", 3))
    rows.checked.round()
    with rows.parts.index.reading() as view:
        assert view.number(b"position") == int.from_bytes(feed[-1][0], "big")


def test_flipped_bit_of_state_is_mended_by_record_object_or_ledger(rows):
    before = rows.table(b"state")
    for row in before:
        sealed = row[1][53] & SEALED
        for at in range(54):  # capture and closed lie nowhere else
            if 8 <= at < 48 and not sealed:
                continue  # of one that is not sealed they mean nothing
            changed = bytearray(row[1])
            changed[at] ^= 1
            rows.replace(b"state", row, (row[0], bytes(changed)))
            rows.checked.round()
            rows.checked.round()
            assert rows.table(b"state") == before, (at, row[0].hex())
            assert rows.table(b"former") == []
    fields = rows.checked.fields
    assert (fields["damaged"], fields["damaged_records"]) == (0, [])


def test_call_whose_row_is_gone_is_told_of_and_keeps_all_others(rows, caplog):
    row = next(one for one in rows.table(b"state") if one[0] == call_id(1))
    others = [rows.table(name) for name in (b"time", b"label")]
    rows.replace(b"state", row, (call_id(99), row[1]))
    rows.mend()
    assert [rows.table(name) for name in (b"time", b"label")] == others
    assert call_id(1).hex() in next(
        vars(one)["FAULT"] for one in caplog.records if "TABLE" in vars(one)
    )
    rows.replace(b"state", (call_id(99), row[1]), row)
    rows.mend()
    assert rows.found() == WANTED


@pytest.mark.parametrize("bit", [OBJECT, SEALED, 4])
def test_kind_of_a_call_is_as_object_and_record_say(rows, bit):
    before = rows.table(b"state")
    for row in before:
        changed = bytearray(row[1])
        changed[53] ^= bit
        rows.replace(b"state", row, (row[0], bytes(changed)))
        rows.checked.round()
        assert [value[:56] for _, value in rows.table(b"state")] == [v[:56] for _, v in before]


def test_changed_key_id_never_costs_the_key_of_another_call(rows):
    """An erasure destroys the keys that the row names: they must be the call's own."""
    with rows.parts.index.reading() as view:
        one, two = view.state(call_id(1)), view.state(call_id(2))
    changed = serialize_state(two._replace(key_id=one.key_id))
    rows.parts.index.write(lambda writing: writing.put(b"state", call_id(2), changed))
    rows.mend()
    assert rows.ask(m.Erase([call_id(2)], "test")).erased == 1
    assert rows.ask(m.Verify(call_id(1))).faults == []


def test_flipped_bit_of_any_search_row_is_made_up_for(rows):
    for number in range(len(rows.table(b"label"))):
        for part, at in ((0, 0), (0, 7), (0, 8), (0, 23), (1, 0), (1, 7), (1, 12), (1, 23)):
            row = rows.table(b"label")[number]
            changed = bytearray(row[part])
            changed[at] ^= 1
            other = (bytes(changed), row[1]) if part == 0 else (row[0], bytes(changed))
            rows.replace(b"label", row, other)
            assert rows.found() != WANTED, (row, other)  # the negative control
            rows.mend()
            assert rows.found() == WANTED
            assert rows.table(b"due") == []


def test_row_in_mid_chain_that_is_gone_hides_nothing_for_long(rows, caplog):
    """All behind it is hidden: the house number's chain breaks at the call in its middle."""
    rows.parts.index.write(lambda writing: writing.delete(b"label", rows.table(b"label")[0][0]))
    before = {key[:8] for key, _ in rows.table(b"label")}
    rows.mend()
    assert rows.found() == WANTED
    message = "Search rows of a day were not what its calls' records say: they are made anew"
    assert message in caplog.messages
    gone = before - {key[:8] for key, _ in rows.table(b"label")}
    for slot in gone:  # no row gets another value under a key that there was
        with pytest.raises(Fault):
            rows.parts.keyring.dek(labels.parse_slot(slot)[1])


@pytest.mark.parametrize("at", range(5))
def test_flipped_bit_of_a_day_is_mended(rows, at):
    for number in range(len(rows.table(b"day"))):
        row = rows.table(b"day")[number]
        key = bytearray(row[0])
        key[at] ^= 1
        rows.replace(b"day", row, (bytes(key), row[1]))
        rows.mend()
        assert rows.found() == WANTED
        assert len(rows.table(b"day")) == 2


@pytest.mark.parametrize("key_id", [0, 1, 2, 3, 4, 4095, 1 << 40])
def test_changed_key_of_a_day_never_costs_the_key_of_a_recording(rows, key_id):
    """Whichever it names now: the days' keys alone may be destroyed."""
    for number in range(len(rows.table(b"day"))):
        row = rows.table(b"day")[number]
        rows.replace(b"day", row, (row[0], key_id.to_bytes(8, "big")))
        rows.mend()
        assert rows.found() == WANTED
        assert [rows.ask(m.Verify(call_id(one))).faults for one in (1, 3)] == [[], []]


def test_row_of_no_day_ends_no_round(rows):
    """It is told of as all rows that cannot be, and the check goes on behind it."""
    rows.parts.index.write(lambda writing: writing.put(b"day", b"\x80\0\x4c\xda", bytes(8)))
    rows.mend()
    assert "day" in rows.parts.index.hurt.tables
    assert rows.found() == WANTED


def test_sizes_that_cannot_be_end_no_round(rows):
    before = rows.table(b"state")
    for row in before:
        rows.replace(b"state", row, (row[0], row[1][:8] + b"\xff" * 8 + row[1][16:]))
    rows.checked.round()
    rows.checked.round()
    sealed = [row for row in before if row[1][53] & SEALED]
    assert set(sealed) <= set(rows.table(b"state"))


def test_day_that_just_began_keeps_its_key(rows, monkeypatch):
    """A key is a day's before a row lies under it: a commit may have failed between the two."""
    rows.parts.index.write(lambda writing: writing.delete(b"label", rows.table(b"label")[0][0]))
    check = labelcheck.LabelCheck(rows.parts.index, rows.parts.vaults, rows.clock_ns)
    for day in (-1, 0):
        list(check.checking(START // DAY_NS + day))
    assert check.mended == 1  # so it has read the ledger

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(rows.parts.pool, "sync", full)
        with pytest.raises(OSError, match="full"):
            rows.parts.commit([], [make_call(6, started_ns=START + 3 * DAY_NS)])
    began = rows.table(b"day")
    assert len(began) == 3
    list(check.strays())
    assert rows.table(b"day") == began


def test_day_whose_rows_are_cut_or_too_long_is_made_anew(rows):
    (key, value), *_ = rows.table(b"label")
    rows.replace(b"label", (key, value), (key[:-3], value))
    rows.replace(b"label", rows.table(b"label")[-1], (rows.table(b"label")[-1][0], b"short"))
    rows.mend()
    assert rows.found() == WANTED


def test_day_with_very_many_rows_is_looked_at_in_shares(rows, monkeypatch):
    monkeypatch.setattr(labelcheck, "MOST", 3)
    monkeypatch.setattr("storaged.erasing.relisting.MOST", 3)
    assert rows.mend()["mended_rows"] == 0
    for key, _ in rows.table(b"label")[::2]:
        rows.parts.index.write(lambda writing, key=key: writing.delete(b"label", key))
    rows.mend()
    assert rows.found() == WANTED


def test_rows_of_an_erased_call_stay_gone(rows):
    key, _ = rows.table(b"label")[0]
    rows.parts.index.write(lambda writing: writing.delete(b"label", key))
    assert rows.ask(m.Erase([call_id(2)], "test")).erased == 1
    rows.mend()
    assert rows.found() == {name: ids - {call_id(2)} for name, ids in WANTED.items()}
    left = rows.table(b"label")
    assert not [value for _, value in left if value.endswith(call_id(2))]
    with rows.parts.index.reading() as view:
        assert (erasures.due(view), erasures.spent(view)) == ({}, set())


def test_locked_pool_is_left_as_it_is(rows):
    (key, value), *_ = rows.table(b"time")
    rows.replace(b"time", (key, value), (key, bytes(8)))
    rows.parts.vaults.lock("base")
    assert rows.checked.round()["mended_rows"] == 0
    assert rows.table(b"time")[0] == (key, bytes(8))


def test_restart_goes_on_where_the_round_was(rows, monkeypatch):
    for module in (rowcheck, rowsweep):
        monkeypatch.setattr(module, "ROWS", 1)
    rows.checked.until(state="checks")
    places = set()
    for turn in range(10_000):
        rows.checked.turn()
        if rows.checked.fields["state"] == "rests":
            break
        if turn % 25 == 0:  # more than a day takes
            rows.checked.scrub.save()
            rows.checked.again()
        places.add(rows.checked.scrub._round.rows)
    assert rows.checked.fields["state"] == "rests"
    assert len(places) > 10


def test_calls_that_come_meanwhile_are_found(rows):
    key, _ = rows.table(b"label")[0]
    rows.parts.index.write(lambda writing: writing.delete(b"label", key))
    rows.checked.round()
    rows.parts.commit([], [make_call(9)])
    converting = rows.desk.converting()
    next(converting, None)
    rows.parts.commit([], [make_call(10)])
    for _ in converting:
        pass
    rows.parts.commit([], [make_call(11)])
    found = {call.id for call in rows.ask(m.Search(number=HOUSE)).calls}
    assert found == {*CALLS, call_id(9), call_id(10), call_id(11)}
