"""The disks that a power cut may have left, made of the log of one run.

What was written before the last flush is there. Of what came after it, any part may be: each piece
of a sector's size is written or lost, by chance or all of it. Where the log comes from:
tests/support/fusedisk.py. What is held against what: tests/e2e/test_power_loss.py.
"""

import bisect
import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.fusedisk import ENTRY, EXT4, FLUSHED, Kind, attach

SECTOR: Final = 512
_PAGE: Final = 4096
_REPAIRED: Final = 3  # e2fsck(8): errors were corrected


class Write(NamedTuple):
    """One write as the disk got it. at: behind it, in the log."""

    offset: int
    start: int  # of its bytes, in the log
    size: int
    at: int


class Cut(NamedTuple):
    """A moment without power. at: bytes of the log that had been written."""

    at: int
    kept: float  # of what was not flushed, by chance
    piece: int  # what is kept or lost as one


class Log:
    """The writes and flushes of one run, in order."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self.writes: list[Write] = []
        self.flushes: list[int] = []  # places in the log behind each
        self._moments: list[tuple[int, int]] = []  # of each entry, and the place behind it
        at = 0
        while at + ENTRY.size <= len(self._data):
            what, offset, size, at_ns = ENTRY.unpack_from(self._data, at)
            start, at = at + ENTRY.size, at + ENTRY.size + size
            self._moments.append((at_ns, at))
            if what == FLUSHED:
                self.flushes.append(at)
            else:
                self.writes.append(Write(offset, start, size, at))

    def place(self, at_ns: int) -> int:
        """How far the log was at a moment: one of several disks that lost their power at once."""
        number = bisect.bisect_right(self._moments, (at_ns, len(self._data)))
        return self._moments[number - 1][1] if number else 0

    def cuts(self, chance: random.Random, count: int, since: int, until: int) -> list[Cut]:
        """Moments to try, in order of time."""
        moments = sorted(chance.randint(since, until) for _ in range(count))
        return [
            Cut(at, chance.choice((0.0, 0.5, 0.9)), chance.choice((SECTOR, _PAGE, 1 << 20)))
            for at in moments
        ]

    def disks(self, cuts: list[Cut], size: int, folder: Path, chance: random.Random
              ) -> Iterator[tuple[Cut, Path]]:  # fmt: skip
        """Each cut, and the disk that it left; the file is the next one's afterwards."""
        durable, disk = folder / "durable.img", folder / "cut.img"
        with durable.open("wb") as file:
            file.truncate(size)
        written = 0
        for cut in cuts:
            flushed = max((at for at in self.flushes if at <= cut.at), default=0)
            with durable.open("r+b", 0) as file:
                while written < len(self.writes) and self.writes[written].at <= flushed:
                    self._put(file.fileno(), self.writes[written])
                    written += 1
            subprocess.run(["cp", "--sparse=always", durable, disk], check=True)
            with disk.open("r+b", 0) as file:
                for write in self.writes[written:]:
                    if write.at > cut.at:
                        break
                    self._put_some(file.fileno(), write, cut, chance)
            yield cut, disk

    def _put(self, descriptor: int, write: Write) -> None:
        os.pwrite(descriptor, self._data[write.start : write.start + write.size], write.offset)

    def _put_some(self, descriptor: int, write: Write, cut: Cut, chance: random.Random) -> None:
        for begin in range(0, write.size, cut.piece):
            if chance.random() < cut.kept:
                part = min(cut.piece, write.size - begin)
                piece = Write(write.offset + begin, write.start + begin, part, write.at)
                self._put(descriptor, piece)


@contextlib.contextmanager
def mounted(disk: Path, point: Path, kind: Kind = EXT4) -> Iterator[Path]:
    """A file system as a start after the power cut mounts it: its journal is replayed.

    A cut within the superblock's sectors leaves a checksum that does not fit; then the start
    repairs the file system first, from a copy of the superblock.
    """
    device = attach(disk)
    mount = ["mount", *kind.options, device, point]
    try:
        if subprocess.run(mount, check=False).returncode:
            repaired = subprocess.run([*kind.repair, device], check=False).returncode
            assert repaired <= _REPAIRED, f"{kind.repair[0]} ended with {repaired}"
            subprocess.run(mount, check=True)
        try:
            with contextlib.suppress(OSError):
                (point / "lost+found").rmdir()
            yield point
        finally:
            subprocess.run(["umount", point], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
