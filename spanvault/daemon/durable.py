"""Small files of a daemon's own that a power cut leaves as they were, or new and whole.

The store's own, whose disk's faults must say which pool they stop: storaged's files.
"""

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Put a file in place whole, mode 0600: write aside, sync, rename, sync the folder.

    Raises OSError; what was there before is there then, or the new one if it was the folder's sync
    that failed.
    """
    part = path.with_name(f"{path.name}.new")
    part.unlink(missing_ok=True)  # a crash left it, perhaps with another mode
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: without it a power cut can undo a rename.

    Raises OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
