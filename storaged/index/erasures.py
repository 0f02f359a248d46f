"""The index's rows about erasures: tombstones, batches, who has to follow and who has.

A tombstone stays for ever: what still comes of an erased call is let go, and nobody can say that it
never was. It names nobody. FORMAT.md §7, §12. Who erases: storaged.erasing.eraser. Pure but for
LMDB.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from spanvault.daemon.rules import POOLS, TIERS
from spanvault.messages import Change, DayKey, Erasure, ErasureReceipt
from storaged.format import ledger
from storaged.format.ledger import Entry
from storaged.index import ingestkeys, labels
from storaged.index import rows as tables
from storaged.index.rows import POSITION
from storaged.index.view import View
from storaged.index.writing import Writing

_encode: Final = msgspec.msgpack.Encoder().encode
_erasure: Final = msgspec.msgpack.Decoder(Erasure)
TARGET_BYTES: Final = 200  # of the name of a place that copies are made at
_SPENT: Final = bytes(16)  # in place of an erasure's id
_ANEW: Final = b"\xff" * 16  # the same: rows are missing, or are others
_receipt: Final = msgspec.msgpack.Decoder(ErasureReceipt)


def begin(writing: Writing, erasure: Erasure) -> None:
    """Note what is going to be erased: from here on it is gone for everyone.

    Calls that were moved have no tombstone: they live on in another pool.
    """
    for one in erasure.recordings:
        writing.put(b"moved" if erasure.moved_to else b"erased", one.id, erasure.id)
    writing.put(b"erasure", erasure.id, _encode(erasure))
    writing.put(b"unfinished", erasure.id, b"")
    for key in erasure.day_keys:
        if erasure.rows_gone_ns:
            writing.delete(b"due", _due(key, erasure))
        else:
            writing.put(b"due", _due(key, erasure), b"")
    ingestkeys.begin(writing, erasure)


def end(writing: Writing, erasure: Erasure) -> None:
    """Note that it was carried out, and tell the replicas."""
    writing.put(b"erasure", erasure.id, _encode(erasure))
    writing.delete(b"unfinished", erasure.id)
    writing.announce(tables.ERASED, erasure.id)


def adopt(writing: Writing, erasure: Erasure) -> None:
    """Take over an erasure from a replica: of it this store never had anything."""
    begin(writing, erasure)
    end(writing, erasure)


def entry(erasure: Erasure) -> Entry:
    """As it stands in base's ledger."""
    return Entry(ledger.ERASURE, erasure.id, _encode(erasure))


def recover(writing: Writing, data: bytes) -> Erasure:
    """Take an erasure over from the ledger; one that was not carried out is at the next start.

    Raises ValueError.
    """
    erasure = _erasure.decode(data)
    begin(writing, erasure)
    if erasure.done:
        end(writing, erasure)
    return erasure


def check(row: bytes) -> None:
    """Raise Fault if a row of an erasure cannot be read."""
    tables.decode(_erasure, b"erasure", row)


def due(view: View) -> dict[tuple[int, int], set[bytes]]:
    """Keys of days that must go, by tier and key id, and the erasures that wait for each."""
    found: dict[tuple[int, int], set[bytes]] = {}
    for key_id, erasure_id in _due_rows(view):
        if erasure_id != _SPENT:
            waits = found.setdefault(key_id, set())
            waits |= {erasure_id} - {_ANEW}
    return found


def waiting(view: View, tier: int, key_id: int) -> set[bytes]:
    """The same of one key, without a look at others; what else has it go included."""
    head, cursor, found = labels.slot(tier, key_id), view.cursor(b"due"), set[bytes]()
    more = cursor.set_range(head)
    while more and (row := bytes(cursor.key())).startswith(head):
        found.add(row[labels.SLOT_BYTES :])
        more = cursor.next()
    return found - {_SPENT}


def anew(view: View) -> set[tuple[int, int]]:
    """Those of them under which no whole chains are: the rows are made from records."""
    return {key_id for key_id, erasure_id in _due_rows(view) if erasure_id == _ANEW}


def put_anew(writing: Writing, tier: int, key_id: int) -> None:
    """Note that a day's rows must be made from records, under another key."""
    writing.put(b"due", labels.slot(tier, key_id) + _ANEW, b"")


def spent(view: View) -> set[tuple[int, int]]:
    """Keys of days, by tier and key id, whose rows are no whole chains: they must go unread.

    They are all under another key already, or were being written when a crash came.
    """
    return {key_id for key_id, erasure_id in _due_rows(view) if erasure_id == _SPENT}


def put_spent(writing: Writing, tier: int, key_id: int) -> None:
    """Note that rows under a key must go unread."""
    writing.put(b"due", labels.slot(tier, key_id) + _SPENT, b"")


def remove_spent(writing: Writing, tier: int, key_id: int) -> None:
    """Note that rows under a key are whole chains."""
    writing.delete(b"due", labels.slot(tier, key_id) + _SPENT)


def rows_gone(writing: Writing, gone: Iterable[tuple[int, int]], ended: Iterable[Erasure]) -> None:
    """Note that keys of days were destroyed, and that some erasures waited for no others.

    Replicas are told of those again, and have to confirm again: they have key pages to destroy.
    """
    waited = due(writing)
    for tier, key_id in gone:
        for erasure_id in (_SPENT, _ANEW, *waited.get((tier, key_id), ())):
            writing.delete(b"due", labels.slot(tier, key_id) + erasure_id)
    for erasure in ended:
        tell_again(writing, erasure)


def tell_again(writing: Writing, erasure: Erasure) -> None:
    """Note what else was destroyed; targets that had confirmed have to follow once more."""
    writing.put(b"erasure", erasure.id, _encode(erasure))
    for name in targets(writing):
        writing.delete(b"confirmed", erasure.id + name.encode())
    writing.announce(tables.ERASED, erasure.id)


def confirm(writing: Writing, receipt: ErasureReceipt) -> None:
    """Note that a target followed; not if it was told again since, of what else is destroyed."""
    told = writing.get(b"fed", tables.ERASED + receipt.erasure)
    if told is not None and receipt.position:
        with writing.passing():
            if receipt.position < tables.unpack(POSITION, b"fed", told)[0]:
                return
    writing.put(b"confirmed", receipt.erasure + receipt.target.encode(), _encode(receipt))


def unfinished(view: View) -> list[Erasure]:
    """Those that were begun and not carried out, oldest first."""
    found = []
    for key in view.cursor(b"unfinished").iternext(values=False):
        with view.passing():
            tables.check_id(b"unfinished", key)
            found.append(_load(view, bytes(key)))
    return found


def find(view: View, erasure_id: bytes) -> Erasure | None:
    """An erasure with its receipts, and the targets that are missing."""
    if view.get(b"erasure", erasure_id) is None:
        return None
    erasure = _load(view, erasure_id)
    cursor, key = view.cursor(b"confirmed"), erasure.id
    more = cursor.set_range(key)
    while more and cursor.key()[:16] == key:
        with view.passing():
            erasure.receipts.append(tables.decode(_receipt, b"confirmed", cursor.value()))
        more = cursor.next()
    confirmed = {receipt.target for receipt in erasure.receipts}
    erasure.pending = [name for name in targets(view) if name not in confirmed]
    return erasure


def newest_first(view: View, before: bytes | None) -> Iterator[Erasure]:
    """All erasures, or those older than a cursor."""
    cursor: Any = view.cursor(b"erasure")
    more = cursor.prev() if before and cursor.set_range(before) else cursor.last()
    while more:
        with view.passing():
            tables.check_id(b"erasure", key := bytes(cursor.key()))
            found = find(view, key)
            assert found is not None
            yield found
        more = cursor.prev()


def targets(view: View) -> list[str]:
    """Every place that the feed was ever asked for: what it holds must be erased, too."""
    names = []
    for key in view.cursor(b"target").iternext(values=False):
        with view.passing():
            names.append(_name_of(bytes(key)))
    return names


def change(view: View, position: int, erasure_id: bytes) -> Change | None:
    """An erasure as a replica is told of it."""
    data = view.get(b"erasure", erasure_id)
    if data is None:
        return None
    tables.decode(_erasure, b"erasure", data)  # a target could not follow it
    return Change(position, "erase", erasure_id, size=len(data), data=data)


def _due_rows(view: View) -> Iterator[tuple[tuple[int, int], bytes]]:
    for key, value in view.cursor(b"due"):
        with view.passing():
            data = bytes(key)
            if len(data) != labels.SLOT_BYTES + len(_SPENT) or data[0] >= len(POOLS) or len(value):
                raise tables.damaged(b"due", f"{len(data)} and {len(value)} bytes")
            yield labels.parse_slot(data), data[labels.SLOT_BYTES :]


def _due(key: DayKey, erasure: Erasure) -> bytes:
    return labels.slot(TIERS[key.pool], key.key_id) + erasure.id


def _name_of(target: bytes) -> str:
    try:
        name = target.decode()
    except UnicodeDecodeError as error:
        raise tables.damaged(b"target", error) from None
    if len(target) > TARGET_BYTES:
        raise tables.damaged(b"target", f"a name of {len(target)} bytes")
    return name


def _load(view: View, erasure_id: bytes) -> Erasure:
    """Raises Fault."""
    data = view.get(b"erasure", erasure_id)
    if data is None:
        raise tables.damaged(b"unfinished", "of an erasure that is not there")
    return tables.decode(_erasure, b"erasure", data)
