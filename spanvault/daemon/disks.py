"""Where a disk failed, why, and what to do, in one line for the operator.

For a daemon's own folders (a capture's spool, a replicator's state). What a fault of the store's
disks stops, and LMDB's errors: storaged.diskfaults.
"""

import errno
import os
import pwd
from pathlib import Path
from typing import Final

# Nothing is wrong with the disk then. In this order: one's text begins with another's.
SHORTAGES: Final = {
    errno.ENFILE: "The system has too few: raise sysctl fs.file-max.",
    errno.EMFILE: "This daemon has too few: raise LimitNOFILE= of its unit.",
    errno.ENOMEM: "The system is short of memory, or MemoryMax= of the unit is too small.",
}
REMEDIES: Final = {
    errno.ENOSPC: "Free space there, or enlarge it.",
    errno.EDQUOT: "Raise the quota of its user, or of that folder.",
    errno.EROFS: "It is read-only: look at dmesg, repair it, mount it writable.",
    errno.EIO: "It fails: look at dmesg, replace it.",
    **SHORTAGES,
}
DENIED: Final = (errno.EACCES, errno.EPERM)
_LOOK: Final = "Look at dmesg and at that disk."


def line(error: OSError, folder: Path) -> str:
    """`/var/lib/x (disk /var): No space left on device. Free space there, or enlarge it.`"""
    return f"{cause(error, folder)}. {remedy(error, folder)}"


def cause(error: OSError, folder: Path) -> str:
    """Where and why."""
    return f"{place(folder)}: {error.strerror or error}"


def remedy(error: OSError, path: Path, otherwise: str = _LOOK) -> str:
    """What to do. otherwise: where the error's number does not tell."""
    if error.errno in DENIED:
        return give_back(path)
    return REMEDIES.get(error.errno or 0, otherwise)


def give_back(path: Path) -> str:
    """The command that gives a file or folder to this process's user, which may not use it."""
    folders = [folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK)]
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return f"Give it to this daemon's user: chown -R {user}: {(folders or [path])[0]}"


def place(folder: Path) -> str:
    """A folder and its disk. It need not exist, nor its disk answer."""
    # Not Path.is_mount(): that raises where a disk fails even to say what a folder is.
    mounts = (one for one in (folder, *folder.parents) if os.path.ismount(one))
    return f"{folder} (disk {next(mounts, folder.anchor)})"
