"""Which captures may yet bring something that needs an ingest key: what they say of it themselves.

A capture says in its health to which keys anything that it holds is, or would be, sealed (WIRE.md
§5). What it said last counts over restarts, and while it is away: it never goes back to an older
key. One that was told a key and says nothing of it, of a version before, is waited for. Each speaks
for its own certificate alone; one whose certificate was removed can bring nothing any more, and is
waited for only where it had said so. Rows: storaged.index.ingestkeys.
"""

import threading
from collections.abc import Collection, Iterable, Sequence

from spanvault.messages import Health, IngestKey
from storaged.index import ingestkeys
from storaged.index.environment import Index
from storaged.index.ingestkeys import DAEMONS, OTHERS, Holder, Told
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.pools.vaults import BASE


class Holding:
    """What captures said. hear() for any thread, all else for that of requests.

    captures: names of those that have a certificate; None: that is known elsewhere.
    """

    def __init__(self, index: Index, captures: Sequence[str] | None) -> None:
        self._index = index
        self._captures = None if captures is None else frozenset(captures)
        with index.reading() as view:
            self._kept = ingestkeys.holders(view)
        self._told = dict(self._kept)
        self._lock = threading.Lock()

    def hear(self, capture: str, health: Health) -> None:
        """Take a capture's account of itself. capture: the name that its certificate proves."""
        if "sealed_to" not in health.fields:
            return
        told, host = believed(health.fields["sealed_to"]), health.fields.get("host")
        # A host that was cloned has the other's certificate and name: the last word is not both's.
        name = f"{health.daemon}@{host}" if isinstance(host, str) else health.daemon
        holder = Holder.of(capture, name)
        with self._lock:
            if holder not in self._told and self._count(capture) >= DAEMONS:
                holder, told = Holder(OTHERS, capture), None
            self._told[holder] = told

    def _count(self, capture: str) -> int:
        return sum(one.capture == capture for one in self._told)

    def keep(self) -> None:
        """Make durable what is new. Raises OSError, lmdb.Error."""
        with self._lock:
            new = {
                one: told
                for one, told in self._told.items()
                if one not in self._kept or self._kept[one] != told
            }
        if not new:
            return

        def put(writing: Writing) -> None:
            for holder, told in new.items():
                ingestkeys.put_holder(writing, holder, told)

        self._index.write(put)
        self._kept |= new

    def of(self, view: View, key: IngestKey, newer: Collection[str]) -> list[str]:
        """Names of the captures that may hold something that needs a key.

        newer: ids of the keys that were made after it. Only who has told of one of those, and not
        of the key, has surely let that go: the last word of one that went away may be too old.
        """
        if key.pool != BASE:
            return []  # storaged alone seals to it
        said: dict[str, list[Told]] = {}
        for holder, told in self._kept.items():
            said.setdefault(holder.capture, []).append(told)
        holding = {
            name
            for name, each in said.items()
            if any(self._may_hold(name, told, key.key_id, newer) for told in each)
        }
        return sorted(holding | (self._met(view, key) - said.keys()))

    def _met(self, view: View, key: IngestKey) -> set[str]:
        """Those that were told a key, perhaps this one, and can still bring something."""
        met = ingestkeys.captures(view)
        if self._captures is None:
            return met
        if ingestkeys.birth(view, key.pool, key.key_id) is None:
            return {*self._captures}  # an index made anew has not met who is away
        return met & self._captures

    def _may_hold(self, capture: str, told: Told, key_id: str, newer: Collection[str]) -> bool:
        if self._captures is not None and capture not in self._captures:
            return told is not None and key_id in told
        return told is None or key_id in told or told.isdisjoint(newer)

    def without(self, there: Collection[str]) -> list[Holder]:
        """Those that named keys of which none is left: a program that is no more, perhaps."""
        return [one for one, told in self._kept.items() if told and not told & {*there}]

    def forget(self, holders: Iterable[Holder]) -> None:
        """Know nothing of these any more; what they say next counts anew."""
        for holder in holders:
            told = self._kept.pop(holder, None)
            with self._lock:
                if self._told.get(holder) == told:
                    del self._told[holder]


def believed(told: object) -> Told:
    """What a capture says of its keys, if it can be that."""
    if not isinstance(told, list) or len(told) > ingestkeys.MOST_TOLD:
        return None
    return frozenset(told) if all(map(ingestkeys.is_key_id, told)) else None
