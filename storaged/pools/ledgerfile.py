"""A pool's ledger on disk: files of a day, appended to, and cut back to what was acknowledged.

What a crash or a failed commit left behind the acknowledged end is overwritten before it is cut
off: it may be sealed under a key that nothing else names, so that no erasure would reach it.
FORMAT.md §7.1. Bytes: storaged.format.ledger. Who writes must hold the pool
(storaged.pools.vaults).
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from storaged import files
from storaged.diskfaults import named
from storaged.format import ledger
from storaged.format.ledger import Entry, Place

log = logging.getLogger(__name__)
SUFFIX: Final = ".svl"
ASIDE: Final = ".damaged"  # behind that, of a file that is none of the ledger any more
_NAME: Final = re.compile(r"([0-9]{8})-([0-9]{6})\.svl")


class Ledger:
    """The ledger of one pool."""

    def __init__(self, folder: Path, tier: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder, self._tier = folder, tier
        self._place: Place | None = None  # acknowledged
        self._name, self._head, self._size = "", b"", 0  # the file that is appended to
        self._descriptor = -1
        self._unsure = False  # whether anything may lie behind the acknowledged place

    def files(self) -> list[Path]:
        """All files, in order; what is none of ours is left out."""
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def strangers(self) -> list[Path]:
        """What lies beside them, but for what was set aside."""
        return sorted(
            path for path in self._folder.iterdir()
            if not _NAME.fullmatch(path.name) and path.suffix != ASIDE
        )  # fmt: skip

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self._folder / name

    def write_anew(self, name: str, at: int, data: bytes) -> None:
        """Put what is acknowledged in a file's place again, synced. Raises OSError."""
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with named(descriptor):
                os.lseek(descriptor, at, os.SEEK_SET)
                files.write_all(descriptor, data)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def recover(self, place: Place | None) -> None:
        """Destroy what was written and not acknowledged. place: as the index has it.

        None, of an index that knows of no ledger: all that is there stays, but files that are
        shorter than their heads, as a kill on a full disk leaves one. Raises OSError.
        """
        self._let_go()
        self._place, self._unsure = place, True
        if place is None:
            begun = [path for path in self.files() if path.stat().st_size < ledger.HEAD_BYTES]
            if begun:
                files.destroy(self._folder, [path.name for path in begun])
            self._unsure = False
            return
        for path in self.files():
            if path.name > place.name:
                files.destroy(self._folder, [path.name])
            elif path.name == place.name:
                _cut(path, place.size)
        self._unsure = False
        path = self._folder / place.name
        if size(self._folder, place.name) < place.size:
            log.error("A ledger is damaged: what it held lies in the index alone",
                      extra={"FILE": str(path)})  # fmt: skip

    def append(self, entries: Sequence[Entry], store_id: bytes, key: bytes, now_ns: int) -> Place:
        """Write entries behind all others, unsynced. Gives the place behind them.

        Raises OSError: then, as after anything else that fails, cut_back() must follow.
        """
        self.cut_back()
        self._unsure = True
        day = time.strftime("%Y%m%d", time.gmtime(now_ns // 10**9))
        if not self._name or day > self._name[: len(day)]:
            self._begin(day, store_id)
        elif self._descriptor < 0:
            self._go_on(day, store_id)
        data = ledger.serialize(entries, self._head, self._size, key)
        files.write_all(self._descriptor, data)
        self._size += len(data)
        return Place(self._name, self._size)

    def sync(self) -> None:
        """Make what was appended durable by itself. Raises OSError."""
        with named(self._descriptor):
            os.fdatasync(self._descriptor)
        files.sync_folder(self._folder)

    def committed(self, place: Place) -> None:
        """All up to here is acknowledged. The file is closed: a disk in use cannot be remounted."""
        self._place, self._unsure = place, False
        self._close_file()

    def leave(self) -> None:
        """What is appended from now on goes into another file."""
        self._let_go()

    def set_aside(self, name: str) -> None:
        """Make a file none of the ledger any more, if it is there. Raises OSError."""
        path = self._folder / name
        if path.exists():
            path.rename(path.with_name(name + ASIDE))
        files.sync_folder(self._folder)

    def cut_back(self) -> None:
        """Destroy what is not acknowledged. Raises OSError: what is left is cut at the next try."""
        if self._unsure:
            self.recover(self._place) if self._place else self._remove()

    def clear(self) -> None:
        """Begin anew: the store became another. Raises OSError."""
        self._let_go()
        self._place, self._unsure = None, False
        files.destroy(self._folder, [path.name for path in self.files()])

    def close(self) -> None:
        """Close the file."""
        self._let_go()

    def _go_on(self, day: str, store_id: bytes) -> None:
        """Open the file again that was last appended to. Raises OSError."""
        try:
            self._descriptor = os.open(
                self._folder / self._name, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            )
        except FileNotFoundError:
            self._begin(day, store_id)
            return
        if os.fstat(self._descriptor).st_size != self._size:  # the tags would not fit their places
            self._begin(day, store_id)

    def _begin(self, day: str, store_id: bytes) -> None:
        """Begin a file, behind all that there are, or were: never one that another wrote."""
        self._let_go()
        names = [path.name for path in self.files()]
        # The newest may be gone: what is missed by its name must not seem to be there again.
        last = max([*names, self._place.name] if self._place else names, default="")
        found = _NAME.fullmatch(last)
        # A clock that was set back must not put new entries before old ones.
        if found and found[1] >= day:
            day, number = found[1], int(found[2]) + 1
        else:
            number = 0
        self._name, self._size = f"{day}-{number:06d}{SUFFIX}", 0
        self._descriptor = os.open(
            self._folder / self._name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        self._head = ledger.head(store_id, self._tier, os.urandom(16))
        files.write_all(self._descriptor, self._head)
        self._size = len(self._head)

    def _remove(self) -> None:
        """The first file that the index would have known of: nothing in it was acknowledged."""
        name = self._name
        self._let_go()
        files.destroy(self._folder, [name] if name else [])
        self._unsure = False

    def _let_go(self) -> None:
        """Close the file, never to go on with it."""
        self._close_file()
        self._name = ""

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def size(folder: Path, name: str) -> int:
    """Bytes of a ledger's file; 0 if it is not there. Raises OSError."""
    path = folder / name
    return path.stat().st_size if path.exists() else 0


def _cut(path: Path, size: int) -> None:
    """Overwrite and cut off what lies behind a byte of a file. Raises OSError."""
    there = path.stat().st_size
    if there <= size:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        files.overwrite(descriptor, size, there - size)
        os.fsync(descriptor)
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def walk(path: Path, store_id: bytes, tier: int, key: bytes | None) -> Iterator[ledger.Found]:
    """The entries of one file, and what is wrong with it. Raises OSError."""
    with path.open("rb") as file:
        window = _Window(file.fileno())
        try:
            head = ledger.check_head(window, store_id, tier)
        except ValueError as error:
            yield ledger.Found(0, None, str(error))
            return
        yield from ledger.walk(window, head, key)


class _Window:
    """A file sliced like bytes, read a megabyte at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._size = descriptor, os.fstat(descriptor).st_size
        self._start, self._block = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        at = start - self._start
        if not 0 <= at <= at + stop - start <= len(self._block):
            self._block = os.pread(self._descriptor, max(1 << 20, stop - start), start)
            self._start, at = start, 0
        return self._block[at : at + max(0, stop - start)]
