"""Files of a ledger that are missing, cut or damaged: what they held is written anew elsewhere.

While the index is whole it has all of a ledger that still counts. So what no other file has is
appended to the newest, as anything that is acknowledged, and the files that failed are set aside:
none of the ledger any more. Nothing is written of an erased call, for the index has nothing of it;
each record is opened first, so nothing is under a key that no row names. Where it is stands in the
index: a restart goes on there. FORMAT.md §9. What is missing: storaged.integrity.ledgerlacking. Who
finds it: storaged.integrity.ledgercheck. When it runs: storaged.integrity.scrub.
"""

import hashlib
import logging
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from storaged.faults import Fault
from storaged.format import ledger
from storaged.format.ledger import DayKey, Entry, Placed, Seal, Target
from storaged.index import damage, erasures, labels, ledgerheads
from storaged.index.environment import Index
from storaged.index.rows import LEDGER_MENDING, SEALED
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.integrity import recordcheck
from storaged.integrity.ledgerlacking import Lacking
from storaged.pools.vaults import BASE, Vault, Vaults

log = logging.getLogger(__name__)
AT_ONCE: Final = 200  # of a kind with one sync
_COST: Final = 1 << 16  # bytes that a sync counts as
_ROWS: Final = 5000  # looked at in one view of the index
_PLACE: Final = struct.Struct("<8sBB")  # digest of the files' names, stage, whether all is sound
_CALLS, _ERASURES, _REST, _END = range(4)  # stages
T = TypeVar("T")
Wanted = Callable[[View], Iterable[Entry]]


class _Progress(NamedTuple):
    """Where a mending is. at: the last id of its stage that was seen to."""

    stage: int = _CALLS
    sound: bool = True
    at: bytes = b""


class LedgerMending:
    """Makes ledgers of open pools whole. For one thread; several may do the same.

    clock_ns: since 1970.  mended: POOL/NAME of files that were made up for since the start.
    """

    def __init__(self, index: Index, vaults: Vaults, clock_ns: Callable[[], int]) -> None:
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self.mended: list[str] = []
        self.written = 0  # entries, since the start

    def mending(self) -> Iterator[int]:
        """Make up for what is known to be damaged; gives bytes read. Raises OSError, lmdb.Error."""
        for vault in self._vaults:
            names = self._damaged(vault)
            try:
                if names and not vault.locked:
                    yield from self._mending(vault, names)
            except Fault as fault:
                if not vault.locked:
                    log.error("A ledger cannot be made whole yet",
                              extra={"POOL": vault.name, "FAULT": fault.error})  # fmt: skip

    def _damaged(self, vault: Vault) -> list[str]:
        """Names of the pool's files that something is wrong with."""
        with self._index.reading() as view:
            found = damage.told_files(view, damage.LEDGERS)
        return [name.partition("/")[2] for name in found if name.startswith(f"{vault.name}/")]

    def _mending(self, vault: Vault, names: list[str]) -> Iterator[int]:
        with vault.held:
            vault.pool.ledger.leave()  # nothing more goes into one of them
        lacking, now = Lacking(self._index, vault, names), self._progress(vault, names)
        log.info("What files of a ledger held is being written anew",
                 extra={"POOL": vault.name, "FILES": ", ".join(names)})  # fmt: skip
        stages = [(_CALLS, self._calls)]
        stages += [(_ERASURES, self._erasures)] if vault.name == BASE else []
        for stage, step in (*stages, (_REST, self._rest)):
            at: bytes | None = now.at if now.stage == stage else b""
            while now.stage <= stage and at is not None:
                at, sound = yield from step(vault, lacking, at)
                now = _Progress(stage if at is not None else stage + 1, now.sound and sound,
                                at or b"")  # fmt: skip
                self._index.write(partial(_put_progress, pool=vault.name, names=names, now=now))
        self._finish(vault, names, sound=now.sound)

    def _calls(
        self, vault: Vault, lacking: Lacking, at: bytes
    ) -> Generator[int, None, tuple[bytes | None, bool]]:
        found = yield from lacking.calls(at)
        bad: set[bytes] = set()
        for ids in _portions(sorted(found.records | found.seals)):
            entries = partial(
                _of_calls, vault=vault, ids=ids, records=found.records, seals=found.seals, bad=bad
            )  # fmt: skip
            yield self._write(vault, entries)
        return found.at, not bad and not found.unread

    def _erasures(
        self, vault: Vault, lacking: Lacking, at: bytes
    ) -> Generator[int, None, tuple[bytes | None, bool]]:
        lost, behind = yield from lacking.erasures(at)
        for ids in _portions(sorted(lost), 10):  # of up to thousands of calls each
            yield self._write(vault, partial(_of_erasures, ids=ids))
        return behind, True

    def _rest(
        self, vault: Vault, lacking: Lacking, _: bytes
    ) -> Generator[int, None, tuple[bytes | None, bool]]:
        found = yield from lacking.rest()
        yield self._write(vault, partial(_of_days, tier=vault.tier, said=found.days))
        if vault.name == BASE:
            yield self._write(vault, partial(_of_targets, said=found.targets))
            for table in (b"placed", b"shared"):
                yield from self._waiting(vault, table)
        return None, True

    def _waiting(self, vault: Vault, table: bytes) -> Iterator[int]:
        """What waits in an intake: it has no other row, or one that says less."""
        after: tuple[bytes, bytes] | None = (b"", b"")
        while after is not None:
            with self._index.reading() as view:
                rows, after = _rows_behind(view, table, after)
            for some in _portions(rows):
                yield self._write(vault, partial(_of_waiting, vaults=self._vaults, table=table,
                                                 rows=some))  # fmt: skip
            yield _COST

    def _write(self, vault: Vault, wanted: Wanted) -> int:
        """Append what the index has now; nobody erases or changes it meanwhile. Gives the cost."""
        with vault.held:
            with self._index.reading() as view:
                entries = list(wanted(view))
            if not entries:
                return 0
            with vault.noting(entries, self._clock_ns()) as place:
                self._index.write(lambda writing: writing.put_ledger(vault.tier, place))
        self.written += len(entries)
        return _COST + sum(map(ledger.length, entries))

    def _finish(self, vault: Vault, names: list[str], *, sound: bool) -> None:
        """The files are none of the ledger any more, if nothing of them is missing now."""
        pool = vault.name
        with vault.held:
            if not sound:
                log.error("A ledger cannot be made whole: records of calls are damaged, too",
                          extra={"POOL": pool, "FILES": ", ".join(names)})  # fmt: skip
                self._index.write(partial(_forget_progress, pool=pool))
                return
            still = [name for name in names if name in self._damaged(vault)]
            with self._index.reading() as view:
                place = view.ledger(vault.tier)
            if place is not None and place.name in still:  # nothing was missing: a file is begun
                with vault.noting([], self._clock_ns()) as begun:
                    self._index.write(lambda writing: writing.put_ledger(vault.tier, begun))
            for name in still:
                vault.pool.ledger.set_aside(name)
            self._index.write(partial(_forget, pool=pool, names=still))
        self.mended += [f"{pool}/{name}" for name in still]
        log.warning("Files of a ledger are replaced: what they held was written anew",
                    extra={"POOL": pool, "FILES": ", ".join(still),
                           "ENTRIES": self.written})  # fmt: skip

    def _progress(self, vault: Vault, names: list[str]) -> _Progress:
        """Where a mending of these files was; of others it begins anew."""
        with self._index.reading() as view:
            row = view.get(b"meta", LEDGER_MENDING + vault.name.encode()) or b""
        if len(row) < _PLACE.size:
            return _Progress()
        digest, stage, sound = _PLACE.unpack(row[: _PLACE.size])
        if digest != _digest(names) or stage > _END:
            return _Progress()
        return _Progress(stage, bool(sound), row[_PLACE.size :])


def _of_calls(
    view: View, vault: Vault, ids: Sequence[bytes], records: set[bytes], seals: set[bytes],
    bad: set[bytes],
) -> Iterator[Entry]:  # fmt: skip
    """Records and seals of calls as they are now. bad: gets those whose record is not sound."""
    for one in ids:
        state = view.state(one)
        if state is None or state.tier != vault.tier or view.erased(one):
            continue
        if one in seals and state.bits & SEALED:
            seal = Seal(state.key_id, state.size, state.sha256)
            yield Entry(ledger.SEALED, one, seal.serialize())
        if one in records:
            sealed = view.get(b"record", one)
            try:
                recordcheck.check(view, vault, one, sealed or b"", state)
            except (ValueError, Fault):
                bad.add(one)
            else:
                yield Entry(ledger.RECORD, one, sealed or b"")


def _of_erasures(view: View, ids: Sequence[bytes]) -> Iterator[Entry]:
    for one in ids:
        if (row := view.get(b"erasure", one)) is not None:
            erasures.check(row)
            yield Entry(ledger.ERASURE, one, row)


def _of_days(view: View, tier: int, said: set[DayKey]) -> Iterator[Entry]:
    for one in labels.days(view):
        for key in (DayKey(one.day, key_id) for key_id in one.key_ids if one.tier == tier):
            if key not in said:
                yield key.entry()


def _of_targets(view: View, said: dict[bytes, bytes]) -> Iterator[Entry]:
    for name, row in view.cursor(b"target"):
        target = Target(bytes(name), bytes(row))
        if said.get(target.name) != target.row:
            yield Entry(ledger.TARGET, bytes(16), target.serialize())


def _of_waiting(
    view: View, vaults: Vaults, table: bytes, rows: Sequence[tuple[bytes, bytes]]
) -> Iterator[Entry]:
    for key, value in rows:
        call_id, held = (key, ()) if table == b"placed" else (value, (key,))
        tier = view.placed(call_id)
        state = view.state(call_id)
        if tier is None and state is not None and held and _waits(vaults, state.tier):
            tier = state.tier
        if tier is not None and not view.erased(call_id):
            yield Entry(ledger.PLACED, call_id, Placed(tier, held).serialize())


def _waits(vaults: Vaults, tier: int) -> bool:
    """Whether anything waits for a pool."""
    try:
        return bool(len(vaults.of(tier).intake))
    except Fault:
        return True


def _rows_behind(
    view: View, table: bytes, after: tuple[bytes, bytes]
) -> tuple[list[tuple[bytes, bytes]], tuple[bytes, bytes] | None]:
    """Some rows of a table behind one; and the last of them, None: there are no more."""
    cursor = view.cursor(table)
    more = cursor.set_range_dup(*after) if table == b"shared" and after[0] else False
    if not more:
        more = cursor.set_range(after[0] + b"\0" if after[0] else b"\0")
    elif (bytes(cursor.key()), bytes(cursor.value())) == after:
        more = cursor.next()
    rows = list[tuple[bytes, bytes]]()
    while more and len(rows) < _ROWS:
        rows.append((bytes(cursor.key()), bytes(cursor.value())))
        more = cursor.next()
    return rows, rows[-1] if more and rows else None


def _portions(them: Iterable[T], size: int = AT_ONCE) -> Iterator[list[T]]:
    rest = iter(them)
    while some := list(islice(rest, size)):
        yield some


def _digest(names: Iterable[str]) -> bytes:
    return hashlib.sha256("\n".join(names).encode()).digest()[:8]


def _put_progress(writing: Writing, pool: str, names: list[str], now: _Progress) -> None:
    row = _PLACE.pack(_digest(names), now.stage, now.sound) + now.at
    writing.put(b"meta", LEDGER_MENDING + pool.encode(), row)


def _forget_progress(writing: Writing, pool: str) -> None:
    writing.delete(b"meta", LEDGER_MENDING + pool.encode())


def _forget(writing: Writing, pool: str, names: Iterable[str]) -> None:
    _forget_progress(writing, pool)
    for name in names:
        ledgerheads.forget_one(writing, f"{pool}/{name}")
        writing.delete(damage.LEDGERS.table, f"{pool}/{name}".encode())
