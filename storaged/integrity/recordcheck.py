"""Sealed call records in the index are opened, and what does not open is brought back.

LMDB has no checksums: a medium may change a row. The record's own tag tells, so no listening right
is needed; nobody can tell of a locked pool. The same record lies a second time in the recording's
trailer, or in the pool's ledger (FORMAT.md §7.1): it counts if it opens and is of the revision that
the row in `state` names, so an older one never takes its place. Of one that lies in neither a row
remains (storaged.index.damage): replicas are asked for it (storaged.integrity.recordmending). Other
rows of the index cannot be checked so: it is made anew (storaged.integrity.reindexing). Is handed
its clock; when it runs: storaged.integrity.scrub.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from spanvault.messages import Call
from storaged.faults import Fault
from storaged.format import ledger, record, seeking
from storaged.index import damage
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import OBJECT, SEALED, State
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.pools import ledgerfile
from storaged.pools.vaults import Vault, Vaults

log = logging.getLogger(__name__)
MOST: Final = 10_000  # damaged records looked for in a ledger together
ROWS: Final = 200  # looked at in one view, some milliseconds
_NO_STATE: Final = "its row in table state cannot be read: spanvault reindex makes it anew"
_STEP: Final = 1 << 20  # bytes of a ledger that are read before others get their turn


_Ledger = tuple[str, str, int, int]  # pool, and a file's name, size and time of its last change


class Record(NamedTuple):
    """A record that does not open. sealed: None if it is missing.

    state: the call's row, without which nobody knows which record is its; None if that is damaged.
    """

    id: bytes
    state: State | None
    sealed: bytes | None
    fault: str

    def stands(self, view: View) -> bool:
        """Whether the index still has it so."""
        known = view.readable_state(self.id)
        return view.get(b"record", self.id) == self.sealed and known == self.state


class Looked(NamedTuple):
    """Some calls that were looked at. size: bytes of their records.

    sound: those that open and were known to be damaged. at: the last id, None if there are no more.
    """

    checked: int
    size: int
    wrong: list[Record]
    sound: list[Record]
    at: bytes | None


class Found(NamedTuple):
    """What a check found. damaged: what is wrong with each that its recording does not have.

    at: the last id looked at, None if there are no more.
    """

    checked: int
    mended: list[bytes]
    damaged: dict[bytes, str]
    at: bytes | None


class RecordCheck:
    """Checks the records of all pools that are open. For one thread. clock_ns: since 1970."""

    def __init__(self, index: Index, vaults: Vaults, clock_ns: Callable[[], int]) -> None:
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self._in_vain: dict[bytes, Record] = {}  # looked for in the ledgers as these are:
        self._ledgers: list[_Ledger] = []

    def checking(
        self, after: bytes, until: bytes, most: int | None = None
    ) -> Generator[int, None, Found]:
        """Check the calls of some ids; mend what recordings have, note the rest; gives bytes read.

        until: the last id of them. most: calls that are looked at. What is noted may lie in a
        ledger: see searching(). Raises OSError, lmdb.Error.
        """
        found, at = Found(0, [], {}, None), after
        left = most
        while left is None or left > 0:
            rows = ROWS if left is None else min(ROWS, left)
            looked = self._look(at, until, rows)
            yield looked.size
            whole = {one.id for one in looked.wrong if self._from_recording(one)}
            lost = [one for one in looked.wrong if one.id not in whole]
            for one in lost:
                self.note(one)
            for one in looked.sound:
                damage.clear_file(
                    self._index, damage.RECORDS, one.id.hex(), (tables.RECORD_CHANGED, one.id),
                    one.stands,
                )  # fmt: skip
            damaged = found.damaged | {one.id: one.fault for one in lost}
            mended = [*found.mended, *sorted(whole)]
            found = Found(found.checked + looked.checked, mended, damaged, looked.at)
            if looked.at is None:
                break
            at, left = looked.at, None if left is None else left - rows
        return found

    def searching(self) -> Generator[int, None, list[bytes]]:
        """Bring back what is noted and a ledger has; gives bytes read. Returns the ids.

        Ledgers may have gigabytes: however many records are noted, they are read once, and not for
        one that they did not have, until they are others. Raises OSError, lmdb.Error.
        """
        found: list[bytes] = []
        ledgers = _ledgers(self._vaults)
        if ledgers != self._ledgers:
            self._in_vain, self._ledgers = {}, ledgers
        wanted = self._noted()
        found += (one.id for one in wanted if self._from_recording(one))
        left = [(one.state.tier, one) for one in wanted if one.state and one.id not in found]
        for tier in sorted({tier for tier, _ in left}):
            lost = {one.id: one for each, one in left if each == tier}
            found += yield from self._from_ledger(self._vaults.of(tier), lost)
        self._in_vain |= {one.id: one for one in wanted if one.id not in found}
        return found

    def _noted(self) -> list[Record]:
        """Damaged records of open pools that were not looked for in vain yet, MOST at most."""
        noted: list[Record] = []
        with self._index.reading() as view:
            if not view.count(damage.RECORDS.table):
                self._in_vain = {}
                return noted
            for name, known in damage.files(view, damage.RECORDS):
                call_id = bytes.fromhex(name)
                state, sealed = view.readable_state(call_id), view.get(b"record", call_id)
                one = Record(call_id, state, sealed, known.faults[0])
                if state is None or self._in_vain.get(call_id) == one:
                    continue
                if self._fault_of(view, call_id, sealed, state):
                    noted.append(one)
                if len(noted) == MOST:
                    break
        return noted

    def checking_one(self, call_id: bytes) -> Generator[None, None, None]:
        """Check one call's, and mend it, in steps. Raises OSError, lmdb.Error."""
        before = max(0, int.from_bytes(call_id, "big") - 1).to_bytes(len(call_id), "big")
        for steps in (self.checking(before, call_id), self.searching()):
            for _ in steps:
                yield

    def fault_of(self, view: View, call_id: bytes, sealed: bytes, state: State) -> Record | None:
        """A record that does not open; None: it does, or nobody can tell."""
        fault = self._fault_of(view, call_id, sealed, state)
        return Record(call_id, state, sealed, fault) if fault else None

    def note(self, one: Record) -> None:
        """Remember that a record is damaged. Raises OSError, lmdb.Error."""
        damage.note_file(
            self._index, damage.RECORDS, one.id.hex(), one.fault, self._clock_ns(), one.stands
        )

    def _look(self, after: bytes, until: bytes, rows: int) -> Looked:
        """Look at the records of some calls."""
        checked, size, wrong, sound, at = 0, 0, list[Record](), list[Record](), after
        with self._index.reading() as view:
            known = view.count(damage.RECORDS.table) > 0
            calls = view.calls(after)
            for _ in range(rows):
                if (key := next(calls, None)) is None or key > until:
                    return Looked(checked, size, wrong, sound, None)
                at, sealed = key, view.get(b"record", key)
                state = view.readable_state(at)
                fault = _NO_STATE if state is None else self._fault_of(view, at, sealed, state)
                if fault is not None:
                    checked, size = checked + 1, size + len(sealed or b"")
                if fault:
                    wrong.append(Record(at, state, sealed, fault))
                elif fault == "" and known:
                    sound.append(Record(at, state, sealed, ""))
        return Looked(checked, size, wrong, sound, at)

    def _fault_of(
        self, view: View, call_id: bytes, sealed: bytes | None, state: State
    ) -> str | None:
        """What is wrong with a record, empty if nothing is; None: nobody can tell."""
        if sealed is None and state.revision < 0:
            return None  # of an import: it has not come yet
        try:
            vault = self._vaults.of(state.tier)
            if vault.locked:
                return None
            if sealed is None:
                raise ValueError("call record is missing")
            check(view, vault, call_id, sealed, state)
        except Fault:
            return None  # its key: the check of key files tells of that; or it was just erased
        except ValueError as error:
            return str(error)
        return ""

    # --- bringing back ---------------------------------------------------------------------------

    def _from_recording(self, one: Record) -> bool:
        """The record that the recording was sealed with, if that is the one."""
        if not one.state or not one.state.bits & OBJECT or not one.state.bits & SEALED:
            return False
        try:
            vault = self._vaults.of(one.state.tier)
            with vault.pool.reading(one.id, one.state.size) as data:
                plain = seeking.contents(data, vault.dek).record
            call = record.decode_call(plain)
            if call.id != one.id or call.revision != one.state.revision:
                return False
            dek = vault.dek(one.state.key_id)
        except (ValueError, OSError, Fault):
            return False
        return put(self._index, one, record.seal_call(call, one.state.key_id, dek, os.urandom(12)))

    def _from_ledger(
        self, vault: Vault, lost: dict[bytes, Record]
    ) -> Generator[int, None, set[bytes]]:
        """The records as they came, out of the pool's ledger."""
        sound: dict[bytes, bytes] = {}
        try:
            for size, entry in _entries(vault):
                one = lost.get(entry.id) if entry.kind == ledger.RECORD else None
                if one is not None and self._is_it(vault, one, entry.body):
                    sound[one.id] = entry.body
                if size:
                    yield size
        except Fault:
            return set()  # locked meanwhile
        return {one for one, sealed in sound.items() if put(self._index, lost[one], sealed)}

    def _is_it(self, vault: Vault, one: Record, sealed: bytes) -> bool:
        try:
            dek = vault.dek(record.parse_head(sealed).key_id)
            call: Call = record.open_call(one.id, sealed, dek)
        except (ValueError, Fault):
            return False
        return one.state is not None and (call.id, call.revision) == (one.id, one.state.revision)


def check(view: View, vault: Vault, call_id: bytes, sealed: bytes, state: State) -> None:
    """Raise ValueError unless this is the record that a row in `state` means; Fault: its key."""
    key_id = record.parse_head(sealed).key_id
    if key_id != state.key_id and key_id not in view.former(call_id):
        raise ValueError("call record names a key that is not the call's")
    call = record.open_call(call_id, sealed, vault.dek(key_id))
    if call.revision != state.revision:
        raise ValueError(f"call record of revision {call.revision}, not {state.revision}")


def put(index: Index, one: Record, sealed: bytes, target: str = "") -> bool:
    """Put a sound record in place of the damaged one, unless that has changed meanwhile.

    target: whose copy it is; nothing for what lay in the store. Raises lmdb.Error.
    """

    def bring(writing: Writing) -> bool:
        if not one.stands(writing):
            return False
        writing.put(b"record", one.id, sealed)
        writing.delete(damage.RECORDS.table, one.id.hex().encode())
        # A replica may have got the damaged one.
        writing.announce(tables.RECORD_CHANGED, one.id)
        return True

    done = index.write(bring)
    if done:
        log.warning(
            "A damaged call record was brought back",
            extra={"RECORDING_ID": one.id.hex(), "FAULT": one.fault, "TARGET": target},
        )
    return done


def _entries(vault: Vault) -> Iterator[tuple[int, ledger.Entry]]:
    """All entries of a pool's ledger, with the bytes read, now and then. Raises Fault."""
    ring = vault.keyring
    taken = 0
    for path in vault.pool.ledger.files():
        before = 0
        try:
            for found in ledgerfile.walk(path, ring.store_id, vault.tier, ring.ledger_key):
                taken, before = taken + found.offset - before, found.offset
                size, taken = (taken, 0) if taken >= _STEP else (0, taken)
                if found.entry is not None:
                    yield size, found.entry
        except OSError as error:
            log.error("A ledger cannot be read",
                      extra={"FILE": str(path), "FAULT": error.strerror})  # fmt: skip


def _ledgers(vaults: Vaults) -> list[_Ledger]:
    """All files of ledgers, as they are; but what is being written behind the others."""
    found: list[_Ledger] = []
    for vault in vaults:
        if not vault.locked:
            *files, newest = [*vault.pool.ledger.files()] or [vault.pool.objects]
            found += ((vault.name, one.name, *_of_file(one)) for one in files)
            found.append((vault.name, newest.name, 0, 0))
    return found


def _of_file(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
