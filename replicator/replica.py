"""One store's replica at one target: what lies where, put and read back (LAYOUT.md).

A copy counts only once its SHA-256 was read back from the target. Files that are there already
are checked instead of copied. How a target keeps a file: replicator.targets.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from replicator import bundle, layout
from replicator.targets import Missing, Target, TargetError
from spanvault.messages import Change, Erasure


class Label(msgspec.Struct, frozen=True):
    """store.json: whose replica this is."""

    layout: int
    store_id: str


class BundleFile(NamedTuple):
    """A bundle at the target."""

    positions: layout.Positions
    name: str
    size: int


class Replica:
    """A target seen as a replica. Every method may raise TargetError."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def label(self) -> Label | None:
        """Whose replica the target is; None if nobody's yet."""
        try:
            data = b"".join(self.target.read(layout.STORE))
        except Missing:
            return None
        try:
            label = msgspec.json.decode(data, type=Label)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise self._error("read", f"{layout.STORE} is damaged ({error})", DAMAGED) from None
        if label.layout != layout.VERSION:
            cause = f"layout {label.layout}, this program knows {layout.VERSION}"
            raise self._error("read", cause, "Use the version of spanvault that wrote it.")
        return label

    def claim(self, store_id: str, first: bool) -> None:
        """See that the target is there and this store's; `first`: it may be made and labelled."""
        self.target.prepare(create=first)
        label = self.label()
        if label is None:
            if not first:
                raise self._error("open", "the replica that was here is gone", GONE)
            if any(self.target.list(layout.OBJECTS)):
                raise self._error("open", f"recordings without {layout.STORE}", DAMAGED)
            self._put(layout.STORE, msgspec.json.encode(Label(layout.VERSION, store_id)))
        elif label.store_id != store_id:
            cause = f"it is the replica of store {label.store_id}, not of {store_id}"
            raise self._error("open", cause, FOREIGN)

    def put_object(self, change: Change, parts: Callable[[], Iterable[bytes]]) -> None:
        """Keep a sealed recording. parts is called only if the target has no sound copy yet."""
        name = layout.object_name(change.id)
        if self.target.exists(name) and self.target.sha256(name) == change.sha256:
            return
        self.target.put(name, parts())
        self._check(name, change.sha256)

    def put_keys(self, change: Change) -> None:
        """Keep a file of sealed keys; of one that it replaces nothing stays.

        Raises ValueError for a name that no target can keep.
        """
        self._put(layout.keys_name(change.name), change.data, supplant=True)

    def erase(self, erasure: Erasure) -> bool:
        """Follow an erasure; False if the new root key is not here yet.

        The recordings go, and the key pages that the new root does not name. The records of
        the calls stay in their bundles: what they were sealed under is gone with the pages.
        """
        for pool, epoch in erasure.epochs.items():
            if self._epoch(pool) < epoch:
                return False
        for page in (*erasure.pages, *erasure.day_pages):
            for generation in range(page.before, page.after):
                name = f"page-{page.page:06d}.{generation}"
                self.target.destroy(layout.keys_name(_in_pool(page.pool, name)))
        for one in erasure.recordings:
            name = layout.object_name(one.id)
            if not erasure.moved_to or self._holds(name, one.sha256):
                self.target.remove(name)
        return True

    def _holds(self, name: str, digest: str) -> bool:
        """Whether this very file is here: of a call that was moved, the new copy may be already."""
        return self.target.exists(name) and self.target.sha256(name) == digest

    def _epoch(self, pool: str) -> int:
        """That of a pool's root key file at the target; 0 if there is none."""
        try:
            return layout.root_epoch(self.read(layout.keys_name(_in_pool(pool, layout.ROOT))))
        except Missing:
            return 0

    def put_bundle(self, changes: list[Change]) -> str:
        """Keep some of the feed, by position; gives the bundle's name."""
        positions = layout.Positions(changes[0].position, changes[-1].position)
        name = layout.bundle_name(positions)
        self._put(name, bundle.serialize(changes))
        return name

    def bundles(self) -> list[BundleFile]:
        """The bundles that are there, by position."""
        return sorted(
            BundleFile(positions, entry.name, entry.size)
            for entry in self.target.list(layout.RECORDS)
            if (positions := layout.bundle_positions(entry.name))
        )

    def load_bundle(self, name: str) -> list[Change]:
        """A bundle's changes. Raises ValueError if it is damaged."""
        return bundle.parse(self.read(name))

    def read(self, name: str) -> bytes:
        """A file that fits into memory: keys, or a bundle. Raises Missing."""
        return b"".join(self.target.read(name))

    def _put(self, name: str, data: bytes, *, supplant: bool = False) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if self.target.exists(name) and self.target.sha256(name) == digest:
            return
        (self.target.supplant if supplant else self.target.put)(name, [data])
        self._check(name, digest)

    def _check(self, name: str, expected: str) -> None:
        found = self.target.sha256(name)
        if found != expected:
            self.target.remove(name)  # else it would be taken for a copy at a restore
            cause = f"{name} reads back with another SHA-256"
            raise self._error("verify", cause, "The medium damages data: replace it.")

    def _error(self, operation: str, cause: str, hint: str) -> TargetError:
        return TargetError(operation, self.target.place, cause, hint)


def _in_pool(pool: str, name: str) -> str:
    """A key file's name as the feed tells it: base's lie at the top."""
    return name if pool == "base" else f"{pool}/{name}"


DAMAGED = "Compare it with LAYOUT.md, or give the replicator an empty place."
GONE = (
    "Is the disk mounted? If it was replaced by an empty one, stop the replicator, "
    "remove this target's .position file from its state_dir, and start it again."
)
FOREIGN = "Give each store its own place: correct `path`, or move away what is there."
