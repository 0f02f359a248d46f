"""Random rows of acts on a real vault, held against a model, and the shortest row that still fails.

A row is drawn from a seed alone: names of acts, each with a seed of its own, some with a kill while
they go on. Acts: tests/support/interplayacts.py, interplaybreaks.py. `python -m
tests.support.interplay SEED ACTS` repeats a row; `--shrink` leaves out whatever is not needed for
its failure.
"""

import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from spanvault import messages as m
from spanvault.client import Client, RequestFailed
from tests.support import interplayacts as acts
from tests.support import interplaybreaks as breaks
from tests.support import interplaychecks as checks
from tests.support.interplayhouse import Died, House, Wrong
from tests.support.interplaymodel import Model
from tests.support.interplayworld import ACTS, World

MEMORY = Path("/dev/shm")  # a killed process takes no page cache with it: no disk is needed


class Step(NamedTuple):
    """An act of a row. killed_s: storaged is killed so long after it began."""

    name: str
    seed: int
    killed_s: float | None = None

    def __str__(self) -> str:
        return self.name + (f", killed after {self.killed_s:.3f} s" if self.killed_s else "")


def drawn(seed: int, count: int) -> list[Step]:
    """A row of acts."""
    chance = Random(seed)
    names, weights = list(ACTS), [weight for weight, _ in ACTS.values()]
    return [
        Step(name, chance.randrange(1 << 32),
             chance.uniform(0.0005, 0.08) if chance.random() < 0.1 else None)
        for name in chance.choices(names, weights, k=count)
    ]  # fmt: skip


class Failed(Exception):
    """A row that did not end well. at: its step's number; its length: the end."""

    def __init__(self, at: int, step: str, why: str) -> None:
        super().__init__(f"at act {at} ({step}): {why}")
        self.why = why


def run(row: Sequence[Step], *, disks: bool, spoil: str = "",
        tell: Callable[[str], None] = lambda _: None) -> str:  # fmt: skip
    """Do all of a row. Gives what was done in words. Raises Failed."""
    folder = Path(tempfile.mkdtemp(prefix="sv-", dir=MEMORY if MEMORY.is_dir() else None))
    house = House(folder, Model(), disks=disks, spoil=spoil)
    try:
        world = World(house)
        number, name = 0, "start"
        try:
            house.start_replicator()
            house.start()
            for number, step in enumerate(row):
                name = str(step)
                world.model.act = f"{number} {name}"
                tell(world.model.act)
                _do(world, step)
            number, name = len(row), "end"
            _end(world)
        except AssertionError as error:
            why = f"{error}\n{traceback.format_exc(limit=-4)}"
            told = _stories(house.model, str(error))
            raise Failed(number, name, f"{why}{told}\n{house.rig.messages[-3000:]}") from None
        gone = sum(told.gone is True for told in house.model.calls.values())
        return (f"{len(row)} acts, {len(house.model.calls)} calls, {gone} erased, "
                f"{house.starts} starts, {house.kills} kills")  # fmt: skip
    finally:
        house.close()
        shutil.rmtree(folder, ignore_errors=True)


def _stories(model: Model, error: str) -> str:
    """What became of the calls that a failure names."""
    return "\n".join(
        f"{told.name} of {told.owner}: " + "; ".join(told.story)
        for told in model.calls.values() if told.name in error
    )  # fmt: skip


def _do(world: World, step: Step) -> None:
    chance = Random(step.seed)
    if step.killed_s is not None:
        world.house.kill_in(step.killed_s)
    with suppress(Died):
        ACTS[step.name][1](world, chance)
    if step.killed_s is not None or world.house.is_dying:
        _bury(world, chance)


def _bury(world: World, chance: Random) -> None:
    """After a kill in the midst of something: start again, see what became of it."""
    world.house.settle_settings()
    while True:
        try:
            breaks.restart(world, chance)
            break
        except Died:
            continue
    breaks.notice_what_went(world)
    for told in [one for one in world.model.calls.values() if one.gone is None]:
        world.hold(lambda told=told: checks.call_is_right(world.house, told, media=False))  # type: ignore[misc]


def _end(world: World) -> None:
    """All is opened, and everything looked at."""
    house, chance = world.house, Random(0)
    breaks.free_disks(world)
    acts.pools_are_opened(world, chance)
    for capture in house.captures.values():
        capture.unspool()
    world.settle()
    house.until(world.drained, "the intakes are empty")
    acts.all_is_looked_at(world, chance)
    world.hold(lambda: checks.checks_clean(house))
    if not breaks.replicated(world):
        raise Wrong(f"the replica does not follow: {house.replicator_says()}")
    erasures = list(breaks.erasures(world))
    house.end(signal.SIGTERM)
    world.hold(lambda: checks.keys_are_gone(house.rig.store / "keys", house.openers, erasures), 0)
    world.hold(lambda: checks.log_is_whole(house.rig.store / "log/access.log", house.model), 0)
    world.hold(lambda: checks.said(house.rig.messages, world.expected), 0)
    world.hold(lambda: checks.nothing_is_left(house.rig.store, house.folder, house.model), 0)
    house.stop_replicator()
    with house.restored() as running:
        _look_at_restored(world, Elsewhere(running.client, house.model))


class Elsewhere:
    """A restored store, asked as the one of before was."""

    def __init__(self, client: Client, model: Model) -> None:
        self._client, self.model = client, model

    def ask(self, request: Any, who: str = "operator") -> Any:
        """A reply and its bulk."""
        try:
            return self._client.request(request, m.Message)  # type: ignore[type-abstract]
        except RequestFailed as failed:
            return m.Failure(failed.code, failed.error), []  # type: ignore[arg-type]


def _look_at_restored(world: World, there: Elsewhere) -> None:
    """What had ended is whole again, what was erased is not."""
    number = "nobody"
    for told in world.model.calls.values():
        beneath = world.model.beneath(told)  # a copy is made of what was sealed
        if told.gone is True or all(one.ended and one.settled for one in beneath):
            world.hold(lambda told=told: checks.call_is_right(there, told))  # type: ignore[misc]
        number = told.last.caller if told.last else number
    world.hold(lambda: checks.by_number(there, number))


def shrunk(row: Sequence[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """The row without what its failure does not need."""
    left, size = list(row), max(1, len(row) // 2)
    while True:
        at = 0
        while at < len(left):
            shorter = left[:at] + left[at + size :]
            if fails(shorter):
                left = shorter
            else:
                at += size
        if size == 1:
            return left
        size = max(1, size // 2)


def main() -> None:
    """Repeat a row; print where it fails."""
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    row = drawn(seed, count)
    disks = "--no-disks" not in sys.argv
    say = print if "--tell" in sys.argv else lambda _: None
    try:
        print(run(row, disks=disks, tell=say))
        return
    except Failed as failed:
        print(failed)
        first = failed.why.partition(" ")[2][:14]  # behind the call that it names
    if "--shrink" not in sys.argv:
        sys.exit(1)

    def fails(some: Sequence[Step]) -> bool:
        try:
            run(some, disks=disks)
        except Failed as failed:
            print(len(some), failed.why[:80], flush=True)
            return first in failed.why
        return False

    for step in shrunk(row, fails):
        print(step)
    print(first)


if __name__ == "__main__":
    main()
