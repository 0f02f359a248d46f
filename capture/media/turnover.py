"""When did a stream pass from one call to the next, where the BYE between them was not heard?

A phone may send with the same SSRC from call to call. The next call's offer and answer say that its
ends are the same; its packets say from when on: behind a pause, or where a sender began anew.
What goes on through all of the set-up without either is a stream of a call that goes on.
Sources: RFC 3550 §5.1 (a session begins with a random number), §A.1 (what a number may skip).
Which streams are asked about: capture.calls.tenure.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.model import Contest

PAUSE_NS: Final = 200_000_000
PACKET_NS: Final = 5_000_000  # the shortest that is in use; what was lost between counts as sound
MAX_DROPOUT: Final = 3_000  # RFC 3550 §A.1
MAX_MISORDER: Final = 100


def turnover(
    packets: NDArray[np.void], last: tuple[int, int], contest: Contest
) -> tuple[int | None, bool]:
    """When the newer call's first packet came, or None; and whether that is the last word.

    packets: ROW[n] (capture.media.held), those of the stream that have not left yet, as they came.
    last: arrival and sequence number of what left before; arrival 0: nothing has.
    """
    order = np.argsort(packets["arrival_ns"], kind="stable")
    time_ns, number = packets["arrival_ns"][order], packets["sequence"][order].astype(np.int64)
    if last[0]:
        time_ns = np.concatenate(([last[0]], time_ns))
        number = np.concatenate(([last[1]], number))
    if len(time_ns) < 2:
        return None, False
    skipped = (np.diff(number) + 0x8000 & 0xFFFF) - 0x8000
    until_ns = contest.until_ns + PAUSE_NS
    ends_there = (time_ns[1:] > contest.since_ns) & (time_ns[:-1] < until_ns)
    began = np.flatnonzero(ends_there & (_paused(np.diff(time_ns), skipped) | _anew(skipped)))
    if len(began):
        return int(time_ns[1 + began[0]]), True
    return None, bool(time_ns[-1] >= until_ns)


def _paused(gap_ns: NDArray[np.int64], skipped: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where nothing was sent; the numbers of what was lost on the way would be missing."""
    each_ns = gap_ns // np.maximum(skipped, 1)
    return (gap_ns >= PAUSE_NS) & ((each_ns >= PAUSE_NS) | (each_ns < PACKET_NS))


def _anew(skipped: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the numbers began somewhere else."""
    return (skipped > MAX_DROPOUT) | (skipped < -MAX_MISORDER)
