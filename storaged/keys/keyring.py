"""A pool's keys, opened: DEKs handed out and destroyed, and the secrets that its root wraps.

Write order (FORMAT.md §5): a page is durable before the root names it; a run of slots is durably
reserved before one of them is used, so that a crash can skip slots but never hand one out twice.
Files: rootfile.py, pagefiles.py. Bytes: storaged.format.keypage. Reservations: storaged.index.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spanvault import spool
from spanvault.keys import keyfile
from storaged.faults import Fault
from storaged.format import keypage, ledger
from storaged.format.keypage import (
    DEK_BYTES,
    INDEX_KEY,
    INGEST_KEY,
    INTAKE_KEY,
    PAGE_KEY,
    SIGNING_KEY,
    SLOTS,
    Name,
)
from storaged.keys import rootfile
from storaged.keys.pagefiles import PageFiles, Rekeying, of_name, page_name
from storaged.keys.rootfile import ROOT, RootFile
from storaged.keys.slot import TokenSlot

log = logging.getLogger(__name__)
RESERVE: Final = 256  # slots reserved at a time


class Dropped(NamedTuple):
    """What the destruction of DEKs did to the key files."""

    epoch: int  # of the root that does not name the old pages any more
    generations: dict[int, int]  # of each page whose DEKs went, now
    files: list[str]  # that hold them now, pages before the root
    grade: str  # how surely they are gone


def create(folder: Path, store_id: bytes, recipients: Iterable[bytes], tier: int = 0) -> bytes:
    """Make the keys of a new pool: root, ingest, index, signing. recipients: public keys.

    Returns the ingest key's public half.
    """
    secrets = {Name(kind, 0): os.urandom(32) for kind in (INGEST_KEY, INDEX_KEY, SIGNING_KEY)}
    rootfile.create(folder, store_id, tier, recipients, secrets)
    return keyfile.public_of(secrets[Name(INGEST_KEY, 0)])


class Keyring:
    """The opened keys of a pool. dek() may be asked from any thread; take() and drop() from the
    writer's.

    prefix: what the names of its key files begin with in the feed.  slot: where root keys are kept
    from the next one on; None: in their file.
    """

    def __init__(
        self, folder: Path, private_key: bytes, prefix: str = "", slot: TokenSlot | None = None
    ) -> None:
        """Raises Fault: the root is missing, damaged, or sealed to other keys."""
        self._folder, self._prefix = folder, prefix
        self._root = RootFile(folder, private_key, slot)
        self._lock = threading.Lock()
        self._unsure = False  # whether the root file may be another than the one that we hold
        self._begin()

    def _begin(self) -> None:
        """Go by the root as it is now; destroy what a crash left of a drop()."""
        self._pages = PageFiles(self._folder, self.store_id, self._root.tier)
        self._generations = self._named_generations()
        self._next = self._reserved = 0
        self._finish_drop()

    def _named_generations(self) -> dict[int, int]:
        """Of each page that the root names."""
        return {name.number: name.generation for name in self._root.of_kind(PAGE_KEY)}

    def _finish_drop(self) -> None:
        """Destroy what a crash left of a drop(): pages that a root has replaced, or never named."""
        self._root.settle()
        self._pages.destroy_others(self._generations)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change key files. After one that failed the root file is read again first.

        The new one may be in place though its folder could not be synced: by the old one its pages
        would be destroyed as what a crash left. Raises Fault, OSError.
        """
        with self._lock:
            if self._unsure:
                self._read_again()
            self._unsure = True
            yield
            self._unsure = False

    def _read_again(self) -> None:
        self._root.open()
        before, self._generations = self._generations, self._named_generations()
        self._pages.forget(page for page in before if before[page] != self._generations.get(page))
        self._finish_drop()

    @property
    def slot_due(self) -> bool:
        """Whether the root key is not yet in the slot that was chosen: renew() puts it there."""
        return self._root.slot_due

    @property
    def grade(self) -> str:
        """How surely DEKs that are dropped now are gone, in words for a certificate."""
        return self._root.grade

    @property
    def store_id(self) -> bytes:
        """16 bytes."""
        return self._root.store_id

    @property
    def ingest_private(self) -> bytes:
        """X25519: opens what captures spool from now on."""
        return self.ingest_keys()[-1]

    def ingest_key(self, key_id: str) -> bytes:
        """The private ingest key of this id, be it an older one. Raises ValueError: it is gone."""
        for key in reversed(self.ingest_keys()):
            if spool.key_id(keyfile.public_of(key)) == key_id:
                return key
        raise ValueError("sealed to an ingest key that is not this store's, or was destroyed")

    @property
    def ingest_key_ids(self) -> list[str]:
        """The names of all ingest keys on the wire, oldest first."""
        return [spool.key_id(keyfile.public_of(key)) for key in self.ingest_keys()]

    def ingest_keys(self) -> list[bytes]:
        """The private ingest keys, oldest first."""
        return [self._root.secrets[name] for name in self._root.of_kind(INGEST_KEY)]

    @property
    def ingest_public(self) -> bytes:
        """X25519: what captures seal their spool to."""
        return keyfile.public_of(self.ingest_private)

    @property
    def ingest_key_id(self) -> str:
        """The name of the ingest key on the wire."""
        return spool.key_id(self.ingest_public)

    @property
    def index_key(self) -> bytes:
        """HMAC key of the index's tokens."""
        return self._root.secrets[Name(INDEX_KEY, 0)]

    @property
    def ledger_key(self) -> bytes:
        """HMAC key of the pool's ledger."""
        return ledger.key_of(self.index_key)

    def intake_key(self, tier: int) -> bytes | None:
        """The public ingest key of another pool, which this one's root vouches for."""
        return self._root.secrets.get(Name(INTAKE_KEY, tier))

    def vouch(self, tier: int, public_key: bytes) -> list[str]:
        """Name another pool's public ingest key in our root. Returns names of changed files."""
        with self._changing():
            self._root.put_secret(Name(INTAKE_KEY, tier), public_key)
        return self._named([ROOT])

    @property
    def recipients(self) -> list[bytes]:
        """The public keys that the root is sealed to."""
        return self._root.recipients

    @property
    def ingest_generations(self) -> int:
        """How many ingest keys there are; the newest is what captures seal to."""
        return len(self.ingest_keys())

    def renew(self, recipients: list[bytes] | None = None) -> list[str]:
        """A new root key, sealed to these public keys or to those it was sealed to.

        The old root is overwritten. Returns names of changed files. Raises OSError.
        """
        with self._changing():
            self._root.replace(self._root.secrets, recipients)
            self._root.clear()
        return self._named([ROOT])

    def add_ingest_key(self) -> list[str]:
        """A new ingest key; older ones still open what was sealed to them. Raises OSError."""
        with self._changing():
            newest = self._root.of_kind(INGEST_KEY)[-1].generation
            self._root.put_secret(Name(INGEST_KEY, 0, newest + 1), os.urandom(32))
        return self._named([ROOT])

    def retire_ingest_keys(self, gone: Collection[str]) -> list[str]:
        """Destroy the ingest keys of these ids that are there. Returns names of changed files.

        Raises ValueError: the newest is among them; Fault, OSError.
        """
        *older, newest = zip(self._root.of_kind(INGEST_KEY), self.ingest_key_ids, strict=True)
        if newest[1] in gone:
            raise ValueError("the newest ingest key is what captures seal to")
        names = {name for name, key_id in older if key_id in gone}
        if names:
            with self._changing():
                kept = {name: key for name, key in self._root.secrets.items() if name not in names}
                self._root.replace(kept)
                self._root.clear()
        return self._named([ROOT])

    def has_ingest_key(self, public_key: bytes) -> bool:
        """Whether this is the public half of one of the ingest keys."""
        return any(keyfile.public_of(key) == public_key for key in self.ingest_keys())

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """What the store signs its certificates with."""
        return Ed25519PrivateKey.from_private_bytes(self._root.secrets[Name(SIGNING_KEY, 0)])

    @property
    def epoch(self) -> int:
        """Of the root: it rises with each new root key."""
        return self._root.epoch

    def generation(self, page: int) -> int:
        """How often a page was re-keyed; 0 for one that is not there."""
        return self._generations.get(page, 0)

    @property
    def pages(self) -> int:
        """How many key pages there are."""
        return len(self._generations)

    def names(self) -> list[str]:
        """The key files, pages before the root: the order in which a replica needs them."""
        return self._named(self.own_names())

    def own_names(self) -> list[str]:
        """The same as they are in the folder."""
        return [*(page_name(*page) for page in sorted(self._generations.items())), ROOT]

    def dek(self, key_id: int) -> bytes:
        """The DEK in a slot. Raises Fault: destroyed, unknown, or its page is damaged."""
        page, slot = divmod(key_id, SLOTS)
        with self._lock:
            deks = self._page(page)
        dek = deks[slot * DEK_BYTES : (slot + 1) * DEK_BYTES]
        if not any(dek):
            raise Fault("not_found", "the key of this recording was destroyed")
        return dek

    def take(
        self, reserved: Callable[[], int], reserve: Callable[[int], None]
    ) -> tuple[int, list[str]]:
        """A slot that nobody has had, and the names of key files that are new for it.

        reserved: tell the number below which slots may be in use.  reserve: make a higher one
        durable; it returns only when it is.
        """
        if not self._reserved:
            self._next = self._reserved = reserved()
        if self._next == self._reserved:
            reserve(self._reserved + RESERVE)
            self._reserved += RESERVE
        changed = []
        if (page := self._next // SLOTS) not in self._generations:
            changed = self._add_page(page)
        elif not self._opens(page):
            # A damaged page must not stop recording: go on with the next one.
            self._next = (page + 1) * SLOTS
            reserve(self._next)
            self._reserved = self._next
            return self.take(reserved, reserve)
        self._next += 1
        return self._next - 1, changed

    def drop(self, key_ids: Iterable[int]) -> Dropped:
        """Destroy DEKs: their pages under new keys, a new root, the old files overwritten.

        Once it returns they are gone, also those that an interrupted drop() began with.
        Overwriting a file is best effort: FORMAT.md §5.3. Raises Fault, OSError.
        """
        by_page: dict[int, list[int]] = {}
        for key_id in key_ids:
            by_page.setdefault(key_id // SLOTS, []).append(key_id % SLOTS)
        with self._changing():
            grade = self.grade  # of the root that goes
            self._finish_drop()
            left = {page: slots for page, slots in by_page.items() if self._holds(page, slots)}
            if left:
                self._rekey(left)
        generations = {page: self._generations[page] for page in by_page}
        names = [page_name(*page) for page in generations.items()]
        return Dropped(self.epoch, generations, self._named([*names, ROOT]), grade)

    def replace_root(self, data: bytes, store_id: str) -> None:
        """Put another store's root in place of ours, if the unlock key opens it. Raises Fault."""
        with self._lock:
            before, same = dict(self._root.secrets), self.store_id.hex() == store_id
            self._root.take(data, store_id)
            self._begin()
            if same:  # it came again: an import goes on
                self._keep_pages(before)

    def _keep_pages(self, before: Mapping[Name, bytes]) -> None:
        """Name the pages again that were made here since the root came for the first time."""
        for name, key in before.items():
            if name.kind == PAGE_KEY and name.number not in self._generations:
                self._root.put_secret(name, key)
                self._generations[name.number] = name.generation

    def fault_of(self, name: str, data: bytes) -> str | None:
        """What is wrong with these bytes of a key file, by its name in the folder; None: nothing.

        Raises LookupError: the root names no such file, or no more.
        """
        with self._lock:
            if name == ROOT:
                return None if self._root.matches(data) else "it is not the root that was opened"
            page, generation = of_name(name) or (-1, -1)
            if self._generations.get(page) != generation:
                raise LookupError(name)
            key = self._root.secrets[Name(PAGE_KEY, page, generation)]
        try:
            keypage.open_page(data, page, generation, self.store_id, key)
        except ValueError as error:
            return str(error)
        return None

    def rewrite_root(self) -> None:
        """Put the root as it is opened on disk, where that is damaged. Raises OSError."""
        with self._changing():
            self._root.rewrite()

    def put_back(self, page: int, generation: int, data: bytes) -> None:
        """Put a copy of a damaged page in place. Raises Fault: it is not that page; OSError."""
        with self._lock:
            if self._generations.get(page) != generation:
                raise Fault("not_found", "the root names another generation of the page by now")
            key = self._root.secrets[Name(PAGE_KEY, page, generation)]
            try:
                self._pages.put_back(page, generation, key, data)
            except ValueError as error:
                raise Fault("corrupt", f"its copy does not open: {error}") from None

    def _opens(self, page: int) -> bool:
        try:
            with self._lock:
                self._page(page)
        except Fault as fault:
            log.error("A key page cannot be opened", extra={"FAULT": fault.error})
            return False
        return True

    def _page(self, page: int) -> bytes:
        """The DEKs of a page. Raises Fault."""
        if page not in self._generations:
            raise Fault(
                "corrupt",
                f"key page {page} is not in this store",
                "Restore the keys folder from a replica; an import brings keys first.",
            )
        generation = self._generations[page]
        key = self._root.secrets[Name(PAGE_KEY, page, generation)]
        return self._pages.deks(page, generation, key)

    def _add_page(self, page: int) -> list[str]:
        key = self._pages.add(page)
        with self._changing():
            self._root.put_secret(Name(PAGE_KEY, page), key)
            self._generations[page] = 0
        return self._named([page_name(page, 0), ROOT])

    def _holds(self, page: int, slots: list[int]) -> bool:
        """Whether one of these DEKs is still there."""
        deks = self._page(page)
        return any(any(deks[slot * DEK_BYTES : (slot + 1) * DEK_BYTES]) for slot in slots)

    def _rekey(self, by_page: dict[int, list[int]]) -> None:
        """Give these pages a new generation without these DEKs."""
        secrets, plan = dict(self._root.secrets), {}
        for page, slots in by_page.items():
            generation, next_key = self._generations[page], os.urandom(32)
            key = secrets.pop(Name(PAGE_KEY, page, generation))
            secrets[Name(PAGE_KEY, page, generation + 1)] = next_key
            plan[page] = Rekeying(generation, key, slots, next_key)
        self._pages.rekey(plan)
        self._root.replace(secrets)
        for page in plan:
            self._generations[page] += 1
        self._pages.forget(plan)
        old = {
            page_name(page, one.generation): keypage.spans_of(one.slots)
            for page, one in plan.items()
        }
        self._root.clear(old, old)

    def _named(self, names: list[str]) -> list[str]:
        return [self._prefix + name for name in names]
