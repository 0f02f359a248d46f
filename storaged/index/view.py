"""What can be asked of the index within a transaction.

Tables: FORMAT.md §7. Their rows: storaged.index.rows. Which calls a search means:
storaged.index.search.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from spanvault.daemon.rules import POOLS
from spanvault.messages import Receipt
from storaged.format.ledger import Place
from storaged.index.hurt import Hurt, Passing
from storaged.index.rows import (
    ID_BYTES,
    LEDGER,
    POSITION,
    POSITION_ROW,
    RESERVED,
    U16,
    U64,
    Reach,
    State,
    TimeRow,
    check_id,
    damaged,
    decode,
    parse_reach,
    parse_state,
    parse_time_row,
    unpack,
)

_PLACED: Final = (1, 1 + U16.size)  # bytes of a row
_receipt: Final = msgspec.msgpack.Decoder(Receipt)


class View:
    """What can be asked within a transaction. A row that cannot be is DamagedRow, a Fault."""

    def __init__(self, txn: Any, tables: dict[bytes, Any], hurt: Hurt | None = None) -> None:
        self.txn, self.tables, self._hurt = txn, tables, hurt or Hurt()

    def passing(self) -> Passing:
        """Pass over a row that cannot be: it is told of, and others are served."""
        return Passing(self._hurt)

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """A value as its own bytes."""
        # LMDB refuses an empty key: from a client that is an unknown id, not a fault of the disk.
        value = self.txn.get(key, db=self.tables[table]) if key else None
        return None if value is None else bytes(value)

    def cursor(self, table: bytes) -> Any:
        """An LMDB cursor of a table."""
        return self.txn.cursor(db=self.tables[table])

    def number(self, name: bytes) -> int:
        """A counter of table meta; 0 if it was never set.

        0 too where it cannot be read, but of the position and of slots in use: what these say
        must not be given out again.
        """
        value = self.get(b"meta", name)
        if value is None:
            return 0
        if name == POSITION_ROW or name.startswith(RESERVED):
            return int(unpack(U64, b"meta", value)[0])
        with self.passing():
            return int(unpack(U64, b"meta", value)[0])
        return 0

    def state(self, call_id: bytes) -> State | None:
        """The recording's row."""
        value = self.get(b"state", call_id)
        return None if value is None else parse_state(value)

    def readable_state(self, call_id: bytes) -> State | None:
        """The same; None too where it cannot be read, for who can go on without it."""
        with self.passing():
            return self.state(call_id)
        return None

    def calls(self, after: bytes) -> Iterator[bytes]:
        """The ids of all calls that have a row in `state`, behind one, in order."""
        cursor = self.cursor(b"state")
        more = cursor.set_range(after + b"\0")
        while more:
            with self.passing():
                check_id(b"state", key := bytes(cursor.key()))
                yield key
            more = cursor.next()

    def former(self, call_id: bytes) -> list[int]:
        """Key ids of a call besides that of its row: older records are sealed under them."""
        cursor = self.cursor(b"former")
        found = cursor.iternext_dup() if cursor.set_key(call_id) else []
        return [unpack(U64, b"former", value)[0] for value in found]

    def ledger(self, tier: int) -> Place | None:
        """How far a pool's ledger is acknowledged; None if nothing of it is."""
        value = self.get(b"meta", LEDGER + b"%d" % tier)
        if value is None:
            return None
        size, name = unpack(U64, b"meta", value[: U64.size])[0], value[U64.size :]
        if not name.isascii() or not name:
            raise damaged(b"meta", "no name of a ledger's file")
        return Place(name.decode(), size)

    def placed(self, call_id: bytes) -> int | None:
        """The tier of a call that waits in a pool's intake; None if none does."""
        value = self.get(b"placed", call_id)
        if value is not None and (len(value) not in _PLACED or value[0] >= len(POOLS)):
            raise damaged(b"placed", f"{len(value)} bytes")
        return None if value is None else value[0]

    def placed_by(self, call_id: bytes) -> int:
        """The number of the capture that such a call is bound to; 0 if none is known."""
        value = self.get(b"placed", call_id) or b""
        return int(U16.unpack(value[1:])[0]) if len(value) == 1 + U16.size else 0

    def capture(self, name: str) -> int:
        """The number of a capture; 0 if it has none yet, or its row cannot be read."""
        value = self.get(b"capture", name.encode())
        with self.passing():
            return 0 if value is None else int(unpack(U16, b"capture", value)[0])
        return 0

    def committed(self, call_id: bytes) -> int | None:
        """Acknowledged bytes of an unsealed object."""
        value = self.get(b"open", call_id)
        return None if value is None else int(unpack(U64, b"open", value[: U64.size])[0])

    def reach(self, call_id: bytes) -> Reach | int:
        """How far an unsealed object reaches; its acknowledged bytes if no more is known of it."""
        value = self.get(b"open", call_id)
        return 0 if value is None else parse_reach(value)

    def count(self, table: bytes) -> int:
        """Rows of a table."""
        return int(self.txn.stat(self.tables[table])["entries"])

    def receipts(self, call_id: bytes) -> list[Receipt]:
        """All receipts of a recording's copies."""
        found = []
        for key in self.receipt_keys(call_id):
            with self.passing():
                found.append(decode(_receipt, b"receipt", self.get(b"receipt", key) or b""))
        return found

    def receipt_keys(self, call_id: bytes) -> list[bytes]:
        """The keys of their rows, whatever these say."""
        cursor, found = self.cursor(b"receipt"), []
        more = cursor.set_range(call_id)
        while more and (key := bytes(cursor.key()))[:ID_BYTES] == call_id:
            found.append(key)
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
        found = list(map(bytes, cursor.iternext_dup())) if cursor.set_key(recording_id) else []
        for one in found:
            with self.passing():
                check_id(b"shared", one)
        return [one for one in found if len(one) == ID_BYTES]

    def time_row(self, key: bytes) -> TimeRow | None:
        """The row of a time key; None too where it cannot be read."""
        value = self.get(b"time", key)
        with self.passing():
            return None if value is None else parse_time_row(key, value)
        return None

    def changes(self, position: int, limit: int) -> Iterator[tuple[int, bytes, bytes]]:
        """(position, kind, id or file name) behind a position, oldest first."""
        cursor = self.cursor(b"feed")
        more = cursor.set_range(POSITION.pack(position + 1))
        while more and limit > 0:
            value = bytes(cursor.value())
            with self.passing():
                yield unpack(POSITION, b"feed", cursor.key())[0], value[:1], value[1:]
            limit -= 1
            more = cursor.next()
