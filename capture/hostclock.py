"""The host's time of day, and whether it was set: by the monotonic clock beside it.

Frames bear the time of day, those in the ring still that of before. So for a moment time goes on
as it was, until the frames have shown the step. What follows from it: capture.clock.
"""

import time
from pathlib import Path
from typing import Final

from capture.clock import SET_NS, Clock, Reading

FRAMES_NS: Final = 1_000_000_000  # a frame does not lie in the ring for longer
BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


def read() -> Reading:
    """Both clocks as they stand. Raises nothing."""
    ahead_ns = time.time_ns() - time.monotonic_ns()
    try:
        return Reading(BOOT.read_text(encoding="ascii").strip(), ahead_ns)
    except (OSError, ValueError):
        return Reading("", ahead_ns)


class HostClock:
    """Tells a core's clock when the host's was set."""

    def __init__(self, clock: Clock) -> None:
        clock.hosted = True
        self._clock = clock
        self._ahead_ns = time.time_ns() - time.monotonic_ns()
        self._before_ns = self._ahead_ns
        self._set_at_ns = 0

    def now_ns(self) -> int:
        """The time of day, as frames bear it that come out of the ring now."""
        passed_ns = time.monotonic_ns()
        ahead_ns = time.time_ns() - passed_ns
        step_ns = ahead_ns - self._ahead_ns
        self._ahead_ns = ahead_ns
        if abs(step_ns) >= SET_NS:
            self._clock.tell(step_ns)
            self._before_ns, self._set_at_ns = ahead_ns - step_ns, passed_ns
        if self._clock.awaits and passed_ns - self._set_at_ns < FRAMES_NS:
            return passed_ns + self._before_ns
        return passed_ns + ahead_ns
