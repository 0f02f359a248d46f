"""What is wrong with a disk, in one line for the operator: where, on which disk, why, what to do.

A system call that fails on an open file does not say whose it was: where the store writes, the
error gets the file's name (named). LMDB gives the system's error as text only. Which pool it stops:
storaged.recordings.sorting; what stops all: storaged.recordings.committer.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import lmdb

from spanvault.daemon import disks
from storaged.faults import Fault

REMEDIES: Final = {
    errno.ENOSPC: "Free space there, or enlarge it; recording resumes by itself.",
    errno.EDQUOT: "Raise the quota of storaged's user, or of that folder; recording resumes by "
    "itself.",
    errno.EROFS: "It is read-only: look at dmesg, repair it, mount it writable.",
    errno.EIO: "It fails: look at dmesg, replace it, restore from a replica.",
    errno.ESTALE: "Its disk was unmounted: mount it again; recording resumes by itself.",
    errno.EUCLEAN: "Its file system is damaged: look at dmesg, unmount it, check it (fsck).",
    **disks.SHORTAGES,
}
_NO_INODE: Final = (
    "No inode left (df -i). Remove files there, or make that file system anew with more inodes; "
    "recording resumes by itself."
)
_OTHERWISE: Final = {
    errno.ENOENT: "It is gone: is its disk mounted? Mount it; recording resumes by itself.",
}
_LOOK: Final = "Look at dmesg and at that disk."
# The last two: what becomes of a transaction that met such a page, or of rows out of their order.
DAMAGED: Final = (
    lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.BadTxnError,
    lmdb.KeyExistsError,
)  # fmt: skip
_REINDEX: Final = (
    "The index is damaged: look at dmesg and at that disk; spanvault reindex makes it anew from "
    "the recordings."
)
_ROOM: Final = 64 << 10  # bytes; with less a disk is full
_PROBED: Final = "probed"  # of an lmdb.Error: what another write met
_WITHIN: Final = ("objects", "ledger")  # a pool's folder is told, not which of its files


def explain(error: Exception) -> str:
    """What the store cannot do, and what to do about it: one line."""
    return str(error) if isinstance(error, Fault) else f"the store cannot be written: {line(error)}"


def line(error: Exception) -> str:
    """Where, why and what to do. error: OSError or lmdb.Error."""
    number = _number(error)
    if number == errno.ENOSPC and _lacks_inodes(error):
        return f"{_place(error)}{_NO_INODE}"
    cause = os.strerror(number) if number else str(error)
    otherwise = _REINDEX if isinstance(error, DAMAGED) else _OTHERWISE.get(number, _LOOK)
    return f"{_place(error)}{cause}. {remedy(error, otherwise)}"


def remedy(error: Exception, otherwise: str, place: Path | None = None) -> str:
    """What to do about an error; what else it may be if its number tells nothing.

    place: what it was about, where the error does not say.
    """
    if (number := _number(error)) in disks.DENIED and (path := _path(error) or place):
        return disks.give_back(path)
    return REMEDIES.get(number, otherwise)


@contextlib.contextmanager
def named(descriptor: int) -> Iterator[None]:
    """An OSError within gets the name of the file or folder that is open there."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            with contextlib.suppress(OSError):
                error.filename = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        raise


def _number(error: Exception) -> int:
    """The system's number of an error; 0 if it has none."""
    if isinstance(error, OSError):
        return error.errno or 0
    numbers = (*REMEDIES, *disks.DENIED)
    number = next((one for one in numbers if os.strerror(one) in str(error)), 0)
    if number not in (0, errno.EIO):
        return number
    # LMDB takes a write that a full disk or a quota cut short for a disk that fails.
    return errno.ENOSPC if number and _is_full(error) else vars(error).get(_PROBED) or number


def blame(error: lmdb.Error, path: Path) -> None:
    """Note what an error is about, and what the disk says to another write: LMDB tells neither."""
    vars(error)["filename"] = str(path)
    vars(error)[_PROBED] = _probe(path.with_name("probe"))


def _probe(path: Path) -> int:
    """The system's number of why a file cannot be written now; 0 if it can."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(bytes(_ROOM))
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            path.unlink()
    except OSError as error:
        return error.errno or 0
    return 0


def _is_full(error: Exception) -> bool:
    about = _file_system(error)
    return about is not None and about.f_bavail * about.f_frsize < _ROOM


def _lacks_inodes(error: Exception) -> bool:
    """Some file systems (btrfs) count none: they tell 0 of 0."""
    about = _file_system(error)
    return about is not None and about.f_files > 0 and about.f_favail == 0


def _file_system(error: Exception) -> os.statvfs_result | None:
    """What the system says of it now; None where that cannot be known."""
    path = _path(error)
    try:
        return None if path is None else os.statvfs(path.parent)
    except OSError:
        return None


def _path(error: Exception) -> Path | None:
    """What it was about, where that is known."""
    name = getattr(error, "filename", None)
    path = Path(name) if isinstance(name, str | os.PathLike) else Path()
    return path if path.is_absolute() else None


def _place(error: Exception) -> str:
    """`/srv/store/index (disk /srv): `; nothing where that is not known."""
    path = _path(error)
    if path is None:
        return ""
    folder = path if os.path.isdir(path) else path.parent  # noqa: PTH112 - that one may raise
    whole = (one.parent for one in (folder, *folder.parents) if one.name in _WITHIN)
    folder = next(whole, folder)
    return f"{disks.place(folder)}: "
