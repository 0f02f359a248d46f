"""Rows of the index that have no checksum are held against the call's record, which authenticates.

Of each call of an open pool: when it was, when it may go, which recordings of others it has streams
in, what `state` says of its kind, and that the feed has it. What is not as the record says is
written as it says, in one transaction that looks again. Search rows:
storaged.integrity.labelcheck; rows that belong to no call: storaged.integrity.rowsweep. FORMAT.md
§9. When it runs: storaged.integrity.scrub.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from spanvault.messages import Call
from storaged.faults import Fault
from storaged.format import record
from storaged.format.sealing import HEADER_BYTES, Header
from storaged.index import callrows
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import FINAL, OBJECT, OBJECT_CHANGED, RECORD_CHANGED, SEALED, State
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.pools.vaults import Vault, Vaults

log = logging.getLogger(__name__)
ROWS: Final = 200  # calls looked at in one view, some 10 ms
COST: Final = 4096  # bytes that looking at a call counts as: at most a quarter of a core


class _Opened(NamedTuple):
    """A call's record, and the call's row with pool and key as the record has them."""

    call: Call
    state: State


class RowCheck:
    """Checks the rows of calls of all pools that are open. For one thread.

    clock_ns: since 1970.  mended: rows since the start, by table.
    """

    def __init__(self, index: Index, vaults: Vaults, clock_ns: Callable[[], int]) -> None:
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self.mended: dict[str, int] = {}

    def checking(self, after: bytes, until: bytes) -> Iterator[int]:
        """Check the calls of some ids, and mend; gives what it cost, in bytes read.

        until: the last id of them. Raises OSError, lmdb.Error.
        """
        at: bytes | None = after
        while at is not None:
            with self._index.reading() as view:
                ids, at = _ids(view, at, until)
                wrong = [one for one in ids if self._wrong(view, one)]
            yield COST * len(ids)
            if wrong:
                self._note(self._index.write(partial(self._mend, ids=wrong)))

    def call(self, view: View, call_id: bytes) -> Call | None:
        """The record of a call, if its pool is open, and it is the one that `state` means."""
        found = self._opened(view, call_id)
        return found.call if found is not None else None

    def _opened(self, view: View, call_id: bytes) -> _Opened | None:
        state, sealed = _state(view, call_id), view.get(b"record", call_id)
        if state is None or sealed is None:
            return None
        if any(vault.locked and vault.tier == state.tier for vault in self._vaults):
            return None
        open_ones = [vault for vault in self._vaults if not vault.locked]
        # Its own first: that another's key opens it proves that the row was changed.
        for vault in sorted(open_ones, key=lambda one: one.tier != state.tier):
            try:
                head = record.parse_head(sealed)
                call = record.open_call(call_id, sealed, vault.dek(head.key_id))
                named = head.key_id == state.key_id or head.key_id in view.former(call_id)
            except (ValueError, Fault):
                continue  # the check of records tells, or nobody can
            if call.revision != state.revision:
                return None
            if named and vault.tier == state.tier:
                return _Opened(call, state)
            key_id = self._key_of(vault, call_id, state, head.key_id)
            return _Opened(call, state._replace(tier=vault.tier, key_id=key_id))
        return None

    def _key_of(self, vault: Vault, call_id: bytes, state: State, key_id: int) -> int:
        """The key of a call: its recording's, as that says, or its record's."""
        if state.bits & OBJECT:
            with contextlib.suppress(OSError, ValueError), vault.pool.reading(call_id) as data:
                header = Header.parse(data[:HEADER_BYTES])
                if header.recording_id == call_id:
                    return header.key_id
        return key_id

    def _wrong(self, view: View, call_id: bytes) -> set[bytes]:
        """The tables that do not say of a call what its record does."""
        found = self._opened(view, call_id)
        if found is None:
            return set()
        call, state = found
        wrong = {table for table, key, value in callrows.rows_of(call)
                 if not _has(view, table, key, value)}  # fmt: skip
        if self._as_it_is(view, call, state) != _state(view, call_id):
            wrong.add(b"state")
        if any(not is_told(view, kind + call_id) for kind in _announced(state)):
            wrong.add(b"feed")
        return wrong

    def _as_it_is(self, view: View, call: Call, state: State) -> State:
        """What `state` must say of a call's kind."""
        kind = self._kind(view, call.id, state)
        if not call.final:
            return state._replace(bits=kind)
        known = state.bits & FINAL
        closed = state.closed if known else tables.day_of(self._clock_ns())
        return state._replace(bits=kind | FINAL, closed=closed)

    def _kind(self, view: View, call_id: bytes, state: State) -> int:
        """Whether there is an object, and whether it is sealed: only then it has a size."""
        kind, opened = state.bits & (OBJECT | SEALED), view.get(b"open", call_id) is not None
        if opened and not state.size:
            return OBJECT
        if state.size and not opened:
            return OBJECT | SEALED
        if kind == 0 or opened:  # a sealed one goes on, or there is none
            return OBJECT if opened and not kind & SEALED else kind
        there = self._vaults.of(state.tier).pool.path(call_id).exists()
        return kind if there else 0

    def _mend(self, writing: Writing, ids: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Have the rows of calls say what their records do; gives call and table of each."""
        done = []
        for call_id in ids:
            wrong = self._wrong(writing, call_id)
            found = self._opened(writing, call_id)
            if not wrong or found is None:
                continue
            call = found.call
            for row in callrows.rows_of(call):
                writing.put(*row)
            state = self._as_it_is(writing, call, found.state)
            # Not by put_state: a key id that was changed is no key of the call's, to go with it.
            writing.put(b"state", call_id, tables.serialize_state(state))
            key_id = record.parse_head(writing.get(b"record", call_id) or b"").key_id
            if key_id != state.key_id:
                writing.put_former(call_id, key_id)
            for kind in _announced(state):
                if not is_told(writing, kind + call_id):
                    announce_anew(writing, kind, call_id)
            done += [(call_id, table) for table in sorted(wrong)]
        return done

    def _note(self, done: list[tuple[bytes, bytes]]) -> None:
        for call_id, table in done:
            name = table.decode()
            self.mended[name] = self.mended.get(name, 0) + 1
            log.warning("A row of the index was not what its call's record says, and was mended",
                        extra={"RECORDING_ID": call_id.hex(), "TABLE": name})  # fmt: skip


def is_told(view: View, what: bytes) -> bool:
    """Whether a thing is in the feed, and once. what: a key of `fed`."""
    at = view.get(b"fed", what)
    return at is not None and len(at) == tables.POSITION.size and view.get(b"feed", at) == what


def announce_anew(writing: Writing, kind: bytes, what: bytes) -> None:
    """Put a thing into the feed again, and take from it no row that is another's."""
    if not is_told(writing, kind + what):
        writing.delete(b"fed", kind + what)
    writing.announce(kind, what)


def _announced(state: State) -> Iterator[bytes]:
    """What the feed must have of a call that has a record."""
    yield RECORD_CHANGED
    if state.bits & OBJECT and state.bits & SEALED:
        yield OBJECT_CHANGED


def _state(view: View, call_id: bytes) -> State | None:
    try:
        return view.state(call_id)
    except Fault:
        return None  # told of where it is needed


def _has(view: View, table: bytes, key: bytes, value: bytes) -> bool:
    if table in tables.MULTIPLE:
        return bool(view.cursor(table).set_key_dup(key, value))
    return view.get(table, key) == value


def _ids(view: View, after: bytes, until: bytes) -> tuple[list[bytes], bytes | None]:
    """Some ids of `state` behind one; and the last, None: there are no more."""
    ids: list[bytes] = []
    cursor = view.cursor(b"state")
    more = cursor.set_range(after + b"\0")
    while more and (key := bytes(cursor.key())) <= until:
        if len(ids) == ROWS:
            return ids, ids[-1]
        ids.append(key)
        more = cursor.next()
    return ids, None
