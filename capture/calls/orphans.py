"""RTP without signalling: which of it becomes a recording of its own, and what goes into which.

What no call has claimed for a while is kept all the same, where it proves to be RTP
(capture.media.probation): the two directions between a pair of endpoints are one recording, its
parties unknown. It is bounded in number, in rate and in length, so that a flood of streams takes no
more than its share, and it says when it may be erased. Should signalling appear, the call takes it
over: capture.calls.joining. Nothing tells one conversation from the next on the same ports but
silence, so silence is what ends one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from capture.calls.livecall import LiveCall
from capture.clock import Clock
from capture.model import Endpoint, NewStream, Overdue, StreamTotals
from capture.signalling.dialog import Dialog, State
from capture.signalling.offer_answer import OfferAnswer
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Stream

SECOND_NS: Final = 1_000_000_000
PAUSE_NS: Final = 5 * SECOND_NS  # a sender that changes its SSRC does not wait longer
OVERLAP_NS: Final = SECOND_NS  # streams of one sender that last longer together are two sounds
LOOK_NS: Final = 10 * SECOND_NS  # between two looks at how much a recording takes
GROWN: Final = 3  # times the rate it was admitted with: then it has to go
CALM: Final = 250  # packets a second; below, no growth matters
SHARE: Final = 4  # no stream gets more than this part of the rate for all
HEADERS: Final = 40  # bytes of IP, UDP and RTP around each payload
DAY_NS: Final = 86_400 * SECOND_NS

Pair = tuple[Endpoint, Endpoint]


@dataclass(slots=True)
class _Pace:
    """How much a recording takes."""

    bits: float  # a second, as admitted
    packets: float  # a second
    counted: int  # packets when last looked at
    looked_ns: int


class Orphans:
    """The recordings without signalling that are going on, by their endpoints."""

    def __init__(
        self,
        settings: CaptureConfig,
        totals: Callable[[int], StreamTotals],
        new_id: Callable[[], bytes],
        count: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._settings, self._totals = settings, totals
        self._new_id, self._count = new_id, count
        self._most_bits = settings.orphan_mbit * 1e6
        self._longest_ns = int(settings.orphan_minutes * 60 * SECOND_NS)
        self._quiet_ns = int(settings.unmatched_s * SECOND_NS)
        self._by_pair: dict[Pair, list[LiveCall]] = {}
        self._paces: dict[bytes, _Pace] = {}

    def __len__(self) -> int:
        return len(self._paces)

    def admit(self, stream: NewStream, heard: Overdue) -> LiveCall | None:
        """The recording that an unclaimed stream goes into; None: there is no room for it.

        It may be a new one, which is then the caller's to insert.
        """
        seconds = max(1.0, (heard.last_ns - heard.first_ns) / SECOND_NS)
        bits = 8 * (heard.octets + HEADERS * heard.packets) / seconds
        call = self._following(stream, heard)
        if call is None:
            if not self._room(bits):
                return None
            call = self._begin(stream, heard.held_ns)
        # What is said in one direction is answered in the other: room is kept for it.
        pace = self._paces.setdefault(call.id, _Pace(2 * bits, 0.0, 0, heard.last_ns))
        pace.packets += heard.packets / seconds
        pace.counted += heard.packets
        self._count("orphan_streams")
        return call

    def going_on(self, stream: NewStream) -> LiveCall | None:
        """The recording that has this very stream already: the capture was restarted."""
        for call in self.between(stream):
            for known in call.streams:
                if known.ssrc == stream.ssrc and known.source == str(stream.source):
                    return call if self._alive(call, stream.time_ns) else None
        return None

    def between(self, stream: NewStream) -> list[LiveCall]:
        """All recordings of a stream's two endpoints that have not left yet, oldest first."""
        return self._by_pair.get(_pair(stream.source, stream.destination), [])

    def restore(self, call: LiveCall) -> None:
        """Take up a recording that was saved."""
        if call.ends is None:
            return
        self._by_pair.setdefault(call.ends, []).append(call)
        if not call.over:
            # Its streams are new to media; what they take is looked at from now on.
            self._paces[call.id] = _Pace(0.0, CALM, 0, call.heard_ns)

    def forget(self, call: LiveCall) -> None:
        """The recording is over and has left."""
        self._paces.pop(call.id, None)
        if call.ends is None:
            return
        left = [other for other in self._by_pair.get(call.ends, []) if other is not call]
        if left:
            self._by_pair[call.ends] = left
        else:
            self._by_pair.pop(call.ends, None)

    def deadline_ns(self, call: LiveCall) -> tuple[int, int]:
        """(when the recording has to end, the end that it then has)."""
        heard_ns = call.last_media_ns(self._totals) or call.started_ns
        silent_ns = heard_ns + self._quiet_ns
        longest_ns = call.started_ns + self._longest_ns
        if silent_ns <= longest_ns:
            return silent_ns, heard_ns
        return longest_ns, longest_ns

    def silent(self, now_ns: int) -> list[LiveCall]:
        """Those that have been silent for so long that they are over."""
        return [
            call
            for calls in self._by_pair.values()
            for call in calls
            if not call.over and self.deadline_ns(call)[0] <= now_ns
        ]

    def too_much(self, call: LiveCall, now_ns: int) -> bool:
        """Whether it takes far more than it was admitted with. Asked every LOOK_NS."""
        pace = self._paces.get(call.id)
        if pace is None:
            return False
        packets = sum(self._totals(row).packets for row in call.rows if row is not None)
        elapsed_ns, count = now_ns - pace.looked_ns, packets - pace.counted
        if elapsed_ns < LOOK_NS:
            return False
        pace.looked_ns, pace.counted = now_ns, packets
        return count * SECOND_NS / elapsed_ns > max(CALM, GROWN * pace.packets)

    def _room(self, bits: float) -> bool:
        """Whether there is any for another recording that begins with so many bits a second."""
        if len(self) >= self._settings.orphans:
            self._count("orphans_over_number")
            return False
        taken = sum(pace.bits for pace in self._paces.values())
        if bits > self._most_bits / SHARE or taken + 2 * bits > self._most_bits:
            self._count("orphans_over_rate")
            return False
        return True

    def _following(self, stream: NewStream, heard: Overdue) -> LiveCall | None:
        """A recording between the same endpoints that this stream is part of."""
        for call in reversed(self.between(stream)):
            if not self._alive(call, heard.first_ns):
                continue
            same = [one for one in call.streams if one.source == str(stream.source)]
            if all(self._precedes(call, one, heard.first_ns) for one in same):
                return call
        return None

    def _precedes(self, call: LiveCall, stream: Stream, time_ns: int) -> bool:
        """Whether a sender may have gone on with another stream at this time."""
        row = call.rows[stream.number]
        last_ns = max(stream.last_ns, self._totals(row).last_ns if row is not None else 0)
        return -OVERLAP_NS <= time_ns - last_ns <= PAUSE_NS

    def _alive(self, call: LiveCall, time_ns: int) -> bool:
        if call.over:
            return False
        last_ns = call.last_media_ns(self._totals) or call.started_ns
        return time_ns - last_ns <= self._quiet_ns

    def _begin(self, stream: NewStream, time_ns: int) -> LiveCall:
        days = self._settings.orphan_days
        call = LiveCall(
            id=self._new_id(),
            call_id="",
            caller_tag="",
            caller=str(stream.source),
            callee=str(stream.destination),
            started_ns=time_ns,
            dialog=Dialog(State.CONFIRMED, time_ns, outcome="unknown"),
            offer_answer=OfferAnswer(),
            flags={"no_signalling"},
            heard_ns=time_ns,
            ends=_pair(stream.source, stream.destination),
            clock_ns=self._clock.offset_ns,
            expires_ns=None if days is None else time_ns + int(days * DAY_NS),
        )
        self._by_pair.setdefault(_pair(stream.source, stream.destination), []).append(call)
        self._count("orphans")
        return call


def _pair(one: Endpoint, other: Endpoint) -> Pair:
    return (one, other) if one <= other else (other, one)
