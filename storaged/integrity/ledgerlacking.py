"""What a pool's ledger lacks without some of its files, of all that the index says is in it.

Calls, then erasures, some of them at a time: their ids are gathered from the index, all other files
of the ledger are read for them, and what is left is what those files alone had. So memory is
bounded however many calls there are. A record that its recording's trailer has needs no entry.
FORMAT.md §7.1. Who writes anew what is missing: storaged.integrity.ledgermending.
"""

import hashlib
from collections.abc import Collection, Generator, Iterator
from typing import Final, NamedTuple

from storaged.faults import Fault
from storaged.format import ledger, record, seeking
from storaged.format.ledger import DayKey, Entry, Target
from storaged.index.environment import Index
from storaged.index.rows import SEALED
from storaged.pools import ledgerfile
from storaged.pools.vaults import Vault

WINDOW: Final = 1 << 19  # ids at a time, some 200 bytes each; for so many all is read once
_ROWS: Final = 2000  # looked at in one view of the index
_ROW: Final = 100  # bytes that looking at a row counts as
_TRAILER: Final = 1 << 16  # that reading one counts as
_STEP: Final = 1 << 20  # bytes of a ledger that are read before others get their turn


class Calls(NamedTuple):
    """Calls whose record, or seal, no other file has. at: the last id; None: all were looked at.

    unread: how many rows could not be read.
    """

    records: set[bytes]
    seals: set[bytes]
    at: bytes | None
    unread: int


class Rest(NamedTuple):
    """What the other files say: all keys of days, and the last of targets."""

    days: set[DayKey]
    targets: dict[bytes, bytes]


class Lacking:
    """Looks for what a ledger lacks without some files. All of it raises OSError, Fault (locked).

    Everything gives bytes read while it goes on. without: names of files.
    """

    def __init__(self, index: Index, vault: Vault, without: Collection[str]) -> None:
        self._index, self._vault, self._without = index, vault, without

    def calls(self, after: bytes) -> Generator[int, None, Calls]:
        """Of the calls behind an id."""
        revisions: dict[bytes, int] = {}
        seals: dict[bytes, bytes] = {}
        at: bytes | None = after
        unread = 0
        while at is not None and len(revisions) < WINDOW:
            at, bad = self._gather(at, revisions, seals)
            unread += bad
            yield _ROWS * _ROW
        lost = set(seals)
        for size, entry in self._entries():
            if entry.kind == ledger.RECORD:
                if revisions.get(entry.id) == record.parse_head(entry.body).revision:
                    del revisions[entry.id]
            elif entry.kind == ledger.SEALED and entry.id in seals:
                (lost.discard if _digest(entry.body) == seals[entry.id] else lost.add)(entry.id)
            if size:
                yield size
        for call_id in [one for one in revisions if one in seals]:
            if self._in_trailer(call_id, revisions[call_id]):
                del revisions[call_id]
            yield _TRAILER
        return Calls(set(revisions), lost, at, unread)

    def erasures(self, after: bytes) -> Generator[int, None, tuple[set[bytes], bytes | None]]:
        """Ids of erasures behind one that no other file has as the index; and the last id."""
        wanted: dict[bytes, bytes] = {}
        at: bytes | None = None
        with self._index.reading() as view:
            cursor = view.cursor(b"erasure")
            more = cursor.set_range(after + b"\0")
            while more and len(wanted) < WINDOW:
                wanted[bytes(cursor.key())] = _digest(bytes(cursor.value()))
                more = cursor.next()
            at = next(reversed(wanted)) if more else None
        lost = set(wanted)
        for size, entry in self._entries():
            if entry.kind == ledger.ERASURE and entry.id in wanted:
                (lost.discard if _digest(entry.body) == wanted[entry.id] else lost.add)(entry.id)
            if size:
                yield size
        return lost, at

    def rest(self) -> Generator[int, None, Rest]:
        """What the other files say of days and targets."""
        found = Rest(set(), {})
        for size, entry in self._entries():
            if entry.kind == ledger.DAY_KEY:
                found.days.add(DayKey.parse(entry.body))
            elif entry.kind == ledger.TARGET:
                target = Target.parse(entry.body)
                found.targets[target.name] = target.row
            if size:
                yield size
        return found

    def _gather(
        self, after: bytes, revisions: dict[bytes, int], seals: dict[bytes, bytes]
    ) -> tuple[bytes | None, int]:
        """Some calls of the pool, with what an entry must say of each; the last id, None: no more.

        And how many rows could not be read.
        """
        unread, at = 0, after
        with self._index.reading() as view:
            cursor = view.cursor(b"state")
            more = cursor.set_range(after + b"\0")
            for _ in range(_ROWS):
                if not more:
                    return None, unread
                at, more = bytes(cursor.key()), cursor.next()
                try:
                    state = view.state(at)
                except Fault:
                    unread += 1
                    continue
                if state is None or state.tier != self._vault.tier:
                    continue
                if state.revision >= 0 or view.get(b"record", at) is not None:
                    revisions[at] = state.revision
                if state.bits & SEALED:
                    seal = ledger.Seal(state.key_id, state.size, state.sha256)
                    seals[at] = _digest(seal.serialize())
        return at, unread

    def _in_trailer(self, call_id: bytes, revision: int) -> bool:
        """Whether a sealed recording has this very record."""
        with self._index.reading() as view:
            state = view.state(call_id)
        if state is None or not state.bits & SEALED:
            return False
        try:
            with self._vault.pool.reading(call_id, state.size) as data:
                plain = seeking.contents(data, self._vault.dek).record
            return bool(plain) and record.decode_call(plain).revision == revision
        except (ValueError, OSError, Fault):
            return False  # then the ledger has it, too

    def _entries(self) -> Iterator[tuple[int, Entry]]:
        """All entries of the other files that authenticate, with the bytes read, now and then."""
        ring, taken = self._vault.keyring, 0
        for path in self._vault.pool.ledger.files():
            if path.name in self._without:
                continue
            before = 0
            for found in ledgerfile.walk(path, ring.store_id, self._vault.tier, ring.ledger_key):
                taken, before = taken + found.offset - before, found.offset
                size, taken = (taken, 0) if taken >= _STEP else (0, taken)
                if found.entry is not None:
                    yield size, found.entry
                if size:
                    self._vault.require_open()


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
