"""Acts on a vault, drawn at random: what captures send, what people ask, what breaks.

An act has its own randomness, so that a row of acts with some left out does the rest alike. Each
tells the model what it did, and holds what it is answered against what must be. Rows of them:
tests/support/interplay.py.
"""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from spanvault import messages as m
from spanvault.keys import keyfile, shares
from spanvault.media.chunk import EVENTS
from spanvault.spool import key_id
from storaged.index.binding import beside
from storaged.index.environment import Index
from tests.support import interplaychecks as checks
from tests.support.interplayhouse import PATIENCE_S, Died, House, Wrong
from tests.support.interplaymodel import POOLS, Model, Told, numbers
from tests.support.smalldisk import empty, fill
from tests.support.vault import SECOND, call_id, make_call

DAY_NS: Final = 86_400 * SECOND
SIZES: Final = (320, 320, 320, 8000)  # bytes of a chunk: sound, and now and then a picture
PEOPLE: Final = tuple(f"+4930{number}" for number in range(6))  # numbers that calls share
KEEP_DAYS: Final = 20
FULL: Final = (  # what storaged's log may say of a disk that takes nothing
    "Search rows of erased calls cannot be made to go yet",
    "An erasure that was begun cannot be completed yet",
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
_OPEN_S: Final = 5.0

Act = Callable[["World", Random], None]
ACTS: dict[str, tuple[int, Act]] = {}  # by name: how often, and what


def act(weight: int) -> Callable[[Act], Act]:
    def add(function: Act) -> Act:
        ACTS[function.__name__] = weight, function
        return function

    return add


class World:
    """The vault, what must be in it, and how to ask after it."""

    def __init__(self, house: House) -> None:
        self.house, self.model = house, house.model
        self.made = 0  # calls
        self.expected: list[str] = []  # beginnings of lines that storaged's log may have
        self.sent: list[tuple[str, list[m.Call], list[tuple[bytes, int, int]], int]] = []

    # --- sending ---------------------------------------------------------------------------------

    def send(
        self, chance: Random, capture: str, calls: list[m.Call],
        chunks: list[tuple[bytes, int, int]], *, spools: bool = True,
    ) -> None:  # fmt: skip
        """A batch, acknowledged before anything else is done, unless nothing can take it."""
        size = chance.choice(SIZES)
        spooled = chance.random() < 0.08 and spools
        one = self.house.captures[capture]
        known = [told for told in map(self.model.calls.get, {c[0] for c in chunks}) if told]
        chunks = [  # a capture never sends two chunks of one place
            chunk for chunk in chunks
            if not any(chunk[1:] in told.chunks for told in known if told.id == chunk[0])
        ]  # fmt: skip
        one.send(calls, chunks, size, spooled=spooled)
        self.sent = [*self.sent[-20:], (capture, calls, chunks, size)]
        self.settle()

    def settle(self) -> None:
        """Wait for acknowledgements. Raises Died, Wrong."""
        for capture in self.house.captures.values():
            if "store" in self.model.full:
                capture.settle(0.3)
            elif not capture.settle():
                raise Wrong(f"not acknowledged: {sorted(capture.waiting)[:5]} of {capture.name}")

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, request: Any, who: str = "operator") -> Any:
        return self.house.ask(request, who)[0]

    def hold(self, check: Callable[[], Iterable[str]], seconds: float = _OPEN_S) -> None:
        """What a check finds must be nothing, soon: what waits is being taken in. Raises Wrong."""
        end = time.monotonic() + seconds
        while faults := list(check()):
            if time.monotonic() > end:
                raise Wrong("; ".join(faults[:6]))
            time.sleep(0.05)

    @property
    def pools(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(m.Status()).fields["pools"]
        return found

    def drained(self) -> bool:
        """Whether nothing waits for a pool that is open and takes writes."""
        shut = self.model.locked | self.model.full
        return not any(told["waiting"] for pool, told in self.pools.items() if pool not in shut)

    def new_id(self) -> bytes:
        self.made += 1
        return call_id(1_000_000 + self.made)

    def new_call(self, chance: Random, **changes: Any) -> m.Call:
        """A call of the last weeks, by a rule of some pool."""
        number = self.made + 1
        started_ns = time.time_ns() // DAY_NS * DAY_NS - chance.randrange(1, 40) * DAY_NS
        started_ns += chance.randrange(86_400) * SECOND
        callee = chance.choice(("core", "sensitive", *PEOPLE))
        if "id" not in changes:
            changes["id"] = self.new_id()
        return make_call(number, **{
            "callee": callee, "caller": chance.choice(PEOPLE), "started_ns": started_ns,
            "answered_ns": started_ns + 2 * SECOND, "ended_ns": started_ns + 62 * SECOND,
            "final": chance.random() < 0.7, **changes,
        })  # fmt: skip


def new_chunks(chance: Random, told_id: bytes, since: int = 0) -> list[tuple[bytes, int, int]]:
    """Some seconds of some streams, digits among them now and then."""
    streams = [*range(chance.randrange(1, 3)), *([EVENTS] if chance.random() < 0.3 else [])]
    return [(told_id, stream, since + second) for stream in streams
            for second in range(chance.randrange(1, 5))]  # fmt: skip


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
    if told is None or told.id[:6] != told.id[:6]:
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
    if any(not told.settled for told in doomed):
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
        or (reply.code == "not_found" and not all(one.settled for one in moved))
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
        world.house.unsure_keys = after
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
    try:
        reply = world.ask(m.Lock(pool))
    except Died:
        raise
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
        # FORMAT.md §11: whose what waits in an intake is, and sound without a record, is forgotten.
        shut = world.model.locked | world.model.full
        told.loose |= told.safe < 0 or bool(checks.places(world.model, told) & shut)
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
