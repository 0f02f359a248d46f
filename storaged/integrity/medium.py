"""An object's bytes as the medium has them: past the page cache, and after everyone else.

What was cached is dropped before and after a block is read, so that a check sees the medium, and
the cache keeps what listeners and copies need. Blocks are read at idle I/O priority
(ioprio_set(2), posix_fadvise(2)), the next one while this one is looked at. Who checks all objects
with it: storaged.integrity.scrub.
"""

import contextlib
import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from typing import Final

BLOCK: Final = 1 << 20
OURS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR}  # not a file's fault
_AHEAD: Final = 128 << 10  # asked for at a time: of more the kernel may read a part alone
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_THIS_THREAD: Final = (1, 0)  # IOPRIO_WHO_PROCESS, the caller
_IDLE, _NORMAL = 3 << 13, 0  # IOPRIO_CLASS_IDLE; IOPRIO_CLASS_NONE
_libc: Final = ctypes.CDLL(None)


class Medium:
    """An object's first `size` bytes, sliced like bytes; the block last read is kept.

    taken: bytes read so far.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self._start, self._block = 0, b""
        self._coming = -1  # the block that is being read ahead
        self.taken = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        at, stop, _ = part.indices(self._size)
        pieces = []
        while at < stop:
            if not self._start <= at < self._start + len(self._block):
                self._read(at)
            piece = self._block[at - self._start : stop - self._start]
            if not piece:
                break  # the file was cut meanwhile
            pieces.append(piece)
            at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, at: int) -> None:
        """Read the block that a byte lies in, and have the next one come. Raises OSError."""
        start = at - at % BLOCK
        size = min(BLOCK, self._size - start)
        with _idle():
            if start != self._coming:
                os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_DONTNEED)
            self._start, self._block = start, os.pread(self._descriptor, size, start)
            os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_DONTNEED)
            self._come(start + size)
        self.taken += len(self._block)

    def _come(self, start: int) -> None:
        """Have a block read ahead, off the medium."""
        self._coming, size = start, min(BLOCK, self._size - start)
        if size <= 0:
            return
        os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_DONTNEED)
        for at in range(start, start + size, _AHEAD):
            os.posix_fadvise(self._descriptor, at, _AHEAD, os.POSIX_FADV_WILLNEED)


@contextlib.contextmanager
def opened(path: os.PathLike[str], size: int) -> Iterator[Medium]:
    """An object's first `size` bytes. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Medium(descriptor, min(size, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _idle() -> Iterator[None]:
    # Only around reads of objects: who waits at idle priority within a transaction of the index
    # would hold up those who record.
    _set_priority(_IDLE)
    try:
        yield
    finally:
        _set_priority(_NORMAL)


def _set_priority(priority: int) -> None:
    """Of this thread's I/O. If the kernel refuses it stays as it is: the rate is bounded too."""
    if _IOPRIO_SET is not None:
        _libc.syscall(_IOPRIO_SET, *_THIS_THREAD, priority)
