"""Files that survive a power cut: write aside, sync, rename, sync the folder; syncfs."""

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from storaged.diskfaults import named

_libc: Final = ctypes.CDLL(None, use_errno=True)

_PIECE: Final = 1 << 20
Span = tuple[int, int]  # of a file: where some bytes begin, and how many they are
_EVERYTHING: Final[Mapping[str, Sequence[Span]]] = {}


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put a file in place whole: after a crash either the old or the new one is there."""
    part = path.with_name(path.name + ".new")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(descriptor, data)
        with named(descriptor):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.rename(path)
    # The folder too: without it a power cut can undo the rename.
    sync_folder(path.parent)


def replace_all(folder: Path, contents: Iterable[tuple[str, bytes]], mode: int = 0o600) -> None:
    """replace() of many files in one folder, (name, bytes) each: synced together."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        parts = []
        for name, data in contents:
            part = folder / f"{name}.new"
            parts.append(part)
            file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            try:
                write_all(file, data)
            finally:
                os.close(file)
        syncfs(descriptor)
        for part in parts:
            part.rename(part.with_suffix(""))
        with named(descriptor):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def destroy(
    folder: Path, names: Iterable[str], spans: Mapping[str, Sequence[Span]] = _EVERYTHING
) -> None:
    """Overwrite files of a folder where they lie, sync, remove them. Those not there are no error.

    spans: of files of which not every byte must go, those that must.
    Best effort: flash and copy-on-write filesystems may keep what was overwritten.
    """
    paths = [path for name in names if (path := folder / name).exists()]
    if not paths:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # First what took their place: were a power cut to undo that, these would be needed still.
        with named(descriptor):
            os.fsync(descriptor)
        for path in paths:
            file = os.open(path, os.O_WRONLY)
            try:
                for start, size in spans.get(path.name) or [(0, os.fstat(file).st_size)]:
                    overwrite(file, start, size)
            finally:
                os.close(file)
        syncfs(descriptor)  # before the names go: else the old blocks might never be written to
        for path in paths:
            path.unlink()
        with named(descriptor):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def same(one: Path, other: Path) -> bool:
    """Whether both names are there, and of one file."""
    return one.exists() and other.exists() and one.samefile(other)


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Write and sync a part of a file; what lay behind it goes (a part that is sent again)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, offset)
        os.lseek(descriptor, offset, os.SEEK_SET)
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def overwrite(descriptor: int, start: int, size: int) -> None:
    """Random bytes where these were; not synced. Raises OSError."""
    os.lseek(descriptor, start, os.SEEK_SET)
    for at in range(0, size, _PIECE):
        write_all(descriptor, os.urandom(min(_PIECE, size - at)))


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """write(2) until all is written. Raises OSError."""
    with named(descriptor):
        written = os.write(descriptor, data)
        while written < len(data):
            written += os.write(descriptor, memoryview(data)[written:])


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with named(descriptor):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def syncfs(descriptor: int) -> None:
    """Write out everything of the filesystem that descriptor is on. Releases the GIL.

    Since Linux 5.8 it also reports a write-back error that came since descriptor was opened:
    keep the descriptor open. Raises OSError. Source: syncfs(2).
    """
    if _libc.syncfs(descriptor):
        number = ctypes.get_errno()
        with named(descriptor):
            raise OSError(number, os.strerror(number))
