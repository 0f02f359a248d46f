"""Where a check found damage, what `state` says of recording and record is held against the ledger.

The row may be what was changed, not the recording: then nothing that a replica has would fit it. A
row is mended if the last seal that the ledger has is another, and the object is of that SHA-256; or
if the record that is there opens, and the ledger has none later. Both authenticate. FORMAT.md §9.
Who finds damage: storaged.integrity.scrub, storaged.integrity.recordcheck.
"""

import hashlib
import logging
from collections.abc import Generator, Iterator
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from storaged.faults import Fault
from storaged.format import ledger, record, seeking
from storaged.format.ledger import Seal
from storaged.format.sealing import HEADER_BYTES, Header
from storaged.index import damage
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import OBJECT, OBJECT_CHANGED, RECORD_CHANGED, SEALED, State
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.integrity import medium
from storaged.pools import ledgerfile
from storaged.pools.vaults import Vault, Vaults

log = logging.getLogger(__name__)
MOST: Final = 10_000  # recordings, or records, looked at in a round
_STEP: Final = 1 << 20
_PART: Final = 1 << 20


class _Said(NamedTuple):
    """What a ledger says last of a call. revision: the highest; −2: it has none."""

    seal: Seal | None = None
    revision: int = -2


class StateMending:
    """Mends rows of `state` of open pools. For one thread. mended: rows since the start."""

    def __init__(self, index: Index, vaults: Vaults) -> None:
        self._index, self._vaults = index, vaults
        self.mended = 0

    def mending(self) -> Iterator[int]:
        """Look at what is known to be damaged; gives bytes read. Raises OSError, lmdb.Error."""
        for vault in self._vaults:
            with self._index.reading() as view:
                found = dict(islice(_damaged(view, vault.tier), MOST))
            try:
                if found and not vault.locked:
                    yield from self._mending(vault, found)
            except Fault as fault:
                if not vault.locked:
                    log.error("Rows of damaged recordings cannot be checked",
                              extra={"POOL": vault.name, "FAULT": fault.error})  # fmt: skip

    def _mending(self, vault: Vault, found: dict[bytes, State]) -> Iterator[int]:
        said = yield from _say(vault, found)
        for call_id, state in found.items():
            seal, revision = said.get(call_id, _Said())
            anew = state
            another = seal is not None and bool(state.bits & OBJECT) and seal != Seal(*state[:3])
            if seal is not None and another and (yield from _is_whole(vault, call_id, seal)):
                key_id, size, sha256 = seal
                anew = anew._replace(
                    key_id=key_id, size=size, sha256=sha256, bits=anew.bits | SEALED
                )
            now = self._revision(vault, call_id)
            if now is not None and now >= max(revision, _in_trailer(vault, call_id, anew)):
                anew = anew._replace(revision=now)
            if anew != state and self._index.write(
                partial(_put, call_id=call_id, before=state, anew=anew)
            ):
                self.mended += 1
                log.warning("A damaged row of a call was mended by the ledger",
                            extra={"RECORDING_ID": call_id.hex()})  # fmt: skip

    def _revision(self, vault: Vault, call_id: bytes) -> int | None:
        """The revision of the record that is there; None if it does not open."""
        with self._index.reading() as view:
            sealed = view.get(b"record", call_id) or b""
        try:
            dek = vault.dek(record.parse_head(sealed).key_id)
            return record.open_call(call_id, sealed, dek).revision
        except (ValueError, Fault):
            return None


def _damaged(view: View, tier: int) -> Iterator[tuple[bytes, State]]:
    """Calls of a pool whose recording or record is known to be damaged, and their rows."""
    ids = [bytes(key) for key in view.cursor(b"damaged").iternext(values=False)]
    for name in damage.told_files(view, damage.RECORDS):
        ids.append(bytes.fromhex(name))
    for one in ids:
        try:
            state = view.state(one)
        except Fault:
            continue
        if state is not None and state.tier == tier:
            yield one, state


def _say(vault: Vault, wanted: dict[bytes, State]) -> Generator[int, None, dict[bytes, _Said]]:
    """What the pool's ledger says last of some calls."""
    ring, said = vault.keyring, dict[bytes, _Said]()
    for path in vault.pool.ledger.files():
        taken = 0
        for found in ledgerfile.walk(path, ring.store_id, vault.tier, ring.ledger_key):
            entry = found.entry
            if entry is not None and entry.id in wanted:
                before = said.get(entry.id, _Said())
                if entry.kind == ledger.SEALED:
                    said[entry.id] = before._replace(seal=Seal.parse(entry.body))
                elif entry.kind == ledger.RECORD:
                    revision = max(before.revision, record.parse_head(entry.body).revision)
                    said[entry.id] = before._replace(revision=revision)
            if found.offset - taken >= _STEP:
                yield found.offset - taken
                taken = found.offset
    return said


def _is_whole(vault: Vault, call_id: bytes, seal: Seal) -> Generator[int, None, bool]:
    """Whether an object is what was sealed then."""
    digest = hashlib.sha256()
    try:
        with medium.opened(vault.pool.path(call_id), seal.size) as data:
            header = Header.parse(data[:HEADER_BYTES])
            if (header.recording_id, header.key_id) != (call_id, seal.key_id):
                return False
            for at in range(0, len(data), _PART):
                digest.update(data[at : at + _PART])
                yield _PART
    except (OSError, ValueError):
        return False
    return len(data) == seal.size and digest.digest() == seal.sha256


def _in_trailer(vault: Vault, call_id: bytes, state: State) -> int:
    """The revision of the record that a recording was sealed with; −2 if there is none."""
    if not state.bits & OBJECT or not state.bits & SEALED:
        return -2
    try:
        with vault.pool.reading(call_id, state.size) as data:
            plain = seeking.contents(data, vault.dek).record
        return record.decode_call(plain).revision if plain else -2
    except (ValueError, OSError, Fault):
        return -2


def _put(writing: Writing, call_id: bytes, before: State, anew: State) -> bool:
    """Put a row in place of a damaged one, unless that has changed meanwhile."""
    if writing.state(call_id) != before:
        return False
    # Not by put_state: a key id that was changed is no key of the call's, to go with it.
    writing.put(b"state", call_id, tables.serialize_state(anew))
    writing.delete(b"damaged", call_id)
    writing.delete(damage.RECORDS.table, call_id.hex().encode())
    writing.announce(RECORD_CHANGED, call_id)
    if anew.bits & SEALED:
        writing.announce(OBJECT_CHANGED, call_id)
    return True
