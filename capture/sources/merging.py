"""Capture files that overlap in time as one capture: their frames by time, in bounded memory.

Signalling may have been captured on one interface and media on another, each into files that were
rotated. Of each file that goes on at a time one block is held; all frames up to where the first of
those blocks ends are put in order and leave together. A file that overlaps with no other is passed
on as it is, uncopied. A pipe can be read only once, so it is known to overlap with nothing.
One file: capture.sources.files.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.model import Block
from capture.sources.files import blocks

MAX_OPEN: Final = 128  # files that go on at the same time, 2 MiB each


def merged(
    paths: Iterable[Path], fault: Callable[[ValueError], None]
) -> Iterator[tuple[Block, bool]]:
    """The frames of files that are in the order of their first ones.

    Gives blocks, and whether one begins where no other file goes on. A block's data is lent until
    the next is asked for.  fault: told of a file that is damaged or cut, when what could be read
    of it has been given; and of one too many.
    """
    waiting = (file for path in paths for file in _opened(path, fault))
    upcoming, going = next(waiting, None), list[_File]()
    while going or upcoming:
        begins = not going
        while upcoming and (not going or upcoming.joins(_horizon(going))):
            if len(going) >= MAX_OPEN:
                fault(ValueError(f"{upcoming.path}: {MAX_OPEN} other files go on at its time."))
            else:
                going.append(upcoming)
            upcoming = next(waiting, None)
        if len(going) == 1:
            yield going[0].rest(), begins
        else:
            for block in _together([file.until(_horizon(going)) for file in going]):
                yield block, begins
                begins = False
        going = [file for file in going if file.left or file.advance(fault)]


class _File:
    """A file, of which the block that comes next is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = 0  # frames of the block that have not been given
        self._blocks = blocks(path)
        self._again = path.is_file()
        self._time_ns = np.empty(0, np.int64)  # of its frames, as they are put in order by

    def advance(self, fault: Callable[[ValueError], None]) -> bool:
        """Go on to the next block. False: there is none."""
        try:
            block = next(self._blocks, None)
        except ValueError as error:
            fault(error)
            return False
        if block is None:
            return False
        self._block, self.left = block, len(block.start)
        # Frames a little out of order stay with those they were heard among.
        before = self._time_ns[-1:]
        self._time_ns = np.maximum.accumulate(np.concatenate((before, block.time_ns)))[
            len(before) :
        ]
        return True

    @property
    def last_ns(self) -> int:
        """Of the block's last frame."""
        return int(self._time_ns[-1])

    def joins(self, horizon_ns: int) -> bool:
        """Whether it begins by then."""
        return self._again and int(self._time_ns[0]) <= horizon_ns

    def rest(self) -> Block:
        """What is left of the block."""
        start, self.left = len(self._time_ns) - self.left, 0
        return self._block.part(start, len(self._time_ns)) if start else self._block

    def until(self, horizon_ns: int) -> tuple[Block, NDArray[np.int64]]:
        """What is left of the block up to a time, and the times to put it in order by."""
        start = len(self._time_ns) - self.left
        end = int(np.searchsorted(self._time_ns, horizon_ns, side="right"))
        self.left = len(self._time_ns) - end
        return self._block.part(start, end), self._time_ns[start:end]


def _opened(path: Path, fault: Callable[[ValueError], None]) -> Iterator[_File]:
    file = _File(path)
    if file.advance(fault):
        yield file


def _horizon(going: list[_File]) -> int:
    """Up to when all frames are there."""
    return min(file.last_ns for file in going)


def _together(parts: list[tuple[Block, NDArray[np.int64]]]) -> Iterator[Block]:
    """Frames of several files in order of time, cut where the link type changes."""
    parts = [part for part in parts if len(part[1])]
    data, start, size = list[NDArray[np.uint8]](), list[NDArray[np.int64]](), 0
    for block, _ in parts:
        first, last = int(block.start.min()), int((block.start + block.length).max())
        data.append(block.data[first:last])
        start.append(block.start - first + size)
        size += last - first
    order = np.argsort(np.concatenate([times for _, times in parts]), kind="stable")
    link = np.repeat([block.link_type for block, _ in parts], [len(times) for _, times in parts])
    link = link[order]
    length, original, time_ns = (
        np.concatenate([getattr(block, name) for block, _ in parts])[order]
        for name in ("length", "original", "time_ns")
    )
    whole, begin = np.concatenate(data), np.concatenate(start)[order]
    cuts = [0, *(np.flatnonzero(np.diff(link)) + 1).tolist(), len(link)]
    for one, other in pairwise(cuts):
        rows = slice(one, other)
        yield Block(whole, begin[rows], length[rows], original[rows], time_ns[rows], int(link[one]))
