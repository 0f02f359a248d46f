"""A storaged to measure, on a store that stays; what it costs; files to be read off the disk."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spanvault.keys import keyfile
from tests.support.vault import Rig


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Rig]:
    """A storaged on folder/store, which is made if it is not there, without its rolling check.

    The store's unlock key stays beside it; certificates and sockets are this run's.
    """
    unlock = folder / "unlock.key"
    if not unlock.exists():
        keyfile.create_private(unlock)
    with tempfile.TemporaryDirectory(prefix="sv-") as own:
        rig = Rig(Path(own))
        rig.configure(store=folder / "store", unlock_key=unlock, scrub_days=0, **settings)
        try:
            rig.start()
            yield rig
            rig.stop()
        finally:
            rig.close()


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written_mb(pid: int) -> float:
    """What a process had written to disks so far, in MB."""
    (line,) = (one for one in Path(f"/proc/{pid}/io").read_text().splitlines()
               if one.startswith("write_bytes"))  # fmt: skip
    return int(line.split()[1]) / 1e6


def drop(paths: Iterable[Path]) -> None:
    """Have files out of the page cache; nobody may map them. Their names stay in memory."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
