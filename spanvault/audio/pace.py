"""Timestamps that do not go at the pace of their clock, and what takes their place.

Some senders count G.722 by its 16,000 samples a second where RFC 3551 §4.5.2 says 8,000, others
Opus by what they sample, or milliseconds, or nothing at all. Sound that is placed by these is torn
to pieces. Where arrival is even and timestamps agree with it nowhere, packets lie one behind the
other by their sequence numbers, each as long as they come apart; pauses show by arrival.
Sources: RFC 3550 §5.1, RFC 7587 §4.1. Who asks: clock.py.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ticks = NDArray[np.int64]

PICTURES: Final = 90_000  # the clock of video, of which many packets share a timestamp
SPAN: Final = 25  # packets over which both are measured; jitter of single ones evens out
FEWEST: Final = 40  # packets by which anything is judged
AGREE: Final = 0.4  # so much off, a sender may only be slow; a wrong clock is off by half or more
SOUND: Final = 0.1  # of the spans agree: then timestamps are what they should be
EVEN: Final = 0.6  # of the spans arrive at one pace, if any pace is to be told by arrival …
EVENLY: Final = 0.15  # … so near to it
PACKET_S: Final = (0.002, 0.25)  # how long a packet of sound lasts
USUAL_S: Final = (0.01, 0.0025)  # of which packets are multiples, nearly always
NEAR: Final = 0.05


class Heard(NamedTuple):
    """Packets of one stream by rising sequence number, as columns.

    arrival: ticks since the call's first media.
    """

    sequence: NDArray[Any]
    timestamp: NDArray[np.uint32]
    arrival: Ticks


class Pace:
    """One stream at one clock rate. step: ticks a packet while timestamps are wrong, else 0."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.step = 0

    def judge(self, heard: Heard) -> None:
        """Look at some seconds of packets; at too few of them nothing changes."""
        if self._rate != PICTURES and len(heard.sequence) >= FEWEST:
            self.step = self._step(heard)

    def right(self, heard: Heard) -> Heard:
        """The packets with timestamps that can be gone by."""
        if not self.step:
            return heard
        stamp = heard.sequence.astype(np.int64) * self.step
        return heard._replace(timestamp=(stamp & 0xFFFFFFFF).astype(np.uint32))

    def _step(self, heard: Heard) -> int:
        span = min(SPAN, len(heard.sequence) // 3)
        count = _over(heard.sequence.astype(np.int64), span)
        if count.min() <= 0:
            return 0
        steps = np.diff(heard.timestamp).view(np.int32).astype(np.int64)
        said = _over(np.concatenate([[0], np.cumsum(steps)]), span) / count
        came = _over(heard.arrival, span) / count
        if np.mean(np.abs(said - came) <= AGREE * np.abs(came)) >= SOUND:
            return 0
        step = float(np.median(came))
        even = np.mean(np.abs(came - step) <= EVENLY * step) >= EVEN
        least, most = (seconds * self._rate for seconds in PACKET_S)
        return self._usual(step) if even and least <= step <= most else 0

    def _usual(self, step: float) -> int:
        for seconds in USUAL_S:
            whole = round(step / (seconds * self._rate)) * seconds * self._rate
            if whole and abs(whole - step) <= NEAR * step:
                return round(whole)
        return round(step)


def _over(column: Ticks, span: int) -> Ticks:
    """How much a column grows over so many rows, from every row on."""
    return column[span:] - column[:-span]
