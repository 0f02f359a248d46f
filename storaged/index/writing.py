"""What can be changed in the index within a transaction.

Rows of one call: storaged.index.callrows. Tables: FORMAT.md §7.
"""

from collections.abc import Iterable

import msgspec

from spanvault.daemon.rules import POOLS
from spanvault.messages import Receipt
from storaged.format.ledger import Place
from storaged.index.rows import (
    LEDGER,
    LEDGER_SIZE,
    POSITION,
    U16,
    U64,
    Reach,
    State,
    serialize_reach,
    serialize_state,
    unpack,
)
from storaged.index.view import View


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
        self.put(b"meta", name, U64.pack(number))

    def put_ledger(self, tier: int, place: Place | None) -> None:
        """Note how far a pool's ledger is acknowledged; None changes nothing."""
        if place is None:
            return
        before = self.ledger(tier)
        if before is not None and before.name < place.name:  # so that it is missed, or its end
            ended = f"{POOLS[tier]}/{before.name}".encode()
            self.put(b"meta", LEDGER_SIZE + ended, U64.pack(before.size))
        self.put(b"meta", LEDGER + b"%d" % tier, U64.pack(place.size) + place.name.encode())

    def put_placed(self, call_id: bytes, tier: int, capture: int) -> None:
        """Note that a call waits in a pool's intake, and which capture it is bound to."""
        self.put(b"placed", call_id, bytes((tier,)) + U16.pack(capture))

    def take_capture(self, name: str) -> int:
        """The number of a capture, a new one if it has none; 0 if there are too many.

        Of one whose row cannot be read it is the first that no other has: as a rule its own.
        """
        number = self.capture(name) or (self.count(b"capture") + 1) % 0x1_0000
        if self.get(b"capture", name.encode()) is not None and not self.capture(name):
            taken = {bytes(value) for value in self.cursor(b"capture").iternext(keys=False)}
            number = next((one for one in range(1, 0x1_0000) if U16.pack(one) not in taken), 0)
        self.put(b"capture", name.encode(), U16.pack(number))
        return number

    def put_former(self, call_id: bytes, key_id: int) -> None:
        """Note a key that something of a call is sealed under, which its row does not name."""
        self.put(b"former", call_id, U64.pack(key_id))

    def put_state(self, call_id: bytes, state: State) -> None:
        """Set a recording's row."""
        before = self.readable_state(call_id)
        if before and before.tier == state.tier and before.key_id != state.key_id:
            self.put_former(call_id, before.key_id)
        self.put(b"state", call_id, serialize_state(state))

    def put_committed(self, objects: Iterable[tuple[bytes, Reach | int]]) -> None:
        """Set how far unsealed objects are acknowledged: (call id, reach or bytes) each."""
        rows = [(call_id, serialize_reach(reach)) for call_id, reach in objects]
        self.txn.cursor(db=self.tables[b"open"]).putmulti(rows)

    def put_receipt(self, receipt: Receipt) -> None:
        """Set the receipt of one copy."""
        key = receipt.id + receipt.target.encode()
        self.put(b"receipt", key, msgspec.msgpack.encode(receipt))

    def withdraw(self, kind: bytes, what: bytes) -> None:
        """Take a thing out of the feed."""
        if (at := self.get(b"fed", kind + what)) is not None:
            self._leave_feed(at)
            self.delete(b"fed", kind + what)

    def announce(self, kind: bytes, what: bytes) -> None:
        """Put a change at the feed's end. What was announced of the same thing before goes."""
        position = self.number(b"position") + 1
        if (before := self.get(b"fed", kind + what)) is not None:
            self._leave_feed(before)
        self.put(b"feed", POSITION.pack(position), kind + what)
        self.put(b"fed", kind + what, POSITION.pack(position))
        self.set_number(b"position", position)

    def _leave_feed(self, position: bytes) -> None:
        with self.passing():
            unpack(POSITION, b"fed", position)  # LMDB takes no key of any length
            self.delete(b"feed", position)
