"""The index: call records, search tables, the feed and receipts, in one LMDB environment.

All writes of a group are one transaction, synced by its commit. Values that name people are sealed
(storaged.record); FORMAT.md §7 lists every table. Which calls a search means: storaged.search.
"""

import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import lmdb
import msgspec

from spanvault.messages import Call, Receipt
from storaged import record
from storaged.faults import Fault
from storaged.ledgerfile import Place
from storaged.resuming import Reach

TABLES: Final = (
    b"meta", b"record", b"state", b"open", b"time", b"feed", b"fed", b"receipt", b"placed",
    b"erasure", b"erased", b"unfinished", b"confirmed", b"target", b"damaged", b"moved", b"follow",
    b"damagedkey", b"damagedledger", b"capture", b"expires",
)  # fmt: skip
MULTIPLE: Final = (b"token", b"shared", b"former")  # with several values a key, all of one length
MAP_BYTES: Final = 1 << 30  # virtual; grows by doubling when it is full

OBJECT: Final = 1  # bits of State.bits: a file of media exists
SEALED: Final = 2  # and ends in a LAST frame
FINAL: Final = 4  # the record is the capture's last word

OBJECT_CHANGED: Final = b"o"
RECORD_CHANGED: Final = b"r"
KEYS_CHANGED: Final = b"k"
ERASED: Final = b"e"
LOG_HEAD: Final = b"l"

IMPORTING: Final = b"importing"  # counters of table meta
RESERVED: Final = b"reserved"
UNINDEXED: Final = b"unindexed/"  # and a pool's name: it was locked when the index was made anew
LEDGER: Final = b"ledger/"  # and a pool's tier: how far its ledger is acknowledged
ROTATED: Final = b"rotated/"  # and a pool's name: when its ingest key was last replaced, ns

_STATE: Final = struct.Struct("<QQ32siBBHH")
_STATE_BEFORE: Final = _STATE.size - 2  # of a row that was written before calls could be closed
_TIME_KEY: Final = struct.Struct(">Q16s")
_TIME: Final = struct.Struct("<IBBH")
_U64: Final = struct.Struct("<Q")
_U16: Final = struct.Struct("<H")
_DAY_NS: Final = 86400 * 10**9
_REACH: Final = struct.Struct("<QQIHH")
_LATEST: Final = struct.Struct("<Hq")
_POSITION: Final = struct.Struct(">Q")
_SIGN: Final = 1 << 63
_receipt: Final = msgspec.msgpack.Decoder(Receipt)
R = TypeVar("R")


def reserved(tier: int) -> bytes:
    """The counter of a pool's slots that may be in use."""
    return RESERVED + (f"/{tier}".encode() if tier else b"")


class State(NamedTuple):
    """What the index knows of one recording besides its sealed record.

    capture: number of the one that it is bound to; closed: day of its last word. 0: not known.
    """

    key_id: int
    size: int  # of the object when it was last sealed
    sha256: bytes  # of the same; 32 bytes
    revision: int
    tier: int
    bits: int
    capture: int = 0
    closed: int = 0  # days since 1970


class TimeRow(NamedTuple):
    """One call in order of time. key: 24 bytes, sorts by start."""

    key: bytes
    id: bytes
    started_ns: int
    duration_ms: int
    outcome: str


def damaged(table: bytes, fault: object) -> Fault:
    """What to say of a row that cannot be: LMDB has no checksums, a medium may have changed it."""
    return Fault(
        "corrupt",
        f"index: a row of table {table.decode()} cannot be read ({fault})",
        "Look after the store's medium, and restore the store from a replica.",
    )


def unpack(layout: struct.Struct, table: bytes, value: bytes) -> tuple[Any, ...]:
    """The fields of a key or value of fixed size. Raises Fault."""
    try:
        return layout.unpack(value)
    except struct.error as error:
        raise damaged(table, error) from None


def decode(decoder: "msgspec.msgpack.Decoder[R]", table: bytes, value: bytes) -> R:
    """A value that is MessagePack. Raises Fault."""
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise damaged(table, error) from None


def day_of(now_ns: int) -> int:
    """Days since 1970, as a row says when a call had its last word."""
    return min(max(0, now_ns // _DAY_NS), 0xFFFF)


def time_key(started_ns: int, call_id: bytes = bytes(16)) -> bytes:
    """24 bytes that sort by start, then by id."""
    return _TIME_KEY.pack(started_ns + _SIGN, call_id)


class Index:
    """The environment. Transactions of one process; see transaction() for threads."""

    def __init__(self, folder: Path, map_bytes: int = MAP_BYTES, *, synced: bool = True) -> None:
        """synced: whether a transaction is on disk when it is committed; else sync() makes it."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._data = folder / "data.mdb"
        self._env = lmdb.open(
            str(folder),
            map_size=map_bytes,
            max_dbs=32,
            max_readers=2048,
            writemap=False,
            # Rows are read here and there: around each the kernel would read 32 pages for nothing.
            readahead=False,
            sync=synced,
            mode=0o600,
        )
        self._env.reader_check()
        self._writing = threading.Lock()
        # No transaction may be under way in this process while the map grows: mdb_env_set_mapsize.
        self._calm = threading.Condition()
        self._readers, self._growing = 0, False
        self.tables = {name: self._env.open_db(name) for name in TABLES}
        for name in MULTIPLE:
            self.tables[name] = self._env.open_db(name, dupsort=True, dupfixed=True)
        with self.reading() as view:
            self.position = view.number(b"position")

    def sync(self) -> None:
        """Make everything committed durable. Raises lmdb.Error."""
        self._env.sync(force=True)

    def close(self) -> None:
        """Everything committed stays."""
        self._env.close()

    @contextmanager
    def reading(self) -> Iterator["View"]:
        """A consistent view. Keep it short: pages it sees cannot be used again meanwhile."""
        with self._calm:
            self._calm.wait_for(lambda: not self._growing)
            self._readers += 1
        try:
            with self._env.begin() as txn:
                yield View(txn, self.tables)
        finally:
            with self._calm:
                self._readers -= 1
                self._calm.notify_all()

    def write(self, change: Callable[["Writing"], R]) -> R:
        """Run change in one transaction and commit it, synced. Any thread; one at a time.

        It is run again if the map had to grow, so it must not change anything else.
        Raises lmdb.Error, OSError (no space, I/O error): then nothing of it was written.
        """
        with self._writing:
            while True:
                try:
                    with self._env.begin(write=True) as txn:
                        writing = Writing(txn, self.tables)
                        result = change(writing)
                        position = writing.number(b"position")
                    self.position = position
                    return result
                except lmdb.MapFullError:
                    self._grow()
                except lmdb.Error as error:
                    vars(error)["filename"] = str(self._data)  # LMDB does not say whose fault it is
                    raise

    def _grow(self) -> None:
        """Double the map. Must not be called within reading()."""
        with self._calm:
            self._growing = True
            try:
                self._calm.wait_for(lambda: self._readers == 0)
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            finally:  # a map that cannot grow stops writes, and no readers
                self._growing = False
                self._calm.notify_all()

    def reserve_keys(self, number: int, tier: int = 0) -> None:
        """Make it durable that key ids of a pool below number may be in use."""
        self.write(lambda writing: writing.set_number(reserved(tier), number))

    def reserved_keys(self, tier: int = 0) -> int:
        """Key ids of a pool from here on have never been handed out."""
        with self.reading() as view:
            return view.number(reserved(tier))


class View:
    """What can be asked within a transaction."""

    def __init__(self, txn: Any, tables: dict[bytes, Any]) -> None:
        self.txn, self.tables = txn, tables

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """A value as its own bytes."""
        # LMDB refuses an empty key: from a client that is an unknown id, not a fault of the disk.
        value = self.txn.get(key, db=self.tables[table]) if key else None
        return None if value is None else bytes(value)

    def cursor(self, table: bytes) -> Any:
        """An LMDB cursor of a table."""
        return self.txn.cursor(db=self.tables[table])

    def number(self, name: bytes) -> int:
        """A counter of table meta; 0 if it was never set."""
        value = self.get(b"meta", name)
        return int(unpack(_U64, b"meta", value)[0]) if value else 0

    def state(self, call_id: bytes) -> State | None:
        """The recording's row."""
        value = self.get(b"state", call_id)
        if value is None:
            return None
        if len(value) == _STATE_BEFORE:
            value += bytes(2)
        return State(*unpack(_STATE, b"state", value))

    def former(self, call_id: bytes) -> list[int]:
        """Key ids of a call besides that of its row: older records are sealed under them."""
        cursor = self.cursor(b"former")
        found = cursor.iternext_dup() if cursor.set_key(call_id) else []
        return [_U64.unpack(value)[0] for value in found]

    def ledger(self, tier: int) -> Place | None:
        """How far a pool's ledger is acknowledged; None if nothing of it is."""
        value = self.get(b"meta", LEDGER + b"%d" % tier)
        return Place(value[8:].decode(), _U64.unpack_from(value)[0]) if value else None

    def placed(self, call_id: bytes) -> int | None:
        """The tier of a call that waits in a pool's intake; None if none does."""
        value = self.get(b"placed", call_id)
        return value[0] if value else None

    def placed_by(self, call_id: bytes) -> int:
        """The number of the capture that such a call is bound to; 0 if none is known."""
        value = self.get(b"placed", call_id) or b""
        return int(_U16.unpack(value[1:])[0]) if len(value) == 1 + _U16.size else 0

    def capture(self, name: str) -> int:
        """The number of a capture; 0 if it has none yet."""
        value = self.get(b"capture", name.encode())
        return int(unpack(_U16, b"capture", value)[0]) if value else 0

    def committed(self, call_id: bytes) -> int | None:
        """Acknowledged bytes of an unsealed object."""
        value = self.get(b"open", call_id)
        return int(unpack(_U64, b"open", value[: _U64.size])[0]) if value else None

    def reach(self, call_id: bytes) -> Reach | int:
        """How far an unsealed object reaches; its acknowledged bytes if no more is known of it."""
        value = self.get(b"open", call_id)
        return _parse_reach(value) if value else 0

    def count(self, table: bytes) -> int:
        """Rows of a table."""
        return int(self.txn.stat(self.tables[table])["entries"])

    def receipts(self, call_id: bytes) -> list[Receipt]:
        """All receipts of a recording's copies."""
        cursor, found = self.cursor(b"receipt"), []
        more = cursor.set_range(call_id)
        while more and cursor.key()[:16] == call_id:
            found.append(decode(_receipt, b"receipt", cursor.value()))
            more = cursor.next()
        return found

    def erased(self, call_id: bytes) -> bytes | None:
        """The erasure that a call went with, if it was erased."""
        return self.get(b"erased", call_id)

    def moved(self, call_id: bytes) -> bytes | None:
        """The erasure of a call's copy in the pool that it was moved up from last."""
        return self.get(b"moved", call_id)

    def sharing(self, recording_id: bytes) -> list[bytes]:
        """The other calls that have streams in this recording."""
        cursor = self.cursor(b"shared")
        return [bytes(one) for one in cursor.iternext_dup()] if cursor.set_key(recording_id) else []

    def time_row(self, key: bytes) -> TimeRow | None:
        """The row of a time key."""
        value = self.get(b"time", key)
        return None if value is None else parse_time_row(key, value)

    def changes(self, position: int, limit: int) -> Iterator[tuple[int, bytes, bytes]]:
        """(position, kind, id or file name) behind a position, oldest first."""
        cursor = self.cursor(b"feed")
        more = cursor.set_range(_POSITION.pack(position + 1))
        while more and limit > 0:
            value = bytes(cursor.value())
            yield unpack(_POSITION, b"feed", cursor.key())[0], value[:1], value[1:]
            limit -= 1
            more = cursor.next()


class Writing(View):
    """What can be changed within a transaction."""

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        """Set a row."""
        self.txn.put(key, value, db=self.tables[table])

    def delete(self, table: bytes, key: bytes, value: bytes = b"") -> None:
        """Remove a row, if it is there; of a table with duplicates, only that value."""
        self.txn.delete(key, value, db=self.tables[table])

    def set_number(self, name: bytes, number: int) -> None:
        """Set a counter of table meta."""
        self.put(b"meta", name, _U64.pack(number))

    def put_ledger(self, tier: int, place: Place | None) -> None:
        """Note how far a pool's ledger is acknowledged; None changes nothing."""
        if place is not None:
            self.put(b"meta", LEDGER + b"%d" % tier, _U64.pack(place.size) + place.name.encode())

    def put_placed(self, call_id: bytes, tier: int, capture: int) -> None:
        """Note that a call waits in a pool's intake, and which capture it is bound to."""
        self.put(b"placed", call_id, bytes((tier,)) + _U16.pack(capture))

    def take_capture(self, name: str) -> int:
        """The number of a capture, a new one if it has none; 0 if there are too many."""
        number = self.capture(name) or (self.count(b"capture") + 1) % 0x1_0000
        self.put(b"capture", name.encode(), _U16.pack(number))
        return number

    def put_former(self, call_id: bytes, key_id: int) -> None:
        """Note a key that something of a call is sealed under, which its row does not name."""
        self.put(b"former", call_id, _U64.pack(key_id))

    def put_state(self, call_id: bytes, state: State) -> None:
        """Set a recording's row."""
        before = self.state(call_id)
        if before and before.tier == state.tier and before.key_id != state.key_id:
            self.put_former(call_id, before.key_id)
        self.put(b"state", call_id, _STATE.pack(*state))

    def put_committed(self, objects: Iterable[tuple[bytes, Reach | int]]) -> None:
        """Set how far unsealed objects are acknowledged: (call id, reach or bytes) each."""
        rows = [(call_id, _serialize_reach(reach)) for call_id, reach in objects]
        self.txn.cursor(db=self.tables[b"open"]).putmulti(rows)

    def put_record(self, call: Call, sealed: bytes, old: Call | None, index_key: bytes) -> None:
        """Set a call's record and its search rows, in place of the old revision's."""
        key = time_key(call.started_ns, call.id)
        if old is None or _searched_by(old) != _searched_by(call):
            if old is not None:
                self._delete_tokens(old, index_key)
            for name in record.tokens(index_key, call):
                self.put(b"token", name, key)
        outcome = record.OUTCOMES.index(call.outcome)
        self.put(b"time", key, _TIME.pack(record.duration_ms(call), outcome, int(call.final), 0))
        if old is not None and old.expires_ns is not None:
            self.delete(b"expires", time_key(old.expires_ns, old.id))
        if call.expires_ns is not None:
            self.put(b"expires", time_key(call.expires_ns, call.id), b"")
        held = record.recordings_of(call)
        for recording_id in (record.recordings_of(old) if old else set()) - held:
            self.delete(b"shared", recording_id, call.id)
        for recording_id in held:
            self.put(b"shared", recording_id, call.id)
        self.put(b"record", call.id, sealed)
        self.announce(RECORD_CHANGED, call.id)

    def remove_call(self, call_id: bytes, call: Call | None, index_key: bytes) -> None:
        """Remove every row that tells of a call. call: its record; None if that does not open."""
        if call is not None:
            self._delete_tokens(call, index_key)
            if call.expires_ns is not None:
                self.delete(b"expires", time_key(call.expires_ns, call_id))
            for recording_id in record.recordings_of(call):
                self.delete(b"shared", recording_id, call_id)
        else:
            self._delete_by_scan(call_id)
        for table in (b"record", b"state", b"open", b"damaged", b"follow", b"former"):
            self.delete(table, call_id)
        for receipt in self.receipts(call_id):
            self.delete(b"receipt", call_id + receipt.target.encode())
        for kind in (OBJECT_CHANGED, RECORD_CHANGED):
            self.withdraw(kind, call_id)

    def _delete_by_scan(self, call_id: bytes) -> None:
        """Remove what leads to a call whose record cannot be opened: all rows are looked at."""
        for table, part in ((b"token", 1), (b"time", 0), (b"expires", 0), (b"shared", 1)):
            rows = [
                row
                for item in self.cursor(table)
                if (row := tuple(map(bytes, item)))[part].endswith(call_id)
            ]
            for key, value in rows:
                self.delete(table, key, value if table in MULTIPLE else b"")

    def _delete_tokens(self, old: Call, index_key: bytes) -> None:
        stale = time_key(old.started_ns, old.id)
        self.delete(b"time", stale)
        for name in record.tokens(index_key, old):
            self.delete(b"token", name, stale)

    def put_receipt(self, receipt: Receipt) -> None:
        """Set the receipt of one copy."""
        key = receipt.id + receipt.target.encode()
        self.put(b"receipt", key, msgspec.msgpack.encode(receipt))

    def withdraw(self, kind: bytes, what: bytes) -> None:
        """Take a thing out of the feed."""
        if at := self.get(b"fed", kind + what):
            self.delete(b"feed", at)
            self.delete(b"fed", kind + what)

    def announce(self, kind: bytes, what: bytes) -> None:
        """Put a change at the feed's end. What was announced of the same thing before goes."""
        position = self.number(b"position") + 1
        if before := self.get(b"fed", kind + what):
            self.delete(b"feed", before)
        self.put(b"feed", _POSITION.pack(position), kind + what)
        self.put(b"fed", kind + what, _POSITION.pack(position))
        self.set_number(b"position", position)


def _searched_by(call: Call) -> tuple[Any, ...]:
    """What a call's tokens are made of, and what they lead to."""
    return call.started_ns, call.caller, call.callee, call.call_ids


def _serialize_reach(reach: Reach | int) -> bytes:
    if isinstance(reach, int):
        return _U64.pack(reach)
    *fixed, latest = reach
    return _row_of(len(latest)).pack(*fixed, len(latest), *chain.from_iterable(latest))


@lru_cache(maxsize=128)
def _row_of(streams: int) -> struct.Struct:
    """_REACH and so many _LATEST, in one: a commit at full pace writes thousands."""
    return struct.Struct(_REACH.format + streams * _LATEST.format.removeprefix("<"))


def _parse_reach(value: bytes) -> Reach | int:
    if len(value) == _U64.size:
        return int(_U64.unpack(value)[0])
    head, rest = value[: _REACH.size], value[_REACH.size :]
    size, header, sequence, segments, streams = unpack(_REACH, b"open", head)
    if len(rest) != streams * _LATEST.size:
        raise damaged(b"open", f"{len(rest)} bytes of {streams} streams")
    return Reach(size, header, sequence, segments, tuple(_LATEST.iter_unpack(rest)))


def parse_time_row(key: bytes, value: bytes) -> TimeRow:
    """One row of table time."""
    started, call_id = unpack(_TIME_KEY, b"time", key)
    duration_ms, outcome, _, _ = unpack(_TIME, b"time", value)
    if outcome >= len(record.OUTCOMES):
        raise damaged(b"time", f"outcome {outcome}")
    return TimeRow(bytes(key), call_id, started - _SIGN, duration_ms, record.OUTCOMES[outcome])
