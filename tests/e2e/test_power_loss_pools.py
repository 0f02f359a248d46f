"""The power fails for several disks at once, each of which loses its own unflushed writes.

The store is on one disk; base, core and sensitive on others. While calls come for all three,
sensitive is locked and unlocked, a call is erased, one is moved up, keys are renewed. What had been
acknowledged when the power failed must hold: calls play, what was erased opens with no key that is
left, what was moved is where it went. Without the one syncfs of a commit something must be lost.

SPANVAULT_POOL_CUTS: how many (6). SPANVAULT_SEED: repeats a run's choice of moments.
"""

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from spanvault import messages as m
from spanvault.keys import keyfile
from storaged.faults import Fault
from storaged.format.sealing import HEADER_BYTES, Header
from storaged.keys.keyring import Keyring
from tests.support.fusedisk import Disk
from tests.support.loads import Sent
from tests.support.powercut import SECTOR, Cut, Log, mounted
from tests.support.threepools import ThreePools, a_call

CUTS = int(os.environ.get("SPANVAULT_POOL_CUTS", "6"))
SEED = int(os.environ.get("SPANVAULT_SEED", str(random.SystemRandom().randrange(10**6))))
MEGABYTES = 24
DISKS = ("store", "base", "core", "sensitive")
ERASED, MOVED = a_call(1, "base"), a_call(2, "base")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices"),
]


class Run(NamedTuple):
    """One logged run. Moments, monotonic ns: when each round, erasure and move was acknowledged."""

    logs: dict[str, Log]
    rounds: list[tuple[int, Sent]]
    erased_ns: int
    moved_ns: int
    key: int  # of the erased call
    began_ns: int
    ended_ns: int


@pytest.fixture
def made() -> Iterator[ThreePools]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = ThreePools(folder)
    made.rig.store.mkdir(mode=0o700)
    yield made
    made.close()
    shutil.rmtree(folder)


def mount_point(made: ThreePools, name: str) -> Path:
    return made.rig.store if name == "store" else made.place(name)


def logged_run(made: ThreePools, folder: Path, spoil: str = "") -> Run:
    """All that is to survive, once, on disks that write down what reaches them."""
    with contextlib.ExitStack() as stack:
        disks = {
            name: stack.enter_context(Disk(folder / name, MEGABYTES, mount_point(made, name)))
            for name in DISKS
        }
        stack.callback(made.rig.end)
        made.start(spoil)
        began_ns, rounds = time.monotonic_ns(), []

        def sends() -> None:
            sent = made.send()
            assert made.acknowledged() == [len(made.sent)]
            rounds.append((time.monotonic_ns(), sent))

        def asks(request: m.Message) -> int:
            reply = made.ask(request)
            assert not isinstance(reply, m.Failure), reply
            return time.monotonic_ns()

        sends()
        sends()
        made.lock()
        sends()
        key = key_of(made)
        erased_ns = asks(m.Erase([ERASED], "test"))
        asks(m.Rotate("base", "root"))
        sends()
        moved_ns = asks(m.Move([MOVED], "core", "test"))
        asks(m.Rotate("core", "ingest"))
        made.unlock()
        sends()
        ended_ns = time.monotonic_ns()
        made.rig.end()
        for name, disk in disks.items():
            shutil.copyfile(disk.log, folder / f"{name}.log")
    logs = {name: Log(folder / f"{name}.log") for name in DISKS}
    return Run(logs, rounds, erased_ns, moved_ns, key, began_ns, ended_ns)


def key_of(made: ThreePools) -> int:
    """The slot of the call that is going to be erased."""
    (path,) = made.place("base").glob(f"objects/*/{ERASED.hex()}.svr")
    return Header.parse(path.read_bytes()[:HEADER_BYTES]).key_id


def tried(made: ThreePools, run: Run, folder: Path, count: int) -> list[tuple[int, list[str]]]:
    """Random moments without power, and what each cost."""
    chance = random.Random(SEED)
    moments = sorted(
        [run.ended_ns, run.erased_ns, run.moved_ns]
        + [chance.randrange(run.rounds[0][0], run.ended_ns) for _ in range(count - 3)]
    )
    left = []
    for name, log in run.logs.items():
        (own := folder / f"{name}.cut").mkdir()
        cuts = [Cut(log.place(at), chance.choice((0.0, 0.5, 0.9)), SECTOR) for at in moments]
        left.append(log.disks(cuts, MEGABYTES << 20, own, chance))
    outcomes = []
    for at_ns, *disks in zip(moments, *left, strict=True):
        with contextlib.ExitStack() as stack:
            for name, (_, disk) in zip(DISKS, disks, strict=True):
                stack.enter_context(mounted(disk, mount_point(made, name)))
            stack.callback(made.rig.end)
            outcomes.append((at_ns, after(made, run, at_ns)))
    return outcomes


def after(made: ThreePools, run: Run, at_ns: int) -> list[str]:
    """Start storaged on what was left, and say what is wrong."""
    try:
        made.start()
        made.well()
    except AssertionError as error:
        return [str(error)]
    made.erased = {ERASED}
    due = [sent for acknowledged_ns, sent in run.rounds if acknowledged_ns <= at_ns]
    faults = [f"lost: {what}" for what in made.faults(due)]
    if run.erased_ns <= at_ns:
        faults += still_there(made, run.key)
    if run.moved_ns <= at_ns and made.ask(m.Get(MOVED)).pool != "core":
        faults.append("lost: move")
    if faults:
        return faults
    for sent in made.sent[len(due) :]:
        made.send_again(sent)
        made.acknowledged()
    made.well()
    return [f"not taken again: {what}" for what in made.faults(made.sent)]


def still_there(made: ThreePools, key: int) -> Iterator[str]:
    """What an erasure that was acknowledged left."""
    if getattr(made.ask(m.Get(ERASED)), "code", "") != "erased":
        yield "lost: erasure"
    ring = Keyring(made.place("keys"), keyfile.load(made.rig.folder / "secret/unlock.key"))
    with contextlib.suppress(Fault):
        ring.dek(key)
        yield "lost: destruction of a key"


def lost_something(outcomes: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    return [one for one in outcomes if one[1]]


def test_a_power_cut_of_all_disks_loses_nothing_acknowledged(made, tmp_path, tell):
    run = logged_run(made, tmp_path)
    outcomes = tried(made, run, tmp_path, CUTS)
    flushes = {name: len(log.flushes) for name, log in run.logs.items()}
    tell(
        f"{len(outcomes)} power cuts of {len(DISKS)} disks (SPANVAULT_SEED={SEED}), flushes "
        f"{flushes}: {len(lost_something(outcomes))} lost something"
    )
    assert lost_something(outcomes) == []


def test_without_syncfs_a_power_cut_of_all_disks_loses_something(made, tmp_path):
    run = logged_run(made, tmp_path, spoil="unsynced")
    assert lost_something(tried(made, run, tmp_path, 3))
