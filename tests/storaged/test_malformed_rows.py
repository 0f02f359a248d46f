"""Rows of the index that cannot be: each table gets some, and storaged goes on without them.

LMDB has no checksums, so a medium may change a row, and a row may be of another length, or no
MessagePack. Nobody may die of it: a call is recorded, others are found, heard, erased, checked and
fed, and status and journal say which table is damaged.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from spanvault import messages as m
from storaged.index import rows
from storaged.index.environment import Index
from storaged.index.rows import time_key
from storaged.index.view import View
from tests.support.forked import Forked
from tests.support.vault import SECOND, acknowledged, call_id, fetch, make_call, make_media

NOW: Final = time.time_ns() // SECOND * SECOND
HURT, SOUND, DOOMED, GONE, OLD, LEG, OPEN, NEW = (call_id(number) for number in range(1, 9))
WAITS = call_id(20)  # a call that is nowhere but in the row that says where it waits
ERASURE: Final = bytes(range(16))
GARBAGE: Final = b"\xc1\xff"  # no MessagePack
LONG: Final = b"x" * 300
TERMS: Final = "[pools.base]\nkeep_days = 300\n[pools.core]\n"


def fresh(number: int, **changes: Any) -> m.Call:
    """A call of today."""
    begun_ns = NOW - 3600 * SECOND + number * SECOND
    times = {"answered_ns": begun_ns + SECOND, "ended_ns": begun_ns + 60 * SECOND}
    return make_call(number, started_ns=begun_ns, **{**times, **changes})


CALLS: Final = {
    HURT: fresh(1), SOUND: fresh(2), DOOMED: fresh(3), GONE: fresh(4), OLD: make_call(5),
    LEG: fresh(6), OPEN: fresh(7, final=False, ended_ns=None), NEW: fresh(8),
}  # fmt: skip


class House:
    """A store with some calls, one of them erased, and copies of it with rows that cannot be."""

    def __init__(self, folder: Path) -> None:
        self.rig = Forked(folder)
        self.template, self._sequence = folder / "pristine", 10
        self.rig.set("[pools.core]\n")
        self.start()
        self.operator.ask(m.Status())
        there = [one for one in CALLS if one != NEW]
        self.send([CALLS[one] for one in there], [(one, 1, 0) for one in there])
        self.operator.ask(m.Erase([GONE], "asked for"))
        self.rig.client("replicator").ask(m.Feed(0, target="siteb"))
        until(lambda: self.status()["erasing"]["days_due"] == 0)
        self.rig.end(15)
        self.rig.save(self.template)

    def start(self) -> None:
        self.rig.launch()
        self.rig.wait_for(self.rig.requests)
        assert Path(self.rig.requests.removeprefix("ipc://")).exists(), self.said
        self.operator = self.rig.client("operator")

    def spoil(self, change: Callable[[Index], None]) -> None:
        """A fresh copy of the store with something wrong in its index, and a daemon on it."""
        self.rig.end()
        self.rig.reset(self.template)
        (self.rig.folder / "stderr").write_text("")
        index = Index(self.rig.store / "index")
        change(index)
        index.close()
        self.rig.set(TERMS)
        self.start()

    def send(self, calls: list[m.Call], chunks: list[tuple[bytes, int, int]]) -> None:
        self._sequence += 1
        capture = self.rig.capture()
        capture.send(m.Batch("test", self._sequence, calls), make_media(chunks))
        assert acknowledged(capture) == [self._sequence], self.said
        capture.close()

    def ask(self, request: m.Message) -> Any:
        return self.operator.ask(request)[0]

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(m.Status()).fields
        return found

    @property
    def said(self) -> str:
        return self.rig.messages

    def close(self) -> None:
        self.rig.close()


def until(holds: Callable[[], bool], seconds: float = 15) -> None:
    ends_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = House(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


def natural(view: View, table: bytes) -> tuple[bytes, bytes]:
    """A row of a table as storaged wrote it, or would."""
    made: dict[bytes, tuple[bytes, bytes]] = {
        b"record": (HURT, b""), b"state": (HURT, b""), b"open": (OPEN, b""),
        b"time": (time_key(CALLS[HURT].started_ns, HURT), b""),
        b"expires": (time_key(NOW, HURT), b""),
        b"placed": (WAITS, b"\0\1\0"), b"follow": (LEG, b"\1"),
        b"receipt": (HURT + b"siteb", GARBAGE), b"fed": (b"r" + HURT, b""),
        b"confirmed": ((view.erased(GONE) or b"") + b"siteb", GARBAGE),
        b"strayed": (HURT, bytes(5)), b"shared": (HURT, LEG), b"former": (HURT, bytes(8)),
        b"erased": (WAITS, ERASURE), b"moved": (SOUND, ERASURE), b"unfinished": (ERASURE, b""),
        b"due": (bytes(8) + ERASURE, b""), b"spooled": (bytes(9) + ERASURE, b""),
        b"holds": (bytes(16) + b"other", b"\1" + bytes(8)), b"damaged": (LEG, GARBAGE),
        b"damagedkey": (b"page-000000.0", GARBAGE), b"damagedledger": (b"base/none.svl", GARBAGE),
        b"damagedrecord": (LEG.hex().encode(), GARBAGE),
    }  # fmt: skip
    if table not in made:
        cursor = view.cursor(table)
        assert cursor.first(), table
        return bytes(cursor.key()), bytes(cursor.value())
    key, value = made[table]
    return key, value or view.get(table, key) or b""


def wrong(view: View, table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Rows of a table that cannot be: keys and values of other lengths, and no MessagePack."""
    key, value = natural(view, table)
    yield key, value[:-1] if value else b"?"
    if table != b"capture":  # names are of any length
        yield key[:3], value
        yield key + b"?", value
    yield b"\xff" * 300, GARBAGE
    yield b"\xc3", LONG


def spoil(index: Index, table: bytes) -> None:
    with index.reading() as view:
        bad = list(wrong(view, table))

    def put(writing: Any) -> None:
        for key, value in bad:
            if table in rows.MULTIPLE:
                writing.txn.delete(key, db=writing.tables[table])
            writing.put(table, key, value)

    index.write(put)


TOLD: Final = {"record": "A call record is damaged"}  # besides: by the table and the remedy


@pytest.mark.parametrize("table", [one.decode() for one in (*rows.TABLES, *rows.MULTIPLE)
                                   if one != b"meta"])  # fmt: skip
def test_storaged_goes_on_without_the_rows_that_cannot_be(house, table):
    house.spoil(lambda index: spoil(index, table.encode()))
    is_recorded(house)
    is_found(house, table)
    is_answered(house)
    is_fed(house, "sitec" if table == "target" else "siteb")
    is_erased(house, table)
    assert house.rig.end(15) == 0, house.said
    assert "Traceback" not in house.said, house.said
    assert re.search(TOLD.get(table, rf"{table}.*spanvault reindex"), house.said), house.said


@pytest.mark.parametrize("name", ["retention", "rotated/base", "scrub", "access", "told/root",
                                  "ledgerhead/base/19700101-000001.svl", "ledgerhead/x/y",
                                  "importing"])  # fmt: skip
def test_it_does_without_what_it_only_remembers_in_meta(house, name):
    house.spoil(lambda index: put_meta(index, name))
    is_recorded(house)
    is_found(house, "meta")
    is_answered(house)
    is_fed(house, "siteb")
    is_erased(house, "meta")
    assert house.rig.end(15) == 0, house.said
    assert "Traceback" not in house.said, house.said


@pytest.mark.parametrize("name", ["position", "reserved", "reserved/1", "ledger/0"])
def test_it_does_not_start_where_it_would_give_out_again_what_is_in_use(house, name):
    """Slots of keys and positions; nor where it would cut off a ledger."""
    with pytest.raises(AssertionError, match=r"table meta cannot be read .*spanvault reindex"):
        house.spoil(lambda index: put_meta(index, name))
    assert house.rig.end() != 0
    kept = {path.name: path.read_bytes() for path in house.rig.store.glob("pools/*/ledger/*")}
    assert kept == {
        path.name: path.read_bytes() for path in house.template.glob("pools/*/ledger/*")
    }


def test_index_made_anew_has_all_again(house):
    house.spoil(lambda index: [spoil(index, table) for table in (b"state", b"time", b"day")])
    house.rig.end(15)
    assert house.rig.reindex() == 0
    house.start()
    house.ask(m.Status())
    assert house.status()["index_damaged"] == []
    found = {call.id for call in house.ask(m.Search()).calls}
    assert {HURT, SOUND, DOOMED, LEG, OPEN} <= found
    assert fetch(house.operator, HURT) == [(1, 0)]


def put_meta(index: Index, name: str) -> None:
    with index._env.begin(write=True) as txn:  # write() reads the position
        txn.put(name.encode(), GARBAGE * 3, db=index.tables[b"meta"])


def is_recorded(house: House) -> None:
    """A call that is new, and more of the one whose row it is, and of one that goes on."""
    house.send([CALLS[NEW]], [(NEW, 1, 0), (OPEN, 1, 1)])
    house.send([fresh(1, revision=1)], [(HURT, 1, 1)])
    assert fetch(house.operator, NEW) == [(1, 0)]
    for one in (HURT, OPEN):
        assert sorted(fetch(house.operator, one)) == [(1, 0), (1, 1)]
    assert house.ask(m.Get(HURT)).call.revision == 1


def is_found(house: House, table: str) -> None:
    assert {NEW, SOUND} <= {call.id for call in house.ask(m.Search()).calls}
    (found,) = house.ask(m.Search(number=CALLS[NEW].caller)).calls
    assert found.id == NEW
    assert table in ("label", "day") or house.ask(m.Search(number=CALLS[SOUND].caller)).calls


def is_answered(house: House) -> None:
    """Whatever is asked, of the others and of those whose rows they are; the whole check, too."""
    for wanted in (
        m.Get(WAITS), m.Verify(HURT), m.Several([HURT, SOUND]), m.Erasures(), m.Erasures(id=SOUND),
        m.Erasures(id=GONE), m.Mend(), m.Certify(GONE), m.Keys(),
    ):  # fmt: skip
        reply = house.ask(wanted)
        assert "a fault of storaged itself" not in str(reply), reply
    for what in ("keys", "records", "recordings"):
        reply = house.ask(m.Check(what))
        assert isinstance(reply, m.CheckReply), reply
        assert reply.cursor is None
    assert house.ask(m.Verify(SOUND)).faults == []
    until(lambda: house.status()["scrub"].get("ended") is not None)


def is_fed(house: House, target: str) -> None:
    changes: list[m.Change] = []
    position, replicator = 0, house.rig.client("replicator")
    while True:
        reply, _ = replicator.ask(m.Feed(position, target=target))
        assert isinstance(reply, m.FeedReply), reply
        if reply.position == position:
            break
        changes, position = changes + reply.changes, reply.position
    assert {NEW, SOUND} <= {change.id for change in changes if change.kind == "record"}


def is_erased(house: House, table: str) -> None:
    """A call by hand, and one whose time is up; those that cannot go are refused, and told of."""
    erased = house.ask(m.Erase([DOOMED], "asked for"))
    assert isinstance(erased, m.EraseReply), erased
    assert house.ask(m.Get(DOOMED)).code == "erased"
    reply = house.ask(m.Erase([HURT, LEG], "asked for"))
    assert isinstance(reply, m.EraseReply) or table in reply.error, reply

    def is_done() -> bool:
        fields = house.status()
        old_went = isinstance(house.ask(m.Get(OLD)), m.Failure)
        rows_went = fields["erasing"]["days_due"] == 0
        told = str((fields["retention"], fields["erasing"]))
        return (old_went and rows_went) or f"table {table} " in told

    until(is_done)
