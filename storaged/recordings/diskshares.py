"""What each capture takes of the disk: one that floods it must not use up what the others need.

The last part of the disk, the reserve, is for captures that take no more than the rest do. One that
took several times as much as the others on average waits there, unanswered: it keeps what it hears,
in its spool in the end, and is taken in again as soon as space is freed. Above the reserve, and
where there is one capture alone, nobody is ever held back (WIRE.md §5: no answer means keep). Pure.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final

log = logging.getLogger(__name__)
TIMES: Final = 3  # what the others took on average that one may take before it counts as flooding
SLACK: Final = 32 << 20  # bytes; after a start nothing is known of who took what
_HOUR_NS: Final = 3600 * 10**9
_LOOK_NS: Final = 10**9  # between two looks at the disks
_FADES: Final = 0.5 ** (1 / 24)  # an hour: what was taken a day ago counts half


class Shares:
    """Counts what captures send, and says who has to wait.

    captures: names of all that may connect.  reserve: part of a disk that is kept, 0 to 1.
    free: the part of the fullest disk that is free.
    """

    def __init__(self, captures: Iterable[str], reserve: float, free: Callable[[], float]) -> None:
        self._taken = dict.fromkeys(captures, 0.0)
        self._reserve, self._free = reserve, free
        self._scarce = False
        self._looked_ns: int | None = None  # monotonic
        self._faded_ns = 0
        self.held: set[str] = set()  # captures that wait

    def took(self, capture: str, size: int) -> None:
        """Count bytes that a capture sent and that are kept."""
        self._taken[capture] = self._taken.get(capture, 0.0) + size

    def may(self, capture: str, now_ns: int) -> bool:
        """Whether more may be taken of a capture. now_ns: monotonic."""
        if self._looked_ns is None:
            self._faded_ns = now_ns
        if self._looked_ns is None or now_ns - self._looked_ns >= _LOOK_NS:
            self._look(now_ns)
        if not (self._scarce and self._floods(capture)):
            self.held.discard(capture)
            return True
        if capture not in self.held:
            self.held.add(capture)
            log.error(
                "A capture that takes far more than the others waits: the disk is nearly full",
                extra={"CAPTURE": capture, "BYTES": round(self._taken[capture])},
            )
        return False

    def _look(self, now_ns: int) -> None:
        self._looked_ns = now_ns
        self._scarce = self._free() < self._reserve
        if not self._scarce:
            self.held.clear()
        if now_ns - self._faded_ns >= _HOUR_NS:
            self._faded_ns = now_ns
            self._taken = {name: size * _FADES for name, size in self._taken.items()}

    def _floods(self, capture: str) -> bool:
        own, others = self._taken.get(capture, 0.0), len(self._taken) - (capture in self._taken)
        if not others:
            return False
        return own > SLACK + TIMES * (sum(self._taken.values()) - own) / others
