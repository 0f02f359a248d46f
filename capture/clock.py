"""The time that calls and streams live by: the capture's clock, but for the steps it was set by.

NTP, an administrator or a virtual machine that was moved sets a clock by seconds to hours in the
midst of calls. What is heard goes on all the same; so inside the core time goes on, and whatever
leaves is told in the time of day that the frames bore when its call began.
Live, the host tells a step from a pause: its monotonic clock was not set. Of a file, those who are
heard do: RTP, whose timestamps go on while nobody's arrivals do (RFC 3550 §5.1: they count silence,
too), and SIP, whose transactions do not last for hours. Time that runs backwards tells by itself.
What RTP says: capture.media.continuity. What SIP says: capture.calls.continuity. The host:
capture.hostclock.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from capture.model import Block

SECOND: Final = 1_000_000_000
STRETCH_NS: Final = SECOND
BACK_NS: Final = SECOND // 2  # frames are not further out of order, but where merged carelessly
SURELY_BACK_NS: Final = 5 * SECOND
SET_NS: Final = SECOND // 2  # by less a host is not set: that is NTP at work, and no matter
# 2120, which no file's frames bear: a time of day and ours together still fit into 64 bits.
LATEST_NS: Final = 4_733_510_400 * SECOND


class Clock:
    """Follows the frames' clock. steps: how often it was set."""

    def __init__(self) -> None:
        self.hosted = False  # whether the host tells of every step
        self.offset_ns = 0  # what the time of day is ahead of the time that calls live by
        self.steps = 0
        self._told_ns = 0  # a step that the host knows of and no frame has shown yet

    @property
    def awaits(self) -> bool:
        """Whether the host told of a step that was not followed yet."""
        return self._told_ns != 0

    def tell(self, step_ns: int) -> None:
        """The host's clock was set by so much."""
        self._told_ns += step_ns

    def follow(
        self, gap_ns: int, said: Callable[[], int | None] = lambda: None, now_ns: int = 0
    ) -> int:
        """Follow the clock over a gap between frames; returns by how much it was set in it.

        gap_ns: negative where time runs backwards.  said: the step by what was heard, or None.
        now_ns: our time behind the gap, were it a pause. Damaged times that jump ahead and back
        again and again would else take it out of all bounds: time goes on after each.
        """
        if -BACK_NS < gap_ns < SECOND and not self._told_ns:
            return 0
        step_ns = gap_ns if now_ns > LATEST_NS else self._step(gap_ns, said)
        if step_ns:
            self.offset_ns += step_ns
            self.steps += 1
        return step_ns

    def _step(self, gap_ns: int, said: Callable[[], int | None]) -> int:
        if self._told_ns and abs(gap_ns - self._told_ns) < abs(gap_ns):
            step_ns, self._told_ns = self._told_ns, 0
            return step_ns
        if self.hosted or -BACK_NS < gap_ns < SECOND:
            return 0
        if (step := said()) is not None:
            return step
        return gap_ns if gap_ns < -SURELY_BACK_NS else 0


class Reading(NamedTuple):
    """How far the time of day was ahead of the monotonic clock of a boot."""

    boot: str
    ahead_ns: int

    def set_since(self, earlier: "Reading | None") -> int:
        """By how much the clock was set since an earlier one; 0 where nobody can tell."""
        if earlier is None or not self.boot or earlier.boot != self.boot:
            return 0  # the monotonic clock began anew
        step_ns = self.ahead_ns - earlier.ahead_ns
        return step_ns if abs(step_ns) >= SET_NS else 0


def stretches(block: Block) -> Iterator[Block]:
    """A block in parts of about STRETCH_NS, cut too where the clock may have been set.

    Behind such a place a part is as long as there are frames for it: they tell whether it was.
    """
    time_ns = block.time_ns
    if not len(time_ns):
        return
    if int(time_ns.max()) - int(time_ns.min()) < BACK_NS:
        yield block
        return
    gaps = np.diff(time_ns)
    cuts = np.flatnonzero((gaps <= -BACK_NS) | (gaps >= SECOND)) + 1
    for start, end in pairwise([0, *cuts.tolist(), len(time_ns)]):
        # Frames a little out of order stay with those they were heard among.
        elapsed_ns = np.maximum.accumulate(time_ns[start:end]) - time_ns[start]
        inner = np.flatnonzero(np.diff(elapsed_ns // STRETCH_NS)) + 1 + start
        for first, last in pairwise([start, *inner.tolist(), end]):
            yield block.part(first, last)
