"""A folder as a target: a second disk, a mounted share.

Durability: write to a temporary name, fsync, rename, fsync the folder. Reading back: the pages are
dropped first (posix_fadvise DONTNEED), so that the digest is the medium's and not the page cache's.
A network file system may still answer from the server's memory; that is as far as a client sees.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from replicator.targets.base import (
    PART_BYTES,
    Entry,
    Missing,
    Space,
    TargetError,
    check_name,
)
from spanvault.certificate import OVERWRITTEN
from spanvault.daemon import durable

OLD: Final = ".old"  # of a file that is supplanted, among those on their way
TEMPORARY: Final = ".part"  # a folder for files on their way; the leading dot is no valid name

HINTS: Final = {
    errno.ENOSPC: "Free space there or enlarge it; copying goes on by itself.",
    errno.EDQUOT: "Raise the quota there or free space; copying goes on by itself.",
    errno.EROFS: "It is read-only: check the disk, then remount it read-write.",
    errno.EACCES: "Give the replicator's user write access to it.",
    errno.EPERM: "Give the replicator's user write access to it.",
    errno.EIO: "The medium fails: look at the kernel's log, replace the disk.",
}
READING: Final = {"read back", "read", "look for"}  # where a file may simply not be there
AWAY: Final = "Check that the disk is there and mounted; copying goes on by itself."


class DirectoryTarget:
    """Files below one folder (replicator.targets.base.Target)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def prepare(self, create: bool) -> None:
        """See Target. Only the last folder of the path is made: the rest may be a mount point."""
        with self._naming("open", self.folder):
            if create and not self.folder.exists():
                self.folder.mkdir()
                durable.sync_folder(self.folder.parent)
            temporary = self.folder / TEMPORARY
            if not temporary.is_dir():
                temporary.mkdir()
            for left in temporary.iterdir():
                self._clear(left)

    def put(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See Target."""
        path = self._path(name)
        temporary = self.folder / TEMPORARY / name.replace("/", ",")
        try:
            size = self._write(temporary, path, parts)
            # Folders last: where a disk was unmounted the temporary one is missing, and nothing
            # must be made below the empty mount point.
            with self._naming("write", path):
                self._make_folders(path.parent)
                temporary.rename(path)
                # Without it a power cut can undo the rename.
                durable.sync_folder(path.parent)
        except BaseException:
            _forget(temporary)
            raise
        return size

    def sha256(self, name: str) -> str:
        """See Target."""
        digest, path = hashlib.sha256(), self._path(name)
        with self._naming("read back", path), path.open("rb", buffering=0) as file:
            # Only clean pages can be dropped: they are, since put() synced them.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while part := file.read(PART_BYTES):
                digest.update(part)
        return digest.hexdigest()

    def read(self, name: str) -> Iterator[bytes]:
        """See Target."""
        path = self._path(name)
        with self._naming("read", path):
            file = path.open("rb", buffering=0)
        with file:
            while True:
                with self._naming("read", path):
                    part = file.read(PART_BYTES)
                if not part:
                    return
                yield part

    def list(self, folder: str) -> Iterator[Entry]:
        """See Target."""
        top = self._path(folder)
        with self._naming("list", self.folder):
            self.folder.stat()  # a target that is away is not an empty one
        if top.is_dir():
            yield from self._walk(top)

    def exists(self, name: str) -> bool:
        """See Target."""
        path = self._path(name)
        try:
            with self._naming("look for", path):
                path.stat()
        except Missing:
            return False
        return True

    def remove(self, name: str) -> None:
        """See Target."""
        path = self._path(name)
        with self._naming("remove", path):
            if path.exists():
                path.unlink()
                durable.sync_folder(path.parent)

    def destroy(self, name: str) -> None:
        """See Target."""
        path = self._path(name)
        with self._naming("destroy", path):
            if path.exists():
                _destroy(path)
                durable.sync_folder(path.parent)

    def supplant(self, name: str, parts: Iterable[bytes | memoryview]) -> int:
        """See Target. The old file stays under a second name until it is overwritten."""
        path = self._path(name)
        old = self.folder / TEMPORARY / (name.replace("/", ",") + OLD)
        with self._naming("write", path):
            if old.exists():
                self._clear(old)
            if path.exists():
                old.hardlink_to(path)
                durable.sync_folder(old.parent)
        size = self.put(name, parts)
        with self._naming("destroy", path):
            if old.exists():
                _destroy(old)
        return size

    @property
    def grade(self) -> str:
        """See Target."""
        return OVERWRITTEN

    def space(self) -> Space:
        """See Target."""
        with self._naming("measure", self.folder):
            found = os.statvfs(self.folder)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def _clear(self, left: Path) -> None:
        """Away with what an interrupted put() or supplant() left."""
        if left.stat().st_nlink > 1:
            left.unlink()  # a second name of the file that is still in place
            return
        if left.suffix == OLD:
            # First what took its place: were a power cut to undo that, this would be needed still.
            durable.sync_folder((self.folder / left.stem.replace(",", "/")).parent)
        _destroy(left)

    def _path(self, name: str) -> Path:
        return self.folder / check_name(name)

    def _write(self, temporary: Path, path: Path, parts: Iterable[bytes | memoryview]) -> int:
        size = 0
        with self._naming("write", path):
            file = temporary.open("wb", buffering=0)
        with file:
            for part in parts:  # outside _naming: an OSError of the source is not the target's
                with self._naming("write", path):
                    size += _write_all(file.fileno(), part)
            with self._naming("sync", path):
                os.fsync(file.fileno())
        return size

    def _make_folders(self, folder: Path) -> None:
        """Make the folders above a file, and make each one last. The target's own must be there."""
        missing = []
        while folder != self.folder and not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            durable.sync_folder(new.parent)

    def _walk(self, folder: Path) -> Iterator[Entry]:
        with self._naming("list", folder), os.scandir(folder) as found:
            entries = [(entry.name, entry.is_dir(), entry.stat().st_size) for entry in found]
        for name, is_folder, size in entries:
            path = folder / name
            if is_folder:
                yield from self._walk(path)
            else:
                yield Entry(str(path.relative_to(self.folder)), size)

    @contextmanager
    def _naming(self, operation: str, path: Path) -> Iterator[None]:
        """Turn the system's error into one that names operation, path, cause and remedy."""
        try:
            yield
        except OSError as error:
            cause = error.strerror or str(error)
            hint = HINTS.get(error.errno or 0, AWAY)
            gone = operation in READING and error.errno in (errno.ENOENT, errno.ENOTDIR)
            kind = Missing if gone and self.folder.is_dir() else TargetError
            raise kind(operation, str(path), cause, hint) from error


def _write_all(file: int, part: bytes | memoryview) -> int:
    """write(2) until all is written: on a nearly full disk it may take only some."""
    left = memoryview(part).cast("B")
    while left:
        left = left[os.write(file, left) :]
    return memoryview(part).nbytes


def _destroy(path: Path) -> None:
    """Overwrite a file where it lies, sync it, remove it. Best effort on flash, and on a share."""
    with path.open("r+b", buffering=0) as file:
        left = path.stat().st_size
        while left > 0:
            left -= _write_all(file.fileno(), os.urandom(min(left, PART_BYTES)))
        os.fsync(file.fileno())  # before the name goes: else it might never be written
    path.unlink()


def _forget(temporary: Path) -> None:
    """Best effort: prepare() clears away what stays."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        return
