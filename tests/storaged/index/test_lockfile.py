"""No full disk ends storaged by SIGBUS: LMDB's lock file has its room before it is memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.smalldisk import SmallDisk, fill

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]
# In a process of its own: it would be this one that SIGBUS ends.
OPENED = """
import sys
from pathlib import Path
from storaged.index import lockfile
from storaged.index.environment import Index
lockfile._MEMORY = Path(sys.argv[2])
try:
    index = Index(Path(sys.argv[1]))
except OSError as error:
    sys.exit(f"{error.strerror}: {error.filename}")
print(index.reserved_keys(), sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def opened(index: Path, memory: Path) -> tuple[int, str]:
    """The exit code of opening and reading an index, and what it says."""
    command = [sys.executable, "-c", OPENED, index, memory]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    return done.returncode, (done.stdout + done.stderr).strip()


@pytest.fixture
def full(tmp_path):
    """An index on a disk without a block left."""
    disk = SmallDisk(tmp_path / "disk", 1)
    index = disk.mounted / "index"
    index.mkdir()
    assert opened(index, tmp_path)[0] == 0
    fill(disk.mounted)
    yield index
    disk.close()


def test_an_index_on_a_full_disk_opens_and_leaves_nothing_in_memory(full, tmp_path):
    (memory := tmp_path / "memory").mkdir()
    assert opened(full, memory) == (0, "0 ['data.mdb']")
    assert list(memory.iterdir()) == []


@pytest.mark.parametrize("memory", ["missing", "full"])
def test_without_memory_for_it_a_full_disk_is_an_error(full, tmp_path, memory):
    place = tmp_path / "missing" if memory == "missing" else full.parent
    assert opened(full, place) == (1, f"No space left on device: {full}/lock.mdb")


def test_without_memory_it_lies_beside_the_index(tmp_path):
    (index := tmp_path / "index").mkdir()
    assert opened(index, tmp_path / "missing") == (0, "0 ['data.mdb', 'lock.mdb']")
    lock = index / "lock.mdb"
    assert lock.stat().st_blocks * 512 >= lock.stat().st_size  # without a hole
