"""Streams and their calls: attach at once or later, share between two legs, release at the end.

A stream nobody claims is remembered for a while, since RTP may precede its SDP or the capture may
have begun in the middle of the call. If none comes it may be kept without signalling, and still be
taken over by a call that does.
Which call a stream fits: capture.calls.association. Until when it is that call's:
capture.calls.tenure. What is kept without signalling: capture.calls.orphans, capture.calls.joining.
"""

from collections.abc import Callable, Iterator
from typing import Final

from capture.calls.association import BOTH, OTHER, SOURCE, Association, Match
from capture.calls.byhosts import ByHosts
from capture.calls.forwarded import forwarded
from capture.calls.joining import MAX_STREAMS, Joining, in_its_midst
from capture.calls.listing import add_stream, differ, guess
from capture.calls.livecall import Binding, LiveCall
from capture.calls.orphans import Orphans
from capture.calls.rows import Row, Rows
from capture.calls.tenure import Tenure
from capture.calls.witness import SILENT, Decision, Witness
from capture.media.events import kinds_of
from capture.model import Attach, Close, Contest, Endpoint, NewStream, Overdue, StreamTotals
from spanvault.media.payloadtypes import is_event
from spanvault.messages import Codec

MAX_ORPHANS: Final = 32_768  # no less than media holds


class Attachments:
    """All streams that media has told of, and what calls make of them."""

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
        self._released: list[int] = []
        self._association, self._kept = association, orphans
        self._totals, self._patience_ns = totals, patience_ns
        self._count, self._witness = count, witness
        self._rows = Rows()
        self._tenure = Tenure(self._rows, association, totals, grace_ns, witness)
        self._joining = Joining(self._rows, association, self._tenure, patience_ns, count, witness)
        self._by_hosts = ByHosts(self._rows, totals, witness)
        self._changed = self._joining.changed  # calls that won a stream or changed one

    def counted(self, now_ns: int) -> int:
        """totals count all media before this time. Returns how much passed since last told."""
        passed_ns = now_ns - self._tenure.heard_ns
        self._tenure.heard_ns = now_ns
        return passed_ns

    def commands(self) -> list[Attach | Close | Contest]:
        """What media is to do, since last asked."""
        commands, self._tenure.commands = self._tenure.commands, []
        return commands

    def released(self) -> list[int]:
        """Rows that media may forget, since last asked."""
        rows, self._released = self._released, []
        return rows

    def changed(self) -> list[bytes]:
        """Calls that won a stream or changed one, since last asked."""
        ids = list(self._changed)
        self._changed.clear()
        return ids

    def opened(self, stream: NewStream) -> None:
        """Media heard a stream for the first time."""
        self._rows.remove(stream.row)
        self._tenure.turned_over(stream)
        row = self._rows.add(stream)
        matches = self._association.matches(stream)
        self._witness.decided(Decision.OPENED, stream=stream, attached=bool(matches))
        if matches:
            self._attach(row, matches)
            return
        self._rows.enlist(row)
        if (kept := self._kept.going_on(stream)) is not None:
            self._keep(row, kept)
            return
        row.after = self._behind(stream)
        unclaimed = self._rows.unclaimed
        unclaimed[stream.row] = row
        if len(unclaimed) > MAX_ORPHANS:
            oldest = next(iter(unclaimed))
            self._witness.decided(Decision.UNCLAIMED, row=oldest)
            self._release(oldest)
            self._count("streams_unmatched_evicted")

    def bound(self, call: LiveCall, endpoint: Endpoint, time_ns: int) -> None:
        """A call named an endpoint, or named it anew: see what is already heard there."""
        for row in self._rows.at(endpoint):
            if row.call is None:
                self._claim(row)
            elif row.call is call:
                self._recode(row, time_ns)
            elif row.unsignalled:
                self._joining.reclaim(row, call)
            elif row.closed_ns is None or row.closed_ns > time_ns:
                self._contend(row, call)  # also within the grace behind its own call's end
        for row in self._behind_nat(call, endpoint):
            self._tenure.contest(row, call)

    def _behind_nat(self, call: LiveCall, endpoint: Endpoint) -> Iterator[Row]:
        """The rows at a call's other ends to which this end may belong, though they lack it."""
        ends = {binding.endpoint for binding in call.bindings} - {endpoint}
        for row in (row for end in ends for row in self._rows.at(end)):
            if row.call not in (None, call) and row.score != BOTH and row.closed_ns is None:
                yield row

    def ended(self, call: LiveCall) -> None:
        """The call ended, or its end became known anew: its rows close after the grace."""
        for number in call.rows:
            row = self._rows.get(number)
            if row is not None and row.call is call:
                self._tenure.settle(row)

    def claim_hosts(self, call: LiveCall, now_ns: int, last: bool) -> None:
        """A call whose SDP was never heard takes the only streams between its two hosts.

        now_ns: up to when media was heard.  last: the call will not ask again.
        """
        for row, match in self._by_hosts.claims(call, now_ns, last):
            self._take(row, match)

    def finish(self, call: LiveCall) -> None:
        """The call is final: its rows are released, those it shares keep their last totals."""
        call.refresh(self._totals)
        for index, number in enumerate(call.rows):
            row = self._rows.get(number)
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
        if (call := self._all_the_same(row)) is not None:
            return call
        call = self._kept.admit(row.stream, heard)
        if call is not None:
            row.stream = row.stream._replace(time_ns=heard.held_ns, timestamp=None)
            self._witness.decided(Decision.KEPT, call, row=heard.row)
            self._keep(row, call)
            if row.after:
                call.relate("continued", row.after)
        return call

    def _all_the_same(self, row: Row) -> LiveCall | None:
        """The call between whose ends it is heard, though RTP was not to be there any more.

        It has proved to be RTP by now, and no T.38: some go on talking while they negotiate a fax.
        """
        given_up = self._association.matches(row.stream, given_up=True)
        matches = [match for match in given_up if match.score == BOTH]
        if matches:
            self._attach(row, matches[:1])
        return row.call

    def expire(self, now_ns: int) -> None:
        """Release streams that nobody claimed and that are silent."""
        for number, row in list(self._rows.unclaimed.items()):
            last_ns = self._totals(number).last_ns or row.stream.time_ns
            if abs(now_ns - last_ns) > self._patience_ns:
                self._witness.decided(Decision.UNCLAIMED, row=number)
                self._release(number)
                self._count("streams_unmatched")

    def speaking(self, ssrc: int, source: Endpoint, destination: Endpoint) -> Row | None:
        """The newest stream of an SSRC between the ends of which RTCP goes between these."""
        ends = self._association.media_ends
        return self._rows.speaking(ssrc, ends(source), ends(destination))

    # --- attaching --------------------------------------------------------------------------

    def _claim(self, row: Row) -> None:
        matches = self._association.matches(row.stream)
        last_ns = self._totals(row.stream.row).last_ns or row.stream.time_ns
        if not matches or last_ns < matches[0].since_ns - self._patience_ns:
            return
        if self._association.given_up(matches[0], row.stream) and last_ns < matches[0].since_ns:
            return  # of the time when T.38 went there
        if row.after and not in_its_midst(matches[0]):
            # What goes on behind one call's end is not the next one's, until that began.
            self._tenure.close(row, max(matches[0].since_ns, row.stream.time_ns), "taken")
        else:
            self._attach(row, matches)

    def _attach(self, row: Row, matches: list[Match]) -> None:
        """Give the row to the first match's call, and to all that share it."""
        self._hold(row, matches[0])
        self._rows.unlist(row)
        for other in matches[1:]:
            self._share(row, other)
        self._relate_forwarded(row)
        for kept in self._kept.between(row.stream):
            self._joining.join(kept, matches[0], row.stream)
        self._tenure.settle(row)
        if row.closed_ns is None:
            for newer in self._tenure.others(row):
                self._tenure.contest(row, newer)  # signalling may have run ahead of it

    def _hold(self, row: Row, first: Match) -> None:
        if len(first.call.streams) >= MAX_STREAMS:
            self._count("streams_over_limit")
            self._witness.decided(Decision.REFUSED, first.call, row=row.stream.row)
            return
        self._rows.unclaimed.pop(row.stream.row, None)
        row.call, row.score, row.number = first.call, first.score, len(first.call.streams)
        add_stream(first, row.stream)
        self._witness.decided(Decision.ATTACHED, first.call, row=row.stream.row, match=first)
        self._command(row, first.call)
        self._changed.add(first.call.id)

    def _command(self, row: Row, call: LiveCall) -> None:
        """Have media put the stream where it belongs, by what its payload types mean now."""
        stream = call.streams[row.number]
        codec = stream.codecs.get(row.stream.payload_type)
        bindings = [binding for end in row.ends for _, binding in self._association.at(end)]
        events = {
            number
            for binding in bindings
            for number, meant in binding.codecs.items()
            if is_event(meant)
        }
        kinds = kinds_of(stream.codecs, events, secure=call.secure)
        clock_rate = codec.clock_rate if codec else 0
        # Who it is that speaks without signalling may turn out later, and that it is encrypted.
        whole = call.secure or bool(call.keys) or row.unsignalled or stream.orientation > 0
        call.slow |= row.stream.slow
        self._tenure.commands.append(
            Attach(row.stream.row, call.id, row.number, clock_rate, kinds, whole, call.clock_ns)
        )

    def _share(self, row: Row, match: Match) -> None:
        """Another call has part in the stream: it is stored once and listed by both."""
        call, owner = match.call, row.call
        if owner is None or row.stream.row in call.rows or len(call.streams) >= MAX_STREAMS:
            return
        add_stream(match, row.stream)
        self._witness.decided(Decision.SHARED, call, row=row.stream.row, match=match)
        call.streams[-1].stored_in, call.streams[-1].stored_as = owner.id, row.number
        row.sharers.append(call)
        call.relate("b2bua", owner.call_id)
        owner.relate("b2bua", call.call_id)
        self._changed |= {call.id, owner.id}

    def _relate_forwarded(self, row: Row) -> None:
        """What a B2BUA hands on unchanged tells of two legs, whatever else it hides of them."""
        call = row.call
        for other in forwarded(row, self._rows.of_ssrc(row.stream.ssrc)):
            if call is None or not call.relate("b2bua", other.call_id):
                continue
            other.relate("b2bua", call.call_id)
            self._witness.decided(Decision.RELATED, call, kind="b2bua", call_id=other.call_id)
            self._changed |= {call.id, other.id}

    def _recode(self, row: Row, time_ns: int) -> None:
        """The call renegotiated: a payload type that now means something else ends the stream."""
        call = row.call
        if call is None or row.number >= len(call.streams):
            return
        stream = call.streams[row.number]
        meant: dict[int, Codec] = {}
        for endpoint in row.ends:
            for other, binding in self._association.at(endpoint):
                if other is call:
                    meant |= binding.codecs
        heard = self._totals(row.stream.row).payload_types or {row.stream.payload_type: 0}
        if any(differ(stream.codecs.get(number), meant.get(number)) for number in heard):
            self._tenure.close(row, time_ns, "recoded")
        else:
            stream.codecs = {**meant, **stream.codecs}
            self._command(row, call)

    def _contend(self, row: Row, newer: LiveCall) -> None:
        """Another call names an end of an attached stream: takes it, shares it, or neither."""
        self._tenure.settle(row)
        if row.closed_ns is not None:
            self._tenure.contest(row, newer)  # its call is over: what comes may be late, or new
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
            self._tenure.contest(row, newer)
        elif row.score == SOURCE:
            # It hung by one end only; what comes from now on belongs where both ends fit.
            self._tenure.close(row, max(match.latest_ns, row.stream.time_ns), "moved")
        else:
            self._share(row, match)

    # --- RTP without signalling -----------------------------------------------------------------

    def _keep(self, row: Row, call: LiveCall) -> None:
        """Record a stream that no call has claimed."""
        self._hold(row, Match(call, "unknown", SOURCE, None, None))
        self._tenure.settle(row)

    def _take(self, row: Row, match: Match) -> None:
        """Give a call a stream that has no signalling, be it kept already or not."""
        if row.call is None:
            self._attach(row, [match])
            return
        # Nothing but its hosts is known of the call: what goes on would be nobody's again.
        for end, party in zip(row.ends, (match.speaker, OTHER[match.speaker]), strict=True):
            kind = guess(row.stream.payload_type)
            binding = Binding(end, party, kind, {}, row.call.started_ns, b"")
            self._association.bind(match.call, binding)
        self._joining.join(row.call, match, row.stream)

    def _behind(self, stream: NewStream) -> str:
        """The call behind whose end a stream goes on as it was."""
        for row in self._rows.at(stream.source):
            same = row.stream[2:5] == stream[2:5]
            if same and row.call is not None and row.call.over and not row.unsignalled:
                return row.call.name
        return ""

    def _release(self, number: int) -> None:
        row = self._rows.remove(number)
        for sharer in row.sharers if row else ():
            sharer.refresh(self._totals)
            sharer.rows = [None if other == number else other for other in sharer.rows]
        self._released.append(number)
