"""The object files of one pool, opened, appended to, cut, synced; beside them lies its ledger.

Holds at most a bounded number of files open, however many recordings grow at once. What is written:
storaged.format.sealing. When it is synced and acknowledged: storaged.recordings.writer.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from storaged import files
from storaged.pools.ledgerfile import Ledger
from storaged.stopwatch import Stopwatch

SUFFIX: Final = ".svr"
NO_FILE: Final = (errno.EMFILE, errno.ENFILE)
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class Pool:
    """One folder of objects. Appending is for one thread; reading for any."""

    def __init__(self, name: str, folder: Path, tier: int, max_open: int) -> None:
        self.name, self.tier = name, tier
        self.objects = folder / "objects"
        for made in (folder, self.objects):  # parents=True would leave the upper one open to all
            made.mkdir(mode=0o700, exist_ok=True)
        self.ledger = Ledger(folder / "ledger", tier)
        self.stopwatch = Stopwatch()
        self._max_open = max_open
        self._open: dict[bytes, int] = {}
        self._folders: set[str] = set()
        # Kept open: syncfs reports write-back errors since then.
        self._descriptor = os.open(self.objects, os.O_RDONLY | os.O_DIRECTORY)

    def check_place(self) -> None:
        """Raise OSError if this is not the folder any more that was opened.

        Its disk was unmounted under it: what lies below its mount point must not be written to,
        nor be taken for damage.
        """
        there, opened = os.stat(self.objects), os.fstat(self._descriptor)  # noqa: PTH116 - hot
        if not os.path.samestat(there, opened):
            self._folders.clear()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.objects))

    def path(self, recording_id: bytes) -> Path:
        """Where a recording's object lies."""
        return Path(self._text(recording_id))

    def append(self, recording_id: bytes, data: bytes | memoryview) -> None:
        """Write data to the end of an object, which is made if it is not there. Raises OSError."""
        files.write_all(self._descriptor_of(recording_id), data)

    def cut(self, recording_id: bytes, size: int) -> None:
        """Shorten an object to its first `size` bytes; 0 removes it."""
        self.forget(recording_id)
        path = self.path(recording_id)
        if size:
            os.truncate(path, size)
        else:
            path.unlink(missing_ok=True)

    def set_aside(self, recording_id: bytes) -> None:
        """Move an object out of the way that cannot be gone on with. Raises OSError."""
        self.forget(recording_id)
        *_, free = self._aside(recording_id)
        self.path(recording_id).rename(free)

    def replace(self, recording_id: bytes, part: Path) -> None:
        """Put another file in an object's place, whole or not at all; the old one is set aside.

        Raises OSError.
        """
        self.forget(recording_id)
        path = self.path(recording_id)
        if path.exists():
            *before, free = self._aside(recording_id)
            if not before or not before[-1].samefile(path):  # a crash came between the two
                free.hardlink_to(path)
        part.rename(path)
        files.sync_folder(path.parent)
        files.sync_folder(self.objects)

    def paths(self, recording_id: bytes) -> list[Path]:
        """Every file there is of a recording: the object, those set aside, a part of a copy."""
        path = self.path(recording_id)
        *aside, _ = self._aside(recording_id)
        return [one for one in (path, path.with_suffix(".part")) if one.exists()] + aside

    def _aside(self, recording_id: bytes) -> Iterator[Path]:
        """The names of what was set aside, and the first that is free."""
        path = self.path(recording_id)
        for number in count():
            yield (aside := path.with_suffix(f".{number}.damaged"))
            if not aside.exists():
                return

    def forget(self, recording_id: bytes) -> None:
        """Close an object's file."""
        descriptor = self._open.pop(recording_id, None)
        if descriptor is not None:
            os.close(descriptor)

    def sync(self) -> None:
        """Make everything appended so far durable, names included. Raises OSError."""
        self.check_place()
        with self.stopwatch.running():
            files.syncfs(self._descriptor)

    @property
    def device(self) -> int:
        """The file system it is on."""
        return os.fstat(self._descriptor).st_dev

    def free_bytes(self) -> int:
        """Space left for us on the pool's filesystem; 0 where that does not even tell."""
        about = self._space()
        return about.f_bavail * about.f_frsize if about else 0

    def free_part(self) -> float:
        """How much of that filesystem is left for us, 0 to 1; 1 where it does not tell."""
        about = self._space()
        return about.f_bavail / max(1, about.f_blocks) if about else 1.0

    def _space(self) -> os.statvfs_result | None:
        try:
            return os.fstatvfs(self._descriptor)
        except OSError:  # commits will say so; whoever asks for space must go on
            return None

    def close(self) -> None:
        """Close all files."""
        for recording_id in list(self._open):
            self.forget(recording_id)
        self.ledger.close()
        os.close(self._descriptor)

    @contextmanager
    def reading(self, recording_id: bytes, size: int | None = None) -> Iterator["ObjectFile"]:
        """An object's first `size` bytes (all of them if None). Raises OSError if there is none."""
        descriptor = os.open(self._text(recording_id), os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.fstat(descriptor).st_size
            yield ObjectFile(descriptor, there if size is None else min(size, there))
        finally:
            os.close(descriptor)

    def _text(self, recording_id: bytes) -> str:
        # Ids begin with the time: only their last digits spread over the folders.
        name = recording_id.hex()
        return f"{self.objects}/{name[-2:]}/{name}{SUFFIX}"

    def _descriptor_of(self, recording_id: bytes) -> int:
        descriptor = self._open.get(recording_id)
        if descriptor is not None:
            return descriptor
        path = self._text(recording_id)
        folder = os.path.dirname(path)  # noqa: PTH120 - hundreds a second: a Path costs more
        if folder not in self._folders:
            Path(folder).mkdir(mode=0o700, exist_ok=True)
            self._folders.add(folder)
        try:
            descriptor = self._open_to_append(path)
        except FileNotFoundError:
            self._folders.clear()  # somebody took it away: it is made when this is tried again
            raise
        self._open[recording_id] = descriptor
        if len(self._open) > self._max_open:
            # The first opened, not the last used: all that grow are used in turn.
            self.forget(next(iter(self._open)))
        return descriptor

    def _open_to_append(self, path: str) -> int:
        try:
            return os.open(path, _APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno not in NO_FILE or not self._open:
                raise
        self.give_way()
        return os.open(path, _APPEND | os.O_CREAT, 0o600)

    def give_way(self) -> None:
        """At the limit of open files: close those merely kept open, keep fewer from now on."""
        self._max_open = max(1, len(self._open) // 2)
        for recording_id in list(self._open):
            self.forget(recording_id)


class ObjectFile:
    """A file that can be sliced like bytes; each slice is read when it is asked for."""

    # Not mmap: a bad sector would be a SIGBUS that ends the daemon, here it is an OSError.
    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        return os.pread(self._descriptor, max(0, stop - start), start)
