"""A disk with another file system than ext4 is full, or one of its quotas is used up.

Neither xfs nor btrfs has room where ext4 has: btrfs writes nothing in place, so that on a full disk
what was written before cannot be changed either. Skipped by name where one cannot be made here.
Power cuts on them: tests/e2e/test_power_loss.py.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault import messages as m
from tests.support.fusedisk import BTRFS, XFS, Kind
from tests.support.smalldisk import empty, fill
from tests.support.threepools import ThreePools

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices"),
]


def call(*command: object) -> str:
    done = subprocess.run([str(one) for one in command], check=True, capture_output=True, text=True)
    return done.stdout


def make(kind: Kind, image: Path, mounted: Path) -> None:
    """Skips the test where that cannot be."""
    if kind.lacking:
        pytest.skip(kind.lacking)
    image.touch()
    os.truncate(image, kind.megabytes << 20)
    call(*kind.make, image)
    mounted.mkdir(mode=0o700, exist_ok=True)
    call("mount", "-o", "loop", image, mounted)


@pytest.fixture
def made() -> Iterator[ThreePools]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = ThreePools(folder, apart=False)
    made.rig.store.mkdir(mode=0o700)
    yield made
    made.close()
    for place in (made.rig.store, folder / "btrfs"):
        subprocess.run(["umount", "-q", place], check=False)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", [XFS, BTRFS], ids=["xfs", "btrfs"])
def test_the_one_disk_of_a_store_is_full(made, kind):
    make(kind, made.rig.folder / "image", made.rig.store)
    made.start()
    made.send()
    assert made.acknowledged() == [1]
    fill(made.rig.store)
    os.sync()  # btrfs gives back what it had set apart, and has nothing afterwards
    sent = made.send(records=200)
    state = made.status(lambda reply: "No space left on device" in reply.state).state
    assert state.startswith("not recording: the store cannot be written")
    assert made.acknowledged(0.3) == []
    assert made.ask(m.Status()).fields["calls"] == 3  # it reads, and has not ended
    made.rig.end()
    made.rig.launch()  # on the full disk
    assert made.ask(m.Status()).fields["calls"] == 3
    empty(made.rig.store)
    os.sync()
    made.unlock()
    made.send_again(sent)
    assert made.acknowledged() == [2]
    made.well()
    assert made.faults(made.sent) == []


def test_a_quota_is_used_up(made):
    """Of the index's folder: all waits. LMDB calls it a disk that fails."""
    top, folder = made.rig.folder / "btrfs", made.rig.store / "index"
    make(BTRFS, made.rig.folder / "image", top)
    call("btrfs", "quota", "enable", top)
    call("btrfs", "subvolume", "create", top / "index")
    folder.mkdir(mode=0o700)
    call("mount", "--bind", top / "index", folder)
    try:
        made.start()
        made.send()
        assert made.acknowledged() == [1]
        call("btrfs", "filesystem", "sync", top)
        call("btrfs", "qgroup", "limit", 256 << 10, folder)
        sent = made.send(records=400)
        state = made.status(lambda reply: "Disk quota exceeded" in reply.state).state
        assert state.startswith(f"not recording: the store cannot be written: {folder} (disk ")
        assert "Raise the quota of storaged's user, or of that folder" in state
        assert made.acknowledged(0.3) == []
        call("btrfs", "qgroup", "limit", "none", folder)
        assert made.acknowledged() == [2]
        assert made.faults([made.sent[0], sent]) == []
        assert "It fails: look at dmesg" not in made.rig.messages
    finally:
        made.rig.end()
        call("umount", folder)
