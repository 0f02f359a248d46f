"""Erase calls: their keys are destroyed, and with them every copy that anybody has of them.

Order, so that a crash at any moment leaves either nothing done or something that the next start
completes (FORMAT.md §12): the intent, and every row about the calls, in one transaction; the keys,
all with one new root; the files; the end, in another transaction, which tells the replicas.
The rows: storaged.erasures. Keys: storaged.keyring. The certificate: storaged.certifying.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import lmdb
import msgspec

from spanvault import spool
from spanvault.messages import (
    Call,
    Copy,
    Erase,
    ErasedRecording,
    EraseReply,
    Erasure,
    RekeyedPage,
)
from storaged import erasures, files, record
from storaged import index as tables
from storaged.diskfaults import explain
from storaged.faults import Fault
from storaged.index import FINAL, SEALED, Index, State, View, Writing
from storaged.keypage import DEK_BYTES, SLOTS
from storaged.keyring import Dropped
from storaged.layout import Store
from storaged.ledger import Entry
from storaged.ledgerfile import Place
from storaged.pagefiles import page_name
from storaged.sealing import HEADER_BYTES, Header
from storaged.terms import Terms
from storaged.vaults import BASE, Vault, Vaults
from storaged.walk import Steps

log = logging.getLogger(__name__)
MOST: Final = 5000  # calls of one batch
MAX_REASON: Final = 500  # characters
STORAGED: Final = "storaged"  # who erases what is due, and moves what must follow


class Doomed(NamedTuple):
    """A call that is to go. call: its record, if it opens."""

    state: State
    call: Call | None
    erased: ErasedRecording


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
            doomed = [self.look_at(view, one) for one in new]
            _check_ended(doomed, wanted)
            self._check_terms(doomed)
            self._check_shared(view, doomed, set(ids))
            pending = erasures.targets(view)
        if not doomed:
            with self._index.reading() as view:
                before = erasures.find(view, view.erased(ids[0]) or b"")
            assert before is not None
            return EraseReply(before.id, 0, already, before.pending)
        at_ns = self._clock_ns()
        erasure = Erasure(
            at_ns.to_bytes(8, "big") + os.urandom(8), at_ns, who, wanted.reason.strip(),
            [one.erased for one in doomed], self.pages(doomed),
        )  # fmt: skip
        self._forget(new)
        with self.noted(erasure) as place:
            self._index.write(lambda writing: self.begin(writing, erasure, doomed, place))
        self.complete(erasure)
        return EraseReply(erasure.id, len(doomed), already, pending)

    def look_at(self, view: View, call_id: bytes) -> Doomed:
        """What there is of a call. Raises Fault: nothing."""
        state = view.state(call_id)
        if (waits_for := self._waits_for(view, call_id)) is not None:
            _check_taken(waits_for)
        if state is None:
            raise Fault(
                "not_found",
                f"there is no call {call_id.hex()[:32]}",
                "Nothing was erased: name calls that a search lists.",
            )
        vault = self._vaults.of(state.tier)
        _check_taken(vault)
        sealed = view.get(b"record", call_id)
        key_ids = {state.key_id, *view.former(call_id), *_keys_of_files(vault, call_id)}
        call = None
        if sealed is not None:
            with contextlib.suppress(ValueError):  # damaged
                key_id = record.parse_head(sealed).key_id
                key_ids.add(key_id)
                call = record.open_call(call_id, sealed, _dek(vault, key_id))
        for key_id in key_ids:
            _dek(vault, key_id)
        copies = [Copy(one.target, one.verified_ns) for one in view.receipts(call_id)]
        has_object = bool(state.bits & SEALED)
        return Doomed(state, call, ErasedRecording(
            call_id, vault.name, sorted(key_ids), state.size if has_object else 0,
            state.sha256.hex() if has_object else "", copies,
        ))  # fmt: skip

    def _waits_for(self, view: View, call_id: bytes) -> Vault | None:
        """The pool whose intake holds all that there is of a call."""
        tier = view.placed(call_id)
        vault = self._vaults.of(tier) if tier is not None else None
        return vault if vault is not None and len(vault.intake) else None

    def sharing(self, view: View, one: Doomed) -> set[bytes]:
        """The other calls, not erased yet, that have media in common with a call."""
        others = set(view.sharing(one.erased.id))
        if one.call is not None:
            others |= record.recordings_of(one.call)
        return {
            other
            for other in others
            if not view.erased(other) and (view.state(other) or self._waits_for(view, other))
        }

    def _check_terms(self, doomed: Sequence[Doomed]) -> None:
        """Raise Fault for a call that its pool has to keep yet, or of which nobody knows that."""
        for one in doomed:
            terms = self.terms.get(one.erased.pool, Terms())
            if not terms.at_least_ns:
                continue
            if one.call is None:
                raise Fault(
                    "corrupt",
                    f"the record of call {one.erased.id.hex()} is damaged: whether pool "
                    f"{one.erased.pool} has to keep it yet cannot be told",
                    "Nothing was erased. `spanvault repair` may bring its record back.",
                )
            until_ns = terms.protected_ns(one.call.started_ns)
            if self._clock_ns() < until_ns:
                day = datetime.fromtimestamp(until_ns / 1e9, UTC)
                raise Fault(
                    "denied",
                    f"call {one.erased.id.hex()} has to be kept until {day:%Y-%m-%d %H:%M} UTC",
                    f"Nothing was erased. keep_at_least_days of pool {one.erased.pool} in "
                    "storaged.toml says so.",
                )

    def _check_shared(self, view: View, doomed: Sequence[Doomed], ids: set[bytes]) -> None:
        """Raise Fault if a call outside the batch has media in common with one in it.

        The same sound would stay with the other call, or be taken from it: neither must go unsaid.
        """
        for one in doomed:
            left = self.sharing(view, one) - ids
            if left:
                raise Fault(
                    "invalid",
                    f"call {one.erased.id.hex()} has media in common with {min(left).hex()}",
                    "Nothing was erased. Such calls can only go together: name both.",
                )

    def pages(self, doomed: Sequence[Doomed]) -> list[RekeyedPage]:
        """The key pages that lose some of their keys."""
        pages = {
            (one.erased.pool, key_id // SLOTS) for one in doomed for key_id in one.erased.key_ids
        }
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
        """The intent; tokens can only be found while the records still open."""
        writing.put_ledger(self._vaults.base.tier, place)
        erasures.begin(writing, erasure)
        for one in doomed:
            key = self._vaults.named(one.erased.pool).keyring.index_key
            writing.remove_call(one.erased.id, one.call, key)

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
        )  # fmt: skip

        def end(writing: Writing, place: Place) -> None:
            writing.put_ledger(self._vaults.base.tier, place)
            for name in _gone(done):
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


def _keys_of_files(vault: Vault, call_id: bytes) -> Iterator[int]:
    """The keys that a call's files name: one that was set aside may have another."""
    for path in vault.pool.paths(call_id):
        with contextlib.suppress(ValueError, Fault), path.open("rb") as file:
            key_id = Header.parse(file.read(HEADER_BYTES)).key_id
            _dek(vault, key_id)  # a damaged header may name one that never was
            yield key_id


def _dek(vault: Vault, key_id: int) -> bytes:
    """A key; zeros if it is destroyed already. Raises Fault: nobody could destroy it."""
    try:
        return vault.dek(key_id)
    except Fault as fault:
        if fault.code != "not_found":
            raise
        return bytes(DEK_BYTES)


def _pools(erasure: Erasure) -> list[str]:
    return sorted({page.pool for page in erasure.pages})


def _gone(erasure: Erasure) -> Iterator[str]:
    """Names of the key files that are no more, as the feed tells them."""
    for page in erasure.pages:
        prefix = "" if page.pool == BASE else f"{page.pool}/"
        for generation in range(page.before, page.after):
            yield prefix + page_name(page.page, generation)


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


def _check_ended(doomed: Sequence[Doomed], wanted: Erase) -> None:
    """Raise Fault for a call that may go on."""
    going_on = [one for one in doomed if not one.state.bits & FINAL]
    if going_on and not wanted.unfinished:
        raise Fault(
            "invalid",
            f"call {going_on[0].erased.id.hex()} has not ended ({len(going_on)} such)",
            "Nothing was erased. Wait for the end; or, with --unfinished, erase what there is, and "
            "whatever still comes of it is let go.",
        )


def _check_taken(vault: Vault) -> None:
    """Raise Fault unless all that came for a pool lies in its recordings: what waits has no DEK."""
    vault.require_open()
    if waiting := len(vault.intake):
        raise Fault(
            "unavailable",
            f"{waiting} batches wait for pool {vault.name}, which may hold something of this call",
            "Nothing was erased. Erase again once `spanvault status` says that none waits.",
        )
