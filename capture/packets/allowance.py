"""How many frames a loop over frames may take: so many a second of packet time, fairly divided.

Counted by the packets' clock, not by CPU time: a core has no clock, what was dropped can be
reproduced, and a capture that falls behind lives through packet time faster, so the bound holds
there, too. Who sends much is cut first: a flood from one host does not silence the others.
What the frames are: capture.packets.slowpath.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SECOND: Final = 1_000_000_000
BURST_NS: Final = SECOND // 4  # what was not used is kept for so long
BESIDE: Final = 9  # plain frames take as long, from the ring to storaged, as one of these
LEFT: Final = 0.2  # of the rate, however many plain ones there are


class Allowance:
    """Fed with the frames of a block, says which may pass. frames_per_second: None for all."""

    def __init__(self, frames_per_second: int | None) -> None:
        self._rate = frames_per_second
        self._left = 0.0 if frames_per_second is None else self._earned(BURST_NS)
        self._last_ns: int | None = None

    def choose(
        self,
        senders: NDArray[np.uint64],
        time_ns: NDArray[np.int64],
        cost: int = 1,
        beside: int = 0,
    ) -> NDArray[np.intp]:
        """Indices of the frames that may pass, rising.

        senders: uint64[n], alike for frames of one sender.  time_ns: int64[n], of arrival.
        cost: of each frame, in ordinary ones.  beside: plain frames of the same time, that are
        taken first of all.
        """
        if self._rate is None or not len(senders):
            return np.arange(len(senders))
        self._let_pass(int(time_ns.min()), int(time_ns.max()), beside)
        count = min(len(senders), int(self._left) // cost)
        self._left -= count * cost
        if count == len(senders):
            return np.arange(count)
        return np.sort(np.argsort(_turns(senders), kind="stable")[:count])

    def _let_pass(self, first_ns: int, last_ns: int, beside: int) -> None:
        """Time earns frames; only in a block itself for more than a burst."""
        idle_ns = 0
        if self._last_ns is not None:
            idle_ns = max(0, first_ns - self._last_ns)
            first_ns = max(first_ns, min(self._last_ns, last_ns))
        idle, busy = self._earned(idle_ns), self._earned(last_ns - first_ns)
        taken = min(beside / BESIDE, (1 - LEFT) * (idle + busy))
        self._left = min(self._left + idle, self._earned(BURST_NS)) + busy - taken
        self._left = max(self._left, LEFT * busy)
        self._last_ns = last_ns

    def _earned(self, elapsed_ns: int) -> float:
        assert self._rate is not None
        return self._rate * elapsed_ns / SECOND


def _turns(senders: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The how-manieth frame of its sender each one is."""
    order = np.argsort(senders, kind="stable")
    ordered = senders[order]
    begins = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    place = np.arange(len(senders))
    turns = np.empty(len(senders), np.int64)
    turns[order] = place - np.maximum.accumulate(np.where(begins, place, 0))
    return turns
