"""The power fails while a target's root key is replaced: the old one or the new is there, whole.

The target is an ext4 whose disk logs every write and flush (tests/support/fusedisk.py); of what no
flush covered all is lost, or nothing. The old root is overwritten, never before the new one is
durable: in two negative controls it is, and the power costs both.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from replicator.targets.directory import DirectoryTarget
from spanvault.daemon import durable
from tests.support.fusedisk import Disk
from tests.support.powercut import SECTOR, Cut, Log, mounted

MEGABYTES = 16
NAME = "keys/root"
ROOTS = [bytes([65 + number]) * 3000 for number in range(3)]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices"),
]


class Hasty(DirectoryTarget):
    """Overwrites the old root before the new one is there."""

    def supplant(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        self.destroy(name)
        return self.put(name, parts)


@pytest.fixture
def point() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    yield folder / "target"
    shutil.rmtree(folder)


def lost(make: Callable[[Path], DirectoryTarget], point: Path, folder: Path) -> list[bytes]:
    """Replace a root twice, cut the power behind each write: gives what was there for one lost."""
    with Disk(folder / "disk", MEGABYTES, point) as disk:
        target = make(point)
        target.prepare(create=False)
        target.put(NAME, [ROOTS[0]])
        places = [disk.position]
        for root in ROOTS[1:]:
            target.supplant(NAME, [root])
            places.append(disk.position)
        shutil.copyfile(disk.log, folder / "log")
    log = Log(folder / "log")
    ends = sorted({one.at for one in log.writes if places[0] < one.at <= places[-1]})
    cuts = [Cut(at, kept, SECTOR) for at in [*ends, places[-1]] for kept in (0.0, 1.0)]
    faults = []
    for cut, image in log.disks(cuts, MEGABYTES << 20, folder, random.Random(0)):
        due = max(number for number, place in enumerate(places) if place <= cut.at)
        with mounted(image, point):
            DirectoryTarget(point).prepare(create=False)  # as the replicator's next start
            root = point / NAME
            found = root.read_bytes() if root.exists() else b""
        if found not in ROOTS[due : due + 2]:
            faults.append(found)
    assert len(cuts) > len(ROOTS)
    return faults


def test_a_power_cut_leaves_the_old_root_or_the_new(point, tmp_path):
    assert lost(DirectoryTarget, point, tmp_path) == []


def test_old_root_that_is_overwritten_too_early_is_lost(point, tmp_path):
    assert lost(Hasty, point, tmp_path)


def test_old_root_that_is_overwritten_before_the_new_ones_name_is_durable_is_lost(
    point, tmp_path, monkeypatch
):
    monkeypatch.setattr(durable, "sync_folder", lambda folder: None)
    assert any(lost(DirectoryTarget, point, tmp_path))  # under its name lies what overwrote it
