"""The keys of a day whose rows are brought under another, from the first step to the last.

A key is named, in ledger and index, before the first row lies under it, and leaves its day only
once it is destroyed: else an erasure would not know of it, and whoever has a page of before could
read the row there for as long as the key lives. FORMAT.md §12. What is done in between:
storaged.erasing.converting.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from storaged.format.ledger import DayKey, Place
from storaged.index import erasures, labels, relabelling
from storaged.index.environment import Index
from storaged.index.writing import Writing
from storaged.pools.vaults import Vault


class Begun(NamedTuple):
    """A day whose rows are on their way. newest: key of what comes; target: of what was there."""

    vault: Vault
    day: int
    newest: int
    target: int


class DayKeys:
    """Takes and names keys of days. For the thread of requests; who calls holds all pools."""

    def __init__(self, index: Index, clock_ns: Callable[[], int]) -> None:
        self._index, self._clock_ns = index, clock_ns
        # Taken for a day by tries that came to nothing: a disk that fails for hours uses up no
        # slots. What the next one writes is the same, row by row, unless an erasure came between,
        # which has made such a key due.
        self._unused: dict[tuple[int, int], set[int]] = {}

    def begin(self, vault: Vault, day: int, sources: Collection[int]) -> Begun:
        """A key for what comes of a day from now on, and one for its rows.

        Until it has them all that one is spent: a crash has it destroyed, and begun anew.
        """
        with self._index.reading() as view:
            ids = labels.key_ids(view, day, vault.tier)
            unused = self._unused.get((vault.tier, day), ())
            due = {one for one in unused if erasures.waiting(view, vault.tier, one)}
        newest = self._take(vault, day, ids) if ids[0] in sources else ids[0]
        target = self._take(vault, day, {newest, *due})

        def put(writing: Writing, place: Place) -> None:
            writing.put_ledger(vault.tier, place)
            rest = [one for one in ids if one not in (newest, target)]
            labels.put_key_ids(writing, day, vault.tier, (newest, target, *rest))
            erasures.put_spent(writing, vault.tier, target)

        entries = [DayKey(day, one).entry() for one in (newest, target)]
        with vault.noting(entries, self._clock_ns()) as place:
            self._index.write(lambda writing: put(writing, place))
        self._unused[vault.tier, day].discard(newest)
        return Begun(vault, day, newest, target)

    def filled(self, begun: Begun, sources: Sequence[int]) -> None:
        """From now on the old rows are spent; new ones come behind the others if none came yet."""
        vault, day, newest, target = begun
        with self._index.reading() as view:
            ids = labels.key_ids(view, day, vault.tier)
            came = relabelling.has_rows(view, vault.tier, newest)
        spent = sources if came else [*sources, newest]
        if not came:
            ids = (target, *(one for one in ids if one != target))

        def put(writing: Writing) -> None:
            labels.put_key_ids(writing, day, vault.tier, ids)
            erasures.remove_spent(writing, vault.tier, target)
            for one in spent:
                erasures.put_spent(writing, vault.tier, one)

        self._index.write(put)
        self._unused.pop((vault.tier, day), None)

    def destroyed(self, gone: Iterable[tuple[int, int]]) -> None:
        """These are no keys any more. gone: tier and key id."""
        for tier, key_id in gone:
            for place, ids in self._unused.items():
                if place[0] == tier:
                    ids.discard(key_id)

    def _take(self, vault: Vault, day: int, others: Collection[int]) -> int:
        """A key that is not among others, and under which no others' rows ever lay."""
        unused = self._unused.setdefault((vault.tier, day), set())
        if left := unused - set(others):
            return min(left)
        unused.add(taken := vault.take_key(self._index))
        return taken
