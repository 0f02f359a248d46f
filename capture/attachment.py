"""Streams and their calls: attach at once or later, share between two legs, close in time.

A stream nobody claims is remembered for a while, since RTP may precede its SDP or the capture may
have begun in the middle of the call. If none comes it may be kept without signalling, and still be
taken over by a call that does. A row is closed where its call ends or another call takes the same
addresses, so that the next call's media is not taken for its own.
Which call a stream fits: capture.association. What is kept without signalling: capture.orphans.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from capture.association import (
    BOTH,
    OTHER,
    SOURCE,
    Association,
    Match,
    met_in_its_midst,
    supersedes,
)
from capture.events import kinds_of
from capture.livecall import Binding, LiveCall
from capture.model import Attach, Close, Contest, Endpoint, NewStream, Overdue, StreamTotals
from capture.orphans import Orphans
from capture.witness import SILENT, Decision, Witness
from spanvault.chunk import CONTROL, EVENTS
from spanvault.messages import Codec, MediaKind, Party, Stream
from spanvault.payloadtypes import STATIC, VIDEO_STATIC, is_event

MAX_ORPHANS: Final = 32_768  # no less than media holds
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
    sharers: list[LiveCall] = field(default_factory=list)  # calls besides, that list it too
    contested: bool = False  # media looks whether a newer call has taken it over
    after: str = ""  # the call it went on behind, by Call-ID

    @property
    def unsignalled(self) -> bool:
        """Whether it is kept, but no call has claimed it."""
        return self.call is not None and self.call.ends is not None


class Attachments:
    """All rows that media has and we have not released."""

    def __init__(
        self,
        association: Association,
        orphans: Orphans,
        totals: Callable[[int], StreamTotals],
        patience_ns: int,
        grace_ns: int,
        count: Callable[[str], None],
        witness: Witness = SILENT,
    ) -> None:
        self.commands: list[Attach | Close | Contest] = []
        self.released: list[int] = []
        self.heard_ns = 0  # media before this has been counted in totals
        self.changed: set[bytes] = set()  # calls that won a stream or changed one
        self._association, self._kept = association, orphans
        self._totals = totals
        self._patience_ns, self._grace_ns = patience_ns, grace_ns
        self._count, self._witness = count, witness
        self._rows: dict[int, Row] = {}
        self._orphans: OrderedDict[int, Row] = OrderedDict()
        # Those that no call has claimed, kept or not, by hosts.
        self._between: dict[tuple[bytes, bytes], dict[int, Row]] = {}
        self._by_endpoint: dict[Endpoint, dict[int, Row]] = {}
        self._by_source: dict[tuple[Endpoint, int], Row] = {}  # the newest of an SSRC from there
        self._by_target: dict[tuple[Endpoint, int], Row] = {}

    def opened(self, stream: NewStream) -> None:
        """Media heard a stream for the first time."""
        if stream.row in self._rows:
            self._remove(stream.row)
        row = self._rows[stream.row] = Row(stream)
        self._turned_over(stream)
        for endpoint in (stream.source, stream.destination):
            self._by_endpoint.setdefault(endpoint, {})[stream.row] = row
        self._by_source[stream.source, stream.ssrc] = row
        self._by_target[stream.destination, stream.ssrc] = row
        matches = self._association.matches(stream)
        self._witness.decided(Decision.OPENED, stream=stream, attached=bool(matches))
        if matches:
            self._attach(row, matches)
            return
        self._between.setdefault(_hosts(stream), {})[stream.row] = row
        if (kept := self._kept.going_on(stream)) is not None:
            self._keep(row, kept)
            return
        row.after = self._behind(stream)
        self._orphans[stream.row] = row
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
            elif row.unsignalled:
                self._reclaim(row, call)
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
            rows = [row for row in rows if row.call is None or not row.call.over]
            if len(rows) > MAX_COMPARED and not last:
                continue  # a trunk between two switches: looked at once, when there is more to know
            rows = [row for row in rows if self._lived_with(call, row)]
            if len(rows) == 1:
                self._take(rows[0], _by_host(call, speaker))
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

    def overdue(self, heard: Overdue) -> LiveCall | None:
        """What media holds of an unclaimed stream is about to go: keep it, where there is room.

        Returns the recording that it is in now, which may be a new one.
        """
        row = self._rows.get(heard.row)
        if row is None or row.call is not None:
            return None
        call = self._kept.admit(row.stream, heard)
        if call is not None:
            row.stream = row.stream._replace(time_ns=heard.held_ns)
            self._witness.decided(Decision.KEPT, call, row=heard.row)
            self._keep(row, call)
            if row.after:
                call.relate("continued", row.after)
        return call

    def expire(self, now_ns: int) -> None:
        """Release streams that nobody claimed and that are silent."""
        for number, row in list(self._orphans.items()):
            last_ns = self._totals(number).last_ns or row.stream.time_ns
            if abs(now_ns - last_ns) > self._patience_ns:
                self._witness.decided(Decision.UNCLAIMED, row=number)
                self._release(number)
                self._count("streams_unmatched")

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
        if not matches or last_ns < matches[0].since_ns - self._patience_ns:
            return
        if row.after and not _in_its_midst(matches[0]):
            # What goes on behind one call's end is not the next one's, until that began.
            self._close(row, max(matches[0].since_ns, row.stream.time_ns), "taken")
        else:
            self._attach(row, matches)

    def _attach(self, row: Row, matches: list[Match]) -> None:
        """Give the row to the first match's call, and to all that share it."""
        self._hold(row, matches[0])
        self._unlist(row)
        for other in matches[1:]:
            self._share(row, other)
        for kept in self._kept.between(row.stream):
            self._join(kept, matches[0], row.stream)
        self._settle(row)
        if row.closed_ns is None:
            for newer in self._others(row):
                self._contest(row, newer)  # signalling may have run ahead of it

    def _hold(self, row: Row, first: Match) -> None:
        if len(first.call.streams) >= MAX_STREAMS:
            self._count("streams_over_limit")
            self._witness.decided(Decision.REFUSED, first.call, row=row.stream.row)
            return
        self._orphans.pop(row.stream.row, None)
        row.call, row.score, row.number = first.call, first.score, len(first.call.streams)
        _add_stream(first, row)
        self._witness.decided(Decision.ATTACHED, first.call, row=row.stream.row, match=first)
        self._command(row, first.call)
        self.changed.add(first.call.id)

    def _command(self, row: Row, call: LiveCall) -> None:
        """Have media put the stream where it belongs, by what its payload types mean now."""
        stream, ends = call.streams[row.number], (row.stream.source, row.stream.destination)
        codec = stream.codecs.get(row.stream.payload_type)
        bindings = [binding for end in ends for _, binding in self._association.at(end)]
        events = {
            number
            for binding in bindings
            for number, meant in binding.codecs.items()
            if is_event(meant)
        }
        kinds = kinds_of(stream.codecs, events, secure=call.secure)
        clock_rate = codec.clock_rate if codec else 0
        self.commands.append(Attach(row.stream.row, call.id, row.number, clock_rate, kinds))

    def _share(self, row: Row, match: Match) -> None:
        """Another call has part in the stream: it is stored once and listed by both."""
        call, owner = match.call, row.call
        if owner is None or row.stream.row in call.rows or len(call.streams) >= MAX_STREAMS:
            return
        _add_stream(match, row)
        self._witness.decided(Decision.SHARED, call, row=row.stream.row, match=match)
        call.streams[-1].stored_in, call.streams[-1].stored_as = owner.id, row.number
        row.sharers.append(call)
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
            self._command(row, call)

    # --- RTP without signalling -----------------------------------------------------------------

    def _keep(self, row: Row, call: LiveCall) -> None:
        """Record a stream that no call has claimed."""
        self._hold(row, Match(call, "unknown", SOURCE, None, None))
        self._settle(row)

    def _take(self, row: Row, match: Match) -> None:
        """Give a call a stream that has no signalling, be it kept already or not."""
        if row.call is None:
            self._attach(row, [match])
        else:
            # Nothing but its hosts is known of the call: what goes on would be nobody's again.
            for end, party in (
                (row.stream.source, match.speaker),
                (row.stream.destination, OTHER[match.speaker]),
            ):
                kind = _guess(row.stream.payload_type)
                binding = Binding(end, party, kind, {}, row.call.started_ns, b"")
                self._association.bind(match.call, binding)
            self._join(row.call, match, row.stream)

    def _reclaim(self, row: Row, call: LiveCall) -> None:
        """A call names an end of a stream that is kept without signalling."""
        kept = row.call
        assert kept is not None
        for match in self._association.matches(row.stream):
            self._join(kept, match, row.stream)
        if kept.over or row.closed_ns is not None:
            return
        # It began long before the call did. If it had fallen silent, what comes now is the call's.
        now = row.stream._replace(time_ns=call.heard_ns)
        for match in self._association.matches(now)[:1]:
            if self._was_silent(row, match.since_ns):
                self._close(row, match.since_ns, "taken")

    def _join(self, kept: LiveCall, match: Match, stream: NewStream) -> None:
        """A call turns out to be what was kept without signalling: it lists what is stored there.

        What is heard from now on is its own. stream: the one that the match is about.
        """
        call, at_ns = match.call, match.call.heard_ns
        if not self._explains(match, kept) or any(one.stored_in == kept.id for one in call.streams):
            return
        for known, number in list(zip(kept.streams, kept.rows, strict=True)):
            if len(call.streams) >= MAX_STREAMS:
                break
            there = known.source == str(stream.source)
            party = match.speaker if there else OTHER[match.speaker]
            call.streams.append(_as_joined(known, kept, len(call.streams), party, match))
            call.rows.append(number)
            for at in (EVENTS, CONTROL):
                if (beside := kept.beside.get(known.number + at)) is not None:
                    heard = beside.packets, beside.first_ns, beside.last_ns
                    call.put_beside(call.streams[-1], at, *heard)
            row = self._rows.get(number) if number is not None else None
            if row is not None:
                row.sharers.append(call)
                self._close(row, at_ns, "joined")
        kept.dialog.stop(at_ns, "joined")
        kept.expires_ns = None
        kept.relate("joined", call.name)
        call.relate("joined", kept.name)
        self._witness.decided(Decision.JOINED, call, kept=kept, match=match)
        self._count("orphans_joined")
        self.changed |= {kept.id, call.id}

    def _explains(self, match: Match, kept: LiveCall) -> bool:
        """Whether the call was there already when the recording without signalling began."""
        call = match.call
        if kept.over and kept.dialog.end_reason != "joined":
            return call.started_ns <= kept.started_ns
        if (match.to is None and match.from_ is None) or _in_its_midst(match):
            return True
        behind = any(other.kind == "continued" for other in kept.related)
        return not behind and kept.started_ns >= match.since_ns - self._patience_ns

    def _behind(self, stream: NewStream) -> str:
        """The call behind whose end a stream goes on as it was."""
        for row in self._by_endpoint[stream.source].values():
            same = row.stream[2:5] == stream[2:5]
            if same and row.call is not None and row.call.over and not row.unsignalled:
                return row.call.name
        return ""

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
            self._contest(row, newer)
        elif row.score == SOURCE:
            # It hung by one end only; what comes from now on belongs where both ends fit.
            self._close(row, max(match.latest_ns, row.stream.time_ns), "moved")
        else:
            self._share(row, match)

    def _contest(self, row: Row, newer: LiveCall) -> None:
        """Both ends were given to a newer call by who had given them to this one: BYE was missed.

        Unless calls are known to share these ends, told apart by SSRC. When it was is the media's
        to tell: one SSRC may go on from call to call.
        """
        call = row.call
        if call is None or row.score != BOTH or self._sharing(row):
            return
        ours, theirs = self._named(row, call), self._named(row, newer)
        taken = {
            new.endpoint
            for new in theirs
            for old in ours
            if new.endpoint == old.endpoint and supersedes(new, old)
        }
        one_call = any(
            other.kind in ("b2bua", "fork") and other.call_id == call.name
            for other in newer.related
        )
        if len(taken) == 2 and not one_call:
            since_ns = [binding.since_ns for binding in theirs]
            row.contested = True
            self.commands.append(Contest(row.stream.row, min(since_ns), max(since_ns)))

    def _sharing(self, row: Row) -> bool:
        """Whether another call has been heard between the same ends meanwhile."""
        last_ns = self._totals(row.stream.row).last_ns
        return any(
            other.call not in (None, row.call)
            and other.stream[2:4] == row.stream[2:4]
            and other.stream.time_ns < last_ns
            and self._totals(other.stream.row).last_ns > row.stream.time_ns
            for other in self._by_endpoint[row.stream.source].values()
        )

    def _turned_over(self, stream: NewStream) -> None:
        """Media found that a contested row had ended, and what goes on is this stream."""
        before = self._by_source.get((stream.source, stream.ssrc))
        if before is None or not before.contested or before.closed_ns is not None:
            return
        before.closed_ns = at_ns = stream.time_ns - 1
        self._witness.decided(
            Decision.CLOSED, before.call, row=before.stream.row, at_ns=at_ns, why="taken"
        )

    def _settle(self, row: Row) -> None:
        """Close the row at the time that is now known to be its call's last."""
        call = row.call
        if call is None:
            return
        until_ns = call.media_until_ns
        limits = [until_ns + self._grace_ns] if until_ns is not None else []
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
        for sharer in row.sharers:
            sharer.refresh(self._totals)
            sharer.rows = [None if other == number else other for other in sharer.rows]
        self._remove(row.stream.row)
        self.released.append(number)

    def _remove(self, number: int) -> None:
        row = self._rows.pop(number)
        self._orphans.pop(number, None)
        self._unlist(row)
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

    def _unlist(self, row: Row) -> None:
        """The row is not to be claimed by its hosts any more."""
        rows = self._between.get(_hosts(row.stream), {})
        rows.pop(row.stream.row, None)
        if not rows:
            self._between.pop(_hosts(row.stream), None)

    def _lived_with(self, call: LiveCall, row: Row) -> bool:
        last_ns = self._totals(row.stream.row).last_ns or row.stream.time_ns
        if call.ended_ns is None:
            return last_ns >= call.heard_ns - MIDCALL_NS
        return abs(last_ns - call.ended_ns) <= max(MIDCALL_NS, self._grace_ns)


def _hosts(stream: NewStream) -> tuple[bytes, bytes]:
    return stream.source.address, stream.destination.address


def _in_its_midst(match: Match) -> bool:
    """Whether the call's media may be older than what is known of it."""
    return any(
        met_in_its_midst(match.call, one) for one in (match.to, match.from_) if one is not None
    )


def _by_host(call: LiveCall, speaker: Party) -> Match:
    return Match(call, speaker, SOURCE, None, None)


def _add_stream(match: Match, row: Row) -> None:
    """List the stream in the match's call."""
    heard = row.stream
    codecs: dict[int, Codec] = {}
    # RFC 3264 §5.1: the receiver's description says what payload types mean to it.
    for binding in (match.from_, match.to):
        codecs |= binding.codecs if binding else {}
    if heard.payload_type in STATIC:
        codecs.setdefault(heard.payload_type, STATIC[heard.payload_type])
    named = match.to or match.from_
    match.call.streams.append(
        Stream(
            number=len(match.call.streams),
            party=match.speaker,
            media=named.kind if named else _guess(heard.payload_type),
            ssrc=heard.ssrc,
            source=str(heard.source),
            destination=str(heard.destination),
            codecs=codecs,
            first_ns=heard.time_ns,
            last_ns=heard.time_ns,
        )
    )
    match.call.rows.append(heard.row)


def _guess(payload_type: int) -> MediaKind:
    """What a stream is of which nothing but its packets is known."""
    return "video" if payload_type in VIDEO_STATIC else "audio"


def _as_joined(known: Stream, kept: LiveCall, number: int, party: Party, match: Match) -> Stream:
    """A stream of a recording without signalling, as the call that it was lists it."""
    codecs: dict[int, Codec] = {}
    for binding in (match.from_, match.to):
        codecs |= binding.codecs if binding else {}
    named = match.to or match.from_
    return replace(
        known, number=number, party=party, codecs={**known.codecs, **codecs},
        media=named.kind if named else known.media,
        payload_types=dict(known.payload_types), stored_in=kept.id, stored_as=known.number,
    )  # fmt: skip


def _differ(one: Codec | None, other: Codec | None) -> bool:
    """Whether two meanings of a payload type sound different."""
    if one is None or other is None:
        return False
    return (one.name.lower(), one.clock_rate) != (other.name.lower(), other.clock_rate)
