"""What can be asked of the index within a transaction.

Tables: FORMAT.md §7. Their rows: storaged.index.rows. Which calls a search means:
storaged.index.search.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from spanvault.messages import Receipt
from storaged.format.ledger import Place
from storaged.index.rows import (
    LEDGER,
    POSITION,
    U16,
    U64,
    Reach,
    State,
    TimeRow,
    decode,
    parse_reach,
    parse_state,
    parse_time_row,
    unpack,
)

_receipt: Final = msgspec.msgpack.Decoder(Receipt)


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
        return int(unpack(U64, b"meta", value)[0]) if value else 0

    def state(self, call_id: bytes) -> State | None:
        """The recording's row."""
        value = self.get(b"state", call_id)
        return None if value is None else parse_state(value)

    def former(self, call_id: bytes) -> list[int]:
        """Key ids of a call besides that of its row: older records are sealed under them."""
        cursor = self.cursor(b"former")
        found = cursor.iternext_dup() if cursor.set_key(call_id) else []
        return [U64.unpack(value)[0] for value in found]

    def ledger(self, tier: int) -> Place | None:
        """How far a pool's ledger is acknowledged; None if nothing of it is."""
        value = self.get(b"meta", LEDGER + b"%d" % tier)
        return Place(value[8:].decode(), U64.unpack_from(value)[0]) if value else None

    def placed(self, call_id: bytes) -> int | None:
        """The tier of a call that waits in a pool's intake; None if none does."""
        value = self.get(b"placed", call_id)
        return value[0] if value else None

    def placed_by(self, call_id: bytes) -> int:
        """The number of the capture that such a call is bound to; 0 if none is known."""
        value = self.get(b"placed", call_id) or b""
        return int(U16.unpack(value[1:])[0]) if len(value) == 1 + U16.size else 0

    def capture(self, name: str) -> int:
        """The number of a capture; 0 if it has none yet."""
        value = self.get(b"capture", name.encode())
        return int(unpack(U16, b"capture", value)[0]) if value else 0

    def committed(self, call_id: bytes) -> int | None:
        """Acknowledged bytes of an unsealed object."""
        value = self.get(b"open", call_id)
        return int(unpack(U64, b"open", value[: U64.size])[0]) if value else None

    def reach(self, call_id: bytes) -> Reach | int:
        """How far an unsealed object reaches; its acknowledged bytes if no more is known of it."""
        value = self.get(b"open", call_id)
        return parse_reach(value) if value else 0

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
        more = cursor.set_range(POSITION.pack(position + 1))
        while more and limit > 0:
            value = bytes(cursor.value())
            yield unpack(POSITION, b"feed", cursor.key())[0], value[:1], value[1:]
            limit -= 1
            more = cursor.next()
