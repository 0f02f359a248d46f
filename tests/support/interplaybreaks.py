"""Acts on a vault, drawn at random: kills, full disks, flipped bits, a new index, terms that end.

As those of tests/support/interplayacts.py: each tells the model what it did.
"""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from spanvault import messages as m
from storaged.index.environment import Index
from tests.support import interplaychecks as checks
from tests.support.interplayacts import pools_are_opened
from tests.support.interplayhouse import PATIENCE_S, Wrong
from tests.support.interplaymodel import POOLS, Model, Told
from tests.support.interplayworld import DAY_NS, World, act
from tests.support.smalldisk import empty, fill

KEEP_DAYS: Final = 20
FULL: Final = (  # what storaged's log may say of a disk that takes nothing
    "Search rows of erased calls cannot be made to go yet",
    "An erasure that was begun cannot be completed yet",
    "Ingest keys cannot be replaced or destroyed yet",
)
DAMAGE: Final = (  # and of what is damaged
    "A recording is damaged",
    "A key page cannot be opened",
    "A key file is damaged",
    "A call record is damaged",
    "A call record cannot be opened",
    "Damage in a recording that goes on",
    "A recording cannot be gone on with",
)


# --- what breaks ---------------------------------------------------------------------------------


@act(5)
def it_is_killed(world: World, chance: Random) -> None:
    restart(world, chance, signal.SIGKILL)


@act(3)
def it_is_stopped(world: World, chance: Random) -> None:
    restart(world, chance, signal.SIGTERM)


def restart(world: World, chance: Random, number: int = signal.SIGKILL) -> None:
    world.house.end(number)
    world.house.start(apart=chance.random() < 0.15)
    world.settle()


@act(2)
def the_index_is_made_anew(world: World, chance: Random) -> None:
    house = world.house
    house.end(chance.choice((signal.SIGKILL, signal.SIGTERM)))
    for told in world.model.calls.values():
        # FORMAT.md §11: whose what waits in an intake is, and sound without a record, is forgotten;
        # §7.1: also that it waits, if it came while base was locked or full.
        shut = world.model.locked | world.model.full
        waits = bool(checks.places(world.model, told) & shut)
        told.loose |= told.safe < 0 or waits
        if waits:
            told.pools = told.pools | {"base"}
    free_disks(world)
    house.rig.keep_key(apart=False)
    house.settle_settings(key=True)
    if chance.random() < 0.5:
        for path in (house.rig.store / "index").iterdir():
            path.unlink()
    said = len(house.rig.messages)
    code, said_now = house.reindex(), house.rig.messages[said:]
    # The file of a ledger that a crash left at its first bytes: nobody can tell that it was none.
    begun = said_now.count("FAULT='at byte 0: ledger cut: ")
    if code and said_now.count("error: ") != begun:
        raise Wrong(f"reindex: {code}, {said_now[-800:]}")
    world.expected += ("Not rebuilt",) * bool(begun)
    house.settle_settings()
    house.start()
    world.settle()


@act(3)
def a_bit_flips(world: World, chance: Random) -> None:
    """In a recording, a page of keys or a record: it is found, and comes back from the replica."""
    house, model = world.house, world.model
    if model.locked or model.full or not replicated(world):
        return
    kind = chance.choice(("recording", "page", "record"))
    world.expected += DAMAGE
    if kind == "record":
        told = model.one(chance, (one for one in model.there() if one.settled))
        if told is not None:
            house.end(signal.SIGTERM)
            _flip_record(house.rig.store, told.id, chance)
            house.start()
            world.settle()
            pools_are_opened(world, chance)
    else:
        sealed = {one.id.hex() for one in model.there() if one.ended and one.settled}
        pages = sorted((house.rig.store / "keys").rglob("page-??????.*"))
        objects = sorted(
            one for pool in POOLS for one in (house.folder / pool).glob("objects/*/*.svr")
            if one.stem in sealed
        )  # fmt: skip
        if paths := pages if kind == "page" else objects:
            _flip(chance.choice(paths), chance)
            if kind == "page":  # storaged has what it opened in memory
                restart(world, chance, signal.SIGTERM)
                pools_are_opened(world, chance)
    world.hold(lambda: _found_and_mended(world), 15.0)
    world.hold(lambda: checks.checks_clean(house))


def _found_and_mended(world: World) -> Iterator[str]:
    """Everything is looked at until a check finds nothing any more."""
    found = list(checks.checks_clean(world.house))
    world.ask(m.Mend([], again=False))
    yield from found


def replicated(world: World) -> bool:
    """Whether the replica has, within some seconds, all that there is."""
    house = world.house
    if house.replicator is None:
        return False
    for wait_s in (1.0, PATIENCE_S):
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            if house.replicated_to() >= world.ask(m.Status()).fields["feed_position"]:
                return True
            time.sleep(0.05)
        house.replicator.kill()  # it would wait for the answer of a storaged that was killed
        house.replicator.wait()
        house.start_replicator()
    return False


def _flip(path: Path, chance: Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _flip_record(store: Path, told_id: bytes, chance: Random) -> None:
    tables = Index(store / "index")
    try:
        with tables.reading() as view:
            sealed = bytearray(view.get(b"record", told_id) or b"")
        if sealed:
            sealed[chance.randrange(len(sealed))] ^= 1 << chance.randrange(8)
            tables.write(lambda writing: writing.put(b"record", told_id, bytes(sealed)))
    finally:
        tables.close()


@act(2)
def a_disk_is_full(world: World, chance: Random) -> None:
    if world.house.has_disks and not world.model.full:
        pool = chance.choice(POOLS)
        fill(world.house.folder / pool)
        world.model.full.add(pool)
        world.expected += FULL


@act(4)
def disks_have_space_again(world: World, chance: Random) -> None:
    free_disks(world)


def free_disks(world: World) -> None:
    for pool in sorted(world.model.full):
        empty(world.house.folder / pool)
    world.model.full.clear()


@act(2)
def old_calls_go(world: World, chance: Random) -> None:
    """A pool gets a term, and storaged a start: what is older is erased, and nothing else."""
    pool = chance.choice(POOLS)
    house = world.house
    house.end(chance.choice((signal.SIGKILL, signal.SIGTERM)))
    free_disks(world)
    house.settle_settings(key=True)
    house.start(key=True)
    world.settle()
    house.until(world.drained, "the intake is empty")
    house.end(signal.SIGTERM)
    house.settle_settings({pool: KEEP_DAYS}, key=True)
    house.start(key=True)  # it looks once, and then not for an hour
    world.hold(lambda: _old_ones_are_gone(world, pool), 5.0)
    house.settle_settings()
    restart(world, chance, signal.SIGTERM)
    notice_what_went(world)


def _old_ones_are_gone(world: World, pool: str) -> Iterator[str]:
    """What is due must go."""
    model = world.model
    notice_what_went(world)
    for told in model.there():
        if all(_is_due(model, one, pool) for one in model.together(told)):
            yield f"{told.name} stays though its time is up"


def notice_what_went(world: World) -> None:
    """What storaged erased by itself; it must have been old. Raises Wrong."""
    for erasure in erasures(world):
        if erasure.moved_to or erasure.who != "storaged":
            continue
        for one in erasure.recordings:
            told = world.model.calls[one.id]
            if told.gone is not True:
                world.model.note(told, "went by itself")
                told.gone = True
                if not _may_be_due(told):
                    raise Wrong(f"{told.name} was erased before its time")


def _is_due(model: Model, told: Told, pool: str) -> bool:
    call = told.records.get(told.safe)
    late_ns = 0 if told.ended else 7 * DAY_NS
    return (
        told.settled and call is not None and checks.places(model, told) == {pool}
        and call.started_ns + KEEP_DAYS * DAY_NS + late_ns < time.time_ns()
    )  # fmt: skip


def _may_be_due(told: Told) -> bool:
    return told.last is None or any(
        call.started_ns + KEEP_DAYS * DAY_NS < time.time_ns() for call in told.records.values()
    )


def erasures(world: World) -> Iterator[m.Erasure]:
    cursor = None
    while True:
        page = world.ask(m.Erasures(limit=100, cursor=cursor))
        yield from page.erasures
        if (cursor := page.cursor) is None:
            return
