"""One pool's rows of a new index, from its ledger and its objects.

Three passes, each bounded in memory: the ledger's entries become records and rows as they are; each
object is held against its row, or read where there is none; then every record is opened for what
a search needs. What cannot be read is named, counted and passed over: the rest is rebuilt. Nothing
on disk is changed, but that days which have no key get one. FORMAT.md §7.2. The new index as a
whole, and its taking office: storaged.integrity.reindexing.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np

from spanvault.media.chunk import CHUNK, FRAME, Media
from spanvault.messages import Call
from storaged.faults import Fault
from storaged.format import ledger, record, seeking, walk
from storaged.format.ledger import DayKey, Entry, Place, Placed, Seal, Target
from storaged.format.sealing import HEADER_BYTES, LAST, Header
from storaged.index import callrows, erasures, labels
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import FINAL, OBJECT, SEALED, State
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.keys.keyring import Keyring
from storaged.pools import ledgerfile
from storaged.pools.pool import ObjectFile, Pool
from storaged.pools.vaults import Vault
from storaged.recordings.gathering import Gathered, placeholder

log = logging.getLogger(__name__)
AT_ONCE: Final = 1000  # rows of a transaction
_NAME: Final = re.compile(r"([0-9a-f]{32})\.svr")
_SEALED: Final = OBJECT | SEALED
T = TypeVar("T")
Tell = Callable[[str, int], None]  # of a phase: how many are done


class Report:
    """What was rebuilt, and what was not."""

    def __init__(self, day: int) -> None:
        """day: since 1970, on which it is made."""
        self.day = day
        self.calls = self.recordings = self.unsealed = self.hashed = 0
        self.destroyed = 0  # calls or recordings whose keys are gone
        self.faults = 0
        self.doomed: set[tuple[str, int]] = set()  # pool and id of keys that erasures name

    def fault(self, where: Path | str, error: object) -> None:
        """Name what could not be rebuilt."""
        self.faults += 1
        log.error("Not rebuilt", extra={"WHERE": str(where), "FAULT": str(error)})


class _Object(NamedTuple):
    """What was found of an object. call: the record it was sealed with; committed: if unsealed."""

    state: State
    committed: int | None
    call: Call | None


class Rebuilder:
    """Rebuilds the rows of one pool that is open."""

    def __init__(
        self, index: Index, vault: Vault, report: Report, tell: Tell, clock_ns: Callable[[], int]
    ) -> None:
        self._index, self._vault, self._report, self._tell = index, vault, report, tell
        self._clock_ns = clock_ns
        self._ring: Keyring = vault.keyring
        self._days: dict[int, dict[int, None]] = {}  # keys that the ledger names, and are there

    def ledger(self) -> None:
        """Every entry of the pool's ledger."""
        for path in self._vault.pool.ledger.strangers():
            self._report.fault(path, "no file of a ledger")
        done = 0
        for some in _portions(self._entries(), AT_ONCE):
            self._index.write(partial(self._put_entries, entries=some))
            done += len(some)
            self._tell(f"{self._vault.name}: ledger", done)
        self._give_keys(self._days)

    def objects(self) -> None:
        """Every object of the pool, against what the ledger said of it."""
        done = 0
        for some in _portions(self._found(), AT_ONCE):
            self._index.write(partial(self._put_objects, some=some))
            done += len(some)
            self._report.recordings += len(some)
            self._tell(f"{self._vault.name}: recordings", done)

    def records(self) -> None:
        """What a search needs, of every call of the pool."""
        done, at = 0, b""
        while ids := self._ids_behind(at):
            with self._index.reading() as view:
                opened = [(one, self._opened(view, one)) for one in ids]
                there = [call for _, call in opened if call is not None]
                missing = self._vault.labels.missing(view, there)
            if missing:
                self._give_keys(missing)
            self._index.write(partial(self._put_calls, opened=opened))
            at, done = ids[-1], done + len(ids)
            self._report.calls += sum(call is not None for _, call in opened)
            self._tell(f"{self._vault.name}: calls", done)

    # --- the ledger ----------------------------------------------------------------------------

    def _entries(self) -> Iterator[Entry]:
        ring, tier = self._ring, self._vault.tier
        for path in self._vault.pool.ledger.files():
            try:
                for found in ledgerfile.walk(path, ring.store_id, tier, ring.ledger_key):
                    if found.entry is not None:
                        yield found.entry
                    else:
                        self._report.fault(path, f"at byte {found.offset}: {found.fault}")
            except OSError as error:
                self._report.fault(path, error.strerror)

    def _put_entries(self, writing: Writing, entries: Iterable[Entry]) -> None:
        for entry in entries:
            try:
                self._put_entry(writing, entry)
            except ValueError as error:
                self._report.fault(f"ledger of pool {self._vault.name}, {entry.id.hex()}", error)

    def _put_entry(self, writing: Writing, entry: Entry) -> None:
        if entry.kind == ledger.RECORD:
            self._put_record(writing, entry)
        elif entry.kind == ledger.SEALED:
            seal = Seal.parse(entry.body)
            if not self._destroyed(seal.key_id):
                state = State(seal.key_id, seal.size, seal.sha256, -1, self._vault.tier, _SEALED)
                writing.put_state(entry.id, state)
        elif entry.kind == ledger.ERASURE:
            erasure = erasures.recover(writing, entry.body)
            # Keys that a crash kept from being destroyed: the next start does.
            self._report.doomed |= {
                (one.pool, key_id) for one in erasure.recordings for key_id in one.key_ids
            }
        elif entry.kind == ledger.TARGET:
            target = Target.parse(entry.body)
            writing.put(b"target", target.name, target.row)
        elif entry.kind == ledger.DAY_KEY:
            given = DayKey.parse(entry.body)
            if not self._destroyed(given.key_id):
                self._days.setdefault(given.day, {})[given.key_id] = None
        elif entry.kind == ledger.PLACED:
            placed = Placed.parse(entry.body)
            writing.put(b"placed", entry.id, bytes((placed.tier,)))
            for recording_id in placed.recordings:
                writing.put(b"shared", recording_id, entry.id)

    def _put_record(self, writing: Writing, entry: Entry) -> None:
        """The record as it is, unless there is a newer one; and a row where there is none."""
        head, tier = record.parse_head(entry.body), self._vault.tier
        if self._destroyed(head.key_id):
            return
        state, known = writing.state(entry.id), writing.get(b"record", entry.id)
        if state is None or state.tier != tier:  # or a pool below had it before it was moved
            state, known = State(head.key_id, 0, bytes(32), -1, tier, 0), None
            writing.put_state(entry.id, state)
        if head.key_id != state.key_id:
            writing.put_former(entry.id, head.key_id)
        if known is None or record.parse_head(known).revision <= head.revision:
            writing.put(b"record", entry.id, entry.body)

    def _destroyed(self, key_id: int) -> bool:
        """Whether a key is gone for good, or will be; if its page is damaged, nobody knows."""
        if (self._vault.name, key_id) in self._report.doomed:
            return True
        try:
            self._vault.dek(key_id)
        except Fault as fault:
            return fault.code == "not_found"
        return False

    # --- the objects ---------------------------------------------------------------------------

    def _found(self) -> Iterator[tuple[bytes, _Object]]:
        for recording_id, path in objects(self._vault.pool, self._report):
            with self._index.reading() as view:
                if view.erased(recording_id):
                    continue
                state = view.state(recording_id)
                recorded = view.get(b"record", recording_id) is not None
            try:
                found = self._examine(path, recording_id, state, recorded=recorded)
            except (ValueError, OSError, Fault) as error:
                self._report.fault(path, error)
            else:
                if found is not None:
                    yield recording_id, found

    def _examine(
        self, path: Path, recording_id: bytes, state: State | None, *, recorded: bool
    ) -> _Object | None:
        """An object, and how it fits its row; None if its key is gone."""
        with self._vault.pool.reading(recording_id) as data:
            header = Header.parse(data[:HEADER_BYTES])
            if (header.recording_id, header.tier) != (recording_id, self._vault.tier):
                raise ValueError("the object of another recording or pool")
            if self._destroyed(header.key_id):
                self._report.destroyed += 1
                return None
            known = state if state and state[4:6] == (self._vault.tier, _SEALED) else None
            if known is not None and known.key_id == header.key_id and known.size >= len(data):
                if known.size > len(data):
                    self._report.fault(path, f"cut: {len(data)} of {known.size} bytes")
                call = self._call_of(path, data, recording_id, recorded=recorded)
                return _Object(known, None, call)
            return self._read(path, data, known.size if known else 0, recorded=recorded)

    def _read(self, path: Path, data: ObjectFile, committed: int, *, recorded: bool) -> _Object:
        """An object whose row is not known: all of it is read."""
        found, tier = walk.resume(data, committed, self._vault.dek), self._vault.tier
        for fault in found.faults:
            self._report.fault(path, fault)
        writer = found.writer
        if found.sealed and found.end == len(data):
            self._report.hashed += 1
            digest = writer.digest.digest()
            state = State(writer.key_id, found.end, digest, -1, tier, _SEALED)
            call = self._call_of(path, data, writer.recording_id, recorded=recorded)
            return _Object(state, None, call)
        state = State(writer.key_id, 0, bytes(32), -1, tier, OBJECT)
        call = None if recorded else self._stand_in(data, writer.recording_id)
        self._report.unsealed += 1
        return _Object(state, found.end, call)

    def _call_of(
        self, path: Path, data: ObjectFile, recording_id: bytes, *, recorded: bool
    ) -> Call | None:
        """The record in an object's trailer; if there is none at all, what the object tells."""
        try:
            plain = seeking.contents(data, self._vault.dek).record
            if plain:
                return record.decode_call(plain)
        except (ValueError, Fault) as error:
            self._report.fault(path, error)
        return None if recorded else self._stand_in(data, recording_id)

    def _stand_in(self, data: ObjectFile, recording_id: bytes) -> Call | None:
        """What an object tells of a call whose record is nowhere."""
        layout = walk.walk(data)
        opener, chunks = walk.Opener(data, layout, self._vault.dek), []
        for place in layout.places:
            with contextlib.suppress(ValueError):  # it was told of
                if place.flag != LAST:
                    chunks += list(walk.chunks_of(opener.open(place), recording_id))
        if not chunks:
            return None
        table = np.array([piece.header for piece in chunks], CHUNK)
        frames = np.concatenate([piece.frames for piece in chunks]).astype(FRAME, copy=False)
        table["payload_bytes"] = 0  # the sound itself is not looked at
        return placeholder(recording_id, Gathered([Media(table, frames, memoryview(b""))]))

    def _put_objects(self, writing: Writing, some: Iterable[tuple[bytes, _Object]]) -> None:
        for recording_id, (state, committed, call) in some:
            known = writing.get(b"record", recording_id)
            if call is not None and (
                known is None or record.parse_head(known).revision < call.revision
            ):
                dek = self._vault.dek(state.key_id)
                sealed = record.seal_call(call, state.key_id, dek, os.urandom(12))
                writing.put(b"record", recording_id, sealed)
            if committed is not None:
                writing.put_committed([(recording_id, committed)])
            writing.put_state(recording_id, state)

    # --- the calls -----------------------------------------------------------------------------

    def _ids_behind(self, at: bytes) -> list[bytes]:
        """The next calls of this pool."""
        with self._index.reading() as view:
            cursor = view.cursor(b"state")
            found: list[bytes] = []
            more = cursor.set_range(at + b"\0")
            while more and len(found) < AT_ONCE:
                state = view.state(bytes(cursor.key()))
                if state is not None and state.tier == self._vault.tier:
                    found.append(bytes(cursor.key()))
                more = cursor.next()
        return found

    def _opened(self, view: View, call_id: bytes) -> Call | None:
        """A call's record; None, and told of, if there is none that opens."""
        sealed = view.get(b"record", call_id)
        if sealed is None:
            self._report.fault(f"recording {call_id.hex()}", "its call's record is nowhere")
            return None
        try:
            dek = self._vault.dek(record.parse_head(sealed).key_id)
            return record.open_call(call_id, sealed, dek)
        except (ValueError, Fault) as error:
            self._report.fault(f"record of call {call_id.hex()}", error)
            return None

    def _give_keys(self, missing: Iterable[int]) -> None:
        """Keys for days, in the ledger before a row lies under them.

        Those that a day had before are spent: with them goes what the index of before had, and
        nobody has to know under which of them rows of which calls ever lay.
        """
        given = {day: self._vault.take_key(self._index) for day in missing}
        if not given:
            return

        def put(writing: Writing, place: Place) -> None:
            tier = self._vault.tier
            writing.put_ledger(tier, place)
            for day, key_id in given.items():
                before = self._days.get(day, {})
                ids = [key_id, *labels.key_ids(writing, day, tier), *before]
                labels.put_key_ids(writing, day, tier, dict.fromkeys(ids))
                for one in before:
                    erasures.put_spent(writing, tier, one)

        entries = [DayKey(*each).entry() for each in given.items()]
        with self._vault.noting(entries, self._clock_ns()) as place:
            self._index.write(lambda writing: put(writing, place))

    def _put_calls(self, writing: Writing, opened: Iterable[tuple[bytes, Call | None]]) -> None:
        for call_id, call in opened:
            state, sealed = writing.state(call_id), writing.get(b"record", call_id)
            assert state is not None
            if writing.erased(call_id) or self._destroyed(state.key_id):
                callrows.remove_call(writing, call_id, call)
                continue
            if call is not None and sealed is not None:
                state = state._replace(revision=call.revision)
                if call.heard_by:
                    state = state._replace(capture=writing.take_capture(call.heard_by))
                if call.final:  # when it had its last word nobody knows: its time begins anew
                    state = state._replace(bits=state.bits | FINAL, closed=self._report.day)
                writing.put_state(call_id, state)
                callrows.put_record(writing, self._vault.labels, call, sealed, None)
            if state.bits & SEALED:
                writing.announce(tables.OBJECT_CHANGED, call_id)
            writing.delete(b"placed", call_id)


def locked(index: Index, vault: Vault, store_id: bytes, report: Report) -> None:
    """Of a pool whose keys are not here: which calls are its, so that what comes finds them."""
    pool = vault.pool
    ids = {recording_id for recording_id, _ in objects(pool, report)}
    for path in pool.ledger.files():
        for found in ledgerfile.walk(path, store_id, vault.tier, None):
            if found.entry is not None and found.entry.kind in (ledger.RECORD, ledger.SEALED):
                ids.add(found.entry.id)

    def put(writing: Writing) -> None:
        writing.set_number(tables.UNINDEXED + vault.name.encode(), 1)
        for one in ids:
            if writing.erased(one) is None:
                writing.put(b"placed", one, bytes((vault.tier,)))

    index.write(put)


def objects(pool: Pool, report: Report) -> Iterator[tuple[bytes, Path]]:
    """Recording and path of every object; what is none is told of."""
    for folder in sorted(pool.objects.iterdir()):
        for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
            found = _NAME.fullmatch(path.name)
            if found and found[1][-2:] == folder.name:
                yield bytes.fromhex(found[1]), path
            elif path.suffix not in (".damaged", ".part"):
                report.fault(path, "no object, or not where it belongs")


def _portions(them: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(them)
    while some := list(islice(rest, size)):
        yield some
