"""The disk is full, read-only or failing: recording stops, says so, and loses nothing.

On a real ext4 whose disk the test serves itself (tests/support/fusedisk.py), under base's folder
alone, under core's, and under the whole store. What is acknowledged stays; what is not is kept and
tried again, and goes by itself where the disk can be mended without a restart.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spanvault import messages as m
from spanvault import wire
from tests.support.crashing import Forked, Load, Sent, lost, not_clean, stored
from tests.support.fusedisk import WORKS, WRITES_FAIL, Disk
from tests.support.vault import Client, call_id, make_call, make_media

ONE, TWO, BESIDE = call_id(1), call_id(2), call_id(3)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices"),
]


# Begun and ended: no file of it stays open.
FIRST = Sent(m.Batch("test", 1, [make_call(1, id=ONE)]), [(ONE, 1, 0)])
# More than the few blocks that a full disk still finds.
SECOND = Sent(
    m.Batch("test", 2, [make_call(2, id=TWO)]), [(TWO, 1, second) for second in range(400)]
)
# Of base, where the others are core's.
THIRD = Sent(m.Batch("test", 3, [make_call(3, id=BESIDE)]), [(BESIDE, 1, 0)])
CORE = """[pools.core]
path = '{}'
[[rules]]
pool = 'core'
number = ['+49300000001', '+49300000002']
"""


class Bench:
    """storaged on a disk that a test breaks, with what it was sent. pool: whose disk it is."""

    def __init__(self, rig: Forked, disk: Disk, pool: str) -> None:
        self.rig, self.disk, self.pool = rig, disk, pool
        self._capture: Client | None = None
        self.start()

    def start(self) -> None:
        """storaged anew, and a capture that has found it."""
        self.rig.launch()
        self.rig.wait_for(self.rig.requests)
        self.operator = self.rig.client("operator")
        self.capture = self.rig.capture()

    def send(self, sent: Sent) -> None:
        self.capture.send(sent.message, make_media(sent.chunks))

    def acknowledged(self, seconds: float) -> list[int]:
        """The sequences of the next answer; none if there is none for so long."""
        answer = self.capture.receive(wire.decode_from_ingest, seconds)
        return answer[0].sequences if answer else []

    def alarm(self, words: str) -> m.StatusReply:
        """Wait until status says so of the pool."""
        return self._until(lambda pool: words in pool["state"])

    def drained(self) -> None:
        """Wait until nothing is kept for the pool elsewhere."""
        self._until(lambda pool: not pool["waiting"])

    def _until(self, due: Callable[[dict[str, Any]], bool]) -> m.StatusReply:
        end = time.monotonic() + 20
        while True:
            status, _ = self.operator.ask(m.Status())
            if due(status.fields["pools"][self.pool]):
                return status
            assert time.monotonic() < end, status
            time.sleep(0.05)

    @property
    def waits(self) -> list[Path]:
        """Batches that are kept for the pool elsewhere."""
        return list((self.rig.store / "intake" / self.pool).glob("*.sealed"))

    def faults(self, *sent: Sent) -> list[str]:
        """What is wrong with what must be there."""
        load = Load(lambda _: None, sent)
        found = stored(self.operator, load)
        return [
            *lost(load, set(range(len(sent))), found),
            *not_clean(self.operator, load, found),
        ]


@pytest.fixture(params=["pool", "store"])
def bench(request) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    rig = Forked(folder)
    mounted = rig.store if request.param == "store" else folder / "pool"
    settings = {"pool": "[pools.base]\npath = '{}'\n", "core": CORE}.get(request.param, "")
    with rig.config.open("a") as file:
        file.write(settings.format(mounted))
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(Disk(folder / "disk", 24, mounted))
        stack.callback(rig.close)
        made = Bench(rig, disk, "core" if request.param == "core" else "base")
        made.send(FIRST)
        assert made.acknowledged(20) == [1]
        yield made
    shutil.rmtree(folder)


def fill(path: Path) -> None:
    with path.open("wb", 0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("bench", ["store"], indirect=True)
def test_full_disk_stops_recording_and_space_regained_resumes_by_itself(bench):
    filler = bench.disk.mounted / "keys" / "filler"
    fill(filler)
    bench.send(SECOND)
    status = bench.alarm("No space left on device")
    assert "Free space" in status.fields["pools"]["base"]["state"]
    assert status.state.startswith("not recording")
    assert bench.acknowledged(0.3) == []
    assert "No space left on device" in bench.rig.messages
    filler.unlink()
    assert bench.acknowledged(20) == [2]
    assert bench.faults(FIRST, SECOND) == []
    assert bench.operator.ask(m.Status())[0].fields["pools"]["base"]["state"] == "ok"


def full(disk: Disk) -> None:
    fill(disk.mounted / "filler")


def read_only(disk: Disk) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk.mounted], check=True)


def emptied(disk: Disk) -> None:
    (disk.mounted / "filler").unlink()


def writable(disk: Disk) -> None:
    subprocess.run(["mount", "-o", "remount,rw", disk.mounted], check=True)


@pytest.mark.parametrize("bench", ["pool"], indirect=True)
@pytest.mark.parametrize(
    ("broken", "mended", "words"),
    [
        pytest.param(full, emptied, "No space left on device", id="full"),
        pytest.param(read_only, writable, "Read-only file system", id="read-only"),
    ],
)
def test_pool_whose_disk_takes_nothing_is_named_and_goes_on_by_itself(bench, broken, mended, words):
    """What comes for it meanwhile waits in its intake, on the store's own disk."""
    broken(bench.disk)
    bench.send(SECOND)
    assert bench.acknowledged(20) == [2]
    status = bench.alarm(words)
    assert "pool base" in status.state
    assert status.fields["pools"]["base"]["waiting"] >= 1
    assert words in bench.rig.messages
    assert bench.faults(FIRST) == []
    mended(bench.disk)
    bench.drained()
    bench.alarm("ok")
    assert bench.faults(FIRST, SECOND) == []


@pytest.mark.parametrize("bench", ["core"], indirect=True)
def test_core_on_a_full_disk_of_its_own_holds_up_no_other_pool(bench):
    full(bench.disk)
    bench.send(SECOND)
    assert bench.acknowledged(20) == [2]
    status = bench.alarm("No space left on device")
    assert "pool core" in status.state
    assert "pool base" not in status.state
    assert not status.state.startswith("not recording")
    bench.send(THIRD)
    assert bench.acknowledged(20) == [3]
    base = bench.alarm("No space left on device").fields["pools"]["base"]
    assert (base["state"], base["waiting"]) == ("ok", 0)
    assert bench.faults(FIRST, THIRD) == []
    for one, pool in ((ONE, "core"), (BESIDE, "base")):
        assert bench.operator.ask(m.Get(one))[0].pool == pool
    emptied(bench.disk)
    bench.drained()
    bench.alarm("ok")
    assert bench.faults(FIRST, SECOND, THIRD) == []


def test_failing_disk_costs_nothing_acknowledged(bench):
    bench.disk.mood(WRITES_FAIL)
    bench.send(SECOND)
    acknowledged = bench.acknowledged(2)
    assert acknowledged == [] or bench.waits  # in the intake, on another disk
    assert any(sign in bench.rig.messages for sign in ("Input/output error", "Read-only file"))
    bench.rig.end()
    bench.disk.unmount()
    bench.disk.mood(WORKS)
    bench.disk.mount()
    bench.start()
    if acknowledged:
        bench.drained()
        assert bench.faults(FIRST, SECOND) == []
    assert bench.faults(FIRST) == []
    bench.send(SECOND)
    assert bench.acknowledged(20) == [2]
    assert bench.faults(FIRST, SECOND) == []
