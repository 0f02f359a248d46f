"""A store's keys on disk: opened with the unlock key, DEKs handed out, pages made, one dropped.

Write order (FORMAT.md §5): a page is durable before the root names it; a run of slots is durably
reserved before one of them is used, so that a crash can skip slots but never hand one out twice.
Bytes: storaged.keypage. Where the reservation lies: storaged.index (handed in as a function).
"""

import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spanvault import keyfile, spool
from spanvault.certificate import OVERWRITTEN
from storaged import files, keypage, ledger
from storaged.faults import Fault
from storaged.keypage import (
    DEK_BYTES,
    INDEX_KEY,
    INGEST_KEY,
    INTAKE_KEY,
    PAGE_KEY,
    SIGNING_KEY,
    SLOTS,
    Name,
    Root,
)
from storaged.slot import GRADE, TokenSlot

log = logging.getLogger(__name__)
ROOT: Final = "root"
ROOT_OLD: Final = "root.old"  # the root that a drop() replaced, until it is overwritten
RESERVE: Final = 256  # slots reserved at a time
_PAGES_KEPT: Final = 64  # opened pages in memory, 128 KiB each
_PAGE_FILE: Final = re.compile(r"page-([0-9]{6,})\.([0-9]+)")


class Dropped(NamedTuple):
    """What the destruction of DEKs did to the key files."""

    epoch: int  # of the root that does not name the old pages any more
    generations: dict[int, int]  # of each page whose DEKs went, now
    files: list[str]  # that hold them now, pages before the root
    grade: str  # how surely they are gone


def page_name(page: int, generation: int) -> str:
    """The file name of a key page."""
    return f"page-{page:06d}.{generation}"


def create(folder: Path, store_id: bytes, recipients: Iterable[bytes], tier: int = 0) -> bytes:
    """Make the keys of a new pool: root, ingest, index, signing. recipients: public keys.

    Returns the ingest key's public half.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    secrets = {Name(kind, 0): os.urandom(32) for kind in (INGEST_KEY, INDEX_KEY, SIGNING_KEY)}
    data = keypage.serialize_root(
        store_id, 1, tier, os.urandom(32), list(recipients), secrets, _nonces(len(secrets))
    )
    files.replace(folder / ROOT, data)
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
        self._folder, self._private_key, self._prefix = folder, private_key, prefix
        self._slot, self._of_share = slot, slot.root_key if slot else _no_token
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        """Read the root file. Raises Fault: missing, damaged, or sealed to other keys."""
        path = self._folder / ROOT
        try:
            self._data = path.read_bytes()
            self._root: Root = keypage.open_root(self._data, self._private_key, self._of_share)
        except OSError as error:
            raise Fault(
                "locked",
                f"{path}: the store's root key cannot be read ({error.strerror})",
                "Restore the keys folder from a replica, or check its owner and mode.",
            ) from None
        except LookupError:
            raise Fault(
                "locked",
                f"{path}: the unlock key is not one this store is sealed to",
                "Set unlock_key to the key this store was made with, or to its recovery key.",
            ) from None
        except ValueError as error:
            raise Fault(
                "corrupt", f"{path}: {error}", "Restore the keys folder from a replica."
            ) from None
        if Name(SIGNING_KEY, 0) not in self._root.secrets:
            raise Fault(
                "invalid",
                f"{path}: the root of a store of version 1, it has no key to sign with",
                "Use the spanvault that made it to export what must be kept.",
            )
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._generations = {
            name.number: name.generation for name in self._root.secrets if name.kind == PAGE_KEY
        }
        self._next = self._reserved = 0
        self._finish_drop()

    def _finish_drop(self) -> None:
        """Destroy what a crash left of a drop(): pages that a root has replaced, or never named."""
        self._clear_aside()
        self._clear_slot()
        names = [path.name for path in self._folder.iterdir()]
        old = [name for name in names if name.endswith(".new")]
        for name in names:
            found = _PAGE_FILE.fullmatch(name)
            # A page that the root does not know at all may be an import's, whose root comes later.
            if found and self._generations.get(int(found[1]), int(found[2])) != int(found[2]):
                old.append(name)
        files.destroy(self._folder, old)

    @property
    def slot_due(self) -> bool:
        """Whether the root key is not yet in the slot that was chosen: renew() puts it there."""
        return self._slot is not None and self._root.slot == keypage.FILE

    @property
    def grade(self) -> str:
        """How surely DEKs that are dropped now are gone, in words for a certificate."""
        return GRADE if self._root.slot == keypage.TOKEN else OVERWRITTEN

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

    def ingest_keys(self) -> list[bytes]:
        """The private ingest keys, oldest first."""
        names = sorted(name for name in self._root.secrets if name.kind == INGEST_KEY)
        return [self._root.secrets[name] for name in names]

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
        with self._lock:
            self._put_secret(Name(INTAKE_KEY, tier), public_key)
        return self._named([ROOT])

    @property
    def recipients(self) -> list[bytes]:
        """The public keys that the root is sealed to."""
        return list(self._root.recipients)

    @property
    def ingest_generations(self) -> int:
        """How many ingest keys there are; the newest is what captures seal to."""
        return len(self.ingest_keys())

    def renew(self, recipients: list[bytes] | None = None) -> list[str]:
        """A new root key, sealed to these public keys or to those it was sealed to.

        The old root is overwritten. Returns names of changed files. Raises OSError.
        """
        with self._lock:
            self._replace_root(self._root.secrets, recipients)
            files.destroy(self._folder, [ROOT_OLD])
            self._clear_slot()
        return self._named([ROOT])

    def add_ingest_key(self) -> list[str]:
        """A new ingest key; older ones still open what was sealed to them. Raises OSError."""
        with self._lock:
            newest = max(name.generation for name in self._root.secrets if name.kind == INGEST_KEY)
            self._put_secret(Name(INGEST_KEY, 0, newest + 1), os.urandom(32))
        return self._named([ROOT])

    def retire_ingest_keys(self) -> list[str]:
        """Destroy all ingest keys but the newest. Returns names of changed files."""
        with self._lock:
            names = sorted(name for name in self._root.secrets if name.kind == INGEST_KEY)
            if len(names) < 2:
                return []
            kept = {name: key for name, key in self._root.secrets.items() if name not in names[:-1]}
            self._replace_root(kept)
            files.destroy(self._folder, [ROOT_OLD])
            self._clear_slot()
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
        pages = [page_name(*page) for page in sorted(self._generations.items())]
        return self._named([*pages, ROOT])

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
        with self._lock:
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
        try:
            root = keypage.open_root(data, self._private_key, self._of_share)
        except LookupError:
            raise Fault(
                "locked",
                "the unlock key is not one that the replica's store is sealed to",
                "Restore with the unlock key of that store, or with its recovery key.",
            ) from None
        except ValueError as error:
            raise Fault("corrupt", str(error), "Restore from another replica.") from None
        if root.store_id.hex() != store_id:
            raise Fault("corrupt", "the root key is another store's")
        with self._lock:
            files.replace(self._folder / ROOT, data)
            self._open()

    def _opens(self, page: int) -> bool:
        try:
            with self._lock:
                self._page(page)
        except Fault as fault:
            log.error("A key page cannot be opened", extra={"FAULT": fault.error})
            return False
        return True

    def _page(self, page: int) -> bytes:
        if page in self._pages:
            self._pages.move_to_end(page)
            return self._pages[page]
        if page not in self._generations:
            raise Fault(
                "locked",
                f"key page {page} is not in this store",
                "Restore the keys folder from a replica; an import brings keys first.",
            )
        generation = self._generations[page]
        path = self._folder / page_name(page, generation)
        try:
            deks = keypage.open_page(
                path.read_bytes(), page, generation, self.store_id,
                self._root.secrets[Name(PAGE_KEY, page, generation)],
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise Fault(
                "locked", f"{path}: {error}", "Restore the keys folder from a replica."
            ) from None
        self._pages[page] = deks
        if len(self._pages) > _PAGES_KEPT:
            self._pages.popitem(last=False)
        return deks

    def _add_page(self, page: int) -> list[str]:
        key, deks = os.urandom(32), os.urandom(SLOTS * DEK_BYTES)
        name = page_name(page, 0)
        sealed = keypage.seal_page(
            page, 0, self._root.tier, self.store_id, deks, key, os.urandom(12)
        )
        files.replace(self._folder / name, sealed)
        with self._lock:
            self._put_secret(Name(PAGE_KEY, page), key)
            self._generations[page] = 0
            self._pages[page] = deks
        return self._named([name, ROOT])

    def _put_secret(self, name: Name, secret: bytes) -> None:
        """Write the root file anew with one more secret, under the same root key."""
        secrets = {**self._root.secrets, name: secret}
        data = keypage.replace_secrets(self._data, self._root, secrets, _nonces(len(secrets)))
        self._put_root(data)
        files.destroy(self._folder, [ROOT_OLD])
        self._data, self._root = data, self._root._replace(secrets=secrets)

    def _holds(self, page: int, slots: list[int]) -> bool:
        """Whether one of these DEKs is still there."""
        deks = self._page(page)
        return any(any(deks[slot * DEK_BYTES : (slot + 1) * DEK_BYTES]) for slot in slots)

    def _rekey(self, by_page: dict[int, list[int]]) -> None:
        """Give these pages a new generation without these DEKs."""
        secrets = dict(self._root.secrets)
        old: dict[str, list[files.Span]] = {}
        for page, slots in by_page.items():
            generation = self._generations[page]
            old[page_name(page, generation)] = keypage.spans_of(slots)
            del secrets[Name(PAGE_KEY, page, generation)]
            secrets[Name(PAGE_KEY, page, generation + 1)] = os.urandom(32)
        files.replace_all(self._folder, self._without(by_page, secrets))
        self._replace_root(secrets)
        for page in by_page:
            self._generations[page] += 1
            self._pages.pop(page, None)
        self._clear_slot()
        files.destroy(self._folder, [*old, ROOT_OLD], old)

    def _without(
        self, by_page: dict[int, list[int]], secrets: dict[Name, bytes]
    ) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each page's next generation; one after the other: there may be many."""
        for page, slots in by_page.items():
            deks = bytearray(self._page(page))
            for slot in slots:
                deks[slot * DEK_BYTES : (slot + 1) * DEK_BYTES] = bytes(DEK_BYTES)
            generation = self._generations[page] + 1
            key = secrets[Name(PAGE_KEY, page, generation)]
            yield (
                page_name(page, generation),
                keypage.seal_page(
                    page,
                    generation,
                    self._root.tier,
                    self.store_id,
                    bytes(deks),
                    key,
                    os.urandom(12),
                ),
            )

    def _named(self, names: list[str]) -> list[str]:
        return [self._prefix + name for name in names]

    def _replace_root(
        self, secrets: dict[Name, bytes], recipients: list[bytes] | None = None
    ) -> None:
        """Write a root file under a new root key, sealed to the same or other public keys."""
        epoch, recipients = self._root.epoch + 1, recipients or self._root.recipients
        share = os.urandom(32)
        root = self._root._replace(
            epoch=epoch, root_key=self._root_key(epoch, share), secrets=secrets,
            recipients=recipients, slot=keypage.TOKEN if self._slot else keypage.FILE,
        )  # fmt: skip
        data = keypage.serialize_root(
            self.store_id, epoch, root.tier, root.root_key, recipients, secrets,
            _nonces(len(secrets)), share if self._slot else None,
        )  # fmt: skip
        self._put_root(data)
        self._data, self._root = data, root

    def _root_key(self, epoch: int, share: bytes) -> bytes:
        """A new root key, of a share if a token is to keep the rest of it. Raises Fault."""
        if self._slot is None:
            return share
        self._slot.make(self.store_id, self._root.tier, epoch)
        return self._slot.root_key(self.store_id, self._root.tier, epoch, share)

    def _clear_slot(self) -> None:
        """Destroy in the token what other roots than the one in place needed. Raises Fault."""
        if self._slot is not None and self._root.slot == keypage.TOKEN:
            self._slot.keep_only(self.store_id, self._root.tier, self._root.epoch)

    def _clear_aside(self) -> None:
        """Destroy a root that was replaced, if a crash or a failing disk left it."""
        aside = self._folder / ROOT_OLD
        # Linked, and the new root not in place: it is the root, and must not be overwritten.
        if aside.exists() and aside.samefile(self._folder / ROOT):
            aside.unlink()
        files.destroy(self._folder, [ROOT_OLD])

    def _put_root(self, data: bytes) -> None:
        """Put a root file in place; the old one stays as ROOT_OLD, to be overwritten."""
        path, aside = self._folder / ROOT, self._folder / ROOT_OLD
        self._clear_aside()
        os.link(path, aside)
        files.replace(path, data)


def _no_token(*_: object) -> bytes:
    """In place of a token that the settings do not name."""
    raise Fault(
        "locked",
        "a part of the root key is in a token",
        "Set erasure_token in storaged.toml to the one that the store was given.",
    )


def _nonces(count: int) -> list[bytes]:
    return [os.urandom(12) for _ in range(count)]
