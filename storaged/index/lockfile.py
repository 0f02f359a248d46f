"""Where LMDB keeps its lock file: in memory, so that no full disk ends storaged by it.

LMDB writes to that file as memory, each time something is read. Where the disk has no block for
such a write (a new file of holes on a full disk; on btrfs, which never writes in place, any file)
that is no error but SIGBUS, without a word. The file counts for one process only: who may open a
store is decided by the store's own lock (storaged.pools.layout).
Source: mmap(2); mdb_env_setup_locks in LMDB's mdb.c.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

DATA: Final = "data.mdb"
LOCK: Final = "lock.mdb"
READERS: Final = 2048
_BYTES: Final = 64 * READERS + 4096  # a line of the cache a reader, and LMDB's head
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made there


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A folder to open the environment by whose data lies in `folder`; needed until it is open.

    Raises OSError where there is no room for the lock file, neither in memory nor there.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="spanvault-", dir=_MEMORY)
    except OSError:  # no such tmpfs, or it is full
        _make_room(folder / LOCK)
        yield folder
        return
    with made as name:
        place = Path(name)
        try:
            (place / DATA).symlink_to((folder / DATA).absolute())
            _make_room(place / LOCK)
        except OSError:
            place = folder
            _make_room(place / LOCK)
        yield place


def _make_room(path: Path) -> None:
    """Blocks for the whole file, or an OSError now."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _BYTES)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
