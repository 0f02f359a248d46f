"""Make few large bundles out of many small ones: a target's folder must not grow by a file a page.

A merged bundle holds every entry of those it replaces, and is verified before they go, so a
kill at any moment leaves all entries there, some of them twice (LAYOUT.md §3).
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Final

from replicator.inventory import in_order
from replicator.replica import BundleFile, Replica
from spanvault.messages import Change

log = logging.getLogger(__name__)
MERGED_BYTES: Final = 4 << 20  # about so large a merged bundle becomes
SMALL_BYTES: Final = MERGED_BYTES // 2  # larger ones are left as they are


def merge(replica: Replica) -> None:
    """Merge a replica's small bundles. Raises TargetError."""
    for group in groups(replica.bundles()):
        _merge(replica, group)


def groups(bundles: Iterable[BundleFile]) -> Iterator[list[BundleFile]]:
    """Neighbours that are small and together fill one bundle. bundles: by position."""
    group: list[BundleFile] = []
    for each in bundles:
        if each.size >= SMALL_BYTES:
            continue
        if sum(one.size for one in group) + each.size > MERGED_BYTES:
            yield from [group] if len(group) > 1 else []
            group = []
        group.append(each)
    yield from [group] if len(group) > 1 else []


def _merge(replica: Replica, group: list[BundleFile]) -> None:
    sound: set[str] = set()

    def load(name: str) -> list[Change]:
        try:
            changes = replica.load_bundle(name)
        except ValueError as error:
            log.error(
                "A bundle at the target is damaged", extra={"FILE": name, "FAULT": str(error)}
            )
            return []
        sound.add(name)
        return changes

    changes = list(in_order(((each.positions, each.name) for each in group), load))
    if not changes:
        return
    merged = replica.put_bundle(changes)
    for name in sorted(sound - {merged}):
        replica.target.remove(name)
