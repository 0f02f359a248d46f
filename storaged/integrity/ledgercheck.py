"""Ledgers are read back from the medium and checked: without them no index can be made anew.

In a pool that is open each entry by its tag, so far as the index says that it is acknowledged; of a
locked one by structure alone. A file that is gone is missed, and a damaged head put back, by what
the index has of it (storaged.index.ledgerheads). An entry that does not authenticate
and whose content the index still has is written anew in its place, byte for byte what it was; one
that a later entry replaced, or whose call was erased, is missed by nobody. All else is told of:
storaged.index.damage. FORMAT.md §9.
Bytes: storaged.format.ledger. When it runs: storaged.integrity.scrub.
"""

import errno
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

from storaged.faults import Fault
from storaged.format import ledger, record
from storaged.format.ledger import DayKey, Entry, Found, Place, Seal, Target
from storaged.index import damage, labels, ledgerheads
from storaged.index.environment import Index
from storaged.index.rows import SEALED, State
from storaged.index.view import View
from storaged.integrity import medium
from storaged.pools import ledgerfile
from storaged.pools.vaults import Vault, Vaults

log = logging.getLogger(__name__)


class LedgerCheck:
    """Checks the ledgers of all pools. For one thread.

    clock_ns: since 1970.
    """

    def __init__(self, index: Index, vaults: Vaults, clock_ns: Callable[[], int]) -> None:
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns

    def names(self) -> list[str]:
        """All files there are or must be, POOL/NAME, in order. Raises OSError."""
        found = set()
        for vault in self._vaults:
            found |= {f"{vault.name}/{path.name}" for path in vault.pool.ledger.files()}
            if place := self._place(vault):
                found.add(f"{vault.name}/{place.name}")
                found |= {name for name in self._known() if name.startswith(f"{vault.name}/")}
        return sorted(found)

    def new_or_gone(self) -> list[str]:
        """Of them those that were not read back yet, or are not there any more. Raises OSError."""
        heads = self._heads()
        return [
            name for name in self.names()
            if name not in heads or not self._path(name).exists()
        ]  # fmt: skip

    def size(self) -> int:
        """Bytes of them all. Raises OSError."""
        return sum(
            path.stat().st_size for vault in self._vaults for path in vault.pool.ledger.files()
        )

    def forget(self, names: Iterable[str]) -> None:
        """Of files that are not among these nothing is known: the store became another."""
        with self._index.reading() as view:
            gone = {*damage.told_files(view, damage.LEDGERS)} - {*names}
        for name in gone:
            damage.clear_file(self._index, damage.LEDGERS, name)

    def checking(self, name: str) -> Iterator[int]:
        """Check a file, and note what is found; gives bytes read. Raises OSError, lmdb.Error."""
        pool, _, own = name.partition("/")
        vault = self._vaults.named(pool)
        before, by_tag = self._place(vault), not vault.locked
        if before is not None and own > before.name:
            return  # it is being written, or went with a commit that failed: none of it counts
        there = _size(vault, own)
        end = there
        if before is not None:
            end = before.size if own == before.name else max(there, self._sizes().get(name, 0))
        faults: list[str] = [f"cut: {there} of {end} bytes"] if there < end else []
        head = b""
        try:
            with medium.opened(vault.pool.ledger.path(own), end) as data:
                head = yield from self._reading(vault, own, data, faults)
        except OSError as error:
            if error.errno in medium.OURS:
                raise
            if before is None and error.errno == errno.ENOENT:
                return  # the same of the first file of a ledger
            faults.append(f"it cannot be read ({error.strerror})")
        if by_tag == vault.locked or not self._stands(vault, own, before, there):
            return
        if faults:
            damage.note_file(self._index, damage.LEDGERS, name, faults[0], self._clock_ns())
        elif by_tag:
            damage.clear_file(self._index, damage.LEDGERS, name)
            if before is not None and head:
                ledgerheads.keep(self._index, name, head)
                if own < before.name:
                    ledgerheads.keep_size(self._index, name, end)

    def _reading(
        self, vault: Vault, own: str, data: medium.Medium, faults: list[str]
    ) -> Generator[int, None, bytes]:
        """Read a file and mend what can be; `faults` gets the rest. Ends early at a lock.

        Returns its head; nothing if there is none.
        """
        if not len(data):
            return b""
        try:
            key, store_id = _opened(vault)
            head = self._head(vault, own, data, key)
            # Nobody but its keys can tell the store of a locked pool.
            head = ledger.check_head(head, store_id or head[8:24], vault.tier)
        except ValueError as error:
            faults.append(str(error))
            return b""
        taken = mended = 0
        for found in ledger.walk(data, head, key):
            if found.entry is None and found.offset >= mended:
                entry = None if key is None else ledger.claimed(data, found.offset)
                if entry is not None and self._mend(vault, own, head, found, entry):
                    mended = found.offset + ledger.length(entry)
                else:
                    faults.append(f"at byte {found.offset}: {found.fault}")
            if data.taken != taken:
                yield data.taken - taken
                taken = data.taken
                if vault.locked != (key is None):
                    return b""
        return head

    def _head(self, vault: Vault, own: str, data: medium.Medium, key: bytes | None) -> bytes:
        """A file's head; the one that it had is put back if its first entry says that it fits."""
        name, head = f"{vault.name}/{own}", data[: ledger.HEAD_BYTES]
        kept = self._heads().get(name, head)
        if kept == head or key is None:
            return head
        first = next(ledger.walk(data, kept, key), None)
        if first is None or first.entry is None:
            return head
        try:
            with vault.held:
                vault.pool.ledger.write_anew(own, 0, kept)
        except OSError:
            return head
        log.warning("The head of a ledger's file was written anew from the index",
                    extra={"LEDGER": name})  # fmt: skip
        return kept

    def _mend(self, vault: Vault, own: str, head: bytes, found: Found, entry: Entry) -> bool:
        """Have an entry again that does not authenticate. False if the index has it not."""
        with vault.held, self._index.reading() as view:
            try:
                body = _content(view, vault.tier, entry)
                if body is not None and len(body) != len(entry.body):
                    _check_form(entry)  # a later entry took its place
                elif body is not None:
                    anew = ledger.serialize(
                        [entry._replace(body=body)], head, found.offset, vault.keyring.ledger_key
                    )
                    vault.pool.ledger.write_anew(own, found.offset, anew)
                    log.warning(
                        "A damaged entry of a ledger was written anew from the index",
                        extra={"LEDGER": f"{vault.name}/{own}", "OFFSET": found.offset},
                    )
            except (LookupError, ValueError, OSError, Fault):
                return False
        return True

    def _stands(self, vault: Vault, own: str, before: Place | None, there: int) -> bool:
        """Whether a file still is what was read: an acknowledged part of this ledger."""
        now = self._place(vault)
        if before is None:
            return now is None and _size(vault, own) == there
        return now is not None and now.name >= before.name

    def _heads(self) -> dict[str, bytes]:
        with self._index.reading() as view:
            return ledgerheads.known(view)

    def _sizes(self) -> dict[str, int]:
        with self._index.reading() as view:
            return ledgerheads.sizes(view)

    def _known(self) -> set[str]:
        """Files that there were."""
        return {*self._heads(), *self._sizes()}

    def _path(self, name: str) -> Path:
        pool, _, own = name.partition("/")
        return self._vaults.named(pool).pool.ledger.path(own)

    def _place(self, vault: Vault) -> Place | None:
        with self._index.reading() as view:
            return view.ledger(vault.tier)


def _size(vault: Vault, own: str) -> int:
    path = vault.pool.ledger.path(own)
    return ledgerfile.size(path.parent, own)


def _opened(vault: Vault) -> tuple[bytes | None, bytes]:
    """The key of a pool's ledger, and the store's id; neither while it is locked."""
    try:
        return vault.keyring.ledger_key, vault.keyring.store_id
    except Fault:
        return None, b""


def _content(view: View, tier: int, entry: Entry) -> bytes | None:
    """What the index has of an entry's body; None if the entry is of use to nobody any more.

    Raises LookupError: it has nothing of it. ValueError.
    """
    if entry.kind not in ledger.KINDS:
        raise LookupError(f"kind {entry.kind}")
    if entry.kind == ledger.ERASURE:
        row = view.get(b"erasure", entry.id)
    elif entry.kind == ledger.DAY_KEY:
        row = _key_of_day(view, tier, entry)
    elif entry.kind == ledger.TARGET:
        name = Target.parse(entry.body).name
        row = view.get(b"target", name)
        row = None if row is None else Target(name, row).serialize()
    else:
        if view.erased(entry.id) or view.moved(entry.id):
            return None
        state = view.state(entry.id)
        if state is None:
            raise LookupError(entry.id.hex())
        if entry.kind == ledger.PLACED or state.tier != tier:
            return None  # it has come to where it was to go
        row = _content_of_call(view, state, entry)
    if row is None:
        raise LookupError(entry.id.hex())
    return row


def _key_of_day(view: View, tier: int, entry: Entry) -> bytes | None:
    """The key of the day that it may have named: of one that is gone the entry is of no use."""
    given = DayKey.parse(entry.body)
    ids = labels.key_ids(view, given.day, tier)
    if not ids or any(entry.id):
        return None
    nearest = min(ids, key=lambda one: (one ^ given.key_id).bit_count())
    return given._replace(key_id=nearest).entry().body


def _content_of_call(view: View, state: State, entry: Entry) -> bytes | None:
    if entry.kind == ledger.RECORD:
        return view.get(b"record", entry.id)
    if state.bits & SEALED:
        return Seal(state.key_id, state.size, state.sha256).serialize()
    return b""  # it goes on, and is sealed anew


def _check_form(entry: Entry) -> None:
    """Raise ValueError if an entry's body is not of the kind that it says."""
    if entry.kind == ledger.RECORD:
        record.parse_head(entry.body)
    elif entry.kind == ledger.SEALED:
        Seal.parse(entry.body)
