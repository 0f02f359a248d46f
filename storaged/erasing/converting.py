"""Days whose calls were erased are brought under new keys, and the old keys are destroyed.

An erased call's search rows lie on in LMDB's free pages, and in gaps of pages in use, whatever is
deleted: so the key of their day must go, and the day's other rows first under another
(storaged.index.labels). That is done behind the erasure, some rows at a time, as days may have
millions: the table `due` says which keys have to go, and survives a crash. A day gets two keys: one
for what comes meanwhile, one that its rows are written under; when they are all there the old ones
are removed, their key is destroyed, with one new root for all that are ready, and the erasures that
waited for it are told of again. FORMAT.md §12. Rows: storaged.index.relabelling. Pace:
storaged.erasing.beside. The day's keys: storaged.erasing.daykeys.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

import lmdb
import msgspec

from spanvault.daemon.rules import POOLS
from spanvault.messages import DayKey, Erasure, RekeyedPage
from storaged.diskfaults import DAMAGED
from storaged.erasing.beside import Beside, Paced
from storaged.erasing.daykeys import DayKeys
from storaged.erasing.relisting import Relisting
from storaged.faults import Fault
from storaged.format.keypage import SLOTS
from storaged.format.ledger import Place
from storaged.index import erasures, labels, relabelling
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.relabelling import Relabelling
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.keys.keyring import Dropped
from storaged.keys.pagefiles import page_name
from storaged.pools.vaults import BASE, Vault, Vaults

log = logging.getLogger(__name__)
AT_ONCE: Final = 64  # days whose keys are destroyed with one root
_INDEX: Final = "index: "  # what a fault begins with that making the index anew mends
_REINDEX: Final = "Stop storaged and run: spanvault reindex"
_COSTLY_S: Final = 0.01  # a look at all that is due, of some thousand rows
_RESTS: Final = 20  # times as long as a costly one it is not repeated
_AGAIN_NS: Final = 60 * 10**9  # between two tries where something has to be mended first


class _Due(NamedTuple):
    """Keys of a day that must go. day: since 1970-01-01; None: they are no day's any more."""

    tier: int
    day: int | None
    key_ids: tuple[int, ...]


class _Seen(NamedTuple):
    """How many keys of days are due, for how many erasures, in which tiers."""

    days: int
    erasures: int
    tiers: frozenset[int]


class Converter:
    """Carries out what is due. For the thread of requests.

    late: whether recording waits for the disk; it may be set later.
    """

    def __init__(self, index: Index, vaults: Vaults, clock_ns: Callable[[], int]) -> None:
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self.late: Callable[[], bool] = lambda: False
        self.fault: str | None = None  # one line, while it cannot go on
        self._not_before_ns = 0
        self._beside = Beside(lambda: self.late())
        self._keys = DayKeys(index, clock_ns)
        self._seen, self._look_again_s = _Seen(0, 0, frozenset()), 0.0

    def fields(self, view: View) -> dict[str, Any]:
        """What a StatusReply tells of it."""
        due = self._seen_in(view)
        waiting = sorted({name for tier in due.tiers if (name := self._waits_for(tier))})
        state = self.fault or (f"waits for {', '.join(waiting)} to be unlocked" if waiting else "")
        if due.days and _is_restored(view):
            state = "waits for the end of a restore: the first call that is recorded or erased"
        return {
            "days_due": due.days,
            "erasures": due.erasures,
            "state": state or ("converts" if due.days else "rests"),
        }

    def _seen_in(self, view: View) -> _Seen:
        """What is due; where that is much, as of some seconds ago: somebody asks each second."""
        began_s = time.monotonic()
        if began_s >= self._look_again_s:
            due = erasures.due(view)
            ids = {one for waited in due.values() for one in waited}
            self._seen = _Seen(len(due), len(ids), frozenset(tier for tier, _ in due))
            took_s = time.monotonic() - began_s
            rest_s = _RESTS * took_s if took_s > _COSTLY_S else 0.0
            self._look_again_s = began_s + took_s + rest_s
        return self._seen

    def converting(self) -> Paced:
        """Carry out what is due now, in steps of some rows. Never raises what a disk does."""
        wait_ns = self._not_before_ns - self._clock_ns()
        if 0 < wait_ns <= _AGAIN_NS or self.late():  # more: the clock was set back
            return
        try:
            yield from self._converting()
            self.fault = None
        except lmdb.PanicError:
            raise
        except (Fault, OSError, lmdb.Error) as error:
            self._put_off(error)

    def _converting(self) -> Paced:
        due = self._due()
        faults: list[Fault] = []
        for at in range(0, len(due), AT_ONCE):
            ready: list[tuple[int, int]] = []
            for one in due[at : at + AT_ONCE]:
                try:
                    gone = yield from self._empty(self._vaults.of(one.tier), one)
                    ready += ((one.tier, key_id) for key_id in gone)
                except Fault as fault:  # one day that is damaged must not keep the others
                    faults.append(_named(one, fault))
                except DAMAGED as error:
                    faults.append(_named(one, Fault("corrupt", f"{_INDEX}{error}")))
            yield from self._destroying(ready)
        if faults:
            raise _of_days(faults)

    def _due(self) -> list[_Due]:
        """The keys that can go now, by day."""
        with self._index.reading() as view:
            if _is_restored(view):
                return []
            begun = {one.id for one in erasures.unfinished(view)}
            due, days = erasures.due(view), _days_by_key(view)
            keys = due.keys() | erasures.spent(view)
        found: dict[tuple[int, int | None, int], list[int]] = {}
        for tier, key_id in sorted(keys):
            if not self._waits_for(tier) and not due.get((tier, key_id), set()) & begun:
                day = days.get((tier, key_id))
                place = (tier, day, key_id if day is None else 0)
                found.setdefault(place, []).append(key_id)
        return [_Due(tier, day, tuple(ids)) for (tier, day, _), ids in found.items()]

    # --- rows ------------------------------------------------------------------------------------

    def _empty(self, vault: Vault, due: _Due) -> Generator[float | None, None, set[int]]:
        """Have no row under keys of a day that are due; gives those that can go. Raises Fault."""
        there = [key_id for key_id in due.key_ids if _is_there(vault, key_id)]
        if due.day is None:
            return set(due.key_ids)
        # First what is spent: rows that a try before left make room for those that are to come.
        spent = self._spent(vault, due.day)
        yield from self._removing(vault, spent)
        if sources := [key_id for key_id in there if key_id not in spent]:
            yield from self._fill(vault, due.day, sources)
            spent = self._spent(vault, due.day)
            yield from self._removing(vault, spent)
        return spent | (set(due.key_ids) - set(there))

    def _spent(self, vault: Vault, day: int) -> set[int]:
        """The keys of a day whose rows must go unread."""
        with self._index.reading() as view:
            spent, ids = erasures.spent(view), labels.key_ids(view, day, vault.tier)
        return {key_id for key_id in ids if (vault.tier, key_id) in spent}

    def _removing(self, vault: Vault, key_ids: Iterable[int]) -> Paced:
        for key_id in sorted(key_ids):
            gone = relabelling.removing(self._index, vault.tier, key_id)
            yield from self._beside.taking(gone, vault.require_open)

    def _fill(self, vault: Vault, day: int, sources: list[int]) -> Paced:
        """Bring all rows of a day that lie under some keys under a new one, in their order.

        Where rows are missing there they are made as they should be, from the calls' records.
        """
        work: Relabelling | Relisting
        with self._index.reading() as view:
            anew = {key_id for tier, key_id in erasures.anew(view) if tier == vault.tier}
        if anew.isdisjoint(sources):
            # Ciphers of its own: those at hand are for the thread of requests.
            decrypt = {one: labels.ciphers_of(vault.dek(one)).decrypt for one in sources}
            work = Relabelling(self._index, vault.tier, decrypt)
        else:
            work = Relisting(self._index, vault, day)
        yield from self._beside.taking(work.counting(), vault.require_open)
        self._index.check_room(work.rows * relabelling.ROW_BYTES)
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            begun = self._keys.begin(vault, day, sources)
        with self._index.reading() as view:
            # Calls of erasures that come meanwhile come along: the new key is due for them, too.
            dead = set[bytes]().union(*(_dead(view, vault, one) for one in sources))
        encrypt = labels.ciphers_of(vault.dek(begun.target)).encrypt
        steps = work.writing(begun.target, encrypt, dead)
        yield from self._beside.taking(steps, vault.require_open)
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            self._keys.filled(begun, sources)

    # --- keys ------------------------------------------------------------------------------------

    def _destroying(self, ready: Sequence[tuple[int, int]]) -> Paced:
        """Destroy keys that open no row any more, all of a pool with one new root."""
        if not ready:
            return
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            self._destroy([key for key in ready if not self._waits_for(key[0])])

    def _destroy(self, ready: Sequence[tuple[int, int]]) -> None:
        dropped, before = dict[str, Dropped](), list[RekeyedPage]()
        # Announced once more, the old root is no more what a damaged one may be replaced with.
        roots = [self._vaults.of(tier).keyring.names()[-1] for tier in {tier for tier, _ in ready}]
        self._index.write(partial(_announce, names=roots))
        for tier in sorted({tier for tier, _ in ready}):
            vault, ids = self._vaults.of(tier), [key_id for each, key_id in ready if each == tier]
            before += _pages(vault, ids)
            dropped[vault.name] = vault.keyring.drop(ids)
            vault.labels.forget(ids)
        self._keys.destroyed(ready)
        with self._index.reading() as view:
            ended = [self._ended(one, dropped) for one in self._released(view, set(ready))]
            days = _days_by_key(view)

        def end(writing: Writing, place: Place) -> None:
            writing.put_ledger(self._vaults.base.tier, place)
            for tier, key_id in ready:
                if (day := days.get((tier, key_id))) is not None:
                    labels.remove_key_id(writing, day, tier, key_id)
            for name in gone_pages(_after(page, dropped) for page in before):
                writing.withdraw(tables.KEYS_CHANGED, name.encode())
            _announce(writing, (name for one in dropped.values() for name in one.files))
            erasures.rows_gone(writing, ready, ended)

        entries = [erasures.entry(one) for one in ended]
        with self._vaults.base.noting(entries, self._clock_ns()) as place:
            self._index.write(lambda writing: end(writing, place))
        for one in ended:
            log.info("Search rows of erased calls are gone", extra={"ERASURE": one.id.hex()})

    def _released(self, view: View, gone: set[tuple[int, int]]) -> Iterator[Erasure]:
        """The erasures that waited for these keys and wait for no others."""
        due = erasures.due(view)
        waited = {one for key in gone for one in due.get(key, ())}
        waited -= {one for key, ids in due.items() if key not in gone for one in ids}
        for one in sorted(waited):
            erasure = erasures.find(view, one)
            if erasure is not None and not any(map(self._is_seen, erasure.day_keys)):
                yield msgspec.structs.replace(erasure, receipts=[], pending=[])

    def _is_seen(self, key: DayKey) -> bool:
        """Whether a key is there yet, or may be: its row may be one that cannot be read."""
        if not self._vaults.has(key.pool) or self._vaults.named(key.pool).locked:
            return False
        try:
            return _is_there(self._vaults.named(key.pool), key.key_id)
        except Fault:  # its page is damaged
            return True

    def _ended(self, erasure: Erasure, dropped: dict[str, Dropped]) -> Erasure:
        epochs = {name: one.epoch for name, one in dropped.items() if name in erasure.epochs}
        pages = [
            msgspec.structs.replace(
                page, after=self._vaults.named(page.pool).generation(page.page)
            )
            for page in erasure.day_pages
        ]  # fmt: skip
        return msgspec.structs.replace(
            erasure, epochs=erasure.epochs | epochs, day_pages=pages, rows_gone_ns=self._clock_ns()
        )

    # --- what keeps it ---------------------------------------------------------------------------

    def _waits_for(self, tier: int) -> str:
        """The locked pool without which a pool's keys cannot go; empty: none."""
        for name in (POOLS[tier], BASE):  # base's ledger has what is done
            if not self._vaults.has(name) or self._vaults.named(name).locked:
                return name
        return ""

    def _put_off(self, error: Exception) -> None:
        self._not_before_ns = self._clock_ns() + _AGAIN_NS
        if (text := str(error)) != self.fault:
            log.error("Search rows of erased calls cannot be made to go yet", extra={"FAULT": text})
        self.fault = text


def gone_pages(pages: Iterable[RekeyedPage]) -> Iterator[str]:
    """Names of the key files that are no more, as the feed tells them."""
    for page in pages:
        prefix = "" if page.pool == BASE else f"{page.pool}/"
        for generation in range(page.before, page.after):
            yield prefix + page_name(page.page, generation)


def _named(due: _Due, fault: Fault) -> Fault:
    """What is wrong, with the day that it is wrong with."""
    if due.day is None or due.tier >= len(POOLS):
        return fault
    try:
        day = f"{datetime.fromtimestamp(due.day * labels.DAY_NS // 10**9, UTC):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        day = str(due.day)
    hint = _REINDEX if fault.code == "corrupt" and fault.error.startswith(_INDEX) else fault.hint
    return Fault(fault.code, f"day {day} of pool {POOLS[due.tier]}: {fault.error}", hint)


def _of_days(faults: Sequence[Fault]) -> Fault:
    first, more = faults[0], len(faults) - 1
    return Fault(
        first.code, f"{first.error} (and {more} more)" if more else first.error, first.hint
    )


def _announce(writing: Writing, names: Iterable[str]) -> None:
    for name in names:
        writing.announce(tables.KEYS_CHANGED, name.encode())


def _days_by_key(view: View) -> dict[tuple[int, int], int]:
    """The days whose rows may lie under keys, by tier and key id."""
    return {(one.tier, key): one.day for one in labels.days(view) for key in one.key_ids}


def _is_restored(view: View) -> bool:
    """Whether a replica may still put its key files in place of ours, with what we destroyed."""
    return view.number(tables.IMPORTING) == tables.KEYS_WELCOME


def _is_there(vault: Vault, key_id: int) -> bool:
    """Whether a key is not destroyed yet. Raises Fault if its page is damaged."""
    try:
        vault.dek(key_id)
    except Fault as fault:
        if fault.code != "not_found":
            raise
        return False
    return True


def _dead(view: View, vault: Vault, key_id: int) -> set[bytes]:
    """The calls whose erasure waits for a key: their rows are not brought under another."""
    ids = set[bytes]()
    for erasure_id in erasures.waiting(view, vault.tier, key_id):
        if erasure := erasures.find(view, erasure_id):
            ids.update(one.id for one in erasure.recordings if one.pool == vault.name)
    return ids


def _pages(vault: Vault, ids: Iterable[int]) -> list[RekeyedPage]:
    pages = sorted({key_id // SLOTS for key_id in ids})
    return [RekeyedPage(vault.name, page, vault.keyring.generation(page), -1) for page in pages]


def _after(page: RekeyedPage, dropped: dict[str, Dropped]) -> RekeyedPage:
    return msgspec.structs.replace(page, after=dropped[page.pool].generations[page.page])
