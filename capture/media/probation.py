"""Is a stream that nobody claims RTP at all? Its packets are watched while they wait.

Anything may begin with the two bits of RTP's version: scans, games, a protocol of somebody's own.
What counts are packets whose sequence number and timestamp go on from the one before, as RFC 3550
§A.1 has it; and of payload types, those that telephony uses: television by multicast is no call.
What becomes of those that pass: capture.calls.orphans.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.media.held import Batch
from capture.media.streams import StreamTable

MAX_STEP: Final = 16  # sequence numbers; some loss is no reason to doubt
MAX_TICKS: Final = 1 << 20  # of the timestamp: 10 s of a video's clock
TELEVISION: Final = frozenset({14, 25, 26, 28, 32, 33})  # MPEG and old conferences, RFC 3551 §6
PLAUSIBLE: Final = np.array([kind not in TELEVISION for kind in range(128)])


def watch(batch: Batch, streams: StreamTable) -> None:
    """Count packets of unclaimed streams, in order of arrival, and how many are in sequence."""
    order = np.argsort(batch.slot, kind="stable")
    slot, packets = batch.slot[order], batch.packets[order]
    sequence = packets["sequence"].astype(np.uint64)
    here = sequence << np.uint64(32) | packets["timestamp"].astype(np.uint64)
    head = np.flatnonzero(np.diff(slot, prepend=-1))
    before = np.empty_like(here)
    before[1:] = here[:-1]
    before[head] = streams.seen[slot[head]]
    first = head[streams.unclaimed[slot[head]] == 0]
    good = _follows(before, here) & PLAUSIBLE[packets["payload_type"]]
    good[first] = False
    np.add.at(streams.orderly, slot[good], 1)
    np.add.at(streams.unclaimed, slot, 1)
    np.add.at(streams.octets, slot, packets["length"].astype(np.int64))
    last = np.append(head[1:], len(slot)) - 1
    streams.seen[slot[last]] = here[last]


def _follows(before: NDArray[np.uint64], here: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each goes on from the one before. Both: sequence number << 32 | timestamp."""
    step = ((here >> np.uint64(32)) - (before >> np.uint64(32))).astype(np.uint16)
    ticks = here.astype(np.uint32) - before.astype(np.uint32)
    # A step of 0 in time is a frame's next packet, or a protocol that has no time there.
    steady: NDArray[np.bool_] = (step > 0) & (step <= MAX_STEP) & (ticks > 0) & (ticks <= MAX_TICKS)
    return steady
