"""Put a group on disk in the one order that survives a crash, and say when it is there.

Frames and ledger, then syncfs of every pool, then one index transaction; only then may the batches
be acknowledged (FORMAT.md §8). If any step fails, nothing of the group counts: its objects are cut
back to what was acknowledged, and it is tried again. Thread and retries:
storaged.recordings.committer. What is known of a recording that grows: storaged.recordings.growing.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import lmdb

from spanvault.messages import Call
from storaged.faults import Fault
from storaged.format import record, seeking
from storaged.format.ledger import RECORD, DayKey, Entry, Place, Seal
from storaged.format.ledger import SEALED as SEALED_OBJECT
from storaged.format.sealing import CHUNK_MAX, ObjectWriter
from storaged.index import callrows
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.labels import Labels
from storaged.index.rows import FINAL, OBJECT, SEALED, Reach, State
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.keys.keyring import Keyring
from storaged.pools.pool import NO_FILE, Pool
from storaged.recordings import resuming
from storaged.recordings.gathering import Gathered, Group, placeholder
from storaged.recordings.growing import Growing, Recording

log = logging.getLogger(__name__)


class Counts(NamedTuple):
    """What a commit did."""

    chunks: int
    duplicates: int
    sealed: int
    bytes: int


class _Commit(NamedTuple):
    """A group on its way into the index."""

    grown: dict[bytes, Recording]  # whose objects media came for
    states: dict[bytes, State | None]  # rows of what changes besides, before the group
    calls: list[Call]  # that replace what is stored
    keys: dict[bytes, int]  # their key ids
    records: dict[bytes, bytes]  # they, sealed
    old: dict[bytes, Call | None]  # what they replace
    seals: dict[bytes, Seal]
    place: Place | None  # how far the ledger reaches with it; None: nothing new is in it
    captures: dict[bytes, int]  # which each call is bound to


class Writer:
    """Everything that changes objects. For one thread."""

    def __init__(
        self, index: Index, keyring: Keyring, pool: Pool, clock_ns: Callable[[], int]
    ) -> None:
        self._index, self._keyring, self._pool, self._clock_ns = index, keyring, pool, clock_ns
        self._recordings = Growing(index, keyring, pool, clock_ns)
        self._labels = Labels(pool.tier, keyring)

    @property
    def growing(self) -> int:
        """Recordings whose media is not sealed yet, as far as this process met them."""
        return len(self._recordings)

    def forget(self, recording_ids: Iterable[bytes]) -> None:
        """Know nothing of these any more: they were erased."""
        for recording_id in recording_ids:
            self._recordings.forget(recording_id)

    def commit(self, group: Group, chunks: Gathered | None = None) -> Counts:
        """Make a group durable. Raises OSError, lmdb.Error, Fault: then nothing of it counts.

        chunks: its media, if that is sorted already, or only a part of it is this pool's.
        """
        chunks = Gathered(group.batches) if chunks is None else chunks
        touched = {**dict.fromkeys(chunks.rows), **dict.fromkeys(group.calls)}
        self._pool.check_place()  # before anything is written, or cut back
        try:
            if erased := self._recordings.look_up(touched):
                # What a spool still held is acknowledged, so that it goes there too.
                log.info("What came of erased calls was let go", extra={"CALLS": len(erased)})
                group, chunks = group.without(erased), chunks.without(erased)
            grown, stored = self._append_all(chunks)
            states = self._states(group, grown)
            calls, keys = self._newer_calls(group, chunks, states)
            self._begin_days(calls)
            with self._index.reading() as view:
                old = {call.id: self._stored_call(view, call.id) for call in calls}
            calls = [record.kept(old[call.id], call) for call in calls]
            group.calls.update((call.id, call) for call in calls if call.id in group.calls)
            seals = self._seal_all(group, states, grown)
            records = {call.id: self._sealed_record(call, keys[call.id]) for call in calls}
            place = self._write_down(calls, records, seals)
            if grown or seals or place:
                self._pool.sync()
            at_hand = _Commit(
                grown, states, calls, keys, records, old, seals, place, group.captures
            )  # fmt: skip
            after = self._index.write(lambda writing: self._record(writing, at_hand))
        except Exception as error:
            self._undo(touched)
            if isinstance(error, OSError) and error.errno in NO_FILE:
                self._pool.give_way()
            raise
        if place:
            self._pool.ledger.committed(place)
        self._settle(group, seals, after)
        return Counts(stored, chunks.count - stored, len(seals), group.bytes)

    def _states(self, group: Group, grown: dict[bytes, Recording]) -> dict[bytes, State | None]:
        """The committed rows of calls with news, and of media that is new or was final before.

        Those of recordings that merely grow are many, and change in nothing but their size.
        """
        states = {
            recording_id: one.state
            for recording_id, one in grown.items()
            if one.state is None or one.state.bits & FINAL
        }
        for call_id in group.calls:
            states[call_id] = self._recordings.state(call_id)
        return states

    def read_next(self) -> bool:
        """Read an object that goes on and was not read yet; between groups. False: all are."""
        return self._recordings.read_next()

    # --- the objects ---------------------------------------------------------------------------

    def _append_all(self, chunks: Gathered) -> tuple[dict[bytes, Recording], int]:
        """Seal and append what is not there yet. Returns what media came for, and chunks put."""
        grown: dict[bytes, Recording] = {}
        stored = 0
        streams, starts_ns = chunks.streams, chunks.starts_ns
        for recording_id, rows in chunks.rows.items():
            one = self._recordings.find(recording_id)
            all_new = (one.have.knows(streams[row], starts_ns[row]) for row in rows)
            if not one.read and not all(all_new):
                one = self._recordings.read(recording_id)
            grown[recording_id] = one
            add = one.have.add
            fresh = [row for row in rows if add(streams[row], starts_ns[row])]
            if fresh:
                stored += len(fresh)
                self._append(recording_id, one, chunks, fresh)
        return grown, stored

    def _append(
        self, recording_id: bytes, one: Recording, chunks: Gathered, rows: Sequence[int]
    ) -> None:
        if one.writer is None:
            one.writer = ObjectWriter(recording_id, one.key_id, self._pool.tier)
        if not one.writer.in_segment:
            self._begin(recording_id, one, one.writer)
        for flag, apart in chunks.by_key(rows):
            for run in chunks.runs(apart, CHUNK_MAX):
                times = [chunks.starts_ns[row] for row in run]
                frame = one.writer.data(chunks.parts(run), min(times), max(times), flag)
                self._pool.append(recording_id, frame)

    def _begin(self, recording_id: bytes, one: Recording, writer: ObjectWriter) -> None:
        """A new segment."""
        dek = self._keyring.dek(one.key_id)
        self._pool.append(recording_id, writer.begin(dek, self._clock_ns(), os.urandom(16)))
        one.sealed = False

    def _seal_all(
        self, group: Group, states: dict[bytes, State | None], grown: dict[bytes, Recording]
    ) -> dict[bytes, Seal]:
        """End the objects whose call has its last word, now or before."""
        seals = {}
        for recording_id, state in states.items():
            bits = state.bits if state else 0
            call = group.calls.get(recording_id)
            if not (call and call.final) and not bits & FINAL:
                continue
            if not self._recordings.known(recording_id) and bits & (OBJECT | SEALED) != OBJECT:
                continue  # no media, or sealed and nothing new
            one = self._recordings.find(recording_id)
            if one.writer is None or one.sealed:
                continue
            one = self._recordings.read(recording_id)
            if one.writer is None:  # it cannot be read, and was set aside
                grown.pop(recording_id, None)
                continue
            if call is None or not call.final:
                with self._index.reading() as view:
                    call = self._stored_call(view, recording_id)
            seals[recording_id] = self._seal(recording_id, one, one.writer, call)
        return seals

    def _seal(
        self, recording_id: bytes, one: Recording, writer: ObjectWriter, call: Call | None
    ) -> Seal:
        if not writer.in_segment:
            self._begin(recording_id, one, writer)
        data = writer.last(record.encode_call(call) if call else b"")
        self._pool.append(recording_id, data)
        self._pool.forget(recording_id)
        one.sealed = True
        return Seal(one.key_id, writer.size, writer.digest.digest())

    def _begin_days(self, calls: Sequence[Call]) -> None:
        """Name a key for each day that has none, before a row lies under it.

        What a crash or a failing disk leaves of a transaction is in LMDB's free pages: under a key
        that nothing names no erasure would reach it.
        """
        with self._index.reading() as view:
            missing = self._labels.missing(view, calls)
        if not missing:
            return
        days = {day: self._recordings.take_key(b"day %d" % day) for day in sorted(missing)}
        place = self._append_entries([DayKey(*each).entry() for each in days.items()])
        self._pool.ledger.sync()

        def put(writing: Writing) -> None:
            writing.put_ledger(self._pool.tier, place)
            self._labels.begin(writing, days)

        self._index.write(put)
        self._pool.ledger.committed(place)
        self._recordings.named(days.values())

    def _write_down(
        self, calls: Sequence[Call], records: dict[bytes, bytes], seals: dict[bytes, Seal]
    ) -> Place | None:
        """Into the ledger what the objects do not say: a record that was sealed is in its own."""
        entries = [
            Entry(RECORD, call.id, records[call.id])
            for call in calls if not (call.final and call.id in seals)
        ]  # fmt: skip
        entries += [Entry(SEALED_OBJECT, one, seal.serialize()) for one, seal in seals.items()]
        return self._append_entries(entries) if entries else None

    def _append_entries(self, entries: Sequence[Entry]) -> Place:
        ring = self._keyring
        return self._pool.ledger.append(entries, ring.store_id, ring.ledger_key, self._clock_ns())

    # --- the call records ----------------------------------------------------------------------

    def _newer_calls(
        self, group: Group, chunks: Gathered, states: dict[bytes, State | None]
    ) -> tuple[list[Call], dict[bytes, int]]:
        """Calls that replace what is stored, stand-ins where there is none, and their key ids."""
        newer: list[Call] = []
        keys: dict[bytes, int] = {}
        for recording_id, state in states.items():
            call = group.calls.get(recording_id)
            if call is None and state is None:
                call = placeholder(recording_id, chunks)
            if call is not None and (state is None or call.revision > state.revision):
                keys[call.id] = self._key_for(call.id, state)
                newer.append(call)
        return newer, keys

    def _sealed_record(self, call: Call, key_id: int) -> bytes:
        return record.seal_call(call, key_id, self._keyring.dek(key_id), os.urandom(12))

    def _stored_call(self, view: View, call_id: bytes) -> Call | None:
        """The stored revision; where it is damaged, that of the recording; None if neither is."""
        sealed = view.get(b"record", call_id)
        if sealed is None:
            return None
        try:
            dek = self._keyring.dek(record.parse_head(sealed).key_id)
            return record.open_call(call_id, sealed, dek)
        except (ValueError, Fault) as error:
            log.error("A call record is damaged",
                      extra={"RECORDING_ID": call_id.hex(), "FAULT": str(error)})  # fmt: skip
            return self._sealed_call(view, call_id)

    def _sealed_call(self, view: View, call_id: bytes) -> Call | None:
        """The record that a recording was sealed with: what follows must not take it away."""
        state = view.readable_state(call_id)
        if state is None or not state.bits & SEALED:
            return None  # it had no last word: whatever follows replaces it whole
        with contextlib.suppress(ValueError, OSError, Fault):
            with self._pool.reading(call_id, state.size) as data:
                plain = seeking.contents(data, self._keyring.dek).record
            call = record.decode_call(plain)
            return call if call.id == call_id else None
        return None

    def _key_for(self, call_id: bytes, state: State | None) -> int:
        """The key of a call's next record: its recording's, unless that does not open any more."""
        if state is None or self._recordings.known(call_id):
            return self._recordings.find(call_id).key_id
        try:
            self._keyring.dek(state.key_id)
        except Fault:
            return self._recordings.take_key(call_id)
        return state.key_id

    # --- the index -----------------------------------------------------------------------------

    def _record(self, writing: Writing, commit: _Commit) -> dict[bytes, State]:
        """The group's one transaction: gives the rows that it changed.

        May run twice, so it changes nothing but the index.
        """
        if writing.number(tables.IMPORTING):
            writing.set_number(tables.IMPORTING, 0)  # from now on the store has calls of its own
        writing.put_ledger(self._pool.tier, commit.place)
        for name in self._recordings.new_keys:
            writing.announce(tables.KEYS_CHANGED, name.encode())
        after: dict[bytes, State] = {}
        for call in commit.calls:
            after[call.id] = self._put_call(writing, call, commit)
        self._grow(writing, commit, after)
        for recording_id, seal in commit.seals.items():
            state = after.get(recording_id) or commit.states[recording_id]
            assert state is not None
            after[recording_id] = self._put_sealed(writing, recording_id, state, seal)
        for recording_id, state in after.items():
            writing.put_state(recording_id, state)
        return after

    def _put_call(self, writing: Writing, call: Call, commit: _Commit) -> State:
        key_id, sealed = commit.keys[call.id], commit.records[call.id]
        callrows.put_record(writing, self._labels, call, sealed, commit.old[call.id])
        state = commit.states[call.id] or State(key_id, 0, bytes(32), -1, self._pool.tier, 0)
        if key_id != state.key_id:
            writing.put_former(call.id, key_id)
        if not state.capture:
            state = state._replace(capture=commit.captures.get(call.id, 0))
        if call.final and not state.bits & FINAL:
            closed = tables.day_of(self._clock_ns())
            state = state._replace(bits=state.bits | FINAL, closed=closed)
        return state._replace(revision=call.revision)

    def _grow(self, writing: Writing, commit: _Commit, after: dict[bytes, State]) -> None:
        """Note how far the objects reach that go on. after: gets the rows that change by it."""
        objects: list[tuple[bytes, Reach | int]] = []
        for recording_id, one in commit.grown.items():
            if one.sealed:
                continue  # in this commit, or nothing but duplicates came for it
            state = after.get(recording_id, one.state)
            assert one.writer is not None
            assert state is not None
            objects.append((recording_id, resuming.reach(one.writer, one.have)))
            bits = (state.bits | OBJECT) & ~SEALED
            if bits != state.bits or one.key_id != state.key_id:
                after[recording_id] = state._replace(bits=bits, key_id=one.key_id)
        writing.put_committed(objects)

    def _put_sealed(self, writing: Writing, recording_id: bytes, state: State, seal: Seal) -> State:
        key_id, bits = self._recordings.find(recording_id).key_id, state.bits | OBJECT | SEALED
        writing.delete(b"open", recording_id)
        writing.announce(tables.OBJECT_CHANGED, recording_id)
        return state._replace(key_id=key_id, size=seal.size, sha256=seal.sha256, bits=bits)

    def _settle(self, group: Group, seals: Iterable[bytes], after: dict[bytes, State]) -> None:
        """The group is durable: remember its rows, forget what is sealed."""
        for recording_id, state in after.items():
            if one := self._recordings.known(recording_id):
                one.state = state
        ended = [call.id for call in group.calls.values() if call.final]
        for recording_id in [*seals, *ended]:
            self._recordings.forget(recording_id)
        self._recordings.committed()

    # --- when it did not work ------------------------------------------------------------------

    def _undo(self, touched: Iterable[bytes]) -> None:
        """Cut objects back to what was acknowledged, and read them anew when they go on.

        A cut that fails too is made up for when the object is next read: what is behind was never
        acknowledged, and a new segment has a new key.
        """
        all_cut = True
        for recording_id in touched:
            self._recordings.forget(recording_id)
            try:
                self._cut_back(recording_id)
            except (OSError, lmdb.Error, Fault):
                all_cut = False
        try:
            self._pool.ledger.cut_back()
        except OSError:
            all_cut = False
        self._recordings.undone(all_cut=all_cut)

    def _cut_back(self, recording_id: bytes) -> None:
        with self._index.reading() as view:
            state, committed = view.state(recording_id), view.committed(recording_id)
        if state and state.bits & SEALED:
            self._pool.cut(recording_id, state.size)
        elif committed or self._pool.path(recording_id).exists():
            self._pool.cut(recording_id, committed or 0)
