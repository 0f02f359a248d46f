"""The one time line of a call: which chunk is drawn next, and where each packet of it lies.

Every stream has a clock of its own. Common to all is the clock of the capture, by which arrivals
were noted: where that was set in mid-call (NTP does so after an outage), the call goes on as if it
had not been. A chunk is drawn once the seconds behind it are known, for what they tell of its lags.
Arrivals and timestamps of one stream: clock.py. The order of chunks: order.py.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spanvault.audio.clock import Clock
from spanvault.audio.pace import Heard
from spanvault.media.chunk import Chunk

SECOND: Final = 1_000_000_000
AHEAD_NS: Final = 5 * SECOND
# In time order no chunk begins before the last one, unless the clock was set back meanwhile.
SET_BACK_NS: Final = SECOND // 10
LEAP_S: Final = 4 * 3600  # a longer pause is a clock that was set, not a hold

Ticks = NDArray[np.int64]


class TimeLine:
    """Fed with a call's chunks in time order; gives them back when they can be drawn.

    origin_ns: the time at which the sound begins, 0 if the first chunk is to say. leaps: how often
    the capture's clock was set.
    """

    def __init__(self, origin_ns: int) -> None:
        self.origin_ns, self.leaps = origin_ns, 0
        self._last_ns = 0
        self._pending: deque[Chunk] = deque()
        self._clocks: dict[tuple[int, int], Clock] = {}  # by stream and clock rate
        self._kinds: dict[tuple[int, int], set[int]] = {}  # the payload types of each

    def receive(self, chunk: Chunk) -> Iterator[Chunk]:
        """Take a chunk; give those of which enough is known by now."""
        self._pending.append(chunk)
        # abs: behind a clock that was set back, time begins anew.
        while abs(_start_ns(chunk) - _start_ns(self._pending[0])) >= AHEAD_NS:
            yield self._next()

    def finish(self) -> Iterator[Chunk]:
        """The rest."""
        while self._pending:
            yield self._next()

    def since_s(self, time_ns: int) -> float:
        """Seconds from the beginning of the sound."""
        return (time_ns - self.origin_ns) / SECOND

    def places(self, stream: int, rate: int, frames: NDArray[np.void]) -> Ticks:
        """Ticks of the media clock since the beginning, for each frame of the chunk given last."""
        first = not self._clocks
        clock = self._clocks.setdefault((stream, rate), Clock(rate))
        kinds = self._kinds.setdefault((stream, rate), set())
        kinds.update(frames["payload_type"].tolist())
        places = clock.place(self._heard(frames, rate), self._ahead(stream, rate))
        early = int(places[0])
        if early < 0 and first:
            # The call's first packet came late: the time line begins where it should have come.
            self.origin_ns += early * SECOND // rate
            clock.shift(-early)
            places -= early
        return places

    def _next(self) -> Chunk:
        chunk = self._pending.popleft()
        start_ns = _start_ns(chunk)
        self.origin_ns = self.origin_ns or start_ns
        leap_ns = start_ns - (self._last_ns or start_ns)
        if leap_ns < -SET_BACK_NS or leap_ns > LEAP_S * SECOND:
            self.origin_ns += self._leapt(chunk, leap_ns)
            self.leaps += 1
        self._last_ns = start_ns
        return chunk

    def _leapt(self, chunk: Chunk, leap_ns: int) -> int:
        """By how much the clock was set: exactly, where a stream goes on as if nothing were."""
        for one in (chunk, *self._pending):
            for (stream, rate), clock in self._clocks.items():
                frames = self._of_clock(one, stream, rate)
                if len(frames):
                    behind = clock.behind(self._heard(frames, rate))
                    if behind is not None:
                        return behind * SECOND // rate
        return leap_ns

    def _ahead(self, stream: int, rate: int) -> Heard | None:
        parts = [self._of_clock(one, stream, rate) for one in self._pending]
        parts = [part for part in parts if len(part)]
        return self._heard(np.concatenate(parts), rate) if parts else None

    def _of_clock(self, chunk: Chunk, stream: int, rate: int) -> NDArray[np.void]:
        """The frames of a chunk that go by a clock."""
        if int(chunk.header["stream"]) != stream:
            return chunk.frames[:0]
        kinds = self._kinds[stream, rate]
        return chunk.frames[np.isin(chunk.frames["payload_type"], list(kinds))]

    def _heard(self, frames: NDArray[np.void], rate: int) -> Heard:
        # In two steps, or an hour of nanoseconds times 48000 would not fit in 64 bits.
        seconds, rest = np.divmod(frames["arrival_ns"] - self.origin_ns, SECOND)
        arrival = seconds * rate + rest * rate // SECOND
        return Heard(frames["sequence"], frames["timestamp"], arrival)


def _start_ns(chunk: Chunk) -> int:
    return int(chunk.header["start_ns"])
