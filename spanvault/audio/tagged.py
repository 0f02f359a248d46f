"""Is what bears a fixed payload type really that codec, or SRTP whose signalling nobody heard?

Of RTP without SDP the payload type is all there is, and it is the same under SRTP. But SRTP puts a
tag behind each payload, so that every packet is longer than the time until the next one holds of
its codec, always by the same few bytes. Noise at full volume would be heard of it.
Sources: RFC 3711 §3.1 (tag, MKI), §4.2; RFC 7714 §13; RFC 3551 §4.5 (bytes a second).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spanvault.media.chunk import TRUNCATED, WHOLE
from spanvault.messages import Codec

# Bytes for each tick of the RTP clock, of codecs that have a fixed rate.
BYTES_PER_TICK: Final = {"pcmu": 1.0, "pcma": 1.0, "g722": 1.0, "g729": 1 / 8, "gsm": 33 / 160}
TAG: Final = range(4, 33)  # bytes: the shortest tag; the longest (GCM) with an MKI
PAIRS: Final = 4  # packets with a next one, or nothing is concluded
SHARE: Final = 0.8  # of them agree
LONGEST: Final = 4_800  # ticks; behind a pause the next packet says nothing


class Tagged:
    """One stream's packets, second by second; the last conclusion holds until there is another."""

    def __init__(self) -> None:
        self._found = False

    def look(self, frames: NDArray[np.void], codecs: Sequence[Codec]) -> bool:
        """Whether these bear a tag. frames: chunk.FRAME[n]; codecs: what each seems to be."""
        rates = np.array([BYTES_PER_TICK.get(codec.name.lower(), 0.0) for codec in codecs])
        stamps = frames["timestamp"].astype(np.int64)
        ticks = (stamps[1:] - stamps[:-1]) & 0xFFFFFFFF
        follows = np.diff(frames["sequence"].astype(np.int64)) == 1
        plain = frames["flags"][:-1] & (WHOLE | TRUNCATED) == 0  # else its length is another
        usable = follows & plain & (ticks > 0) & (ticks <= LONGEST) & (rates[:-1] > 0)
        if usable.sum() >= PAIRS:
            over = frames["length"][:-1][usable] - ticks[usable] * rates[:-1][usable]
            values, counts = np.unique(np.rint(over).astype(int), return_counts=True)
            most = int(counts.argmax())
            self._found = int(values[most]) in TAG and counts[most] >= SHARE * len(over)
        return self._found
