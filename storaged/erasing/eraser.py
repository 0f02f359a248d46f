"""Erase calls: their keys are destroyed, and with them every copy that anybody has of them.

Order, so that a crash at any moment leaves either nothing done or something that the next start
completes (FORMAT.md §12): the intent, and every row about the calls, in one transaction; the keys,
all with one new root; the files; the end, in another transaction, which tells the replicas. Search
rows follow: storaged.erasing.converting. The rows: storaged.index.erasures. Keys:
storaged.keys.keyring. The certificate: storaged.erasing.certifying.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Final

import lmdb
import msgspec

from spanvault import spool
from spanvault.messages import DayKey, Erase, EraseReply, Erasure, RekeyedPage
from storaged import files
from storaged.diskfaults import explain
from storaged.erasing import certifying
from storaged.erasing.converting import Converter, gone_pages
from storaged.erasing.doomed import Doomed, check_ended, check_shared, check_terms, look_at
from storaged.erasing.spooled import spooled_under
from storaged.erasing.terms import Terms
from storaged.faults import Fault
from storaged.format.keypage import SLOTS
from storaged.format.ledger import Entry, Place
from storaged.format.walk import Steps
from storaged.index import callrows, erasures, labels
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.keys.keyring import Dropped
from storaged.pools.layout import Store
from storaged.pools.vaults import Vaults

log = logging.getLogger(__name__)
MOST: Final = 5000  # calls of one batch
MAX_REASON: Final = 500  # characters
STORAGED: Final = "storaged"  # who erases what is due, and moves what must follow


class Eraser:
    """Erases calls, one batch at a time. For the thread of requests.

    forget: makes the committer's thread know nothing of some recordings; all pools are held then.
    terms: by pool, how long its calls have to stay; a pool that is not named has none.
    """

    def __init__(
        self, store: Store, index: Index, vaults: Vaults,
        forget: Callable[[Sequence[bytes]], None], clock_ns: Callable[[], int],
        terms: Mapping[str, Terms] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.terms = terms
        self._store, self._index, self._vaults = store, index, vaults
        self._forget, self._clock_ns = forget, clock_ns
        self.fault: str | None = None  # one line, while one that was begun cannot be completed
        self.converter = Converter(index, vaults, clock_ns)

    def erasing(self, who: str, wanted: Erase) -> Steps[EraseReply]:
        """Erase a batch, in steps. Raises Fault, and does nothing, unless all of it can go.

        Raises OSError, lmdb.Error if the disk fails: what was begun is then gone for everyone, and
        is completed by the next batch or at the next start.
        """
        ids = _checked(wanted)
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            self._complete_all()
            return self._erase(who, wanted, ids)

    def finishing(self) -> Steps[None]:
        """finish() in steps while storaged runs: a pool that had to wait for it was unlocked."""
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            self.finish()

    def catching_up(self) -> Steps[None]:
        """finishing() where a disk kept what was begun from being completed."""
        if self.fault is not None:
            yield from self.finishing()

    def finish(self) -> None:
        """Complete what a crash interrupted, before anything else is written.

        What needs a pool that is locked waits until it is unlocked. A disk that fails must not stop
        recording.
        """
        with contextlib.suppress(OSError, lmdb.Error, Fault):  # told of, and tried again
            self._complete_all()

    def _complete_all(self) -> None:
        """Raises OSError, lmdb.Error, Fault."""
        try:
            self._complete_begun()
        except (OSError, lmdb.Error, Fault) as error:
            self._tell(explain(error))
            raise
        self._tell(None)

    def _tell(self, fault: str | None) -> None:
        if fault and fault != self.fault:
            log.error("An erasure that was begun cannot be completed yet", extra={"FAULT": fault})
        self.fault = fault

    def _complete_begun(self) -> None:
        with self._index.reading() as view:
            begun = erasures.unfinished(view)
        for erasure in begun:
            if erasure.moved_to:  # from the transaction on, what was sealed there counts
                self._vaults.named(erasure.moved_to).intake.publish_moving(erasure.id)
            if not any(self._vaults.named(page.pool).locked for page in erasure.pages):
                self.complete(erasure)

    def _erase(self, who: str, wanted: Erase, ids: list[bytes]) -> EraseReply:
        with self._index.reading() as view:
            already = [one for one in ids if view.erased(one)]
            new = [one for one in ids if not view.erased(one)]
            doomed = [look_at(view, self._vaults, one) for one in new]
            check_ended(doomed, wanted)
            check_terms(doomed, self.terms, self._clock_ns())
            check_shared(view, self._vaults, doomed, set(ids))
            pending = erasures.targets(view)
        if not doomed:
            with self._index.reading() as view:
                before = certifying.erasure_of(view, ids[0])
            return EraseReply(before.id, 0, already, before.pending)
        at_ns = self._clock_ns()
        erasure = self.planned(Erasure(
            at_ns.to_bytes(8, "big") + os.urandom(8), at_ns, who, wanted.reason.strip(),
            [one.erased for one in doomed],
        ), doomed)  # fmt: skip
        self._forget(new)
        with self.noted(erasure) as place:
            self._index.write(lambda writing: self.begin(writing, erasure, doomed, place))
        self.complete(erasure)
        return EraseReply(
            erasure.id, len(doomed), already, pending, len(erasure.day_keys),
            len(erasure.ingest_keys),
        )  # fmt: skip

    def planned(self, erasure: Erasure, doomed: Sequence[Doomed]) -> Erasure:
        """An erasure with all keys that must go, and the key pages that lose them."""
        deks = {(one.erased.pool, key_id) for one in doomed for key_id in one.erased.key_ids}
        with self._index.reading() as view:
            began = _began(view, {one.erased.id for one in doomed if one.call is None})
            days = sorted({
                (one.erased.pool, key_id)
                for one in doomed for key_id in day_keys(view, one, began.get(one.erased.id, []))
            })  # fmt: skip
            spooled = [] if erasure.moved_to else spooled_under(view, self._vaults, doomed)
        return msgspec.structs.replace(
            erasure, pages=self._pages(deks), day_pages=self._pages(days),
            day_keys=[DayKey(*each) for each in days], ingest_keys=spooled,
        )  # fmt: skip

    def _pages(self, keys: Iterable[tuple[str, int]]) -> list[RekeyedPage]:
        pages = {(pool, key_id // SLOTS) for pool, key_id in keys}
        return [
            RekeyedPage(pool, page, self._vaults.named(pool).keyring.generation(page), -1)
            for pool, page in sorted(pages)
        ]

    def noted(self, erasure: Erasure, *more: Entry) -> contextlib.AbstractContextManager[Place]:
        """An erasure in base's ledger: an index that is made anew must know of it, too."""
        entries = [erasures.entry(erasure), *more]
        return self._vaults.base.noting(entries, self._clock_ns())

    def begin(
        self, writing: Writing, erasure: Erasure, doomed: Sequence[Doomed], place: Place
    ) -> None:
        """The intent; what leads to a call can only be found while its record still opens."""
        writing.put_ledger(self._vaults.base.tier, place)
        if writing.number(tables.IMPORTING):
            writing.set_number(tables.IMPORTING, tables.KEYS_DESTROYED)
        erasures.begin(writing, erasure)
        for one in doomed:
            callrows.remove_call(writing, one.erased.id, one.call)

    def complete(self, erasure: Erasure) -> None:
        """Carry out what was begun, as often as it takes. Raises OSError, lmdb.Error, Fault."""
        try:
            self._carry_out(erasure)
        except (OSError, lmdb.Error, Fault) as error:
            self._tell(explain(error))
            raise

    def _carry_out(self, erasure: Erasure) -> None:
        """Destroy its keys and files."""
        dropped = {name: self._destroy(name, erasure) for name in _pools(erasure)}
        pages = [
            msgspec.structs.replace(page, after=dropped[page.pool].generations[page.page])
            for page in erasure.pages
        ]
        done = msgspec.structs.replace(
            erasure, pages=pages, epochs={name: one.epoch for name, one in dropped.items()},
            grades={name: one.grade for name, one in dropped.items()},
            refused=self._destroy_refused([one.id for one in erasure.recordings]), done=True,
            rows_gone_ns=0 if erasure.day_keys else self._clock_ns(),
            spools_gone_ns=0 if erasure.ingest_keys or erasure.moved_to else self._clock_ns(),
        )  # fmt: skip

        def end(writing: Writing, place: Place) -> None:
            writing.put_ledger(self._vaults.base.tier, place)
            for name in gone_pages(done.pages):
                writing.withdraw(tables.KEYS_CHANGED, name.encode())
            for name in (name for one in dropped.values() for name in one.files):
                writing.announce(tables.KEYS_CHANGED, name.encode())
            erasures.end(writing, done)

        with self.noted(done) as place:
            self._index.write(lambda writing: end(writing, place))
        log.info("Calls were erased", extra={"ERASURE": erasure.id.hex(),
                                             "CALLS": len(erasure.recordings)})  # fmt: skip

    def _destroy(self, pool: str, erasure: Erasure) -> Dropped:
        """Keys first: without them the files of a pool are noise."""
        vault = self._vaults.named(pool)
        doomed = [one for one in erasure.recordings if one.pool == pool]
        dropped = vault.keyring.drop(key_id for one in doomed for key_id in one.key_ids)
        for one in doomed:
            for path in vault.pool.paths(one.id):
                path.unlink()
        vault.pool.sync()
        return dropped

    def _destroy_refused(self, ids: Sequence[bytes]) -> int:
        """Destroy refused batches that hold something of these calls: they have another key."""
        found = [
            path.name for path in self._store.refused.iterdir() if self._mentions(path, ids)
        ]  # fmt: skip
        files.destroy(self._store.refused, found)
        return len(found)

    def _mentions(self, path: Path, ids: Sequence[bytes]) -> bool:
        """Whether an id occurs in a refused batch, however malformed that is."""
        keys = self._vaults.base.keyring.ingest_keys()
        frames = _opened(path.read_bytes(), keys)
        for frame in list(frames):
            frames += _opened(frame, keys)  # it was refused as it came from a spool: sealed twice
        return any(one in frame for frame in frames for one in ids)


def _opened(sealed: bytes, keys: Sequence[bytes]) -> list[bytes]:
    """What was sealed to one of these keys; nothing if to none: then nobody can open it."""
    for key in keys:
        with contextlib.suppress(ValueError):
            return [spool.open_plain(sealed, key), *map(bytes, spool.open_batch(sealed, key)[1:])]
    return []


def day_keys(view: View, doomed: Doomed, began: Iterable[int] | None = None) -> set[int]:
    """The keys that search rows of a call lie, or lay, under. Raises Fault: nobody can tell.

    began: when it may have, ns, if its record is damaged and that was looked up.
    """
    call_id = doomed.erased.id
    if doomed.call is not None:
        began = [doomed.call.started_ns]
    elif began is None:
        began = _began(view, {call_id}).get(call_id, [])
    days = {day for one in began for day in labels.days_of(view, call_id, one)}
    return {key_id for day in days for key_id in labels.key_ids(view, day, doomed.state.tier)}


def _began(view: View, call_ids: Set[bytes]) -> dict[bytes, list[int]]:
    """When calls began whose records are damaged: all rows are looked at, once for all of them."""
    found: dict[bytes, list[int]] = {}
    keys = view.cursor(b"time").iternext(values=False) if call_ids else ()
    for key in map(bytes, keys):
        if (call_id := key[-tables.ID_BYTES :]) in call_ids:
            found.setdefault(call_id, []).append(labels.started_ns(key))
    return found


def _pools(erasure: Erasure) -> list[str]:
    return sorted({page.pool for page in erasure.pages})


def _checked(wanted: Erase) -> list[bytes]:
    """The ids, each once. Raises Fault."""
    ids = list(dict.fromkeys(wanted.ids))
    if not ids or len(ids) > MOST or any(len(one) != 16 for one in ids):
        raise Fault("invalid", f"{len(ids)} ids of calls", f"Name 1 to {MOST}, 16 bytes each.")
    if not wanted.reason.strip() or len(wanted.reason) > MAX_REASON:
        raise Fault(
            "invalid", "an erasure needs its reason",
            f"Give one of at most {MAX_REASON} characters; it should name nobody.",
        )  # fmt: skip
    return ids
