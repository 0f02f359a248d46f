"""A restore: an empty store is told the changes of another one, some damaged or in disorder.

They are what a replica has: of base and another pool, of sealed calls and one without media, and of
calls that were erased. Changes that nothing is sealed behind: target `requests`.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec

from spanvault import messages as m
from spanvault import wire
from spanvault.keys import keyfile
from tests.fuzz.choices import Choices
from tests.fuzz.folders import folder
from tests.support.vault import Parts, call_id, make_call

KEY: Final = bytes(range(32))
IDS: Final = [call_id(number) for number in (1, 2, 3, 4)]
ORDER: Final = ("keys", "erase", "record", "object", "log")  # in which a restore asks
PART: Final = 300  # bytes of an object at a time
FIELDS: Final = ("data", "id", "pool", "name", "size", "sha256", "kind")


class Told(NamedTuple):
    """A change as it is imported. bulk: what of an object follows it."""

    change: m.Change
    offset: int = 0
    bulk: bytes = b""


def restore(data: bytes) -> None:
    """data: how many changes come as they are, then which come next, and what is other in them."""
    choose, (store_id, changes) = Choices(data), _source()
    target = _opened("restored")
    try:
        for told in changes[: choose.number(len(changes) + 1)]:
            _told(target, store_id, told)
        for _ in range(24):
            if not choose.left:
                break
            _told(target, store_id, _other(choose.of(changes), choose))
        for one in IDS:
            _answered(target, m.Verify(one))
            _answered(target, m.Fetch(one))
        _answered(target, m.Feed(0))
    finally:
        _closed(target)


def _told(target: Any, store_id: str, told: Told) -> None:
    asked = m.Import(store_id, told.change, told.offset)
    frames = wire.encode(asked, told.bulk) if told.bulk else wire.encode(asked)
    found, bulk = wire.decode_request([bytes(memoryview(each)) for each in frames])
    _answered(target, found, *bulk)


def _answered(target: Any, asked: m.Message, *bulk: bytes) -> None:
    reply = target.ask(asked, *bulk)
    wire.encode(reply)
    assert "a fault of storaged itself" not in getattr(reply, "error", ""), repr(asked)


def _other(told: Told, choose: Choices) -> Told:
    """With nothing, or some of its fields, changed."""
    change, offset, bulk = told
    for _ in range(choose.number(3)):
        field = choose.of(FIELDS)
        if field in ("size",):
            change = msgspec.structs.replace(change, size=choose.number(1 << 16) - 9)
        elif field == "kind":
            change = msgspec.structs.replace(change, kind=choose.of(ORDER))
        elif field in ("data", "id"):
            changed = _damaged(getattr(change, field), choose)
            change = msgspec.structs.replace(change, **{field: changed})
        else:
            text = choose.bytes(30).decode("utf-8", "replace")
            change = msgspec.structs.replace(change, **{field: text})
    if choose.number(4) == 3:
        offset, bulk = choose.number(1 << 16) - 9, _damaged(bulk, choose)
    return Told(change, offset, bulk)


def _damaged(data: bytes, choose: Choices) -> bytes:
    made, at = bytearray(data), choose.number(1 << 16) % (len(data) + 1)
    made[at : at + choose.number(9)] = choose.bytes(30)
    return bytes(made)


@cache
def _source() -> tuple[str, list[Told]]:
    """What the feed of a store says, in the order of a restore."""
    source = _opened("source")
    parts = source.parts
    parts.vaults.add(parts.open_pool("core"))
    parts.commit(
        [(each, 1, 0) for each in IDS[:3]], [make_call(number) for number in (1, 2, 3, 4)]
    )  # the fourth without media
    source.ask(m.Move([IDS[1]], "core", "it matters"))
    source.ask(m.Erase([IDS[2]], "asked"))
    reply = source.ask(m.Feed(0))
    changes = sorted(reply.changes, key=lambda one: ORDER.index(one.kind))
    told = [each for change in changes for each in _parts_of(source, change)]
    _closed(source)
    return reply.store_id, told


def _parts_of(source: Any, change: m.Change) -> Iterable[Told]:
    if change.kind != "object":
        return [Told(change)]
    return [
        Told(change, at, source.answer(m.ReadObject(change.id, at, PART)).bulk[0])
        for at in range(0, change.size, PART)
    ]


def _opened(name: str) -> Any:
    from tests.support.desk import Counter  # pytest's, not of every process

    place = folder(name)
    (place / "unlock.key").write_text(keyfile.text_of(KEY))
    (place / "unlock.key").chmod(0o600)
    return Counter(Parts(place, 16 << 20))


def _closed(target: Any) -> None:
    target.access.close()
    for vault in target.parts.vaults:
        if vault.pool is not target.parts.pool:
            vault.pool.close()
    target.parts.close()


def seeds() -> list[bytes]:
    """All as it is; all but the last ones, and those twice; damage in each kind of field."""
    count = len(_source()[1])
    whole = bytes([count])
    twice = bytes([count // 2]) + b"".join(bytes([at, 0, 0]) for at in range(count))
    damaged = [
        bytes([at]) + bytes([at, 1, field]) + bytes([0, 3, 1, 1, 7, 0])
        for at in range(count)
        for field in range(len(FIELDS))
    ]
    return [whole, twice, *damaged[:: max(1, len(damaged) // 40)]]
