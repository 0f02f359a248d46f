"""Files that survive a power cut: write aside, sync, rename, sync the folder; syncfs."""

import ctypes
import os
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put a file in place whole: after a crash either the old or the new one is there."""
    part = path.with_name(path.name + ".new")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.rename(path)
    # The folder too: without it a power cut can undo the rename.
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """write(2) until all is written. Raises OSError."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
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
        raise OSError(number, os.strerror(number))
