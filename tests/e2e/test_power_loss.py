"""The power fails at random moments of one run: what was acknowledged by then is there.

storaged records onto an ext4 whose disk logs every write and flush. Afterwards the log is replayed
up to a moment, what no flush covered is dropped or torn by chance, and that disk is mounted and
given to storaged: it must start, hold everything that had been acknowledged at that moment, be
clean to every check, and record on. With the one syncfs of a commit taken out it must lose
data, or nothing of this would be a proof. Some cuts are of xfs, btrfs, and an ext4 that orders
nothing. In the same way what was answered is in the access log.

SPANVAULT_CUTS: how many (20). SPANVAULT_SEED: repeats a run's choice of moments.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from spanvault import logchain
from spanvault import messages as m
from storaged.requests.accesslog import ROOM
from tests.support.crashing import Sender
from tests.support.forked import Forked
from tests.support.fusedisk import BTRFS, EXT4, WRITEBACK, XFS, Disk, Kind
from tests.support.kept import lost, not_clean, stored
from tests.support.loads import AFTERWARDS, Load, Sent
from tests.support.powercut import Cut, Log, mounted
from tests.support.remains import Remains
from tests.support.vault import Client, call_id, make_call

CUTS = int(os.environ.get("SPANVAULT_CUTS", "20"))
OTHER_CUTS = CUTS // 8  # on other file systems than ext4
SEED = int(os.environ.get("SPANVAULT_SEED", str(random.SystemRandom().randrange(10**6))))
CALLS, SECONDS = 6, 12
ASKED = 60

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices"),
]


class Run(NamedTuple):
    """One logged run. acknowledged: where the log was when each message's answer came."""

    load: Load
    log: Log
    acknowledged: list[int]
    begun: int  # where the log was when the store was not made yet
    kind: Kind = EXT4


class Noting(Sender):
    """Notes where the disk's log is at each acknowledgement."""

    def __init__(self, rig: Forked, sent: list[Sent], disk: Disk) -> None:
        super().__init__(rig, sent)
        self._disk = disk
        self.places: list[int] = []

    def _answered(self, client: Client, number: int) -> bool:
        answered = super()._answered(client, number)
        self.places.append(self._disk.position)
        return answered


def conversation() -> list[Sent]:
    """Calls that begin, go on and end, one batch a second of theirs; some spoken to late."""
    sent = []
    for second in range(SECONDS):
        talking = [number for number in range(CALLS) if number <= second < number + 6]
        ended = [make_call(n, id=call_id(n), revision=2) for n in range(CALLS) if second == n + 6]
        begun = [make_call(n, id=call_id(n), final=False) for n in talking if n == second]
        late = [(call_id(n), 2, 0) for n in range(CALLS) if second == n + 7]
        chunks = [(call_id(n), 1, second) for n in talking] + late
        sent.append(Sent(m.Batch("test", second + 1, begun + ended), chunks))
    return sent


@pytest.fixture(scope="module")
def rig() -> Iterator[Forked]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = Forked(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


def logged_run(rig: Forked, folder: Path, spoil: str = "", kind: Kind = EXT4) -> Run:
    """Record a conversation from an empty disk on."""
    sent = conversation()
    with Disk(folder / "disk", kind.megabytes, rig.store, kind) as disk:
        begun = disk.position
        rig.launch(spoil=spoil)
        sender = Noting(rig, sent, disk)
        sender.send_all()
        assert len(sender.acknowledged) == len(sent)
        rig.end()
        shutil.copyfile(disk.log, folder / "log")
    return Run(Load(lambda _: None, sent), Log(folder / "log"), sender.places, begun, kind)


def after(rig: Forked, run: Run, cut: Cut) -> list[str]:
    """Start storaged on what a cut left, and say what is wrong."""
    due = {number for number, place in enumerate(run.acknowledged) if place <= cut.at}
    rig.launch()
    rig.wait_for(rig.requests)
    if not Path(rig.requests.removeprefix("ipc://")).exists():
        code = rig.end()
        return [f"storaged does not start (code {code}): {rig.messages.splitlines()[-1]}"]
    operator = Client(rig, "operator", rig.requests)
    try:
        faults = [f"lost: {what}" for what in lost(run.load, due, stored(operator, run.load))]
        if faults:
            return faults
        rest = [one for number, one in enumerate(run.load.sent) if number not in due]
        sender = Sender(rig, [*rest, AFTERWARDS])
        sender.send_all()
        load = Load(run.load.prepare, [*run.load.sent, AFTERWARDS])
        everything = set(range(len(load.sent)))
        found = stored(operator, load)
        faults += [f"not taken again: {what}" for what in lost(load, everything, found)]
        faults += not_clean(operator, load, found)
    finally:
        operator.close()
        rig.end()
    remains = Remains.of(rig.store)
    return faults + list(remains.reused(remains))


def tried(rig: Forked, run: Run, folder: Path, count: int) -> list[tuple[Cut, list[str]]]:
    """Random cuts of a run, and what each cost."""
    chance = random.Random(SEED)
    first, last = run.acknowledged[0], run.acknowledged[-1]
    cuts = run.log.cuts(chance, count // 4, run.begun, first)  # while the store is made
    cuts += run.log.cuts(chance, count - len(cuts), first, last)
    outcomes = []
    cuts.append(Cut(last, 0.0, 512))
    for cut, disk in run.log.disks(cuts, run.kind.megabytes << 20, folder, chance):
        with mounted(disk, rig.store, run.kind):
            outcomes.append((cut, after(rig, run, cut)))
            rig.end()
    return outcomes


def test_a_power_cut_loses_nothing_acknowledged(rig, tmp_path, tell):
    run = logged_run(rig, tmp_path)
    outcomes = tried(rig, run, tmp_path, CUTS)
    covered = sum(any(place <= cut.at for place in run.acknowledged) for cut, _ in outcomes)
    tell(
        f"{len(outcomes)} power cuts (SPANVAULT_SEED={SEED}) in a run of {len(run.log.writes)} "
        f"writes, {len(run.log.flushes)} flushes, {covered} of them after an acknowledgement: "
        f"{sum(bool(faults) for _, faults in outcomes)} lost something"
    )
    assert [one for one in outcomes if one[1]] == []
    assert covered >= len(outcomes) / 2


@pytest.mark.parametrize("kind", [WRITEBACK, XFS, BTRFS], ids=["writeback", "xfs", "btrfs"])
def test_a_power_cut_loses_nothing_acknowledged_on_other_file_systems(rig, tmp_path, tell, kind):
    if kind.lacking:
        pytest.skip(kind.lacking)
    run = logged_run(rig, tmp_path, kind=kind)
    outcomes = tried(rig, run, tmp_path, OTHER_CUTS)
    lost_something = sum(bool(faults) for _, faults in outcomes)
    name = " ".join((kind.make[0].removeprefix("mkfs."), *kind.options))
    tell(f"{len(outcomes)} power cuts on {name} (SPANVAULT_SEED={SEED}): {lost_something} lost")
    assert [one for one in outcomes if one[1]] == []


def test_without_syncfs_a_power_cut_loses_what_was_acknowledged(rig, tmp_path):
    run = logged_run(rig, tmp_path, spoil="unsynced")
    outcomes = tried(rig, run, tmp_path, 4)
    assert any("lost: chunk" in fault for _, faults in outcomes for fault in faults), outcomes


def heard(rig: Forked, folder: Path, spoil: str = "") -> Run:
    """Ask for calls, one after the other."""
    with Disk(folder / "disk", EXT4.megabytes, rig.store) as disk:
        begun = disk.position
        rig.launch(spoil=spoil)
        rig.wait_for(rig.requests)
        operator = Client(rig, "operator", rig.requests)
        places = []
        for number in range(ASKED):
            operator.ask(m.Get(call_id(number)))
            places.append(disk.position)
        operator.close()
        assert (rig.store / "log/access.log").stat().st_size >= ROOM  # lines went into it
        rig.end()
        shutil.copyfile(disk.log, folder / "log")
    return Run(Load(lambda _: None, []), Log(folder / "log"), places, begun)


def unlogged(rig: Forked, run: Run, folder: Path, count: int) -> list[tuple[Cut, int]]:
    """Random cuts, and how many answered requests the log then lacks; what it has must fit."""
    chance = random.Random(SEED)
    cuts = run.log.cuts(chance, count, run.acknowledged[0], run.acknowledged[-1])
    lacking = []
    for cut, disk in run.log.disks(cuts, EXT4.megabytes << 20, folder, chance):
        with mounted(disk, rig.store):
            data = (rig.store / "log/access.log").read_bytes()
        assert {one.what for one in logchain.check(data)} <= {"torn"}
        answered = [call_id(n).hex() for n, at in enumerate(run.acknowledged) if at <= cut.at]
        lacking.append((cut, sum(f'"{one}"'.encode() not in data for one in answered)))
    return lacking


def test_a_power_cut_takes_no_line_of_what_was_answered(rig, tmp_path):
    run = heard(rig, tmp_path)
    assert all(lacking == 0 for _, lacking in unlogged(rig, run, tmp_path, CUTS))


def test_without_its_sync_a_power_cut_takes_lines_of_what_was_answered(rig, tmp_path):
    run = heard(rig, tmp_path, spoil="unlogged")
    assert any(lacking for _, lacking in unlogged(rig, run, tmp_path, 4))
