"""What the index knows of ingest keys: how old they are, who may need one yet, what its end is for.

A key is named by its pool and by the id that captures know it by. Rows: FORMAT.md §7. Who makes and
destroys the keys: storaged.erasing.retiring. Pure but for LMDB.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from spanvault.daemon.rules import POOLS, TIERS
from spanvault.messages import Call, Erasure, IngestKey
from storaged.index import rows as tables
from storaged.index.labels import DAY_NS
from storaged.index.rows import FINAL, OBJECT, POSITION, ROTATED, SEALED, State
from storaged.index.view import View
from storaged.index.writing import Writing

BORN: Final = b"born/"  # counters of table meta, and POOL/KEYID: when an ingest key was made, ns
BORN_AT: Final = b"bornat/"  # the same: how far the feed was then
_ID: Final = 8  # bytes of a key's id
_DIGITS: Final = frozenset("0123456789abcdef")
MOST_TOLD: Final = 64  # keys in one account; one that names more is not believed
DAEMONS: Final = 16  # of one certificate whose accounts are kept
_HASH: Final = 16
OTHERS: Final = bytes(_HASH)  # in place of a daemon: more than those speak for a certificate


class Holder(NamedTuple):
    """A program of a capture: those that share its certificate tell each for itself."""

    daemon: bytes  # 16 bytes, by its name
    capture: str

    @classmethod
    def of(cls, capture: str, daemon: str) -> "Holder":
        """By the name that its certificate proves, and the one that it gives itself."""
        return cls(hashlib.sha256(daemon.encode(errors="replace")).digest()[:_HASH], capture)


# Ids of the keys that what it holds needs to open; None: it cannot tell, or tells too much.
Told = frozenset[str] | None


class Birth(NamedTuple):
    """When a key was made: by the clock, and by what the feed had."""

    at_ns: int
    position: int


# --- ages ----------------------------------------------------------------------------------------


def put_birth(writing: Writing, pool: str, key_id: str, now_ns: int) -> None:
    """Note that a key was made just now."""
    writing.set_number(_name(BORN, pool, key_id), now_ns)
    writing.set_number(_name(BORN_AT, pool, key_id), writing.number(b"position"))


def birth(view: View, pool: str, key_id: str) -> Birth | None:
    """When a key was made; None: it is older than this index."""
    at_ns = view.number(_name(BORN, pool, key_id))
    return Birth(at_ns, view.number(_name(BORN_AT, pool, key_id))) if at_ns else None


def put_replaced(writing: Writing, pool: str, key_id: str, now_ns: int) -> None:
    """Note since when another key takes this one's place."""
    writing.set_number(_name(ROTATED, pool, key_id), now_ns)


def replaced_ns(view: View, pool: str, key_id: str) -> int:
    """Since when; 0: not known."""
    return view.number(_name(ROTATED, pool, key_id))


def older(view: View, pool: str) -> set[str]:
    """Ids of a pool's keys that were replaced and are not known to be destroyed."""
    prefix, cursor, found = ROTATED + f"{pool}/".encode(), view.cursor(b"meta"), set()
    more = cursor.set_range(prefix)
    while more and (key := bytes(cursor.key())).startswith(prefix):
        found.add(key[len(prefix) :].decode(errors="replace"))
        more = cursor.next()
    return found


def forget(writing: Writing, pool: str, key_id: str) -> None:
    """A key is destroyed: its age is of no matter any more."""
    for kind in (BORN, BORN_AT, ROTATED):
        writing.delete(b"meta", _name(kind, pool, key_id))


def _name(kind: bytes, pool: str, key_id: str) -> bytes:
    return kind + f"{pool}/{key_id}".encode()


def came_before(view: View, call: Call | None, state: State, born: Birth | None) -> bool:
    """Whether all that there is of a call was stored before a key was made.

    Then nothing of it was ever sealed to that key: a capture spools only what is not acknowledged.
    A day is left for a batch whose acknowledgement was lost. In doubt: no.
    """
    ended = state.bits & FINAL and (state.bits & SEALED or not state.bits & OBJECT)
    if call is None or born is None or not ended:
        return False
    heard_ns = [call.started_ns, call.answered_ns or 0, call.ended_ns or 0]
    heard_ns += [one.last_ns for one in (*call.streams, *call.beside)]
    changed = [view.get(b"fed", kind + call.id)
               for kind in (tables.OBJECT_CHANGED, tables.RECORD_CHANGED)]  # fmt: skip
    in_time = max(heard_ns) + DAY_NS < born.at_ns
    with view.passing():
        positions = [tables.unpack(POSITION, b"fed", at)[0] for at in changed if at is not None]
        return in_time and bool(positions) and max(positions) <= born.position
    return False


# --- what erasures wait for ----------------------------------------------------------------------


def begin(writing: Writing, erasure: Erasure) -> None:
    """Note the keys whose end an erasure waits for; or that it waits for none any more."""
    for key in erasure.ingest_keys:
        row = _row(TIERS[key.pool], key.key_id) + erasure.id
        if erasure.spools_gone_ns:
            writing.delete(b"spooled", row)
        else:
            writing.put(b"spooled", row, b"")


def due(view: View) -> dict[IngestKey, set[bytes]]:
    """Keys whose end is waited for, and by which erasures."""
    found: dict[IngestKey, set[bytes]] = {}
    for key, value in view.cursor(b"spooled"):
        with view.passing():
            row = bytes(key)
            if row[0] >= len(POOLS) or len(row) != 1 + _ID + 16 or len(value):
                raise tables.damaged(b"spooled", f"{len(row)} and {len(value)} bytes")
            one = IngestKey(POOLS[row[0]], row[1 : 1 + _ID].hex())
            found.setdefault(one, set()).add(row[1 + _ID :])
    return found


def gone(writing: Writing, keys: Iterable[IngestKey]) -> None:
    """Note that keys are destroyed."""
    waited = due(writing)
    for key in keys:
        forget(writing, key.pool, key.key_id)
        for erasure_id in waited.get(key, ()):
            writing.delete(b"spooled", _row(TIERS[key.pool], key.key_id) + erasure_id)


def _row(tier: int, key_id: str) -> bytes:
    return bytes((tier,)) + bytes.fromhex(key_id)


# --- who may need a key --------------------------------------------------------------------------


def can_be(key: IngestKey) -> bool:
    """Whether this can be a key: what a replica brings need not."""
    return key.pool in TIERS and is_key_id(key.key_id)


def is_key_id(text: object) -> bool:
    """Whether this can name an ingest key: 16 hex digits."""
    return isinstance(text, str) and len(text) == 2 * _ID and not set(text) - _DIGITS


def holders(view: View) -> dict[Holder, Told]:
    """What every program of a capture said last."""
    found: dict[Holder, Told] = {}
    for key, value in view.cursor(b"holds"):
        row, ids = bytes(key), bytes(value)[1:]
        holder = Holder(row[:_HASH], row[_HASH:].decode(errors="replace"))
        found[holder] = None  # nobody knows what it holds: no key goes that it may need
        with view.passing():
            if len(row) < _HASH or len(ids) % _ID:
                raise tables.damaged(b"holds", f"{len(row)} and {len(ids)} bytes")
            told = frozenset(ids[at : at + _ID].hex() for at in range(0, len(ids), _ID))
            found[holder] = told if value[:1] == b"\1" else None
    return found


def put_holder(writing: Writing, holder: Holder, told: Told) -> None:
    """Keep what one says."""
    value = b"\0" if told is None else b"\1" + b"".join(map(bytes.fromhex, sorted(told)))
    writing.put(b"holds", holder.daemon + holder.capture.encode(), value)


def drop_holder(writing: Writing, holder: Holder) -> None:
    """Forget one that holds nothing which opens."""
    writing.delete(b"holds", holder.daemon + holder.capture.encode())


def captures(view: View) -> set[str]:
    """Names of all captures that were ever told a key since this index was made."""
    names = view.cursor(b"capture").iternext(values=False)
    return {bytes(name).decode(errors="replace") for name in names}
