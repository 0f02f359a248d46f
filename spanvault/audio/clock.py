"""Where a stream's packets lie on the call's time line.

Sound is placed by its RTP timestamp, since arrival jitters; but the timestamp says nothing of
when a stream began, and phones and PBXs restart it in mid-stream, or let it stand still on hold.
So the time line is anchored to arrival: at the first packets, and wherever timestamp and arrival
part for good, be it at once or slowly, as two clocks drift. Whether it is for good, the seconds
that follow tell: a stall that is made up for afterwards moves nothing.
Source: RFC 3550 §5.1, §6.4.1. All streams of a call: timeline.py. Samples: render.py.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spanvault.audio.pace import PICTURES, Heard, Pace
from spanvault.audio.sending import Sending, unwrapped

JUMP_S: Final = 0.1  # timestamp and arrival part by so much between two packets: a break
PAUSE_S: Final = 0.5  # by so much: a break that does not need to last before it is for good
FALL_S: Final = 0.05  # what was sent later arrived so much earlier: the capture's clock was set
DRIFT_S: Final = 0.008  # two streams that are each off by less are aligned well enough
CERTAIN_S: Final = 2.0  # what is no break must last so long to be for good
PIECE: Final = 10  # packets that are judged together
QUICK: Final = 0.25  # of the packets are taken to have waited for nothing

Ticks = NDArray[np.int64]


class Last(NamedTuple):
    """The packet of the highest sequence number so far, and where it was placed."""

    sequence: int
    timestamp: int
    position: int
    arrival: int


class Clock:
    """One stream at one clock rate. Positions and arrivals are ticks since the call's first media.

    Fed with chunks in time order.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._jump, self._pause = int(JUMP_S * rate), int(PAUSE_S * rate)
        self._drift, self._certain = int(DRIFT_S * rate), int(CERTAIN_S * rate)
        self._fall = int(FALL_S * rate)
        # All anchors lie on samples of narrowband, so that every rendering rate hears the same.
        self._grain = max(1, rate // 8000)
        self._pace = Pace(rate)
        self._sending = Sending() if rate == PICTURES else None
        self._last: Last | None = None
        self._set_back = 0  # what the capture's clock lost, within chunks

    def place(self, packets: Heard, ahead: Heard | None = None) -> Ticks:
        """Ticks at which each packet's sound begins. n ≥ 1. ahead: some seconds of what follows."""
        self._pace.judge(packets if ahead is None else following(packets, ahead))
        packets = self._pace.right(packets)
        ahead = None if ahead is None else self._pace.right(ahead)
        last = self._last
        if last is None:
            return self._shown(packets, ahead, None)
        positions = last.position + unwrapped(packets.timestamp, last.timestamp)
        fresh = packets.sequence.astype(np.int64) > last.sequence
        if fresh.any():
            new = Heard(packets.sequence[fresh], packets.timestamp[fresh], packets.arrival[fresh])
            positions[fresh] = self._shown(new, ahead, last)
        return positions

    def behind(self, packets: Heard) -> int | None:
        """How much later packets arrive than those before let expect, in ticks.

        None where they are not simply the next ones: then nothing can be expected.
        """
        last = self._last
        if last is None or not 0 < int(packets.sequence[0]) - last.sequence <= PIECE:
            return None
        course = Course(self._taken(self._pace.right(packets), 0), last, self._set_back)
        if not 0 < course.position[0] - last.position < self._rate:
            return None
        return int(levels(course.lag)[0])

    def shift(self, ticks: int) -> None:
        """The call's time line begins so much earlier: all of ours lies later on it."""
        if self._last is not None:
            position, arrival = self._last.position + ticks, self._last.arrival + ticks
            self._last = self._last._replace(position=position, arrival=arrival)

    @staticmethod
    def _first(packets: Heard) -> Last:
        arrival = int(packets.arrival[0])
        return Last(int(packets.sequence[0]) - 1, int(packets.timestamp[0]), arrival, arrival)

    def _shown(self, new: Heard, ahead: Heard | None, last: Last | None) -> Ticks:
        """Positions of new packets. Pictures are placed by when they are taken, then shown."""
        count = len(new.sequence)
        taken = self._taken(new if ahead is None else following(new, ahead), count)
        positions = self._follow(taken, count, last or self._first(taken), begins=last is None)
        later = (new.timestamp - taken.timestamp[:count]).view(np.int32)
        return positions + later

    def _taken(self, heard: Heard, count: int) -> Heard:
        if self._sending is None:
            return heard
        return heard._replace(timestamp=self._sending.taken(heard.timestamp, count))

    def _follow(self, heard: Heard, count: int, last: Last, begins: bool) -> Ticks:
        """Positions of the first packets, moved from where timestamp and arrival part for good."""
        course = Course(heard, last, self._set_back)
        shift = np.empty(count, np.int64)
        by = 0
        for start, stop in course.runs(self._jump, self._pause):
            if start >= count:
                break
            if begins and start == 0:
                # The first packet may have waited (for ARP, say): those beside it tell.
                by = self._whole(course, 0, min(0, course.low(0, stop)))
            else:
                by = self._break(course, start, stop, by)
            for at, floor, roof in course.pieces(start, stop):
                if at >= count:
                    break
                before = by
                if course.position[stop - 1] - course.position[at] >= self._certain:
                    by = self._drifted(course, at, by, floor, roof)
                    by = self._amid_jitter(course, at, stop, by)
                shift[at : min(at + PIECE, stop)] = before
                if by != before:
                    shift[course.turn(max(start, at - PIECE), at, before, by) : at + PIECE] = by
        positions = course.position[:count] + shift
        arrival = int(course.arrival[count - 1])
        sequence, timestamp = int(heard.sequence[count - 1]), int(heard.timestamp[count - 1])
        self._last = Last(sequence, timestamp, int(positions[-1]), arrival)
        return positions

    def _break(self, course: "Course", start: int, stop: int, by: int) -> int:
        """By how much to move the packets behind a break. by: those before it."""
        low = course.low(start, stop)
        if low < by - self._fall and course.fall(start) > self._fall:
            # No sender can do that. What comes is as late as before, by a clock that was set back.
            self._set_back += by - low
            course.move(start, by - low)
            return by
        if abs(low - by) <= self._jump:
            return by  # held up, and caught up
        if course.goes_on(start):
            if course.nearest(stop, by) <= self._jump:
                return by  # held up, and later ones were not
            lasting = course.position[-1] - course.position[start] >= self._certain
            if not lasting and abs(low - by) < self._pause:
                return by
        return self._whole(course, start, low)

    def _drifted(self, course: "Course", at: int, by: int, floor: int, roof: int) -> int:
        """Clocks 100 ppm apart part by 6 ms a minute: over an hour that would be heard."""
        if floor - by > self._drift:
            return self._whole(course, at, floor)
        if roof - by < -self._drift:
            return self._whole(course, at, roof)
        return by

    def _amid_jitter(self, course: "Course", at: int, stop: int, by: int) -> int:
        """Where packets jitter by more than clocks drift apart, neither bound is ever passed."""
        noise = course.noise(at, stop, self._drift // 2)
        if not noise:
            return by
        middle = (at + stop) // 2
        low = min(course.low(at, middle), course.low(middle, stop), key=lambda low: abs(low - by))
        enough = self._drift + 3 * noise // 2
        return self._whole(course, at, low) if abs(low - by) > enough else by

    def _whole(self, course: "Course", at: int, by: int) -> int:
        """`by`, so that the position lies on the grain."""
        position = int(course.position[at])
        return (position + by) // self._grain * self._grain - position


class Course:
    """A stretch of a stream: where its timestamps would put it, and how far that is from arrival.

    lag: arrival less position.
    """

    def __init__(self, heard: Heard, last: Last, set_back: int) -> None:
        self._heard, self._last = heard, last
        self._step = unwrapped(heard.timestamp, last.timestamp)
        self.position = last.position + self._step
        self.arrival = heard.arrival + set_back
        self.lag = self.arrival - self.position

    def runs(self, jump: int, pause: int) -> Iterator[tuple[int, int]]:
        """Rows from and to, cut where the lag leaps: by much, or for good."""
        leaps = np.abs(np.diff(self.lag))
        cuts = [0]
        for row in (np.flatnonzero(leaps > jump) + 1).tolist():
            if leaps[row - 1] > pause or self._parts(cuts[-1], row, jump):
                cuts.append(row)
        yield from pairwise([*cuts, len(self.lag)])

    def _parts(self, start: int, row: int, jump: int) -> bool:
        """Whether packets from a row on lag by another level than those before, from `start` on."""
        before, after = self.lag[max(start, row - PIECE) : row], self.lag[row : row + PIECE]
        if len(after) < PIECE or (start and len(before) < PIECE):
            return False  # so few tell nothing
        # Before all of them the lag is none. The first few of a second are often its latest.
        level = levels(before)[0] if len(before) == PIECE else 0
        return bool(abs(levels(after)[0] - level) > jump)

    def low(self, start: int, stop: int) -> int:
        """The lag of what nothing held up; a fifth of the pieces may have been sent early."""
        level = np.sort(levels(self.lag[start:stop]))
        return int(level[(len(level) - 1) // 5])

    def noise(self, start: int, stop: int, even: int) -> int:
        """By how much its levels differ: half of what the middle half of them does.

        None if each is nearly (`even`) as the one before: then it came later or earlier for good.
        """
        level = levels(self.lag[start:stop])
        steps = np.sort(np.abs(np.diff(level)))
        if not len(steps) or steps[len(steps) // 2] <= even:
            return 0
        level = np.sort(level)
        return int(level[(3 * len(level)) // 4] - level[len(level) // 4]) // 2

    def nearest(self, start: int, by: int) -> int:
        """How near the lags behind a row come to a value."""
        far = np.iinfo(np.int64).max
        after = self.lag[start:]
        return int(np.abs(levels(after) - by).min()) if len(after) else int(far)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Each piece of a run: its row, the least and the greatest level from it on."""
        level = levels(self.lag[start:stop])[::-1]
        floor = np.minimum.accumulate(level)[::-1].tolist()
        roof = np.maximum.accumulate(level)[::-1].tolist()
        yield from zip(range(start, stop, PIECE), floor, roof, strict=True)

    def turn(self, low: int, at: int, before: int, by: int) -> int:
        """The row at which the lag went over from one level to another, from `low` on.

        at: where it was noticed, and where it goes over if that was not all at once.
        """
        rows = np.flatnonzero(self.lag[low : at + PIECE] < (before + by) / 2)
        if by > before:  # what is late by itself is above both levels
            return low + int(rows[-1]) + 1 if len(rows) else at
        return low + int(rows[0]) if len(rows) and rows[0] else at

    def fall(self, row: int) -> int:
        """How much earlier it arrived than what was sent before it."""
        before = self.arrival[row - 1] if row else self._last.arrival
        return int(before - self.arrival[row])

    def goes_on(self, row: int) -> bool:
        """Whether the timestamp goes on as ever at a row, though arrival does not."""
        sequence = np.diff(self._heard.sequence.astype(np.int64), prepend=self._last.sequence)
        step = np.diff(self._step, prepend=0)
        return bool(step[row] == sequence[row] * np.median(step // np.maximum(sequence, 1)))

    def move(self, row: int, ticks: int) -> None:
        """What arrives from a row on is taken to arrive later."""
        self.arrival[row:] += ticks
        self.lag[row:] += ticks


def levels(lag: Ticks) -> Ticks:
    """The lag of packets that nothing held up, for each PIECE of packets.

    Not the least of all: senders catch up by sending a packet early now and then.
    """
    rest = len(lag) % PIECE
    padded = np.concatenate([lag, np.full(-len(lag) % PIECE, np.iinfo(np.int64).max)])
    pieces = np.sort(padded.reshape(-1, PIECE), axis=1)
    level = pieces[:, int(QUICK * (PIECE - 1))]
    if rest:
        level[-1] = pieces[-1, int(QUICK * (rest - 1))]
    return level


def following(packets: Heard, ahead: Heard) -> Heard:
    """Packets and what follows them, by rising sequence number."""
    order = np.argsort(ahead.sequence, kind="stable")
    order = order[ahead.sequence[order] > packets.sequence[-1]]
    return Heard(
        np.concatenate([packets.sequence, ahead.sequence[order]]),
        np.concatenate([packets.timestamp, ahead.timestamp[order]]),
        np.concatenate([packets.arrival, ahead.arrival[order]]),
    )
