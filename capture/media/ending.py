"""Where streams end: what is held of them and was heard later becomes that of the streams behind.

Thousands may end at once (calls hung up together, a flood of forged BYEs): held packets
are looked through once for all of them. When a stream ends: capture.calls.tenure, .turnover.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capture.media.held import Held
from capture.media.streams import StreamTable

Times = NDArray[np.int64]
NEVER: Final = (1 << 63) - 1


class Ends(NamedTuple):
    """Of n streams that ended. All int64[n]."""

    last_ns: Times  # the last packet that is still theirs
    from_ns: Times  # the first of the stream behind; NEVER: there is none


def part(
    held: Iterable[Held], streams: StreamTable, slots: Times, at_ns: Times, following: Times
) -> Ends:
    """Give the packets that were heard later than their stream's end to the one that follows.

    slots, at_ns, following: int64[n]; the streams, their ends, the slots of those behind them.
    """
    count = len(slots)
    which = np.full(streams.capacity + 1, -1, np.int32)  # the last one is NOBODY's
    which[slots] = np.arange(count, dtype=np.int32)
    ends = Ends(streams.last_ns[slots], np.full(count, NEVER, np.int64))
    for each in held:
        batch = each.batch()
        stream = which[batch.slot]
        mine = np.flatnonzero(stream >= 0)
        stream, time_ns = stream[mine], batch.packets["arrival_ns"][mine]
        later = time_ns > at_ns[stream]
        np.maximum.at(ends.last_ns, stream[~later], time_ns[~later])
        np.minimum.at(ends.from_ns, stream[later], time_ns[later])
        batch.slot[mine[later]] = following[stream[later]]
    return ends
