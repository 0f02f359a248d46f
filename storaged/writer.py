"""Put a group on disk in the one order that survives a crash, and say when it is there.

Frames, then syncfs of every pool, then one index transaction; only then may the batches be
acknowledged (FORMAT.md §8). If any step fails, nothing of the group counts: its objects are cut
back to what was acknowledged, and it is tried again. Thread and retries: storaged.committer.
"""

import errno
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import lmdb

from spanvault.messages import Call
from storaged import index as tables
from storaged import record, walk
from storaged.faults import Fault
from storaged.gathering import Group, Have, Piece, frames_of, placeholder
from storaged.index import FINAL, OBJECT, SEALED, Index, State, Writing
from storaged.keyring import Keyring
from storaged.pool import Pool
from storaged.sealing import CHUNK_MAX, ObjectWriter

log = logging.getLogger(__name__)
_REMEMBERED: Final = 20_000  # recordings kept in memory though nothing was added lately


class Recording:
    """One recording that grows, as this process knows it."""

    def __init__(self, key_id: int, writer: ObjectWriter | None = None) -> None:
        self.key_id = key_id
        self.writer = writer
        self.have = Have()
        self.sealed = False


class Counts(NamedTuple):
    """What a commit did."""

    chunks: int
    duplicates: int
    sealed: int
    bytes: int


class _Seal(NamedTuple):
    """An object that ended in this commit."""

    size: int
    sha256: bytes


class Writer:
    """Everything that changes objects. For one thread."""

    def __init__(
        self, index: Index, keyring: Keyring, pool: Pool, clock_ns: Callable[[], int]
    ) -> None:
        self._index, self._keyring, self._pool, self._clock_ns = index, keyring, pool, clock_ns
        self._recordings: OrderedDict[bytes, Recording] = OrderedDict()
        self._new_keys: list[str] = []  # key files made for the group at hand
        self._keys: dict[bytes, int] = {}  # key ids of its records
        self._taken: list[int] = []  # slots it took
        self._unused: list[int] = []  # slots that a group took which then came to nothing

    @property
    def growing(self) -> int:
        """Recordings whose media is not sealed yet, as far as this process met them."""
        known = list(self._recordings.values())
        return sum(1 for one in known if one.writer is not None and not one.sealed)

    def commit(self, group: Group) -> Counts:
        """Make a group durable. Raises OSError, lmdb.Error, Fault: then nothing of it counts."""
        ids = {**group.media, **group.calls}
        try:
            with self._index.reading() as view:
                states = {one: view.state(one) for one in ids}
            stored, duplicates = self._append_all(group)
            calls = self._newer_calls(group, states)
            seals = self._seal_all(group, states)
            old = {call.id: self._stored_call(call.id) for call in calls}
            if group.media or seals:
                self._pool.sync()
            self._index.write(lambda writing: self._record(writing, group, calls, old, seals))
        except Exception:
            self._undo(ids)
            raise
        self._new_keys, self._keys, self._taken = [], {}, []
        self._forget_idle(group, seals)
        return Counts(stored, duplicates, len(seals), group.bytes)

    def forget(self, recording_id: bytes) -> None:
        """Know nothing of a recording any more: it was changed behind this writer."""
        self._recordings.pop(recording_id, None)
        self._pool.forget(recording_id)

    # --- the objects ---------------------------------------------------------------------------

    def _append_all(self, group: Group) -> tuple[int, int]:
        stored = duplicates = 0
        for recording_id, pieces in group.media.items():
            one = self._recording(recording_id)
            fresh = [piece for piece in pieces if one.have.add(piece.stream, piece.start_ns)]
            duplicates += len(pieces) - len(fresh)
            stored += len(fresh)
            if fresh:
                self._append(recording_id, one, fresh)
        return stored, duplicates

    def _append(self, recording_id: bytes, one: Recording, pieces: list[Piece]) -> None:
        if one.writer is None:
            one.writer = ObjectWriter(recording_id, one.key_id, self._pool.tier)
        if not one.writer.in_segment:
            salt = os.urandom(16)
            dek = self._keyring.dek(one.key_id)
            self._pool.append(recording_id, one.writer.begin(dek, self._clock_ns(), salt))
            one.sealed = False
        for run in frames_of(pieces, CHUNK_MAX):
            parts = [part for piece in run for part in (piece.header, piece.frames, piece.payload)]
            times = [piece.start_ns for piece in run]
            self._pool.append(recording_id, one.writer.data(parts, min(times), max(times)))

    def _seal_all(self, group: Group, states: dict[bytes, State | None]) -> dict[bytes, _Seal]:
        """End the objects whose call has its last word, now or before."""
        seals = {}
        for recording_id, state in states.items():
            bits = state.bits if state else 0
            call = group.calls.get(recording_id)
            if not (call and call.final) and not bits & FINAL:
                continue
            if recording_id not in self._recordings and bits & (OBJECT | SEALED) != OBJECT:
                continue  # no media, or sealed and nothing new
            one = self._recording(recording_id)
            if one.writer is None or one.sealed:
                continue
            if call is None or not call.final:
                call = self._stored_call(recording_id)
            seals[recording_id] = self._seal(recording_id, one, one.writer, call)
        return seals

    def _seal(
        self, recording_id: bytes, one: Recording, writer: ObjectWriter, call: Call | None
    ) -> _Seal:
        if not writer.in_segment:
            dek = self._keyring.dek(one.key_id)
            self._pool.append(recording_id, writer.begin(dek, self._clock_ns(), os.urandom(16)))
        data = writer.last(record.encode_call(call) if call else b"")
        self._pool.append(recording_id, data)
        self._pool.forget(recording_id)
        one.sealed = True
        return _Seal(writer.size, writer.digest.digest())

    # --- what is known of a recording ----------------------------------------------------------

    def _recording(self, recording_id: bytes) -> Recording:
        one = self._recordings.get(recording_id)
        if one is None:
            one = self._recordings[recording_id] = self._find(recording_id)
        self._recordings.move_to_end(recording_id)
        return one

    def _find(self, recording_id: bytes) -> Recording:
        with self._index.reading() as view:
            state, committed = view.state(recording_id), view.committed(recording_id) or 0
        if state and state.bits & SEALED:
            committed = state.size
        try:
            one = self._resume(recording_id, committed)
            # A LAST frame that the index does not know of was not acknowledged: another follows.
            one.sealed = one.sealed and bool(state and state.bits & SEALED)
            return one
        except FileNotFoundError:
            return Recording(state.key_id if state else self._take_key())
        except (ValueError, Fault, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:
                raise
            # One object that is damaged, or whose key is, must not stop all others.
            self._set_aside(recording_id, error, committed)
            return Recording(self._take_key())

    def _resume(self, recording_id: bytes, committed: int) -> Recording:
        """Go on with an object that another process wrote."""
        with self._pool.reading(recording_id) as data:
            size = len(data)
            found = walk.resume(data, committed, self._keyring.dek)
        for fault in found.faults:
            log.error("Damage in a recording that goes on",
                      extra={"RECORDING_ID": recording_id.hex(), "FAULT": fault})  # fmt: skip
        if found.end < size:
            self._pool.cut(recording_id, found.end)
        one = Recording(found.writer.key_id, found.writer)
        one.have, one.sealed = Have(found.have), found.sealed
        return one

    def _set_aside(self, recording_id: bytes, error: Exception, committed: int) -> None:
        """Move what cannot be gone on with out of the way; if nothing in it counted, remove it."""
        path = self._pool.path(recording_id)
        if not committed:
            self._pool.cut(recording_id, 0)
            return
        log.error("A recording cannot be gone on with, it was set aside",
                  extra={"RECORDING_ID": recording_id.hex(), "FAULT": str(error)})  # fmt: skip
        path.rename(path.with_name(f"{path.stem}.{self._clock_ns()}.damaged"))

    def _take_key(self) -> int:
        if self._unused:
            key_id = self._unused.pop()
        else:
            key_id, changed = self._keyring.take(
                lambda: self._index.reserved_keys, self._index.reserve_keys
            )
            self._new_keys += changed
        self._taken.append(key_id)
        return key_id

    # --- the index -----------------------------------------------------------------------------

    def _newer_calls(self, group: Group, states: dict[bytes, State | None]) -> list[Call]:
        """Calls of the group that replace what is stored, and stand-ins where there is none."""
        newer = []
        for call in group.calls.values():
            state = states[call.id]
            if state is None or call.revision > state.revision:
                self._keys[call.id] = self._key_for(call.id, state)
                newer.append(call)
        for recording_id, pieces in group.media.items():
            if recording_id not in group.calls and states[recording_id] is None:
                newer.append(placeholder(recording_id, pieces))
                self._keys[recording_id] = self._recording(recording_id).key_id
        return newer

    def _stored_call(self, call_id: bytes) -> Call | None:
        """The stored revision; None if there is none, or it is damaged."""
        with self._index.reading() as view:
            sealed = view.get(b"record", call_id)
        if sealed is None:
            return None
        try:
            dek = self._keyring.dek(record.parse_head(sealed).key_id)
            return record.open_call(call_id, sealed, dek)
        except (ValueError, Fault) as error:
            log.error("A call record is damaged",
                      extra={"RECORDING_ID": call_id.hex(), "FAULT": str(error)})  # fmt: skip
            return None

    def _key_for(self, call_id: bytes, state: State | None) -> int:
        """The key of a call's next record: its recording's, unless that does not open any more."""
        if state is None or call_id in self._recordings:
            return self._recording(call_id).key_id
        try:
            self._keyring.dek(state.key_id)
        except Fault:
            return self._take_key()
        return state.key_id

    def _record(
        self, writing: Writing, group: Group, calls: list[Call],
        old: dict[bytes, Call | None], seals: dict[bytes, _Seal],
    ) -> None:  # fmt: skip
        """The group's one transaction. May run twice, so it changes nothing but the index."""
        if writing.number(tables.IMPORTING):
            writing.set_number(tables.IMPORTING, 0)  # from now on the store has calls of its own
        for name in self._new_keys:
            writing.announce(tables.KEYS_CHANGED, name.encode())
        for call in calls:
            self._put_call(writing, call, old[call.id])
        for recording_id in group.media:
            if recording_id not in seals:
                self._put_growing(writing, recording_id)
        for recording_id, seal in seals.items():
            self._put_sealed(writing, recording_id, seal)

    def _put_call(self, writing: Writing, call: Call, old: Call | None) -> None:
        state = writing.state(call.id)
        key_id = self._keys[call.id]
        sealed = record.seal_call(call, key_id, self._keyring.dek(key_id), os.urandom(12))
        writing.put_record(call, sealed, old, self._keyring.index_key)
        state = state or State(key_id, 0, bytes(32), -1, self._pool.tier, 0)
        bits = state.bits | (FINAL if call.final else 0)
        writing.put_state(call.id, state._replace(revision=call.revision, bits=bits))

    def _put_growing(self, writing: Writing, recording_id: bytes) -> None:
        one = self._recordings[recording_id]
        state = writing.state(recording_id)
        assert one.writer is not None
        assert state is not None
        if one.sealed:
            return  # nothing but duplicates came for it
        writing.put_committed(recording_id, one.writer.size)
        bits = (state.bits | OBJECT) & ~SEALED
        if (bits, one.key_id) != (state.bits, state.key_id):
            writing.put_state(recording_id, state._replace(bits=bits, key_id=one.key_id))

    def _put_sealed(self, writing: Writing, recording_id: bytes, seal: _Seal) -> None:
        state = writing.state(recording_id)
        assert state is not None
        key_id, bits = self._recordings[recording_id].key_id, state.bits | OBJECT | SEALED
        writing.put_state(
            recording_id,
            state._replace(key_id=key_id, size=seal.size, sha256=seal.sha256, bits=bits),
        )
        writing.put_committed(recording_id, None)
        writing.announce(tables.OBJECT_CHANGED, recording_id)

    # --- when it did not work ------------------------------------------------------------------

    def _undo(self, touched: Iterable[bytes]) -> None:
        """Cut objects back to what was acknowledged, and read them anew when they go on.

        A cut that fails too is made up for by the next _resume(): what is behind was never
        acknowledged, and a new segment has a new key.
        """
        all_cut = True
        for recording_id in touched:
            self.forget(recording_id)
            try:
                self._cut_back(recording_id)
            except (OSError, lmdb.Error):
                all_cut = False
        if all_cut:  # nothing was sealed by these keys: hours of trying again use up no slots
            self._unused += self._taken
        self._taken = []

    def _cut_back(self, recording_id: bytes) -> None:
        with self._index.reading() as view:
            state, committed = view.state(recording_id), view.committed(recording_id)
        if state and state.bits & SEALED:
            self._pool.cut(recording_id, state.size)
        elif committed or self._pool.path(recording_id).exists():
            self._pool.cut(recording_id, committed or 0)

    def _forget_idle(self, group: Group, seals: Iterable[bytes]) -> None:
        """Bound memory: what is sealed or long idle is read anew if it goes on after all."""
        ended = [call.id for call in group.calls.values() if call.final]
        for recording_id in [*seals, *ended]:
            self.forget(recording_id)
        while len(self._recordings) > _REMEMBERED:
            self._pool.forget(self._recordings.popitem(last=False)[0])
