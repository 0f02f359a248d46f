"""Acts on a vault, drawn at random: what captures send, what people ask and change.

An act has its own randomness, so that a row of acts with some left out does the rest alike. Each
tells the model what it did, and holds what it is answered against what must be. What breaks a
vault: tests/support/interplaybreaks.py. Rows of acts: tests/support/interplay.py.
"""

import time
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec

from spanvault import messages as m
from spanvault.keys import keyfile, shares
from spanvault.media.chunk import EVENTS
from spanvault.spool import key_id
from storaged.index.binding import beside
from tests.support import interplaychecks as checks
from tests.support.interplayhouse import Died, Wrong
from tests.support.interplaymodel import POOLS, Told, numbers
from tests.support.interplayworld import DAY_NS, PEOPLE, World, act, new_chunks

# --- what captures send --------------------------------------------------------------------------


@act(14)
def calls_come(world: World, chance: Random) -> None:
    calls, chunks = [], []
    for _ in range(chance.choice((1, 1, 1, 3))):
        call = world.new_call(chance)
        calls.append(call)
        chunks += new_chunks(chance, call.id) if chance.random() < 0.85 else []
    world.send(chance, chance.choice(("capture", "capture", "other")), calls, chunks)


@act(3)
def sound_comes_first(world: World, chance: Random) -> None:
    world.send(chance, "capture", [], new_chunks(chance, world.new_id()))


@act(12)
def calls_go_on(world: World, chance: Random) -> None:
    """More of a call, or its end; of one that has ended what came late; of one that is gone."""
    told = world.model.one(chance, world.model.calls.values())
    if told is None:
        return
    if told.last is not None and "kept_apart" in told.last.flags:
        return  # its capture knows it by another id
    calls = []
    if chance.random() < 0.6:
        call = told.last or world.new_call(chance, id=told.id, final=False)
        final = call.final or chance.random() < 0.5
        more = {"caller": chance.choice(PEOPLE)} if chance.random() < 0.3 else {}
        calls.append(msgspec.structs.replace(
            call, revision=max(told.records, default=0) + 1, final=final, **more))  # fmt: skip
    since = 1 + max((second for _, second in told.chunks), default=-1)
    world.send(chance, told.owner, calls, new_chunks(chance, told.id, since))


@act(4)
def streams_are_shared(world: World, chance: Random) -> None:
    """A call whose sound lies in another's recording."""
    holders = [one for one in world.model.there() if one.owner == "capture" and one.chunks
               and not (one.last and "kept_apart" in one.last.flags)]  # fmt: skip
    holder = world.model.one(chance, holders)
    if holder is None:
        return
    number = chance.choice(sorted(stream for stream, _ in holder.chunks if stream < EVENTS) or [0])
    held = m.Stream(7, "caller", "audio", 1, "", "", {}, stored_in=holder.id, stored_as=number)
    world.send(chance, "capture", [world.new_call(chance, streams=[held], final=True)], [])


@act(3)
def it_comes_again(world: World, chance: Random) -> None:
    if world.sent:
        capture, calls, chunks, size = chance.choice(world.sent)
        world.house.captures[capture].send(calls, chunks, size)
        world.settle()


@act(3)
def another_capture_sends_of_it(world: World, chance: Random) -> None:
    """What it sends of a call that is not its own is kept apart."""
    told = world.model.one(chance, (
        one for one in world.model.there()
        if one.owner == "capture" and one.settled and not one.loose))  # fmt: skip
    if told is not None and beside(told.id, "other") not in world.model.calls:
        call = world.new_call(chance, id=told.id, call_ids=["a forgery"])
        # Once the other's call is erased nobody could tell whose this is: it would be let go.
        world.send(chance, "other", [call], new_chunks(chance, told.id, 50), spools=False)


@act(3)
def spools_are_sent(world: World, chance: Random) -> None:
    for capture in world.house.captures.values():
        capture.unspool()
    world.settle()


# --- what people ask -----------------------------------------------------------------------------


@act(6)
def somebody_searches(world: World, chance: Random) -> None:
    model, house = world.model, world.house
    kind = chance.randrange(3)
    told = model.one(chance, model.calls.values())
    if kind == 0:
        number = chance.choice([*PEOPLE, *numbers(model.calls.values())])
        world.hold(lambda: checks.by_number(house, number))
    elif kind == 1 and told is not None and told.last is not None:
        world.hold(lambda: checks.by_call_id(house, told))
    else:
        today = time.time_ns() // DAY_NS * DAY_NS
        since_ns = today - chance.randrange(1, 40) * DAY_NS
        until_ns = since_ns + chance.randrange(1, 10) * DAY_NS
        world.hold(lambda: checks.by_time(house, since_ns, until_ns))


@act(6)
def somebody_listens(world: World, chance: Random) -> None:
    told = world.model.one(chance, world.model.calls.values())
    if told is not None:
        world.hold(lambda: checks.call_is_right(world.house, told))


@act(2)
def all_is_checked(world: World, chance: Random) -> None:
    if "base" not in world.model.locked:
        world.hold(lambda: checks.checks_clean(world.house))


@act(2)
def all_is_looked_at(world: World, chance: Random) -> None:
    for told in list(world.model.calls.values()):
        world.hold(lambda told=told: checks.call_is_right(world.house, told))  # type: ignore[misc]
        if told.gone is True:
            world.hold(lambda told=told: checks.is_certified(world.house, told))  # type: ignore[misc]


# --- what changes it -----------------------------------------------------------------------------


@act(8)
def calls_are_erased(world: World, chance: Random) -> None:
    model = world.model
    first = [told for told in (model.one(chance, model.there()) for _ in range(
        chance.choice((1, 1, 4)))) if told]  # fmt: skip
    if not first:
        return
    doomed = {one.id: one for told in first for one in model.together(told)}
    if chance.random() < 0.15 and len(doomed) > 1:  # one alone, of several with media in common
        doomed = dict([chance.choice(sorted(doomed.items()))])
    unfinished = chance.random() < 0.8
    erase(world, list(doomed.values()), unfinished=unfinished)


def erase(world: World, doomed: list[Told], *, unfinished: bool) -> None:
    model = world.model
    try:
        reply = world.ask(m.Erase([one.id for one in doomed], "by chance", unfinished))
    except Died:
        for told in doomed:
            told.gone = None
            model.note(told, "erasure begun")
        raise
    if isinstance(reply, m.EraseReply):
        faults = [*_must_not_go(world, doomed, unfinished=unfinished)]
        if faults:
            raise Wrong(f"erased, though {faults}")
        for told in doomed:
            told.gone = True
            model.note(told, "erased")
    elif not set(_why_they_may_stay(world, doomed, unfinished=unfinished)) & {reply.code}:
        raise Wrong(f"not erased: {reply}")


def _must_not_go(world: World, doomed: list[Told], *, unfinished: bool) -> Iterator[str]:
    ids = {one.id for one in doomed}
    for told in doomed:
        if not told.settled:
            continue
        if not unfinished and not told.ended:
            yield f"{told.name} goes on"
        if alone := {one.id for one in world.model.together(told) if one.gone is False
                     and one.settled} - ids:  # fmt: skip
            yield f"{told.name} has media in common with {min(alone).hex()[-8:]}"
        if checks.places(world.model, told) <= world.model.locked:
            yield f"{told.name} is locked"


def _why_they_may_stay(world: World, doomed: list[Told], *, unfinished: bool) -> Iterator[str]:
    model = world.model
    where = {pool for told in doomed for pool in checks.places(model, told)}
    if where & model.locked or "base" in model.locked:
        yield "locked"
    if where & model.full or "store" in model.full or not world.drained():
        yield from ("unavailable", "full")
    if any(not told.settled or told.loose for told in doomed):
        yield from ("not_found", "unavailable", "invalid")
    ids = {one.id for one in doomed}
    if any(not told.ended for told in doomed) and not unfinished:
        yield "invalid"
    if any({one.id for one in model.together(told)} - ids for told in doomed):
        yield "invalid"
    yield from ("unavailable",)  # batches wait, for a moment


@act(5)
def calls_are_moved_up(world: World, chance: Random) -> None:
    model = world.model
    told = model.one(chance, (one for one in model.there() if one.ended and one.settled))
    if told is None:
        return
    pool = chance.choice(POOLS[1:])
    moved = model.beneath(told)
    may = {one.id: checks.places(model, one) for one in moved}
    try:
        reply = world.ask(m.Move([told.id], pool, "by chance"))
    except Died:
        for one in moved:
            one.pools = one.pools | {pool}
            model.note(one, f"move to {pool} begun")
        raise
    if isinstance(reply, m.MoveReply):
        there = pool in may[told.id]  # then what it lies in may not have followed yet
        for one in moved:
            higher = {p for p in may[one.id] if POOLS.index(p) > POOLS.index(pool)}
            one.pools = {pool} | higher | (may[one.id] if there and one is not told else set())
            model.note(one, f"moved to {pool}, may be {one.pools}")
        return
    above = any(POOLS.index(p) > POOLS.index(pool) for one in moved for p in may[one.id])
    fits = (
        (reply.code == "invalid" and (above or not all(one.ended for one in moved)))
        or (reply.code == "locked" and model.locked & {pool, "base", *set().union(*may.values())})
        or reply.code == "unavailable"
        or (reply.code == "full" and model.full)
        or (reply.code == "not_found" and any(one.loose or not one.settled for one in moved))
    )
    if not fits:
        raise Wrong(f"not moved: {reply}")


# --- keys ----------------------------------------------------------------------------------------


@act(4)
def keys_are_rotated(world: World, chance: Random) -> None:
    pool, what = chance.choice(POOLS), chance.choice(("root", "ingest"))
    reply = world.ask(m.Rotate(pool, what))  # type: ignore[arg-type]
    allowed(world, reply, {pool, "base"})
    if what == "ingest" and pool == "base":
        for capture in world.house.captures.values():
            capture.greet()


@act(3)
def people_change(world: World, chance: Random) -> None:
    """Somebody more may open a pool, or somebody less."""
    pool = chance.choice(POOLS)
    keys = world.house.openers[pool]
    if len(keys) > 1 and chance.random() < 0.5:
        gone = keys[-1]
        wanted = m.Recipients(pool, keys[0], remove=[key_id(keyfile.public_of(gone))])
        after = keys[:-1]
    else:
        new = chance.randbytes(32)
        wanted = m.Recipients(pool, chance.choice(keys), add=[keyfile.public_of(new)])
        after = [*keys, new]
    try:
        reply = world.ask(wanted)
    except Died:
        world.house.openers[pool] = min(keys, after, key=len)  # those that open it in any case
        raise
    if isinstance(reply, m.Done):
        world.house.openers[pool] = after
        if after == keys[:-1] and pool not in world.model.locked:
            refused = world.ask(m.Unlock(pool, keys[-1]))
            if not isinstance(refused, m.Failure):
                raise Wrong(f"who was removed opens {pool}")
    allowed(world, reply, {pool, "base"})


def allowed(world: World, reply: Any, pools: set[str]) -> None:
    """A change of keys that was not made must have been kept from it by a lock, or a disk."""
    if isinstance(reply, m.Failure) and not (
        (reply.code == "locked" and pools & world.model.locked)
        or (reply.code in ("unavailable", "full") and world.model.full)
    ):
        raise Wrong(f"keys: {reply}")


@act(4)
def a_pool_is_locked(world: World, chance: Random) -> None:
    pool = chance.choice(("base", "core", "sensitive", "sensitive"))
    reply = world.ask(m.Lock(pool))
    if not isinstance(reply, m.Done):
        raise Wrong(f"not locked: {reply}")
    world.model.locked |= set(POOLS) if pool == "base" else {pool}


@act(10)
def pools_are_opened(world: World, chance: Random) -> None:
    for pool in POOLS:
        if pool in world.model.locked:
            unlock(world, chance, pool)


def unlock(world: World, chance: Random, pool: str) -> None:
    key = chance.choice(world.house.openers[pool])
    if chance.random() < 0.3:
        given = shares.split(key, 2, 3)
        replies = [world.ask(m.OfferShare(pool, shares.write(one)))
                   for one in chance.sample(given, 2)]  # fmt: skip
        if not (isinstance(replies[-1], m.OfferShareReply) and replies[-1].open):
            raise Wrong(f"shares do not open {pool}: {replies}")
    else:
        reply = world.ask(m.Unlock(pool, key))
        if not isinstance(reply, m.Done):
            raise Wrong(f"{pool} does not open: {reply}")
    world.model.locked.discard(pool)
    if pool == "base":  # others open with the same key, or with what storaged has
        keys = {told.pool: told.locked for told in world.ask(m.Keys()).pools}
        world.model.locked = {name for name, locked in keys.items() if locked}
