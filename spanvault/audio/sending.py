"""Timestamps of pictures that are sent in another order than they are shown.

Of pictures that hang on later ones (B-pictures), the RTP timestamp says when they are shown, and so
it rises and falls from one to the next. Arrival follows the order of sending: what it is compared
with are the times at which a decoder would take the pictures, the same times in rising order.
Sources: RFC 6184 §5.1, RFC 7798 §4.1. Who compares: clock.py, spanvault.video.lipsync. The times
of a film's pictures: spanvault.video.worker.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

DEPTH: Final = 16  # places a picture may be sent early or late: ITU-T H.264 §A.3.1, H.265 §A.4.2

MOST: Final = 180_000  # ticks by which a picture may fall back: two seconds; else they begin anew

Ticks = NDArray[np.int64]
Stamps = NDArray[np.uint32]


class Sending:
    """One stream's pictures, chunk by chunk. Where their timestamps rise, nothing is changed."""

    def __init__(self) -> None:
        self._before = np.empty(0, np.int64)  # times of the last pictures, DEPTH at most
        self._last = 0  # timestamp of the last packet

    def taken(self, stamps: Stamps, count: int) -> Stamps:
        """The timestamps at which a decoder takes what each packet is of.

        stamps: uint32[n ≥ 1], by rising sequence number; all but the first `count` are given again
        later.
        """
        end = int(self._before[-1]) if len(self._before) else 0
        start = self._last if len(self._before) else int(stamps[0])
        times = end + unwrapped(stamps, start)
        first = np.flatnonzero(np.diff(times, prepend=times[0] - 1))  # packets that begin a picture
        before = self._before[:-1] if end == times[0] else self._before
        pictures = np.concatenate([before, times[first]])
        if count:
            heard = len(before) + int(np.searchsorted(first, count))
            self._before = pictures[:heard][-DEPTH:]
            self._last = int(stamps[count - 1])
        if (np.diff(pictures) >= 0).all():
            return stamps
        begun = np.flatnonzero(np.diff(pictures) < -MOST) + 1
        decoded = np.concatenate([rising(part) for part in np.split(pictures, begun)])
        decoded = decoded[len(before) :]
        later = np.repeat(times[first] - decoded, np.diff(first, append=len(stamps)))
        return stamps - later.astype(np.uint32)


class Ahead:
    """How far one stream's pictures are sent before others that are shown earlier. ticks: the most.

    Fed with chunks in time order.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self._latest = 0  # time of the picture that is shown last so far
        self._last: tuple[int, int] | None = None  # sequence and timestamp

    def receive(self, frames: NDArray[np.void]) -> None:
        """frames: FRAME[n] of the pictures."""
        if self._last is not None:
            frames = frames[frames["sequence"] > self._last[0]]
        if not len(frames):
            return
        start = self._last[1] if self._last else int(frames["timestamp"][0])
        self._last = int(frames["sequence"][-1]), int(frames["timestamp"][-1])
        # All count from the last packet of the chunk before.
        times, latest = unwrapped(frames["timestamp"], start), self._latest
        begun = np.flatnonzero(np.diff(times, prepend=0) < -MOST)
        for number, part in enumerate(np.split(times, begun)):
            after = np.maximum.accumulate(np.append(part[0] if number else latest, part))
            self.ticks = max(self.ticks, int((after[1:] - part).max(initial=0)))
            latest = int(after[-1])
        self._latest = latest - int(times[-1])


def rising(times: Ticks) -> Ticks:
    """Times in order, if each is at most DEPTH places from where it belongs.

    times: int64[n] in the order of sending. Returns int64[n].
    """
    # The i-th of all is the middle one of those around i: what is farther is all less, or all more.
    ends = np.iinfo(np.int64)
    padded = np.concatenate([np.full(DEPTH, ends.min), times, np.full(DEPTH, ends.max)])
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * DEPTH + 1)
    middle: Ticks = np.partition(around, DEPTH, axis=1)[:, DEPTH]
    return middle


def unwrapped(stamps: Stamps, last: int) -> Ticks:
    """32-bit timestamps as ticks from `last`, each next to the one before."""
    signed = np.diff(stamps, prepend=np.array([last], np.uint32)).view(np.int32)
    return np.cumsum(signed, dtype=np.int64)
