"""What replicas are fed: a page of changes, and the ciphertext of objects. Nothing is decrypted.

Positions and their meaning: FORMAT.md §7. What is asked back of replicas:
storaged.integrity.mending. Protocol: WIRE.md §6.
"""

from typing import Final

from spanvault import messages as m
from spanvault.daemon.rules import POOLS
from spanvault.transport import Identity
from storaged.faults import Fault
from storaged.index import damage, erasures
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import OBJECT, SEALED
from storaged.index.view import View
from storaged.integrity.mending import Mender
from storaged.integrity.recordcheck import Record
from storaged.pools.layout import Store
from storaged.pools.vaults import Vaults

PART_BYTES: Final = 4 << 20  # of a ReadObject
_REPLY_BYTES: Final = 4 << 20  # of a FeedReply; wire.MAX_HEADER is far above
_FEED_MAX: Final = 5000


class FeedSource:
    """Answers for replicas. For the thread of requests."""

    def __init__(self, store: Store, index: Index, vaults: Vaults, mender: Mender) -> None:
        self._store, self._index, self._vaults, self._mender = store, index, vaults, mender

    def feed(self, who: Identity, request: m.Feed) -> m.FeedReply:
        """A page of the feed, and what is asked back of who asks. Raises Fault."""
        if not 0 <= request.position < 1 << 63 or not 1 <= request.limit <= _FEED_MAX:
            raise Fault("invalid", "position or limit out of range", f"1 to {_FEED_MAX} a page.")
        changes: list[m.Change] = []
        size, position, hurt = 0, request.position, list[Record]()
        with self._index.reading() as view:
            head = view.number(b"position")
            for at, kind, what in view.changes(request.position, request.limit):
                if size >= _REPLY_BYTES:
                    break
                change, position = None, at
                with view.passing():
                    change = self._change(view, at, kind, what, hurt)
                if change is not None:
                    changes.append(change)
                    size += len(change.data) + 100
        for one in hurt:
            self._mender.records.note(one)
        wanted = self._mender.wanted(target_of(who, request)) if who.role == "replicator" else []
        return m.FeedReply(self._store.store_id.hex(), changes, position, head, wanted)

    def read_object(self, request: m.ReadObject) -> tuple[int, bytes]:
        """An object's size, and a part of it as it lies there. Raises Fault, OSError."""
        with self._index.reading() as view:
            state = view.state(request.id)
        if state is None or not state.bits & SEALED:
            raise Fault("not_found", "there is no sealed recording of this id", "Wait for its end.")
        if not 0 <= request.offset <= state.size or request.size <= 0:
            raise Fault("invalid", "offset or size out of range")
        end = min(state.size, request.offset + min(request.size, PART_BYTES))
        with self._vaults.of(state.tier).pool.reading(request.id) as data:
            return state.size, data[request.offset : end]

    def _change(
        self, view: View, position: int, kind: bytes, what: bytes, hurt: list[Record]
    ) -> m.Change | None:
        """A line of the feed as a replica needs it; None for what is gone since.

        hurt: gets a record that does not open: nobody had read it since it was damaged.
        """
        if kind == tables.ERASED:
            return erasures.change(view, position, what)
        if kind == tables.LOG_HEAD:
            data = view.get(b"meta", what) or b""
            return m.Change(position, "log", size=len(data), data=data)
        if kind == tables.KEYS_CHANGED:
            name = damage.name_of(damage.KEYS, tables.FEED, what)
            key_file = self._vaults.key_file(name)
            if key_file is None:
                return None
            return m.Change(position, "keys", name=name, size=len(key_file), data=key_file)
        if kind not in (tables.RECORD_CHANGED, tables.OBJECT_CHANGED):
            raise tables.damaged(tables.FEED, f"of kind {kind!r}")
        tables.check_id(tables.FEED, what)
        state = view.state(what)
        if state is None:
            return None
        pool = POOLS[state.tier]
        if kind == tables.RECORD_CHANGED:
            if damage.files_known(view, damage.RECORDS, what.hex()):
                return None  # it would replace a replica's sound copy; it is announced when whole
            sealed = view.get(b"record", what) or b""
            if one := self._mender.records.fault_of(view, what, sealed, state):
                hurt.append(one)
                return None
            return m.Change(position, "record", what, pool, size=len(sealed), data=sealed)
        if not state.bits & SEALED or not state.bits & OBJECT:
            return None  # goes on in a new segment: it is announced again when that ends
        return m.Change(position, "object", what, pool, size=state.size, sha256=state.sha256.hex())


def target_of(who: Identity, request: m.Feed) -> str:
    """The place that the feed is asked for."""
    return request.target or str(who)
