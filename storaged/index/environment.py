"""The index: call records, search rows, the feed and receipts, in one LMDB environment.

All writes of a group are one transaction, synced by its commit. What can be asked:
storaged.index.view; changed: storaged.index.writing.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb

from storaged.diskfaults import blame
from storaged.faults import Fault
from storaged.index import lockfile
from storaged.index.hurt import Hurt
from storaged.index.rows import MULTIPLE, TABLES, R, reserved
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.stopwatch import Stopwatch

MAP_BYTES: Final = 1 << 30  # virtual; grows by doubling when it is full
SPARE_BYTES: Final = 16 << 20  # that who can wait leaves to recording


class Index:
    """The environment. Transactions of one process; see write() for threads."""

    def __init__(self, folder: Path, map_bytes: int = MAP_BYTES, *, synced: bool = True) -> None:
        """synced: whether a transaction is on disk when it is committed; else sync() makes it."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._data = folder / lockfile.DATA
        with lockfile.beside(folder) as place:
            self._env = lmdb.open(
                str(place),
                map_size=map_bytes,
                max_dbs=32,
                max_readers=lockfile.READERS,
                writemap=False,
                # Rows are read here and there: around each the kernel would read 32 pages in vain.
                readahead=False,
                sync=synced,
                mode=0o600,
            )
        self.hurt = Hurt()
        self._reach_its_end()
        self._env.reader_check()
        self._writing = threading.Lock()
        self.folder, self.stopwatch = folder, Stopwatch()
        # No transaction may be under way in this process while the map grows: mdb_env_set_mapsize.
        self._calm = threading.Condition()
        self._readers, self._growing = 0, False
        self.tables = {name: self._env.open_db(name) for name in TABLES}
        for name in MULTIPLE:
            self.tables[name] = self._env.open_db(name, dupsort=True, dupfixed=True)
        with self.reading() as view:
            self.position = view.number(b"position")

    def _reach_its_end(self) -> None:
        """A file that was cut becomes as long as it was, with zeros. Raises OSError.

        LMDB reads it as memory: what lies behind the end is no error there but SIGBUS, without a
        word; zeros are MDB_CORRUPTED. Often the last pages were merely never written: none is read.
        """
        there = self._data.stat().st_size
        whole = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        if there < whole:
            os.truncate(self._data, whole)

    def sync(self) -> None:
        """Make everything committed durable. Raises lmdb.Error."""
        self._env.sync(force=True)

    def close(self) -> None:
        """Everything committed stays."""
        self._env.close()

    @contextmanager
    def reading(self) -> Iterator[View]:
        """A consistent view. Keep it short: pages it sees cannot be used again meanwhile."""
        with self._calm:
            self._calm.wait_for(lambda: not self._growing)
            self._readers += 1
        try:
            with self._env.begin() as txn:
                yield View(txn, self.tables, self.hurt)
        finally:
            with self._calm:
                self._readers -= 1
                self._calm.notify_all()

    def write(self, change: Callable[[Writing], R]) -> R:
        """Run change in one transaction and commit it, synced. Any thread; one at a time.

        It is run again if the map had to grow, so it must not change anything else.
        Raises lmdb.Error, OSError (no space, I/O error): then nothing of it was written.
        """
        with self._writing:
            while True:
                try:
                    with self.stopwatch.running(), self._env.begin(write=True) as txn:
                        writing = Writing(txn, self.tables, self.hurt)
                        result = change(writing)
                        position = writing.number(b"position")
                    self.position = position
                    return result
                except lmdb.MapFullError:
                    self._grow()
                except lmdb.Error as error:
                    blame(error, self._data)
                    raise

    def _grow(self) -> None:
        """Double the map. Must not be called within reading()."""
        with self._calm:
            self._growing = True
            try:
                self._calm.wait_for(lambda: self._readers == 0)
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            finally:  # a map that cannot grow stops writes, and no readers
                self._growing = False
                self._calm.notify_all()

    def check_room(self, size: int) -> None:
        """Raise Fault if the disk has no room for so many bytes more, and for what is recorded.

        Pages that are free within the file are not counted: LMDB does not tell how many there are.
        """
        about = os.statvfs(self._data.parent)
        left = about.f_bavail * about.f_frsize
        if left < size + SPARE_BYTES:
            raise Fault(
                "full",
                f"{self._data}: up to {(size + SPARE_BYTES) >> 20} MiB are needed beside what is "
                f"recorded, {left >> 20} are free",
                "Free space there, or enlarge it; it goes on by itself.",
            )

    def reserve_keys(self, number: int, tier: int = 0) -> None:
        """Make it durable that key ids of a pool below number may be in use."""
        self.write(lambda writing: writing.set_number(reserved(tier), number))

    def reserved_keys(self, tier: int = 0) -> int:
        """Key ids of a pool from here on have never been handed out."""
        with self.reading() as view:
            return view.number(reserved(tier))
