"""What storaged answers, held against what a store must hold after any row of acts.

Each check gives a line for each thing that does not fit, or nothing. The model:
tests/support/interplaymodel.py.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from spanvault import certificate, logchain, wire
from spanvault import messages as m
from storaged.faults import Fault
from storaged.keys.keyring import Keyring
from tests.support.interplaymodel import POOLS, Model, Place, Told
from tests.support.vault import chunk_keys

Faults = Iterator[str]


class Asked(Protocol):
    """A running store, and what must be in it."""

    model: Model

    def ask(self, request: Any, who: str = "operator") -> Any:
        """A reply and its bulk."""


_CALLS: Final = 1000
# What a line at level error may say: an act made it so. None else may come.
_EXPECTED: Final = (
    "The store is locked, it records and is not heard",
    "A pool takes no writes, its recordings wait in its intake",
    "The group is kept, and tried again",
)


def places(model: Model, told: Told) -> set[str]:
    """The pools that a call may lie in: where it was put, or where what it belongs to lies."""
    found = set(told.pools)
    if told.last is not None and "base" in found and told.chunks:
        found.add(told.last.callee if told.last.callee in POOLS else "base")
    for other in model.together(told):
        found |= {pool for pool in other.pools if POOLS.index(pool) > min(map(POOLS.index, found))}
    return found


def waits(model: Model, told: Told) -> bool:
    """Whether what came last of a call may lie where nobody sees it: its disk takes nothing."""
    return bool(model.full & {"store", *places(model, told)})


def right_record(model: Model, told: Told, call: m.Call) -> Faults:
    """Whether a record is one that was sent, and not older than what was acknowledged."""
    name = told.name
    if call.revision < told.safe and not waits(model, told):
        yield f"{name}: record {call.revision}, and {told.safe} was acknowledged"
    wanted = told.records.get(call.revision)
    if call.revision >= 0 and wanted != call:
        other = [field for field in call.__struct_fields__ if wanted is None
                 or getattr(call, field) != getattr(wanted, field)]  # fmt: skip
        yield f"{name}: of record {call.revision} these are others: {other}"


def call_is_right(house: Asked, told: Told, *, media: bool = True) -> Faults:
    """What is given of one call, by its id."""
    model, name = house.model, told.name
    reply, _ = house.ask(m.Get(told.id))
    if told.gone is None:  # nobody knows: whatever is said now holds
        if getattr(reply, "code", "") == "erased":
            told.gone = True
        elif isinstance(reply, m.GetReply) or reply.code in ("locked", "unavailable"):
            told.gone = False
    if told.gone:
        yield from _is_gone(house, told, reply)
        return
    may = places(model, told)
    if isinstance(reply, m.Failure):
        excused = _excuse(model, told, may)
        if reply.code not in excused:
            yield f"{name} in {sorted(may)}: {reply}, not one of {excused or 'a call'}"
        elif "locked" in excused and media:
            sound, bulk = house.ask(m.Fetch(told.id))
            if not isinstance(sound, m.Failure) or bulk:
                yield f"{name}: heard though it is {reply.code}"
        return
    if reply.pool not in may:
        yield f"{name} lies in {reply.pool}, not in {sorted(may)}"
    if reply.pool in model.locked:
        yield f"{name}: shown though {reply.pool} is locked"
    yield from right_record(model, told, reply.call)
    if media and (reply.size or told.holders()):
        yield from _sounds_right(house, told)
    elif told.kept and not reply.size and not waits(model, told):
        yield f"{name}: no sound"


def _excuse(model: Model, told: Told, may: set[str]) -> set[str]:
    """Why a call that is there may not be shown."""
    codes = set()
    if may & model.locked:
        codes.add("locked")
        if "base" in model.locked or told.loose:
            codes.add("not_found")  # it waits where no index leads
    if may & model.full or model.full & {"store"}:
        codes |= {"unavailable", "full"}
    if not told.kept and told.safe < 0:
        codes |= {"not_found", "unavailable"}
    return codes


def _is_gone(house: Asked, told: Told, reply: Any) -> Faults:
    name = told.name
    for kind in (m.Get, m.Fetch, m.Verify):
        if kind is not m.Get:
            reply, bulk = house.ask(kind(told.id))
            if bulk:
                yield f"{name}: erased, and {kind.__name__} gives bytes"
        if getattr(reply, "code", "") != "erased":
            yield f"{name}: erased, and {kind.__name__} says {reply}"


def _sounds_right(house: Asked, told: Told) -> Faults:
    if any(places(house.model, house.model.calls[one]) & house.model.locked
           for one in told.holders() if one in house.model.calls):  # fmt: skip
        return  # part of it lies where nobody may hear
    gone = {one.hex() for one in told.holders() if house.model.calls[one].gone is True}
    for digits in (False, True):
        may = house.model.sound(told, digits=digits, kept=False)
        due = house.model.sound(told, digits=digits, kept=True)
        found, faults = heard(house, told.id, digits=digits)
        for fault in faults:
            if not ("streams of this call lay in" in fault and fault.split()[7].strip(",") in gone):
                yield f"{told.name}: {fault}"
        given = dict(found)
        what = f"{told.name}{' digits' if digits else ''}"
        if len(given) != len(found):
            yield f"{what}: {len(found) - len(given)} chunks twice"
        lacking = due.keys() - given.keys()
        if lacking and not waits(house.model, told):
            yield f"{what}: {len(lacking)} chunks lost: {sorted(lacking)[:4]}"
        if strange := given.keys() - may.keys():
            yield f"{what}: {len(strange)} chunks made up: {sorted(strange)[:4]}"
        if changed := [at for at, data in given.items() if may.get(at, data) != data]:
            yield f"{what}: {len(changed)} chunks changed: {changed[:4]}"


def heard(
    house: Asked, call_id: bytes, *, digits: bool
) -> tuple[list[tuple[Place, bytes]], list[str]]:
    """All chunks of a call as they are given, and what of it did not open."""
    found: list[tuple[Place, bytes]] = []
    faults: list[str] = []
    cursor: int | None = 0
    while cursor is not None:
        page, bulk = house.ask(m.Fetch(call_id, cursor, digits), "auditor")
        if not isinstance(page, m.FetchReply):
            return found, [*faults, f"fetch: {page}"]
        faults += page.faults
        if bulk:
            found += [((stream, second), data) for _, stream, second, data in chunk_keys(
                wire.decode_media(bulk))]  # fmt: skip
        cursor = page.cursor
    return found, faults


def found_by(house: Asked, question: m.Search, fits: Callable[[m.Call], bool]) -> Faults:
    """Whether a search finds what it must, and nothing else."""
    model = house.model
    calls: list[m.Call] = []
    while True:
        reply, _ = house.ask(question)
        if not isinstance(reply, m.SearchReply):
            if not ("base" in model.locked and reply.code == "locked"):
                yield f"{question}: {reply}"
            return
        calls += reply.calls
        if reply.cursor is None:
            break
        question.cursor = reply.cursor
    ids = Counter(call.id for call in calls)
    yield from (f"{one.hex()[-8:]} was found {n} times" for one, n in ids.items() if n > 1)
    for call in calls:
        told = model.calls.get(call.id)
        if told is None or told.gone is True:
            yield f"{call.id.hex()[-8:]} was found, and {'was erased' if told else 'never sent'}"
        else:
            yield from right_record(model, told, call)
    for told in model.hearable():
        may = places(model, told)
        sure = told.settled and told.last is not None and not may & (model.locked | model.full)
        if sure and told.last is not None and fits(told.last) and told.id not in ids:
            yield f"{told.name} was not found by {question}"


def by_number(house: Asked, number: str) -> Faults:
    yield from found_by(
        house, m.Search(number=number, limit=_CALLS), lambda c: number in (c.caller, c.callee)
    )


def by_call_id(house: Asked, told: Told) -> Faults:
    assert told.last
    name = told.last.call_ids[0]
    yield from found_by(house, m.Search(call_id=name, limit=3), lambda c: name in c.call_ids)


def by_time(house: Asked, since_ns: int, until_ns: int) -> Faults:
    yield from found_by(
        house, m.Search(since_ns=since_ns, until_ns=until_ns, limit=7),
        lambda c: since_ns <= c.started_ns < until_ns,
    )  # fmt: skip


def is_certified(house: Asked, told: Told) -> Faults:
    """Whether the certificate of an erased call says so, and its signature fits."""
    reply, _ = house.ask(m.Certify(told.id))
    if not isinstance(reply, m.CertifyReply):
        if not ("base" in house.model.locked and reply.code == "locked"):
            yield f"{told.name}: {reply}"
        return
    facts, _ = certificate.parse(reply.document)
    if facts["recording"] != told.id.hex() or not facts["keys"] or facts["moved_to"]:
        yield f"{told.name}: the certificate says {facts}"


def checks_clean(house: Asked) -> Faults:
    """`verify --all`: key files, records, recordings of what is open."""
    keys, _ = house.ask(m.Check("keys"))
    if isinstance(keys, m.Failure):
        yield f"check of keys: {keys}"
        return
    yield from (f"{name}: {fault}" for name, fault in keys.faults.items())
    cursor: bytes | None = b""
    while cursor is not None:
        page, _ = house.ask(m.Check("records", cursor))
        yield from (f"record {name}: {fault}" for name, fault in page.faults.items())
        yield from (f"record {name} had to be mended" for name in page.mended)
        cursor = page.cursor
    cursor = b""
    while cursor is not None:
        page, _ = house.ask(m.Check("recordings", cursor))
        for one in page.recordings:
            yield from verified(house, one)
        cursor = page.cursor


def verified(house: Asked, call_id: bytes) -> Faults:
    name = call_id.hex()[-8:]
    told = house.model.calls.get(call_id)
    if told is None or told.gone is True:
        yield f"{name} is checked, and {'was erased' if told else 'never sent'}"
        return
    reply, _ = house.ask(m.Verify(call_id))
    if not isinstance(reply, m.VerifyReply):
        yield f"{name}: {reply}"
        return
    yield from (f"{name}: {fault}" for fault in reply.faults)
    if told.ended and told.settled and told.kept and not reply.sealed:
        yield f"{name}: not sealed"


def log_is_whole(log: Path, model: Model) -> Faults:
    """The access log's chain, and a line for each request that was answered."""
    lines = log.read_bytes()
    yield from (f"access log: {one}" for one in logchain.check(lines) if one.what != "torn")
    kinds: Counter[str] = Counter()
    for line in lines.rstrip(b"\0").splitlines():
        entry = json.loads(line)
        if entry["who"].startswith("operator/") and entry.get("result") != "begun":
            kinds[entry["kind"]] += 1
    for kind in {*kinds, *model.asked} - {"status"}:
        least = model.asked.get(kind, 0)
        most = least + model.unanswered.get(kind, 0)
        if not least <= kinds[kind] <= most:
            yield f"access log: {kinds[kind]} lines of {kind}, {least} to {most} were asked"


_LOCKED: Final = " is locked. Its key holders unlock it"  # in the midst of something


def said(messages: str, expected: Iterable[str]) -> Faults:
    """Lines of storaged's own log that nothing explains."""
    allowed = (*_EXPECTED, *expected)
    for line in messages.splitlines():
        level, _, text = line.partition(": ")
        if level in ("error", "critical") and not (text.startswith(allowed) or _LOCKED in text):
            yield f"log: {line[:400]}"
        elif line.startswith("Traceback"):
            yield "log: a traceback"


def keys_are_gone(
    keys: Path, openers: Mapping[str, Sequence[bytes]], erasures: Iterable[m.Erasure]
) -> Faults:
    """Whether all that anybody has opens no key of what was erased. storaged has ended."""
    rings = {pool: Keyring(keys / ("" if pool == "base" else pool), own[0])
             for pool, own in openers.items()}  # fmt: skip
    for erasure in erasures:
        slots = [(one.pool, key_id) for one in erasure.recordings for key_id in one.key_ids]
        if erasure.rows_gone_ns:
            slots += [(one.pool, one.key_id) for one in erasure.day_keys]
        for pool, key_id in slots:
            with contextlib.suppress(Fault):
                rings[pool].dek(key_id)
                yield f"key {key_id} of {pool} is there, erased by {erasure.id.hex()}"


def nothing_is_left(store: Path, folder: Path, model: Model) -> Faults:
    """Files of erased calls."""
    gone = {told.id.hex() for told in model.calls.values() if told.gone is True}
    for pool in POOLS:
        for path in (folder / pool).rglob("*.*"):
            if path.name.partition(".")[0] in gone:
                yield f"{path.name} of an erased call is left in {pool}"
    yield from (f"{path.name} is left" for path in store.glob("intake/*/*.damaged"))
    yield from (f"{path.name} is left" for path in store.glob("intake/*/*.moving"))
    yield from (f"{path.name} is left" for path in store.glob("refused/*"))
