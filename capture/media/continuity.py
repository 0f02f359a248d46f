"""What media tells of a gap in time: was it a pause, or was the clock set that stamps arrivals?

A sender's timestamps are a clock of its own, which goes on through silence. Where streams that
flowed up to the gap go on behind it as if there had been none, and no other says otherwise, the
clock was set. A sender may stop its timestamps, too, against the RFC: on hold, which signalling
tells, or between two words, which the marker tells.
Sources: RFC 3550 §5.1, RFC 3551 §4.1 (marker). What SIP tells: capture.calls.continuity.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.media.held import Batch
from capture.model import Packets

SECOND: Final = 1_000_000_000
FLOWS_NS: Final = SECOND // 2  # a stream that flows is not silent for so long
FLOWING: Final = 5  # packets that a stream was heard with in that time before the gap
MOST_LOST: Final = 25  # sequence numbers, at the gap
PACE: Final = 3  # packets behind the gap that show how fast they come: not as a burst that waited


def step_between(
    before: Batch, packets: Packets, slot: NDArray[Any], clock: NDArray[np.float64],
    on_hold: NDArray[np.int64],
) -> int | None:  # fmt: skip
    """By how many ns the clock was set between what is held and what comes; None: not at all.

    before: what is held from before the gap.  slot: int[n], of each of the packets, which are
    those right behind it; -1: of no known stream.  clock: float[slots], ticks a second.
    on_hold: slots of which silence is expected.
    """
    if not len(before.slot) or not len(slot):
        return None
    held = before.packets
    recent = held["arrival_ns"] > held["arrival_ns"].max() - FLOWS_NS
    steps, pauses = [], 0
    for each in np.intersect1d(before.slot[recent], slot[slot >= 0]).tolist():
        old = held[(before.slot == each) & recent]
        new = np.flatnonzero(slot == each)
        if each < 0 or each in on_hold or len(old) < FLOWING or len(new) < PACE:
            continue
        last, first = old[np.argmax(old["arrival_ns"])], new[0]
        gap_ns = int(packets.time_ns[first]) - int(last["arrival_ns"])
        said_ns = _elapsed_ns(int(last["timestamp"]), int(packets.timestamp[first]), clock[each])
        skipped = int(packets.sequence[first]) - int(last["sequence"]) & 0xFFFF
        near = new[:FLOWING]
        paced = _at_its_pace(packets.time_ns[near], packets.timestamp[near], clock[each])
        paced &= _at_its_pace(
            old["arrival_ns"][-FLOWING:], old["timestamp"][-FLOWING:], clock[each]
        )
        if not paced:
            return None  # what waits for one stream waits for all
        if skipped > MOST_LOST or packets.marker[first]:
            pauses += abs(said_ns - gap_ns) < FLOWS_NS
        elif 0 <= said_ns < FLOWS_NS:
            steps.append(gap_ns - said_ns)
        else:
            pauses += 1
    return int(np.median(steps)) if len(steps) > pauses else None


def _elapsed_ns(earlier: int, later: int, rate: float) -> int:
    """What passed between two timestamps, 32 bits each."""
    ticks = (later - earlier + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
    return int(ticks / rate * SECOND)


def _at_its_pace(time_ns: NDArray[Any], stamp: NDArray[Any], rate: float) -> bool:
    """Whether packets come about as fast as they were sent: a burst had waited somewhere."""
    sent_ns = _elapsed_ns(int(stamp[0]), int(stamp[-1]), rate)
    return sent_ns < 2 * (int(time_ns[-1]) - int(time_ns[0])) + SECOND // 50
