"""Ingest keys are replaced and destroyed, so that after an erasure no copy of a spool opens.

What a capture spools, or an intake holds, opens with an ingest key, whoever copied it. An erasure
names the keys that something of its calls may have been sealed to (storaged.erasing.spooled). The
newest among them is replaced, at most once an hour, and each is destroyed once nothing that is
still to come needs it: its pool's intake holds nothing under it, and every capture has said that it
holds nothing under it and seals to another; or, at the latest, ingest_grace_days after it was
replaced. The erasures that waited for it are then told of again. FORMAT.md §12, 6. Rows:
storaged.index.ingestkeys. What captures say: storaged.erasing.holding.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import lmdb
import msgspec

from spanvault import spool
from spanvault.callline import iso_utc
from spanvault.daemon.rules import TIERS
from spanvault.messages import Erasure, IngestKey
from storaged import files
from storaged.diskfaults import explain
from storaged.erasing.holding import Holding
from storaged.erasing.retention import RELIED_ON
from storaged.erasing.terms import ClockGuard
from storaged.faults import Fault
from storaged.format.ledger import Place
from storaged.format.walk import Steps
from storaged.index import erasures, ingestkeys
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.pools.opening import Opener
from storaged.pools.vaults import BASE, Vault, Vaults

log = logging.getLogger(__name__)
PAUSE_NS: Final = 3600 * 10**9  # between two new keys of a pool
_FEW: Final = 16  # keys of a pool at once; with more, new ones are made more rarely
_SOON_NS: Final = 60 * 10**9  # within it captures learn a new key: nobody need be told
_AGAIN_NS: Final = 60 * 10**9  # between two tries where something has to be mended first


class Waiting(NamedTuple):
    """An ingest key that has to go, and what it waits for.

    until_ns: it goes then, whoever holds something under it; 0: not while something else waits.
    """

    key: IngestKey
    captures: list[str]
    until_ns: int
    why: str

    @property
    def line(self) -> str:
        """For people."""
        until = f" until {iso_utc(self.until_ns)}" if self.captures else ""
        return f"{self.key.key_id} {self.why}{until}"


class Retirer:
    """Carries out what is due. For the thread of requests; fields() and words() for any.

    captures: names of those that have a certificate; None: that is known elsewhere.  refused: the
    folder of batches that were set aside.
    """

    def __init__(
        self, index: Index, vaults: Vaults, opener: Opener, refused: Path,
        captures: Sequence[str] | None, grace_ns: int, clock_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
    ) -> None:  # fmt: skip
        self._index, self._vaults, self._opener = index, vaults, opener
        self._refused, self._grace_ns = refused, grace_ns
        self._clock_ns, self._monotonic_ns = clock_ns, monotonic_ns
        with index.reading() as view:
            known_ns = view.number(RELIED_ON) or None
        self._guard = ClockGuard(known_ns, monotonic_ns())
        self._steady = True  # whether the clock was relied upon in the last round
        self.holding = Holding(index, captures)
        self.waiting: list[Waiting] = []  # what has to go, and did not yet
        self._not_before_ns = 0
        self.fault: str | None = None  # one line, while it cannot go on

    def rotate(self, vault: Vault) -> None:
        """A new ingest key. It stands in the pool's root before base names it: a crash leaves both
        good. The pool must be held. Raises Fault, OSError, lmdb.Error.
        """
        before = vault.keyring.ingest_key_id
        self._publish(vault, before, vault.keyring.add_ingest_key())

    def _publish(self, vault: Vault, before: str, changed: list[str]) -> None:
        """Have a pool's newest ingest key sealed to. before: the one that was until now."""
        if vault.name != BASE:
            changed += self._vaults.base.keyring.vouch(vault.tier, vault.keyring.ingest_public)
        self._opener.keep_intake_keys()

        def note(writing: Writing) -> None:
            _announce(writing, changed)
            ingestkeys.put_replaced(writing, vault.name, before, self._clock_ns())
            new = vault.keyring.ingest_key_id
            ingestkeys.put_birth(writing, vault.name, new, self._clock_ns())

        self._index.write(note)
        log.info("A new ingest key was made", extra={"POOL": vault.name})

    def retiring(self) -> Steps[None]:
        """Carry out what is due now, in steps. Never raises what a disk does."""
        wait_ns = self._not_before_ns - self._clock_ns()
        if 0 < wait_ns <= _AGAIN_NS:  # more: the clock was set back
            return
        try:
            self.holding.keep()
            if not self._vaults.base.locked and not self._is_restored():
                yield from self._retiring()
            with self._index.reading() as view:
                self.waiting = list(self._look(view))
            self.fault = None
        except lmdb.PanicError:
            raise
        except (Fault, OSError, lmdb.Error) as error:
            self._put_off(explain(error))

    def _retiring(self) -> Steps[None]:
        self._note_replaced()
        yield from self._making()
        if gone := self._can_go():
            yield from self._sealing_anew(gone)
            yield from self._destroying()

    # --- new keys --------------------------------------------------------------------------------

    def _note_replaced(self) -> None:
        """Since when older keys are replaced, where nothing tells: their grace begins now.

        So it is in a store that was restored, or reindexed; and where the clock was set back, or
        proved to be right after it went far ahead: what was noted by the one before says nothing.
        """
        now_ns = self._clock_ns()
        steady = not self._guard.wait_ns(now_ns, self._monotonic_ns())
        anew = steady and not self._steady
        with self._index.reading() as view:
            before = {
                vault.name: view.number(tables.ROTATED + vault.name.encode())
                for vault in self._open
            }
            unknown = [
                (vault.name, each, 0 if anew else before[vault.name])
                for vault in self._open
                for each in vault.keyring.ingest_key_ids[:-1]
                if anew or not 0 < ingestkeys.replaced_ns(view, vault.name, each) <= now_ns
            ]

        def put(writing: Writing) -> None:
            for pool, key_id, since_ns in unknown:
                ingestkeys.put_replaced(writing, pool, key_id, min(since_ns or now_ns, now_ns))
            for pool in before:  # a store of before told it by pool
                writing.delete(b"meta", tables.ROTATED + pool.encode())

        if unknown or any(before.values()):
            self._index.write(put)
        self._steady = steady

    def _making(self) -> Steps[None]:
        """Replace the newest keys that must go, if it is time."""
        if not self._to_replace() and not self._unpublished():
            return
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            for vault in self._unpublished():
                before, root = spool.key_id(vault.intake_key), vault.keyring.names()[-1]
                self._publish(vault, before, [root])
            for vault in self._to_replace():
                self.rotate(vault)

    def _unpublished(self) -> list[Vault]:
        """Pools whose newest key nobody is told yet: a crash, or a full disk, came between."""
        if self._vaults.base.locked:
            return []
        return [one for one in self._open if one.intake_key != one.keyring.ingest_public]

    def _to_replace(self) -> list[Vault]:
        with self._index.reading() as view:
            due = ingestkeys.due(view)
            return [
                vault
                for vault in self._open
                if IngestKey(vault.name, vault.keyring.ingest_key_id) in due
                and self._made_again_ns(view, vault) <= self._clock_ns()
            ]

    def _made_again_ns(self, view: View, vault: Vault) -> int:
        """When a pool may get a new key. Many at once are a sign that a capture is away."""
        ids = vault.keyring.ingest_key_ids
        born = ingestkeys.birth(view, vault.name, ids[-1])
        if born is None or born.at_ns > self._clock_ns():  # the clock was set back
            return 0
        return born.at_ns + max(PAUSE_NS, self._grace_ns // _FEW if len(ids) >= _FEW else 0)

    # --- the end of a key ------------------------------------------------------------------------

    @property
    def _open(self) -> list[Vault]:
        return [vault for vault in self._vaults if not vault.locked]

    def _is_restored(self) -> bool:
        """Whether a replica may still put its root in place of ours, with what we destroyed."""
        with self._index.reading() as view:
            return view.number(tables.IMPORTING) == tables.KEYS_WELCOME

    def _can_go(self) -> set[IngestKey]:
        """The keys that can be destroyed now; those that are gone and not noted to be."""
        now_ns = self._clock_ns()
        steady = self._steady and not self._guard.wait_ns(now_ns, self._monotonic_ns())
        with self._index.reading() as view:
            begun = {one.id for one in erasures.unfinished(view)}
            due = {key: ids for key, ids in ingestkeys.due(view).items() if not ids & begun}
            found = set()
            for vault in self._open:
                ids = vault.keyring.ingest_key_ids
                found |= {key for key in due if key.pool == vault.name and key.key_id not in ids}
                for key in (IngestKey(vault.name, each) for each in ids[:-1]):
                    past = steady and now_ns >= self._until_ns(view, key)
                    drained = key in due and not self._holding(view, vault, key)
                    sealed_to = key.key_id == spool.key_id(vault.intake_key)
                    if (past or drained) and not sealed_to and not vault.intake.holds(key.key_id):
                        found.add(key)
        return found

    def _holding(self, view: View, vault: Vault, key: IngestKey) -> list[str]:
        ids = vault.keyring.ingest_key_ids
        return self.holding.of(view, key, ids[ids.index(key.key_id) + 1 :])

    def _until_ns(self, view: View, key: IngestKey) -> int:
        """When a key that was replaced goes, whoever holds something under it."""
        return ingestkeys.replaced_ns(view, key.pool, key.key_id) + self._grace_ns

    def _sealing_anew(self, gone: Collection[IngestKey]) -> Steps[None]:
        """Bring refused batches under the newest key: they are kept to be looked at by somebody."""
        ring = self._vaults.base.keyring
        doomed = {key.key_id for key in gone if key.pool == BASE}
        keys = [ring.ingest_key(each) for each in ring.ingest_key_ids[:-1] if each in doomed]
        for path in sorted(self._refused.glob("*.sealed")) if keys else []:
            try:
                _seal_anew(path, keys, ring.ingest_public)
            except OSError as error:  # what was refused must not keep what was erased
                log.error("A refused batch will not open any more",
                          extra={"FILE": str(path), "FAULT": str(error)})  # fmt: skip
            yield

    def _destroying(self) -> Steps[None]:
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            if gone := self._can_go():
                self._destroy(gone)

    def _destroy(self, gone: Collection[IngestKey]) -> None:
        """All of a pool with one new root; then the erasures that waited for no others end."""
        vaults = [self._vaults.named(name) for name in sorted({key.pool for key in gone})]
        # Announced once more, the old root is no more what a damaged one may be replaced with.
        roots = [vault.keyring.names()[-1] for vault in vaults]
        self._index.write(partial(_announce, names=roots))
        for vault in vaults:
            ids = {key.key_id for key in gone if key.pool == vault.name}
            vault.keyring.retire_ingest_keys(ids)
            log.info("Ingest keys were destroyed", extra={"POOL": vault.name, "KEYS": len(ids)})
        with self._index.reading() as view:
            ended = [self._ended(one) for one in self._released(view, gone)]
        idle = self.holding.without(self._vaults.base.keyring.ingest_key_ids)

        def end(writing: Writing, place: Place) -> None:
            writing.put_ledger(self._vaults.base.tier, place)
            _announce(writing, roots)
            ingestkeys.gone(writing, gone)
            for holder in idle:
                ingestkeys.drop_holder(writing, holder)
            for one in ended:
                erasures.tell_again(writing, one)

        entries = [erasures.entry(one) for one in ended]
        with self._vaults.base.noting(entries, self._clock_ns()) as place:
            self._index.write(lambda writing: end(writing, place))
        self.holding.forget(idle)
        for one in ended:
            log.info("Copies of spools open no more", extra={"ERASURE": one.id.hex()})

    def _released(self, view: View, gone: Collection[IngestKey]) -> Iterator[Erasure]:
        """The erasures that waited for these keys and wait for no others."""
        due = ingestkeys.due(view)
        waited = {one for key in gone for one in due.get(key, ())}
        waited -= {one for key, ids in due.items() if key not in gone for one in ids}
        for one in sorted(waited):
            erasure = erasures.find(view, one)
            if erasure is not None and not any(map(self._is_there, erasure.ingest_keys)):
                yield msgspec.structs.replace(erasure, receipts=[], pending=[])

    def _is_there(self, key: IngestKey) -> bool:
        """Whether a key is seen to be there yet: its row may be one that cannot be read."""
        vault = self._vaults.named(key.pool) if self._vaults.has(key.pool) else None
        return vault in self._open and key.key_id in vault.keyring.ingest_key_ids

    def _ended(self, erasure: Erasure) -> Erasure:
        pools = {key.pool for key in erasure.ingest_keys}
        epochs = {vault.name: vault.keyring.epoch for vault in self._open if vault.name in pools}
        return msgspec.structs.replace(
            erasure, epochs=erasure.epochs | epochs, spools_gone_ns=self._clock_ns()
        )

    # --- what keeps it ---------------------------------------------------------------------------

    def fields(self) -> list[str]:
        """What a StatusReply tells: a line for each key that has to go."""
        return [f"{one.key.pool} {one.line}" for one in self.waiting]

    def to_go(self, pool: str) -> list[str]:
        """The same of a pool, a line each."""
        return [one.line for one in self.waiting if one.key.pool == pool]

    def words(self) -> str:
        """One line of what somebody should do; empty: nothing."""
        if self.fault:
            return f"ingest keys of erased calls CANNOT GO: {self.fault}"
        for one in self.waiting:
            replaced_ns = one.until_ns - self._grace_ns
            if one.captures and self._clock_ns() - replaced_ns > _SOON_NS:
                return (
                    f"an ingest key of erased calls waits for capture {', '.join(one.captures)} "
                    f"until {iso_utc(one.until_ns)}: what is spooled there under it is LOST then, "
                    "start it before, or remove its certificate"
                )
        return ""

    def _look(self, view: View) -> Iterator[Waiting]:
        for key in sorted(ingestkeys.due(view), key=lambda one: (TIERS[one.pool], one.key_id)):
            if not self._vaults.has(key.pool):
                yield Waiting(key, [], 0, f"waits for pool {key.pool} to be set up")
                continue
            vault = self._vaults.named(key.pool)
            if locked := [one.name for one in (self._vaults.base, vault) if one.locked]:
                yield Waiting(key, [], 0, f"waits for {locked[0]} to be unlocked")
            elif key.key_id == vault.keyring.ingest_key_id:
                at = iso_utc(max(self._made_again_ns(view, vault), self._clock_ns()))
                yield Waiting(key, [], 0, f"is replaced at {at}")
            elif vault.intake.holds(key.key_id):
                yield Waiting(key, [], 0, f"batches wait in the intake of {key.pool}")
            elif key.key_id not in vault.keyring.ingest_key_ids:
                yield Waiting(key, [], 0, "goes now")
            else:
                captures = self._holding(view, vault, key)
                why = f"waits for capture {', '.join(captures)}" if captures else "goes now"
                yield Waiting(key, captures, self._until_ns(view, key), why)

    def _put_off(self, fault: str) -> None:
        self._not_before_ns = self._clock_ns() + _AGAIN_NS
        if fault != self.fault:
            log.error("Ingest keys cannot be replaced or destroyed yet", extra={"FAULT": fault})
        self.fault = fault


def _seal_anew(path: Path, old: Iterable[bytes], public_key: bytes) -> None:
    """Bring a file from whichever of these keys opens it under another. Raises OSError."""
    data = path.read_bytes()
    for key in old:
        with contextlib.suppress(ValueError):
            files.replace(path, spool.reseal(data, key, public_key))
            return


def _announce(writing: Writing, names: Iterable[str]) -> None:
    for name in names:
        writing.announce(tables.KEYS_CHANGED, name.encode())
