"""The way back: from a replica into an empty store, whose storaged is asked to import it.

Order: keys, records, recordings; so the service can answer questions while the bulk still comes.
Each recording's SHA-256 is computed on its way and compared with its bundle's before the last part
is sent; storaged compares what it wrote. A damaged file is named and left out, the rest goes on.
Run again, it goes on where it was: what the store has whole is not sent again.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from replicator import layout
from replicator.inventory import Inventory, Version, in_order
from replicator.replica import Replica
from replicator.source import Refused, Source, StoreError
from replicator.targets import Missing, TargetError
from spanvault.messages import Change, Import

Tell = Callable[[dict[str, Any]], None]
TRIES: Final = 5  # for storaged to come back, a second and a time-out apart
EVERY_S: Final = 0.2  # between two lines of progress


class Restore:
    """One run from one replica. tell: given progress, and each fault once."""

    def __init__(self, replica: Replica, source: Source, tell: Tell) -> None:
        self._replica, self._source, self._tell = replica, source, tell
        self._faults: dict[str, str] = {}
        self._store_id = ""
        self._told_s = 0.0

    def run(self) -> int:
        """Import everything; gives the number of faults. Raises TargetError, StoreError.

        Refused, a StoreError: the store takes no restore at all.
        """
        label = self._replica.label()
        if label is None:
            place = self._replica.target.place
            raise TargetError("restore from", place, f"there is no {layout.STORE}", NO_REPLICA)
        self._store_id = label.store_id
        inventory = self._take_inventory()
        present = self._present(inventory)
        self._import_keys(inventory)
        self._import_erasures(inventory)
        self._import_records(inventory)
        self._import_objects(present)
        self._tell(
            {
                "phase": "end",
                "store_id": self._store_id,
                "keys": len(inventory.keys),
                "records": inventory.records,
                "objects": len(present),
                "faults": len(self._faults),
            }
        )
        return len(self._faults)

    def _take_inventory(self) -> Inventory:
        inventory = Inventory()
        for change in self._changes():
            inventory.add(change)
        return inventory

    def _present(self, inventory: Inventory) -> dict[bytes, list[Version]]:
        """What each recording at the target may be; those that cannot be sound are faults."""
        present: dict[bytes, list[Version]] = {}
        missing = set(inventory.objects)
        for entry in self._replica.target.list(layout.OBJECTS):
            identity = layout.recording_id(entry.name)
            if identity is None:
                continue
            missing.discard(identity)
            if inventory.erased(identity):
                continue  # the target had not followed yet
            try:
                present[identity] = inventory.present(identity, entry.size)
            except ValueError as error:
                self._fault(entry.name, str(error))
        for identity in sorted(missing):
            self._fault(layout.object_name(identity), NOT_COPIED)
        return present

    def _changes(self) -> Iterator[Change]:
        bundles = ((each.positions, each.name) for each in self._replica.bundles())
        return in_order(bundles, self._load_bundle)

    def _load_bundle(self, name: str) -> list[Change]:
        try:
            return self._replica.load_bundle(name)
        except (ValueError, TargetError) as error:
            self._fault(name, str(error))
            return []

    def _import_keys(self, inventory: Inventory) -> None:
        """Pages, then the root (its name sorts last): without that nothing could be opened."""
        if layout.ROOT not in inventory.keys:
            raise self._hopeless("no bundle names the root key")
        for done, (name, versions) in enumerate(sorted(inventory.keys.items()), 1):
            place = f"{layout.KEYS}/{name}"
            if inventory.old_page(name) and not self._replica.target.exists(place):
                continue  # gone with what was erased
            self._guarded(place, partial(self._import_key, name, versions), refusal_ends=True)
            if name == layout.ROOT and place in self._faults:
                raise self._hopeless(f"{place}: {self._faults[place]}")
            self._progress("keys", done, len(inventory.keys))

    def _import_key(self, name: str, versions: list[Version]) -> None:
        data = self._replica.read(layout.keys_name(name))
        version = _version_of(hashlib.sha256(data).hexdigest(), versions)
        change = Change(
            version.position,
            "keys",
            name=name,
            size=len(data),
            sha256=version.sha256,
            data=data,
        )
        self._source.import_change(Import(self._store_id, change))

    def _import_erasures(self, inventory: Inventory) -> None:
        """Tombstones first: of what was erased nothing may come back."""
        for change in inventory.erasures:
            message = Import(self._store_id, change)
            name = f"erasure at position {change.position}"
            self._guarded(name, partial(self._source.import_change, message))

    def _import_records(self, inventory: Inventory) -> None:
        done = 0
        for change in self._changes():
            if change.kind == "record" and not inventory.gone(change):
                name = f"record of call {change.id.hex()} at position {change.position}"
                message = Import(self._store_id, change)
                self._guarded(name, partial(self._source.import_change, message))
                done += 1
                self._progress("records", done, inventory.records)

    def _import_objects(self, present: dict[bytes, list[Version]]) -> None:
        size, total = 0, sum(versions[-1].size for versions in present.values())
        for done, (identity, versions) in enumerate(present.items(), 1):
            name = layout.object_name(identity)
            self._guarded(name, partial(self._import_object, identity, versions))
            size += versions[-1].size
            self._progress("objects", done, len(present), size, total)

    def _import_object(self, identity: bytes, versions: list[Version]) -> None:
        if any(self._store_has(_change(identity, version)) for version in versions):
            return
        newest = _change(identity, versions[-1])
        digest, offset, waiting = hashlib.sha256(), 0, b""
        for part in self._replica.target.read(layout.object_name(identity)):
            if waiting:
                self._import_part(newest, offset, waiting)
                offset += len(waiting)
            digest.update(part)
            waiting = part
        # Only now the last part, which makes it whole: these bytes are known to be right.
        version = _version_of(digest.hexdigest(), versions)
        self._import_part(_change(identity, version), offset, waiting)

    def _import_part(self, change: Change, offset: int, part: bytes) -> None:
        self._source.import_change(Import(self._store_id, change, offset), part)

    def _store_has(self, change: Change) -> bool:
        """Whether the store holds this recording already, whole: read back and compared."""
        if self._source.size_of(change.id) != change.size:
            return False
        try:
            for _ in self._source.read_object(change):
                continue
        except Refused:
            return False
        return True

    def _guarded(self, name: str, act: Callable[[], None], refusal_ends: bool = False) -> None:
        """Act; a fault of this one file is noted, an absent storaged is waited for.

        refusal_ends: what the store says is about the whole restore, such as: it is not empty.
        """
        for tries_left in reversed(range(TRIES)):
            try:
                return act()
            except (Refused, ValueError) as error:
                if refusal_ends and isinstance(error, Refused):
                    raise
                return self._fault(name, str(error))
            except Missing:
                return self._fault(name, NOT_COPIED)
            except TargetError as error:
                self._replica.label()  # raises if it is not this file, but all of the target
                return self._fault(name, str(error))
            except StoreError:
                if not tries_left:
                    raise
                time.sleep(1)
        return None

    def _hopeless(self, cause: str) -> TargetError:
        place = self._replica.target.place
        return TargetError("restore from", place, cause, "Restore from another target.")

    def _fault(self, name: str, reason: str) -> None:
        if name not in self._faults:
            self._faults[name] = reason
            self._tell({"fault": name, "error": reason})

    def _progress(
        self, phase: str, done: int, total: int, size: int = 0, total_size: int = 0
    ) -> None:
        now_s = time.monotonic()
        if done == total or now_s - self._told_s >= EVERY_S:
            self._told_s = now_s
            self._tell(
                {
                    "phase": phase,
                    "done": done,
                    "of": total,
                    "bytes": size,
                    "of_bytes": total_size,
                }
            )


NO_REPLICA: Final = "Is the disk mounted, and `path` the folder that the replicator copies to?"
NOT_COPIED: Final = "not at the target: its copy had not been made yet"


def _change(identity: bytes, version: Version) -> Change:
    return Change(
        version.position,
        "object",
        id=identity,
        pool=version.pool,
        size=version.size,
        sha256=version.sha256,
    )


def _version_of(digest: str, versions: list[Version]) -> Version:
    """The version that a file's digest is of. Raises ValueError if it is of none."""
    for version in reversed(versions):
        if version.sha256 == digest:
            return version
    raise ValueError("damaged: its SHA-256 is that of no version the bundles know")
