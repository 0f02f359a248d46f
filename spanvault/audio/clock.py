"""Where a stream's packets lie on the call's time line.

Sound is placed by its RTP timestamp, since arrival jitters; but the timestamp says nothing of
when a stream began, and phones and PBXs restart it in mid-stream, or let it stand still on hold.
So the time line is anchored to arrival: at the first packets, wherever timestamp and arrival part
for good, and slowly as two clocks drift. A stall that is made up for afterwards moves nothing.
Source: RFC 3550 §5.1, §6.4.1. Samples: render.py.
"""

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

JUMP_S: Final = 0.5  # timestamp and arrival parted by more than this: not jitter
DRIFT_S: Final = 0.015  # within this, channels are aligned well enough
DRIFT_CHUNKS: Final = 5  # about as many seconds must agree that the clocks have drifted
QUICK: Final = 0.25  # of the packets are taken to have waited for nothing

Ticks = NDArray[np.int64]


class Clock:
    """One stream at one clock rate. Positions and arrivals are ticks since the call's first media.

    Fed with chunks in time order.
    """

    def __init__(self, rate: int) -> None:
        self._jump, self._drift = int(JUMP_S * rate), int(DRIFT_S * rate)
        # All anchors lie on samples of narrowband, so that every rendering rate hears the same.
        self._grain = max(1, rate // 8000)
        self._sequence = -1  # highest so far
        self._timestamp = 0  # of that packet, and where it was placed
        self._position = 0
        self._lows: deque[int] = deque(maxlen=DRIFT_CHUNKS)

    def place(
        self, sequence: NDArray[np.uint32], timestamp: NDArray[np.uint32], arrival: Ticks
    ) -> Ticks:
        """Ticks at which each packet's sound begins. All columns of n ≥ 1, by rising sequence."""
        if self._sequence < 0:
            self._begin(timestamp, arrival)
        positions = self._position + steps(timestamp, self._timestamp)
        fresh = sequence.astype(np.int64) > self._sequence
        if fresh.any():
            positions[fresh] = self._follow(positions[fresh], arrival[fresh])
            self._sequence = int(sequence[-1])
            self._timestamp, self._position = int(timestamp[-1]), int(positions[-1])
            self._correct_drift()
        return positions

    def shift(self, ticks: int) -> None:
        """The call's time line has moved: what follows is placed later by so much."""
        self._position += ticks

    def _begin(self, timestamp: NDArray[np.uint32], arrival: Ticks) -> None:
        self._timestamp, self._position = int(timestamp[0]), int(arrival[0])
        lag = arrival - (self._position + steps(timestamp, self._timestamp))
        # The first packet may have waited (for ARP, say): those beside it tell.
        self._position = self._whole(self._position + min(0, quick(self._runs(lag)[0])))

    def _follow(self, positions: Ticks, arrival: Ticks) -> Ticks:
        """Move what lies behind a lasting break to where it was heard."""
        lag = arrival - positions
        runs = self._runs(lag)
        shift, moved, at = 0, [], 0
        for run in runs:
            low = quick(run) - shift
            # Of a stall that is being made up for, the last packets have caught up.
            if low < -self._jump or int(run.min()) - shift > self._jump:
                first = int(positions[at])
                shift = self._whole(first + shift + low) - first
                self._lows.clear()
            at += len(run)
            moved.append(np.full(len(run), shift))
        self._lows.append(quick(runs[-1]) - shift)
        return np.asarray(positions + np.concatenate(moved), np.int64)

    def _whole(self, ticks: int) -> int:
        return ticks // self._grain * self._grain

    def _runs(self, lag: Ticks) -> list[Ticks]:
        """The lags, cut where they leap. The first run goes on from the chunk before."""
        cuts = np.flatnonzero(np.abs(np.diff(lag)) > self._jump) + 1
        return np.split(lag, cuts)

    def _correct_drift(self) -> None:
        """Two clocks 100 ppm apart part by 6 ms a minute; over an hour that would be heard."""
        if len(self._lows) < DRIFT_CHUNKS:
            return
        late, early = min(self._lows), max(self._lows)
        drift = late if late > self._drift else early if early < -self._drift else 0
        if drift:
            self._position += self._whole(drift)
            self._lows.clear()


def quick(lags: Ticks) -> int:
    """How far arrival lies behind the timestamps for packets that nothing held up.

    Not the least of all: senders catch up by sending a packet early now and then.
    """
    return int(np.quantile(lags, QUICK, method="lower"))


def steps(timestamp: NDArray[np.uint32], last: int) -> Ticks:
    """Unwrap 32-bit timestamps next to `last`: ticks from it, negative for earlier ones."""
    first = np.array([last], np.uint32)
    signed = np.diff(timestamp, prepend=first).astype(np.uint32).view(np.int32)
    return np.cumsum(signed, dtype=np.int64)
