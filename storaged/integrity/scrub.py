"""The rolling check: every sealed object is read back and compared with its SHA-256 in the index.

In pools that are open the tag of each frame is checked as well. A round goes through the recordings
in order of their ids and is paced to end after half of `scrub_days`, so that one that is sealed
just behind it is still checked in time. Where it is stands in the index (FORMAT.md §7): a restart
goes on there. What is found: storaged.index.damage. Key files, each day:
storaged.integrity.keycheck. Call records, with the recordings of the same ids:
storaged.integrity.recordcheck. Is handed its clocks, and gives the seconds to wait; the thread it
runs on: storaged.scrubbing.
"""

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

import msgspec

from storaged.faults import Fault
from storaged.index import damage
from storaged.index.environment import Index
from storaged.index.rows import OBJECT, SEALED, State, decode
from storaged.index.view import View
from storaged.integrity import medium
from storaged.integrity.keycheck import KeyCheck
from storaged.integrity.ledgercheck import LedgerCheck
from storaged.integrity.ledgermending import LedgerMending
from storaged.integrity.recordcheck import RecordCheck
from storaged.integrity.rowcheck import RowCheck
from storaged.integrity.rowsweep import RowSweep
from storaged.integrity.statemending import StateMending
from storaged.pools.vaults import Vault, Vaults
from storaged.recordings.examining import examining

log = logging.getLogger(__name__)
FLOOR: Final = 1_000_000  # bytes a second; a small store is done long before it must be
SEEK: Final = 1 << 16  # what finding an object costs, in bytes read
_LARGEST: Final = 1 << 40  # that an object is reckoned with: a row that says more was changed
SAVE_S: Final = 60.0  # of work that a crash may repeat
LOOK_S: Final = 1.0  # how soon an erasure or a lock ends the check of an object
_REST_S: Final = 60.0
_ROWS: Final = 1000  # looked at in one view of the index: it must not be held long
_PLAN_REST_S: Final = 0.01
_DAY_S: Final = 86400
KEYS_S: Final = 86400.0  # from one check of the key files to the next
_SCRUB: Final = b"scrub"  # of table meta
Waits = Generator[float, None, None]
R = TypeVar("R")


class Round(msgspec.Struct):
    """Where a round is. planned, read: bytes.  objects, checked: recordings."""

    begun_ns: int
    until: bytes  # the last id there was when it began
    planned: int = 0
    objects: int = 0
    at: bytes = b""  # the last id that was checked
    read: int = 0
    checked: int = 0
    ended_ns: int | None = None
    before_ns: int | None = None  # when the round before ended
    ledger: str = ""  # the last file of a ledger that was checked: they come first
    records_mended: int = 0
    rows: bytes = b""  # which other rows were looked at: they come last
    rows_mended: int = 0


_round: Final = msgspec.msgpack.Decoder(Round)


class Pace:
    """How long to wait after reading. A pause is not made up for by a burst."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s, self._free_s = clock_s, clock_s()

    def spend(self, size: int, rate: float) -> float:
        """Seconds until more may be read. rate: bytes a second."""
        now_s = self._clock_s()
        self._free_s = max(self._free_s, now_s) + size / rate
        return self._free_s - now_s if size else 0.0


class Scrub:
    """Checks the objects of all pools, round after round. turning() is for one thread.

    days: each object at least once in so many; 0 turns it off.  ceiling: bytes a second.
    clock_ns: since 1970.  clock_s: monotonic.
    """

    def __init__(
        self, index: Index, vaults: Vaults, days: float, ceiling: float,
        clock_ns: Callable[[], int], clock_s: Callable[[], float],
    ) -> None:  # fmt: skip
        self._index, self._vaults = index, vaults
        self._period_s, self._ceiling = days * _DAY_S / 2, ceiling
        self._clock_ns, self._clock_s, self._pace = clock_ns, clock_s, Pace(clock_s)
        self._saved_s = self._keys_due_s = clock_s()
        self._keys = KeyCheck(index, vaults, clock_ns)
        self._ledgers = LedgerCheck(index, vaults, clock_ns)
        self._mending = LedgerMending(index, vaults, clock_ns)
        self._records = RecordCheck(index, vaults, clock_ns)
        self._rows = RowCheck(index, vaults, clock_ns)
        self._sweep = RowSweep(index, vaults, self._rows, clock_ns)
        self._states = StateMending(index, vaults)
        self._round: Round | None = None
        with index.reading() as view, view.passing():
            if kept := view.get(b"meta", _SCRUB):
                self._round = decode(_round, b"meta", kept)

    @property
    def off(self) -> bool:
        """Whether the settings want no check."""
        return self._period_s == 0

    def turning(self) -> Waits:
        """Check for ever; gives the seconds to wait before it goes on. Raises OSError, lmdb.Error.

        It may be begun again after that, and goes on where it was.
        """
        while True:
            if self._round is None or self._round.ended_ns is not None:
                yield from self._resting()
                yield from self._planning()
            yield from self._going_round()

    def save(self) -> None:
        """Write down where the round is. Raises OSError, lmdb.Error."""
        if self._round is None:
            return
        value = msgspec.msgpack.encode(self._round)
        self._index.write(lambda writing: writing.put(b"meta", _SCRUB, value))
        self._saved_s = self._clock_s()

    def fields(self, view: View) -> dict[str, Any]:
        """What a StatusReply tells of it. Any thread."""
        told: dict[str, Any] = {"state": "off" if self.off else "rests"}
        if one := self._round:
            if one.ended_ns is None and not self.off:
                told["state"] = "checks"
            told |= {
                "overdue": self._overdue(one),
                "checked": one.checked, "of": one.objects, "read_bytes": one.read,
                "since": _utc(one.begun_ns), "ended": _utc(one.ended_ns or one.before_ns),
                "mended_records": one.records_mended, "mended_rows": one.rows_mended,
            }  # fmt: skip
        return {**told, "damaged": view.count(b"damaged"), "damaged_ids": damage.told(view),
                "damaged_keys": damage.told_files(view, damage.KEYS),
                "mended_ledgers": self._mending.mended[-damage.TOLD:],
                "damaged_ledgers": damage.told_files(view, damage.LEDGERS),
                "damaged_records": damage.told_files(view, damage.RECORDS, damage.TOLD),
                "records_damaged": view.count(damage.RECORDS.table)}  # fmt: skip

    def _overdue(self, one: Round) -> str:
        """A line if a round takes longer than scrub_days; empty if it does not."""
        if one.ended_ns is not None or self.off:
            return ""
        at_best_s = max(0, one.planned - one.read) / self._ceiling
        taken_s = max(0.0, (self._clock_ns() - one.begun_ns) / 1e9) + at_best_s
        if taken_s <= 2 * self._period_s:
            return ""
        bounded = one.planned / self._ceiling > 2 * self._period_s
        return (
            f"the check of all recordings takes {taken_s / _DAY_S:.0f} days, longer than "
            f"scrub_days ({2 * self._period_s / _DAY_S:g}): "
            + ("raise scrub_mb_s" if bounded else "its disk is too slow, or too busy recording")
        )

    def _resting(self) -> Waits:
        """Until the next round is due; a clock that was set back does not put it off."""
        while self._round is not None:
            yield from self._minding_keys()
            passed_s = (self._clock_ns() - self._round.begun_ns) / 1e9
            if not 0 <= passed_s < self._period_s:
                return
            yield min(_REST_S, self._period_s - passed_s)

    def _minding_keys(self) -> Waits:
        """Check the key files, if that is due: they are few, and much hangs on each."""
        due = self._clock_s() >= self._keys_due_s
        for size in self._keys.checking() if due else self._keys.checking_new():
            yield self._pace.spend(size, self._ceiling)
        if due:
            for name in self._ledgers.new_or_gone():
                for size in self._ledgers.checking(name):
                    yield self._pace.spend(size, self._ceiling)
            yield from self._mending_ledgers()
            yield from self._searching_records()
            self._keys_due_s = self._clock_s() + min(KEYS_S, self._period_s)

    def _planning(self) -> Waits:
        """Begin a round: what there is to read decides how fast."""
        with self._index.reading() as view:
            cursor = view.cursor(b"state")
            until = bytes(cursor.key()) if cursor.last() else b""
        one, at = Round(self._clock_ns(), until, self._ledgers.size()), b""
        while at < until:
            with self._index.reading() as view:
                found, at = _sealed(view, at, until, _ROWS)
            one.planned += sum(_cost(state.size) for _, state in found)
            one.objects += len(found)
            yield _PLAN_REST_S
        one.before_ns = self._round.ended_ns if self._round else None
        self._round = one
        self.save()
        if one.planned / self._period_s > self._ceiling:
            log.warning(
                "The check of all recordings takes longer than scrub_days: raise scrub_mb_s",
                extra={
                    "BYTES": one.planned,
                    "DAYS": round(one.planned / self._ceiling / _DAY_S, 1),
                },
            )

    def _going_round(self) -> Waits:
        """Check what is left of the round."""
        one = self._round
        assert one is not None
        yield from self._checking_ledgers(one)
        while one.at < one.until:
            yield from self._minding_keys()
            with self._index.reading() as view:
                found, at = _sealed(view, one.at, one.until, _ROWS)
            yield from self._checking_rows(one, at)
            yield from self._checking_records(one, at)
            for recording_id, _ in found:
                try:
                    yield from self._checking(one, recording_id)
                except Exception as error:
                    if not isinstance(error, OSError):
                        one.at = recording_id  # ours: the next time it goes on behind it
                    raise
                one.at = recording_id
                one.checked += 1
                if self._clock_s() - self._saved_s >= SAVE_S:
                    self.save()
            one.at = at
            yield 0.0
        yield from self._searching_records()
        yield from self._sweeping(one)
        one.ended_ns = self._clock_ns()
        self.save()
        log.info(
            "All recordings were checked", extra={"RECORDINGS": one.checked, "BYTES": one.read}
        )

    def _checking_ledgers(self, one: Round) -> Waits:
        """Check the files of ledgers that were not in this round."""
        names = self._ledgers.names()
        for name in names:
            if name > one.ledger:
                for size in self._ledgers.checking(name):
                    yield self._spend(one, size)
                one.ledger = name
        self._ledgers.forget(names)
        yield from self._mending_ledgers()

    def _mending_ledgers(self) -> Waits:
        """Write anew what damaged files of ledgers held."""
        for size in self._mending.mending():
            yield self._pace.spend(size, self._ceiling)

    def _checking_records(self, one: Round, until: bytes) -> Waits:
        """Check the records of the calls up to an id, those without a recording as well."""
        found = yield from self._paced(self._records.checking(one.at, until))
        one.records_mended += len(found.mended)

    def _searching_records(self) -> Waits:
        """Look for records that were found damaged where ledgers have them."""
        found = yield from self._paced(self._records.searching())
        if self._round is not None:
            self._round.records_mended += len(found)

    def _paced(self, steps: Generator[int, None, R]) -> Generator[float, None, R]:
        """Steps that give bytes read, with the seconds to wait instead."""
        while True:
            try:
                size = next(steps)
            except StopIteration as done:
                found: R = done.value
                return found
            yield self._pace.spend(size, self._ceiling)

    def _checking_rows(self, one: Round, until: bytes) -> Waits:
        """Check the rows of the calls up to an id."""
        before = self._mended_rows
        for size in self._rows.checking(one.at, until):
            yield self._pace.spend(size, self._ceiling)
        one.rows_mended += self._mended_rows - before

    def _sweeping(self, one: Round) -> Waits:
        """Look for rows that belong to nothing, and at search rows; then at what is damaged."""
        before = self._mended_rows
        for size, at in self._sweep.sweeping(one.rows):
            one.rows = at
            one.rows_mended += self._mended_rows - before
            before = self._mended_rows
            yield self._pace.spend(size, self._ceiling)
            if self._clock_s() - self._saved_s >= SAVE_S:
                self.save()
        for size in self._states.mending():
            yield self._pace.spend(size, self._ceiling)
        one.rows_mended += self._mended_rows - before

    @property
    def _mended_rows(self) -> int:
        """Rows, and days of search rows, since the start."""
        rows = (*self._rows.mended.values(), *self._sweep.removed.values())
        return sum(rows) + self._sweep.labels.mended + self._states.mended

    def _checking(self, one: Round, recording_id: bytes) -> Waits:
        """Check an object, and note what was found."""
        with self._index.reading() as view:
            state = view.readable_state(recording_id)
        if state is None or not _is_sealed(state):
            return  # erased, or it goes on: it is sealed anew
        try:
            vault = self._vaults.of(state.tier)
        except Fault:
            return  # its pool is not set up here
        by_tag = not vault.locked
        faults = yield from self._examining(one, recording_id, state, vault)
        if faults:
            damage.note(self._index, recording_id, state, faults, self._clock_ns())
        elif faults is not None and by_tag:
            damage.clear(self._index, recording_id)
        yield self._spend(one, SEEK)

    def _examining(
        self, one: Round, recording_id: bytes, state: State, vault: Vault
    ) -> Generator[float, None, list[str] | None]:
        """An object's faults; None if it was erased, changed or locked meanwhile."""
        find_key = None if vault.locked else vault.dek
        try:
            # What lies behind the sealed bytes is being written, or a crash left it there.
            with medium.opened(vault.pool.path(recording_id), state.size) as data:
                steps, taken, looked_s = (
                    examining(recording_id, state, data, find_key), 0, self._clock_s(),
                )  # fmt: skip
                while True:
                    try:
                        next(steps)
                    except StopIteration as done:
                        self._spend(one, data.taken - taken)
                        found: list[str] = done.value.faults
                        return found
                    yield self._spend(one, data.taken - taken)
                    taken = data.taken
                    if self._clock_s() - looked_s >= LOOK_S:
                        looked_s = self._clock_s()
                        if not self._stands(recording_id, state, vault, locked=find_key is None):
                            return None  # and its key is let go
        except Fault as fault:
            return None if vault.locked else [fault.error]
        except OSError as error:
            if error.errno in medium.OURS:
                raise
            vault.pool.check_place()
            return [f"the object cannot be read ({error.strerror})"]

    def _stands(self, recording_id: bytes, state: State, vault: Vault, *, locked: bool) -> bool:
        """Whether an object is still the one whose check was begun, and may be opened."""
        with self._index.reading() as view:
            return view.readable_state(recording_id) == state and (locked or not vault.locked)

    def _spend(self, one: Round, size: int) -> float:
        """Count what was read; how long to wait for it, so that the round ends in time."""
        left_s = self._period_s - (self._clock_ns() - one.begun_ns) / 1e9
        wanted = (one.planned - one.read) / left_s if left_s > 0 else self._ceiling
        one.read += size
        return self._pace.spend(size, min(max(wanted, FLOOR), self._ceiling))


def _sealed(
    view: View, after: bytes, until: bytes, rows: int
) -> tuple[list[tuple[bytes, State]], bytes]:
    """Sealed recordings behind an id, out of so many rows at most; and the last id looked at."""
    found: list[tuple[bytes, State]] = []
    calls, at = view.calls(after), after
    for _ in range(rows):
        if (key := next(calls, None)) is None or key > until:
            return found, until
        state, at = view.readable_state(key), key
        if state is not None and _is_sealed(state):
            found.append((key, state))
    return found, at


def _is_sealed(state: State) -> bool:
    return bool(state.bits & OBJECT and state.bits & SEALED)


def _cost(size: int) -> int:
    """Bytes that the check of an object counts as."""
    return min(size, _LARGEST) + SEEK


def _utc(ns: int | None) -> str | None:
    """For people."""
    return None if ns is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ns // 10**9))
