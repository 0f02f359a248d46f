"""Import: a replica's changes into an empty store, which thereby becomes that store.

Keys must come before the records they open. Objects are written verbatim, in parts, and count only
once their SHA-256 was that of the change. The store stays open to imports until it records again.
Who sends them: replicator restore. Protocol: WIRE.md §6.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from spanvault.messages import Change, Import
from storaged import files, record
from storaged import index as tables
from storaged.faults import Fault
from storaged.index import FINAL, IMPORTING, OBJECT, RESERVED, SEALED, Index, State, Writing
from storaged.keypage import SLOTS
from storaged.keyring import ROOT, Keyring
from storaged.layout import TIERS, Store
from storaged.pool import Pool
from storaged.sealing import HEADER_BYTES, Header

_KEY_FILE: Final = re.compile(r"root|page-[0-9]{6}\.[0-9]{1,5}")
_NOT_EMPTY: Final = "Restore into an empty store: name a new folder."


class Restorer:
    """Takes imports. For the thread of requests."""

    def __init__(self, store: Store, index: Index, keyring: Keyring, pool: Pool) -> None:
        self._store, self._index, self._keyring, self._pool = store, index, keyring, pool

    def take(self, wanted: Import, bulk: bytes) -> None:
        """Make one change our own. Raises Fault: not empty, damaged, out of order; OSError."""
        self._begin(wanted.store_id)
        {"keys": self._keys, "record": self._record, "object": self._object}[wanted.change.kind](
            wanted, bulk
        )

    def _begin(self, store_id: str) -> None:
        """Become the replica's store, if nothing was recorded here."""
        try:
            wanted = bytes.fromhex(store_id)
            if len(wanted) != 16:
                raise ValueError
        except ValueError:
            raise Fault("invalid", f"store id {store_id[:64]!r} is none", "") from None
        with self._index.reading() as view:
            importing, empty = view.number(IMPORTING), not view.count(b"state")
        if not importing and not empty:
            raise Fault("invalid", "this store holds recordings of its own", _NOT_EMPTY)
        if importing and wanted != self._store.store_id:
            raise Fault("invalid", "this store is being restored from another one", _NOT_EMPTY)
        if not importing:
            # From here on the keys made with this store are of no use: nothing was sealed by them.
            self._index.write(_forget_own_keys)
            self._store.write_format(wanted)

    def _keys(self, wanted: Import, _: bytes) -> None:
        name, data = wanted.change.name, wanted.change.data
        if not _KEY_FILE.fullmatch(name):
            raise Fault("invalid", f"{name[:64]!r} is no name of a key file", "")
        files.replace(self._store.keys / name, data)
        if name == ROOT:
            self._keyring.reload()
            if self._keyring.store_id != self._store.store_id:
                raise Fault("corrupt", "the root key is another store's", "")
        self._index.write(lambda writing: _took_keys(writing, name))

    def _record(self, wanted: Import, _: bytes) -> None:
        change = wanted.change
        try:
            head = record.parse_head(change.data)
            call = record.open_call(change.id, change.data, self._keyring.dek(head.key_id))
            if call.id != change.id:
                raise ValueError("it is another call's")
        except ValueError as error:
            raise Fault(
                "corrupt", f"call record: {error}", "Restore from another replica."
            ) from None

        def put(writing: Writing) -> None:
            state = writing.state(call.id)
            if state is not None and state.revision >= call.revision:
                return
            stored = writing.get(b"record", call.id)
            old = (
                record.open_call(call.id, stored, self._keyring.dek(head.key_id))
                if stored
                else None
            )
            writing.put_record(call, change.data, old, self._keyring.index_key)
            state = state or State(head.key_id, 0, bytes(32), -1, _tier(change), 0)
            bits = state.bits | (FINAL if call.final else 0)
            writing.put_state(call.id, state._replace(revision=call.revision, bits=bits))

        self._index.write(put)

    def _object(self, wanted: Import, bulk: bytes) -> None:
        change = wanted.change
        if len(change.id) != 16 or wanted.offset < 0 or wanted.offset + len(bulk) > change.size:
            raise Fault("invalid", "this part does not lie within the object", "")
        path = self._pool.path(change.id)
        part = path.with_suffix(".part")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        there = part.stat().st_size if part.exists() else 0
        if wanted.offset > there:
            raise Fault(
                "invalid",
                f"part at {wanted.offset}, {there} bytes are here",
                "Send parts in order.",
            )
        _write_at(part, wanted.offset, bulk)
        if wanted.offset + len(bulk) < change.size:
            return
        header = _check_object(part, change)
        part.rename(path)
        files.sync_folder(path.parent)
        files.sync_folder(path.parent.parent)
        self._index.write(_put_object(change, header))


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write and sync a part; what lay behind it goes (a part that is sent again)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, offset)
        os.lseek(descriptor, offset, os.SEEK_SET)
        files.write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _put_object(change: Change, header: Header) -> Callable[[Writing], None]:
    def put(writing: Writing) -> None:
        state = writing.state(change.id) or State(header.key_id, 0, bytes(32), -1, header.tier, 0)
        writing.put_state(
            change.id,
            state._replace(
                key_id=header.key_id, size=change.size, sha256=bytes.fromhex(change.sha256),
                bits=state.bits | OBJECT | SEALED,
            ),
        )  # fmt: skip
        writing.put_committed(change.id, None)
        writing.announce(tables.OBJECT_CHANGED, change.id)

    return put


def _forget_own_keys(writing: Writing) -> None:
    for _, kind, what in list(writing.changes(0, 1 << 30)):
        if kind == tables.KEYS_CHANGED:
            writing.withdraw(kind, what)
    writing.set_number(IMPORTING, 1)


def _took_keys(writing: Writing, name: str) -> None:
    """Announce a key file to our own replicas; its slots count as used."""
    writing.announce(tables.KEYS_CHANGED, name.encode())
    if name != ROOT:
        behind = (int(name[5:11]) + 1) * SLOTS
        writing.set_number(RESERVED, max(writing.number(RESERVED), behind))


def _tier(change: Change) -> int:
    return TIERS.get(change.pool, 0)
