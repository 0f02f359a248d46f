"""Import: a replica's changes into an empty store, which thereby becomes that store.

Keys must come before the records they open. Objects are written verbatim, in parts, and count only
once their SHA-256 was that of the change. The store stays open to imports until it records again.
Who sends them: replicator restore. Protocol: WIRE.md §6.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from spanvault.daemon.rules import TIERS
from spanvault.messages import Call, Change, Erasure, Import
from storaged import files
from storaged.faults import Fault
from storaged.format import ledger, record
from storaged.format.keypage import SLOTS
from storaged.format.ledger import DayKey, Entry, Place, Seal
from storaged.format.sealing import HEADER_BYTES, Header
from storaged.index import callrows, erasures, ingestkeys, ledgerheads
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import (
    FINAL,
    IMPORTING,
    KEYS_DESTROYED,
    KEYS_WELCOME,
    OBJECT,
    SEALED,
    State,
    reserved,
)
from storaged.index.writing import Writing
from storaged.keys.keyring import Keyring
from storaged.keys.rootfile import ROOT
from storaged.pools.layout import Store
from storaged.pools.opening import Opener
from storaged.pools.vaults import BASE, Vault, Vaults

_KEY_FILE: Final = re.compile(r"(?:(core|sensitive)/)?(root|page-([0-9]{6})\.[0-9]{1,5})")
_KEY_IDS: Final = range(SLOTS << 32)
_NOT_EMPTY: Final = "Restore into an empty store: name a new folder."


class Restorer:
    """Takes imports. For the thread of requests."""

    def __init__(
        self, store: Store, index: Index, vaults: Vaults, clock_ns: Callable[[], int],
        opener: Opener,
    ) -> None:  # fmt: skip
        self._store, self._index, self._vaults = store, index, vaults
        self._clock_ns, self._opener = clock_ns, opener

    @property
    def _keyring(self) -> Keyring:
        return self._vaults.base.keyring

    def take(self, wanted: Import, bulk: bytes) -> None:
        """Make one change our own. Raises Fault: not empty, damaged, out of order; OSError."""
        importing = self._check(wanted)
        if not importing:
            self._index.write(self._skip_positions)
        if wanted.change.kind == "keys":
            self._keys(wanted)
        elif not importing:
            raise Fault("locked", "the root key has not come yet", "An import brings keys first.")
        elif wanted.change.kind == "log":
            return  # this store's log begins anew
        elif wanted.change.kind == "erase":
            self._erasure(wanted.change)
        elif self._was_erased(wanted.change.id):
            return
        elif wanted.change.kind == "record":
            self._record(wanted)
        else:
            self._object(wanted, bulk)

    def _check(self, wanted: Import) -> bool:
        """Whether an import is under way already. Raises Fault if none may be."""
        with self._index.reading() as view:
            importing, empty = bool(view.number(IMPORTING)), not view.count(b"state")
        if not importing and not empty:
            raise Fault("invalid", "this store holds recordings of its own", _NOT_EMPTY)
        if importing and wanted.store_id != self._keyring.store_id.hex():
            raise Fault("invalid", "this store is being restored from another one", _NOT_EMPTY)
        return importing

    def _skip_positions(self, writing: Writing) -> None:
        """Go on behind every position that the lost store may have given out.

        A replica may hold them, a replicator may remember one. Positions rise more slowly than
        microseconds pass, so the time is behind them all.
        """
        position = max(writing.number(b"position"), self._clock_ns() // 1000)
        writing.set_number(b"position", position)

    def _keys(self, wanted: Import) -> None:
        """A key file. With the root this becomes the replica's store: our keys sealed nothing."""
        name, data = wanted.change.name, wanted.change.data
        if not (found := _KEY_FILE.fullmatch(name)):
            raise Fault("invalid", f"{name[:64]!r} is no name of a key file")
        pool, page = found[1], found[3]
        if self._keys_went():
            self._check_known(name)
            return  # ours is the same without the keys that went
        another = self._keyring.store_id.hex() != wanted.store_id
        if name == ROOT:
            self._keyring.replace_root(data, wanted.store_id)
            self._store.write_format(self._keyring.store_id)
            self._opener.keep_intake_keys()
        else:
            path = self._store.keys / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            files.replace(path, data)
        tier, becomes = TIERS[pool or BASE], name == ROOT and another
        self._index.write(lambda writing: _took_keys(writing, name, tier, page, becomes=becomes))
        if becomes:
            self._vaults.base.pool.ledger.clear()
        self._open_pools()

    def _keys_went(self) -> bool:
        with self._index.reading() as view:
            return view.number(IMPORTING) == KEYS_DESTROYED

    def _check_known(self, name: str) -> None:
        """Raise Fault unless there is this key file, in whatever generation."""
        path = self._store.keys / name
        if not any(path.parent.glob(f"{path.name.split('.')[0]}*")):
            raise Fault(
                "invalid",
                f"{name} is new, and calls were erased here since the import began: a root that "
                "names it could bring their keys back",
                _NOT_EMPTY,
            )

    def _open_pools(self) -> None:
        """Open the pools that base's root names and whose own root is here."""
        with self._index.reading() as view:
            if not view.number(IMPORTING):
                return
        for pool, tier in TIERS.items():
            known = self._keyring.intake_key(tier) and (self._store.keys / pool / ROOT).exists()
            if known:
                self._vaults.add(self._opener.pool(pool))

    def _was_erased(self, call_id: bytes) -> bool:
        with self._index.reading() as view:
            return len(call_id) == 16 and view.erased(call_id) is not None

    def _erasure(self, change: Change) -> None:
        """Tombstones: what they name is not taken, whatever a replica still has of it."""
        try:
            erasure = msgspec.msgpack.decode(change.data, type=Erasure)
            if not erasure.done or any(len(one.id) != 16 for one in erasure.recordings):
                raise ValueError("it is not complete")
            if any(one.pool not in TIERS or one.key_id not in _KEY_IDS for one in erasure.day_keys):
                raise ValueError("it names a key that cannot be")
            if not all(map(ingestkeys.can_be, erasure.ingest_keys)):
                raise ValueError("it names an ingest key that cannot be")
        except (ValueError, RecursionError) as error:
            raise Fault("corrupt", f"erasure: {error}", "Restore from another replica.") from None
        with self._index.reading() as view:
            here = any(view.state(one.id) for one in erasure.recordings)
            if here and not erasure.moved_to:
                raise Fault("invalid", "what was erased is here", "Begin anew in an empty folder.")
        base = self._vaults.base
        with base.noting([erasures.entry(erasure)], self._clock_ns()) as place:
            self._index.write(lambda writing: _adopt(writing, erasure, base.tier, place))

    def _record(self, wanted: Import) -> None:
        change, vault = wanted.change, self._vaults.of(_tier(wanted.change))
        try:
            key_id = record.parse_head(change.data).key_id
            call = self._open(change.id, change.data, _tier(change))
            if call.id != change.id:
                raise ValueError("it is another call's")
        except ValueError as error:
            raise Fault(
                "corrupt", f"call record: {error}", "Restore from another replica."
            ) from None

        self._begin_day(vault, call)

        def put(writing: Writing, place: Place) -> None:
            writing.put_ledger(vault.tier, place)
            state = writing.state(call.id)
            if state is not None and state.revision >= call.revision:
                return
            stored = writing.get(b"record", call.id)
            old = self._open(call.id, stored, state.tier) if stored and state else None
            callrows.put_record(writing, vault.labels, call, change.data, old)
            if state is not None and key_id != state.key_id:
                writing.put_former(call.id, key_id)
            state = state or State(key_id, 0, bytes(32), -1, _tier(change), 0)
            if call.heard_by:
                state = state._replace(capture=writing.take_capture(call.heard_by))
            if call.final:  # when it had its last word nobody knows: its time begins anew
                closed = tables.day_of(self._clock_ns())
                state = state._replace(bits=state.bits | FINAL, closed=closed)
            writing.put_state(call.id, state._replace(revision=call.revision))

        entries = [Entry(ledger.RECORD, call.id, change.data)]
        with vault.noting(entries, self._clock_ns()) as place:
            self._index.write(lambda writing: put(writing, place))

    def _begin_day(self, vault: Vault, call: Call) -> None:
        """Name a key for the call's day, if it has none yet, before a row lies under it."""
        with self._index.reading() as view:
            missing = vault.labels.missing(view, [call])
        if not missing:
            return
        days = {day: vault.take_key(self._index) for day in missing}

        def put(writing: Writing, place: Place) -> None:
            writing.put_ledger(vault.tier, place)
            vault.labels.begin(writing, days)

        entries = [DayKey(*each).entry() for each in days.items()]
        with vault.noting(entries, self._clock_ns()) as place:
            self._index.write(lambda writing: put(writing, place))

    def _open(self, call_id: bytes, sealed: bytes, tier: int) -> Call:
        dek = self._vaults.of(tier).dek(record.parse_head(sealed).key_id)
        return record.open_call(call_id, sealed, dek)

    def _object(self, wanted: Import, bulk: bytes) -> None:
        change = wanted.change
        if len(change.id) != 16 or wanted.offset < 0 or wanted.offset + len(bulk) > change.size:
            raise Fault("invalid", "this part does not lie within the object")
        vault = self._vaults.of(_tier(change))
        path = vault.pool.path(change.id)
        part = path.with_suffix(".part")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        there = part.stat().st_size if part.exists() else 0
        if wanted.offset > there:
            raise Fault(
                "invalid",
                f"part at {wanted.offset}, {there} bytes are here",
                "Send parts in order.",
            )
        files.write_at(part, wanted.offset, bulk)
        if wanted.offset + len(bulk) < change.size:
            return
        header = _check_object(part, change)
        part.rename(path)
        files.sync_folder(path.parent)
        files.sync_folder(path.parent.parent)
        seal = Seal(header.key_id, change.size, bytes.fromhex(change.sha256))
        entry = Entry(ledger.SEALED, change.id, seal.serialize())
        with vault.noting([entry], self._clock_ns()) as place:
            self._index.write(_put_object(change, header, place))


def _check_object(path: Path, change: Change) -> Header:
    """Raise Fault, and remove the file, unless it is the object that the change names."""
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != change.sha256:
                raise ValueError("its SHA-256 is another")
            file.seek(0)
            header = Header.parse(file.read(HEADER_BYTES))
        if header.recording_id != change.id:
            raise ValueError("it is another recording")
    except ValueError as error:
        path.unlink()
        raise Fault(
            "corrupt",
            f"imported object: {error}",
            "Send it again, or restore from another replica.",
        ) from None
    return header


def _put_object(change: Change, header: Header, place: Place) -> Callable[[Writing], None]:
    def put(writing: Writing) -> None:
        writing.put_ledger(header.tier, place)
        state = writing.state(change.id) or State(header.key_id, 0, bytes(32), -1, header.tier, 0)
        writing.put_state(
            change.id,
            state._replace(
                key_id=header.key_id, size=change.size, sha256=bytes.fromhex(change.sha256),
                bits=state.bits | OBJECT | SEALED,
            ),
        )  # fmt: skip
        writing.delete(b"open", change.id)
        writing.announce(tables.OBJECT_CHANGED, change.id)

    return put


def _adopt(writing: Writing, erasure: Erasure, tier: int, place: Place) -> None:
    writing.put_ledger(tier, place)
    erasures.adopt(writing, erasure)


def _took_keys(writing: Writing, name: str, tier: int, page: str | None, *, becomes: bool) -> None:
    """Announce a key file to our own replicas; a page's slots count as used.

    becomes: with this root the store is another's: what our ledger held is nothing of it.
    """
    writing.announce(tables.KEYS_CHANGED, name.encode())
    if name == ROOT:
        writing.set_number(IMPORTING, KEYS_WELCOME)
    elif page is not None:
        behind = (int(page) + 1) * SLOTS
        writing.set_number(reserved(tier), max(writing.number(reserved(tier)), behind))
    if becomes:
        writing.delete(b"meta", tables.LEDGER + b"0")
        ledgerheads.forget(writing)


def _tier(change: Change) -> int:
    return TIERS.get(change.pool, 0)
