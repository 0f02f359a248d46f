"""Folders in memory that a target writes to, gone when the process ends."""

import atexit
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Final

PLACE: Final = Path(f"/dev/shm/spanvault-fuzz-asked-{os.getpid()}")


def folder(name: str) -> Path:
    """An empty folder in memory."""
    made = _removed_at_exit(PLACE.with_name(f"{PLACE.name}-{name}"))
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    return made


@cache  # to ask for it anew with each run is memory that grows with them
def _removed_at_exit(made: Path) -> Path:
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
