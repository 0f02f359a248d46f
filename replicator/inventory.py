"""What a replica should hold, gathered from its bundles. Pure, but for reading through a function.

A bundle may overlap another (a replicator that was killed asks again from an older position), so
changes are brought into the order of their positions before the later one of two wins.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from replicator.layout import Positions
from spanvault.messages import Change, Erasure


class Version(NamedTuple):
    """One state of a file, as a bundle describes it."""

    position: int
    size: int
    sha256: str
    pool: str


class Inventory:
    """Every file that should be at the target, with all of its versions, the newest last."""

    def __init__(self) -> None:
        self.keys: dict[str, list[Version]] = {}
        self.objects: dict[bytes, list[Version]] = {}
        self.records = 0
        self.erasures: list[Change] = []
        self._erased: set[bytes] = set()
        self._moved: set[tuple[bytes, str]] = set()  # and the pool that it was moved up from

    def present(self, identity: bytes, size: int) -> list[Version]:
        """The versions of a recording that have the size of its file, the newest last.

        Raises ValueError if there is none: the file is damaged, or no sound bundle knows it.
        """
        versions = self.objects.get(identity)
        if not versions:
            raise ValueError("no sound bundle vouches for it; it was left out")
        if not (fitting := [version for version in versions if version.size == size]):
            raise ValueError(f"damaged: {size} bytes instead of {versions[-1].size}")
        return fitting

    def add(self, change: Change) -> None:
        """Take note of the next change, in the order of positions."""
        version = Version(change.position, change.size, change.sha256, change.pool)
        if change.kind == "object" and self.gone(change):
            return
        if change.kind == "keys":
            self.keys.setdefault(change.name, []).append(version)
        elif change.kind == "object":
            self.objects.setdefault(change.id, []).append(version)
        elif change.kind == "erase":
            self.erasures.append(change)
            self._forget(change)
        elif change.kind == "record" and not self.gone(change):
            self.records += 1

    def gone(self, change: Change) -> bool:
        """Whether a record or recording was erased, or moved up: its key is destroyed."""
        return change.id in self._erased or (change.id, change.pool) in self._moved

    def erased(self, identity: bytes) -> bool:
        """Whether a call was erased: what bundles and files say of it does not count."""
        return identity in self._erased

    def old_page(self, name: str) -> bool:
        """Whether a key page has a later generation: it may be gone."""
        page, _, generation = name.rpartition(".")
        return generation.isdecimal() and any(
            other.rpartition(".")[0] == page and int(other.rpartition(".")[2]) > int(generation)
            for other in self.keys
            if other.rpartition(".")[2].isdecimal()
        )

    def _forget(self, change: Change) -> None:
        try:
            erasure = msgspec.msgpack.decode(change.data, type=Erasure)
        except (ValueError, RecursionError):
            return  # the store it is imported into says so
        for one in erasure.recordings:
            versions = self.objects.pop(one.id, [])
            if not erasure.moved_to:
                self._erased.add(one.id)
                continue
            self._moved.add((one.id, one.pool))
            if kept := [version for version in versions if version.pool != one.pool]:
                self.objects[one.id] = kept


def in_order(
    bundles: Iterable[tuple[Positions, str]], load: Callable[[str], list[Change]]
) -> Iterator[Change]:
    """The changes of all bundles by position, each once. Only overlapping bundles are held at once.

    bundles: by position. load: a bundle's changes, by position; none if it cannot be read.
    """
    waiting: list[tuple[int, int, Change]] = []
    number, last = 0, None
    for positions, name in bundles:
        while waiting and waiting[0][0] < positions.first:
            last, change = _next(waiting, last)
            if change:
                yield change
        for change in load(name):
            number += 1  # unlike changes, numbers compare
            heapq.heappush(waiting, (change.position, number, change))
    while waiting:
        last, change = _next(waiting, last)
        if change:
            yield change


def _next(
    waiting: list[tuple[int, int, Change]], last: Change | None
) -> tuple[Change, Change | None]:
    """The next change, None in its place if it is the last one over again."""
    change = heapq.heappop(waiting)[2]
    return change, None if change == last else change
