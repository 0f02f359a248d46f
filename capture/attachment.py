"""Streams and their calls: attach at once or later, share between two legs, close in time.

A stream nobody claims is remembered for a while, since RTP may precede its SDP or the capture may
have begun in the middle of the call. A row is closed where its call ends or another call takes the
same addresses, so that the next call's media is not taken for its own.
Which call a stream fits: capture.association.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from capture.association import BOTH, SOURCE, Association, Match, supersedes
from capture.livecall import Binding, LiveCall
from capture.model import Attach, Close, Endpoint, NewStream, StreamTotals
from capture.witness import SILENT, Decision, Witness
from spanvault.messages import Codec, Party, Stream
from spanvault.payloadtypes import STATIC, VIDEO_STATIC

MAX_ORPHANS: Final = 20_000
MAX_STREAMS: Final = 1_024  # of one call; a sender that changes SSRC with each packet gets no more
MAX_COMPARED: Final = 8
SILENT_NS: Final = 1_000_000_000
KNOWN_NS: Final = 5_000_000_000  # signalling may run ahead of media by a block, not by more
MIDCALL_NS: Final = 3_000_000_000  # RTP of a call ends about when the call does


@dataclass(slots=True, eq=False)
class Row:
    """A stream as media knows it, and the call that holds it."""

    stream: NewStream
    call: LiveCall | None = None
    number: int = 0
    score: int = 0
    closed_ns: int | None = None
    bye_ns: int | None = None  # when RTCP said that it ends


class Attachments:
    """All rows that media has and we have not released."""

    def __init__(
        self,
        association: Association,
        totals: Callable[[int], StreamTotals],
        patience_ns: int,
        grace_ns: int,
        count: Callable[[str], None],
        witness: Witness = SILENT,
    ) -> None:
        self.commands: list[Attach | Close] = []
        self.released: list[int] = []
        self.heard_ns = 0  # media before this has been counted in totals
        self.changed: set[bytes] = set()  # calls that won a stream or changed one
        self._association = association
        self._totals = totals
        self._patience_ns, self._grace_ns = patience_ns, grace_ns
        self._count, self._witness = count, witness
        self._rows: dict[int, Row] = {}
        self._orphans: OrderedDict[int, Row] = OrderedDict()
        self._between: dict[tuple[bytes, bytes], dict[int, Row]] = {}  # orphans, by hosts
        self._by_endpoint: dict[Endpoint, dict[int, Row]] = {}
        self._by_source: dict[tuple[Endpoint, int], Row] = {}  # the newest of an SSRC from there
        self._by_target: dict[tuple[Endpoint, int], Row] = {}

    def opened(self, stream: NewStream) -> None:
        """Media heard a stream for the first time."""
        if stream.row in self._rows:
            self._remove(stream.row)
        row = self._rows[stream.row] = Row(stream)
        for endpoint in (stream.source, stream.destination):
            self._by_endpoint.setdefault(endpoint, {})[stream.row] = row
        self._by_source[stream.source, stream.ssrc] = row
        self._by_target[stream.destination, stream.ssrc] = row
        matches = self._association.matches(stream)
        self._witness.decided(Decision.OPENED, stream=stream, attached=bool(matches))
        if matches:
            self._attach(row, matches)
            return
        self._orphans[stream.row] = row
        self._between.setdefault(_hosts(stream), {})[stream.row] = row
        if len(self._orphans) > MAX_ORPHANS:
            oldest = next(iter(self._orphans))
            self._witness.decided(Decision.UNCLAIMED, row=oldest)
            self._release(oldest)
            self._count("streams_unmatched_evicted")

    def bound(self, call: LiveCall, endpoint: Endpoint, time_ns: int) -> None:
        """A call named an endpoint, or named it anew: see what is already heard there."""
        for row in list(self._by_endpoint.get(endpoint, {}).values()):
            if row.call is None:
                self._claim(row)
            elif row.call is call:
                self._recode(row, time_ns)
            elif row.closed_ns is None:
                self._contend(row, call)

    def ended(self, call: LiveCall) -> None:
        """The call ended, or its end became known anew: its rows close after the grace."""
        for number in call.rows:
            row = self._rows.get(number) if number is not None else None
            if row is not None and row.call is call:
                self._settle(row)

    def claim_hosts(self, call: LiveCall, last: bool) -> None:
        """A call whose SDP was never heard takes the only streams between its two hosts.

        Several at once cannot be told apart while they flow; when the call has ended, those that
        fell silent with it can. None is taken where that is not one per direction.
        last: the call will not ask again.
        """
        if call.caller_host is None or call.callee_host is None:
            return
        ways: tuple[tuple[bytes, bytes, Party], ...] = (
            (call.caller_host, call.callee_host, "caller"),
            (call.callee_host, call.caller_host, "callee"),
        )
        for host, peer, speaker in ways:
            if any(stream.party == speaker for stream in call.streams):
                continue
            rows = list(self._between.get((host, peer), {}).values())
            if len(rows) > MAX_COMPARED and not last:
                continue  # a trunk between two switches: looked at once, when there is more to know
            rows = [row for row in rows if self._lived_with(call, row)]
            if len(rows) == 1:
                self._attach(rows[0], [_by_host(call, speaker)])
            elif rows and last:
                call.flags.add("ambiguous_media")
                self._witness.decided(Decision.AMBIGUOUS, call)

    def finish(self, call: LiveCall) -> None:
        """The call is final: its rows are released, those it shares keep their last totals."""
        call.refresh(self._totals)
        for index, number in enumerate(call.rows):
            row = self._rows.get(number) if number is not None else None
            if row is not None and row.call is call:
                self._release(row.stream.row)
            call.rows[index] = None

    def expire(self, now_ns: int) -> None:
        """Release streams that nobody claimed and that are silent."""
        for number, row in list(self._orphans.items()):
            last_ns = self._totals(number).last_ns or row.stream.time_ns
            if abs(now_ns - last_ns) > self._patience_ns:
                self._witness.decided(Decision.UNCLAIMED, row=number)
                self._release(number)
                self._count("streams_unmatched")

    def sharers(self, row: int) -> Iterable[LiveCall]:
        """Calls besides its own that a row is part of."""
        found = self._rows.get(row)
        if found is None:
            return []
        ends = (found.stream.source, found.stream.destination)
        calls = {call.id: call for end in ends for call, _ in self._association.at(end)}
        return [call for call in calls.values() if call is not found.call and row in call.rows]

    def speaking(self, ssrc: int, source: Endpoint, destination: Endpoint) -> Row | None:
        """The newest stream of an SSRC between the ends of which RTCP goes between these."""
        for end in self._association.media_ends(source):
            if (row := self._by_source.get((end, ssrc))) is not None:
                return row
        for end in self._association.media_ends(destination):  # NAT changed the source
            if (row := self._by_target.get((end, ssrc))) is not None:
                return row
        return None

    # --- attaching --------------------------------------------------------------------------

    def _claim(self, row: Row) -> None:
        matches = self._association.matches(row.stream)
        last_ns = self._totals(row.stream.row).last_ns or row.stream.time_ns
        if matches and last_ns >= matches[0].since_ns - self._patience_ns:
            self._attach(row, matches)

    def _attach(self, row: Row, matches: list[Match]) -> None:
        first = matches[0]
        if len(first.call.streams) >= MAX_STREAMS:
            self._count("streams_over_limit")
            self._witness.decided(Decision.REFUSED, first.call, row=row.stream.row)
            return
        self._adopted(row)
        row.call, row.score, row.number = first.call, first.score, len(first.call.streams)
        codec = _add_stream(first, row)
        clock_rate = codec.clock_rate if codec else 0
        self._witness.decided(Decision.ATTACHED, first.call, row=row.stream.row, match=first)
        self.commands.append(Attach(row.stream.row, first.call.id, row.number, clock_rate))
        self.changed.add(first.call.id)
        for other in matches[1:]:
            self._share(row, other)
        self._settle(row)

    def _share(self, row: Row, match: Match) -> None:
        """Another call has part in the stream: it is stored once and listed by both."""
        call, owner = match.call, row.call
        if owner is None or row.stream.row in call.rows or len(call.streams) >= MAX_STREAMS:
            return
        _add_stream(match, row)
        self._witness.decided(Decision.SHARED, call, row=row.stream.row, match=match)
        call.streams[-1].stored_in, call.streams[-1].stored_as = owner.id, row.number
        call.relate("b2bua", owner.call_id)
        owner.relate("b2bua", call.call_id)
        self.changed |= {call.id, owner.id}

    def _recode(self, row: Row, time_ns: int) -> None:
        """The call renegotiated: a payload type that now means something else ends the stream."""
        call = row.call
        if call is None or row.number >= len(call.streams):
            return
        stream = call.streams[row.number]
        meant: dict[int, Codec] = {}
        for endpoint in (row.stream.source, row.stream.destination):
            for other, binding in self._association.at(endpoint):
                if other is call:
                    meant |= binding.codecs
        heard = self._totals(row.stream.row).payload_types or {row.stream.payload_type: 0}
        if any(_differ(stream.codecs.get(number), meant.get(number)) for number in heard):
            self._close(row, time_ns, "recoded")
        else:
            stream.codecs = {**meant, **stream.codecs}

    # --- closing ----------------------------------------------------------------------------

    def _contend(self, row: Row, newer: LiveCall) -> None:
        """Another call names an end of an attached stream: takes it, shares it, or neither."""
        self._settle(row)
        if row.closed_ns is not None:
            return
        match = next(
            (
                match
                for match in self._association.matches(row.stream)
                if match.call is newer and match.score == BOTH
            ),
            None,
        )
        if match is None:
            return
        if row.score == SOURCE:
            # It hung by one end only; what comes from now on belongs where both ends fit.
            self._close(row, max(match.latest_ns, row.stream.time_ns), "moved")
        else:
            self._share(row, match)

    def _settle(self, row: Row) -> None:
        """Close the row at the time that is now known to be its call's last."""
        call = row.call
        if call is None:
            return
        limits = [call.ended_ns + self._grace_ns] if call.ended_ns is not None else []
        limits += [since for other in self._others(row) for since in self._takes(row, call, other)]
        if limits:
            ended = call.ended_ns is not None and min(limits) == limits[0]
            self._close(row, min(limits), "ended" if ended else "taken")

    def _others(self, row: Row) -> list[LiveCall]:
        ends = (row.stream.source, row.stream.destination)
        calls = {call.id: call for end in ends for call, _ in self._association.at(end)}
        return [call for call in calls.values() if call is not row.call]

    def _takes(self, row: Row, call: LiveCall, other: LiveCall) -> list[int]:
        """The time at which another call took this row's addresses over, if it did."""
        theirs = self._named(row, other)
        needed = 2 if row.score == BOTH else 1
        if len({binding.endpoint for binding in theirs}) < needed:
            return []
        since_ns = min(binding.since_ns for binding in theirs)
        if max(binding.since_ns for binding in theirs) <= row.stream.time_ns:
            return []
        if call.ended_ns is not None:
            return [max(since_ns, row.stream.time_ns)] if call.ended_ns <= since_ns else []
        # No BYE was heard. Calls may well share addresses at the same time, told apart by SSRC;
        # but a stream that had ended before the other call began was this call's last.
        ours = self._named(row, call)
        rival = any(
            supersedes(new, old) for new in theirs for old in ours if new.endpoint == old.endpoint
        )
        return [since_ns] if rival and self._was_silent(row, since_ns) else []

    def _was_silent(self, row: Row, time_ns: int) -> bool:
        """Whether a stream had ended by then; False where media has not got that far."""
        last_ns = self._totals(row.stream.row).last_ns
        known = time_ns - self.heard_ns < KNOWN_NS
        # An RTCP BYE says at once what silence says after a while, unless RTP belies it.
        wait_ns = 0 if row.bye_ns is not None and last_ns <= row.bye_ns else SILENT_NS
        return known and 0 < last_ns < min(self.heard_ns, time_ns) - wait_ns

    def _named(self, row: Row, call: LiveCall) -> list[Binding]:
        ends = (row.stream.source, row.stream.destination)
        return [
            binding for end in ends for other, binding in self._association.at(end) if other is call
        ]

    def _close(self, row: Row, at_ns: int, why: str) -> None:
        if row.closed_ns is None or at_ns < row.closed_ns:
            row.closed_ns = at_ns
            self._witness.decided(
                Decision.CLOSED, row.call, row=row.stream.row, at_ns=at_ns, why=why
            )
            self.commands.append(Close(row.stream.row, at_ns))

    def _release(self, number: int) -> None:
        row = self._rows[number]
        for sharer in self.sharers(number):
            sharer.refresh(self._totals)
            sharer.rows = [None if other == number else other for other in sharer.rows]
        self._remove(row.stream.row)
        self.released.append(number)

    def _remove(self, number: int) -> None:
        row = self._rows.pop(number)
        self._adopted(row)
        stream = row.stream
        for index, key in (
            (self._by_source, (stream.source, stream.ssrc)),
            (self._by_target, (stream.destination, stream.ssrc)),
        ):
            if index.get(key) is row:
                del index[key]
        for endpoint in (row.stream.source, row.stream.destination):
            rows = self._by_endpoint.get(endpoint, {})
            rows.pop(number, None)
            if not rows:
                self._by_endpoint.pop(endpoint, None)

    # --- a call whose SDP was never heard ---------------------------------------------------

    def _adopted(self, row: Row) -> None:
        """The row is no orphan any more."""
        if self._orphans.pop(row.stream.row, None) is not None:
            rows = self._between[_hosts(row.stream)]
            del rows[row.stream.row]
            if not rows:
                del self._between[_hosts(row.stream)]

    def _lived_with(self, call: LiveCall, row: Row) -> bool:
        last_ns = self._totals(row.stream.row).last_ns or row.stream.time_ns
        if call.ended_ns is None:
            return last_ns >= call.heard_ns - MIDCALL_NS
        return abs(last_ns - call.ended_ns) <= max(MIDCALL_NS, self._grace_ns)


def _hosts(stream: NewStream) -> tuple[bytes, bytes]:
    return stream.source.address, stream.destination.address


def _by_host(call: LiveCall, speaker: Party) -> Match:
    return Match(call, speaker, SOURCE, None, None)


def _add_stream(match: Match, row: Row) -> Codec | None:
    """List the stream in the match's call. Returns what its first payload type means, if known."""
    heard = row.stream
    codecs: dict[int, Codec] = {}
    # RFC 3264 §5.1: the receiver's description says what payload types mean to it.
    for binding in (match.from_, match.to):
        codecs |= binding.codecs if binding else {}
    if heard.payload_type in STATIC:
        codecs.setdefault(heard.payload_type, STATIC[heard.payload_type])
    named = match.to or match.from_
    guess = "video" if heard.payload_type in VIDEO_STATIC else "audio"
    match.call.streams.append(
        Stream(
            number=len(match.call.streams),
            party=match.speaker,
            media=named.kind if named else guess,  # type: ignore[arg-type]
            ssrc=heard.ssrc,
            source=str(heard.source),
            destination=str(heard.destination),
            codecs=codecs,
            first_ns=heard.time_ns,
            last_ns=heard.time_ns,
        )
    )
    match.call.rows.append(heard.row)
    return codecs.get(heard.payload_type)


def _differ(one: Codec | None, other: Codec | None) -> bool:
    """Whether two meanings of a payload type sound different."""
    if one is None or other is None:
        return False
    return (one.name.lower(), one.clock_rate) != (other.name.lower(), other.clock_rate)
