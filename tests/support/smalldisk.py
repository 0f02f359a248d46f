"""Small filesystems of a test's own, mounted where a part of a store lies, to be filled or closed.

A tmpfs knows some of a disk's faults and makes them in no time: no space, no inode, read-only, and
gone, with an older folder below its mount point. One whose writes fail, under a real ext4, is
tests/support/fusedisk.py. Needs root.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

FILLER = "filler"


class SmallDisk:
    """A tmpfs, mounted at `mounted`."""

    def __init__(self, mounted: Path, megabytes: int) -> None:
        self.mounted = mounted
        mounted.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = f"size={megabytes}m,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", mounted], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.mounted], check=True)


def fill(folder: Path) -> None:
    """Not a block is left."""
    with (folder / FILLER).open("wb", 0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def empty(folder: Path) -> None:
    (folder / FILLER).unlink()


def close_to_writes(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def open_to_writes(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


def use_up_inodes(folder: Path) -> None:
    """There is space, and no file more may be made."""
    about = os.statvfs(folder)
    used = about.f_files - about.f_ffree
    subprocess.run(["mount", "-o", f"remount,nr_inodes={used}", folder], check=True)


def give_inodes(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=10000", folder], check=True)


def unmount(folder: Path) -> None:
    """What is there now looks like it, as of a day when the disk was not mounted: it is empty."""
    below = [path.relative_to(folder) for path in folder.rglob("*") if path.is_dir()]
    SmallDisk(folder, 1)
    for path in below:
        (folder / path).mkdir(mode=0o700)


def mount_again(folder: Path) -> None:
    """Raises AssertionError if anything was written to what was there meanwhile."""
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert written == [], written
    subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def small_disks(sizes: dict[Path, int]) -> Iterator[None]:
    """One at each of these places, of so many megabytes, upper ones first."""
    with contextlib.ExitStack() as stack:
        for place, megabytes in sorted(sizes.items()):
            stack.callback(SmallDisk(place, megabytes).close)
        yield
