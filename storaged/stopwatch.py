"""How long a disk takes to make things durable: one thread measures, any may ask.

A disk that is slow, or hangs, raises no error: all it shows is time. Faults: storaged.diskfaults.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spanvault.daemon import disks

HANGS_S: Final = 30.0


class Stopwatch:
    """Of one disk, or one file on it."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._last_s = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Something is made durable within."""
        self._began_s = began_s = time.monotonic()
        try:
            yield
        finally:
            self._last_s, self._began_s = time.monotonic() - began_s, None

    @property
    def under_way_s(self) -> float:
        """Seconds since what is under way began; 0 if nothing is."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    @property
    def taken_s(self) -> float:
        """Seconds that the last took, or what is under way has taken so far, if that is more."""
        return max(self._last_s, self.under_way_s)


class Watched:
    """Disks with their stopwatches, each by a name for the operator."""

    def __init__(self, late_s: float) -> None:
        """late_s: what takes longer is told of."""
        self._late_s = late_s
        self._disks: list[tuple[str, Stopwatch]] = []

    def add(self, folder: Path, stopwatch: Stopwatch) -> None:
        """Name it now: a disk that hangs does not even say where it is mounted."""
        self._disks.append((disks.place(folder), stopwatch))

    @property
    def lines(self) -> list[str]:
        """One line for each that is slow."""
        return [
            f"{place} HANGS for {one.under_way_s:.0f} s, nothing is acknowledged: look at dmesg"
            if one.under_way_s > HANGS_S
            else f"{place} is SLOW: {one.taken_s:.1f} s until what was written is safe"
            for place, one in self._disks
            if one.taken_s > self._late_s
        ]
