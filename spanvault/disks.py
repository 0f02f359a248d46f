"""Where a disk failed, why, and what to do, in one line for the operator.

For a daemon's own folders (a capture's spool, a replicator's state). What a fault of the store's
disks stops, and LMDB's errors: storaged.diskfaults.
"""

import errno
import os
from pathlib import Path
from typing import Final

REMEDIES: Final = {
    errno.ENOSPC: "Free space there, or enlarge it.",
    errno.EDQUOT: "Raise the quota of its user.",
    errno.EROFS: "It is read-only: look at dmesg, repair it, mount it writable.",
    errno.EIO: "It fails: look at dmesg, replace it.",
    errno.EACCES: "Give the folder back to its daemon's user (chown), mode 700.",
    errno.EPERM: "Give the folder back to its daemon's user (chown), mode 700.",
}
_LOOK: Final = "Look at dmesg and at that disk."


def line(error: OSError, folder: Path) -> str:
    """`/var/lib/x (disk /var): No space left on device. Free space there, or enlarge it.`"""
    return f"{cause(error, folder)}. {remedy(error)}"


def cause(error: OSError, folder: Path) -> str:
    """Where and why."""
    return f"{place(folder)}: {error.strerror or error}"


def remedy(error: OSError) -> str:
    """What to do."""
    return REMEDIES.get(error.errno or 0, _LOOK)


def place(folder: Path) -> str:
    """A folder and its disk. It need not exist, nor its disk answer."""
    # Not Path.is_mount(): that raises where a disk fails even to say what a folder is.
    mounts = (one for one in (folder, *folder.parents) if os.path.ismount(one))
    return f"{folder} (disk {next(mounts, folder.anchor)})"
