"""Until when a stream is its call's: to the call's end, or till another takes its addresses over.

Where a BYE was heard that is a matter of times. Where it was missed, the newer call's offer and
answer tell, and silence, or the media itself (capture.media.turnover), decides. A row is closed at
a time, so that the next call's media is not taken for its own. Which call a stream fits at first:
capture.calls.attachment.
"""

from collections.abc import Callable
from typing import Final

from capture.calls.association import BOTH, Association, supersedes
from capture.calls.livecall import Binding, LiveCall
from capture.calls.rows import Row, Rows
from capture.calls.witness import Decision, Witness
from capture.model import Attach, Close, Contest, NewStream, StreamTotals

SILENT_NS: Final = 1_000_000_000
KNOWN_NS: Final = 5_000_000_000  # signalling may run ahead of media by a block, not by more


class Tenure:
    """Closes rows in time. commands: what media is to do."""

    def __init__(
        self,
        rows: Rows,
        association: Association,
        totals: Callable[[int], StreamTotals],
        grace_ns: int,
        witness: Witness,
    ) -> None:
        self.commands: list[Attach | Close | Contest] = []
        self.heard_ns = 0  # media before this has been counted in totals
        self._rows, self._association, self._totals = rows, association, totals
        self._grace_ns, self._witness = grace_ns, witness

    def settle(self, row: Row) -> None:
        """Close the row at the time that is now known to be its call's last."""
        call = row.call
        if call is None:
            return
        until_ns = call.media_until_ns
        limits = [until_ns + self._grace_ns] if until_ns is not None else []
        limits += [since for other in self.others(row) for since in self._takes(row, call, other)]
        if limits:
            ended = call.ended_ns is not None and min(limits) == limits[0]
            self.close(row, min(limits), "ended" if ended else "taken")

    def close(self, row: Row, at_ns: int, why: str) -> None:
        """The row ends at a time, if it has not by then."""
        if row.closed_ns is None or at_ns < row.closed_ns:
            row.closed_ns = at_ns
            self._witness.decided(
                Decision.CLOSED, row.call, row=row.stream.row, at_ns=at_ns, why=why
            )
            self.commands.append(Close(row.stream.row, at_ns))

    def contest(self, row: Row, newer: LiveCall) -> None:
        """Both ends were given to a newer call by who had given them to this one: BYE was missed.

        Unless calls are known to share these ends, told apart by SSRC. When it was is the media's
        to tell: one SSRC may go on from call to call.
        """
        call = row.call
        if call is None or self._sharing(row):
            return
        taken = self._taken(row, call, newer)
        one_call = any(
            other.kind in ("b2bua", "fork") and other.call_id == call.name
            for other in newer.related
        )
        if taken and not one_call:
            since_ns = [binding.since_ns for binding in taken]
            row.contested = True
            self.commands.append(Contest(row.stream.row, min(since_ns), max(since_ns)))

    def turned_over(self, stream: NewStream) -> None:
        """Media found that a contested row had ended, and what goes on is this stream."""
        before = self._rows.before(stream)
        if before is None or not before.contested or before.closed_ns is not None:
            return
        before.closed_ns = at_ns = stream.time_ns - 1
        self._witness.decided(
            Decision.CLOSED, before.call, row=before.stream.row, at_ns=at_ns, why="taken"
        )

    def others(self, row: Row) -> list[LiveCall]:
        """All other calls that name an end of it."""
        calls = {call.id: call for end in row.ends for call, _ in self._association.at(end)}
        return [call for call in calls.values() if call is not row.call]

    def was_silent(self, row: Row, time_ns: int) -> bool:
        """Whether a stream had ended by then; False where media has not got that far."""
        last_ns = self._totals(row.stream.row).last_ns
        known = time_ns - self.heard_ns < KNOWN_NS
        # An RTCP BYE says at once what silence says after a while, unless RTP belies it.
        wait_ns = 0 if row.bye_ns is not None and last_ns <= row.bye_ns else SILENT_NS
        return known and 0 < last_ns < min(self.heard_ns, time_ns) - wait_ns

    def _taken(self, row: Row, call: LiveCall, newer: LiveCall) -> list[Binding]:
        """By what a newer call took both ends of a row over; nothing, if it did not.

        Behind NAT one end is another than was said: then what was said must be the same again.
        """
        ours, theirs = self._named(row, call), self._named(row, newer)
        if row.score != BOTH and theirs:
            kinds = {binding.kind for binding in ours}
            ours = [each for each in call.bindings if each.kind in kinds]
            theirs = [each for each in newer.bindings if each.kind in kinds]
        pairs = [
            (new, old)
            for new in theirs
            for old in ours
            if new.endpoint == old.endpoint and supersedes(new, old)
        ]
        both = {old.party for _, old in pairs} >= {"caller", "callee"}
        behind = [new for new, _ in pairs if _behind(call, new)]
        return [new for new, _ in pairs] if both else behind

    def _sharing(self, row: Row) -> bool:
        """Whether another call has been heard between the same ends meanwhile."""
        last_ns = self._totals(row.stream.row).last_ns
        return any(
            other.call not in (None, row.call)
            and other.ends == row.ends
            and other.stream.time_ns < last_ns
            and self._totals(other.stream.row).last_ns > row.stream.time_ns
            for other in self._rows.at(row.stream.source)
        )

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
        if not rival or not self.was_silent(row, since_ns) or self._goes_on(row, call, since_ns):
            return []
        return [since_ns]

    def _goes_on(self, row: Row, call: LiveCall, since_ns: int) -> bool:
        """Whether others of a call's streams were heard since: then silence alone says nothing.

        Only where both ends are named, since the media itself is asked about such: see contest.
        """
        others = [self._rows.get(number) for number in call.rows if number != row.stream.row]
        return row.score == BOTH and any(
            other is not None
            and other.closed_ns is None
            and self._totals(other.stream.row).last_ns > since_ns
            for other in others
        )

    def _named(self, row: Row, call: LiveCall) -> list[Binding]:
        return [
            binding
            for end in row.ends
            for other, binding in self._association.at(end)
            if other is call
        ]


def _behind(call: LiveCall, newer: Binding) -> bool:
    """Whether an end was named anew behind a call's end: then one end tells as much as both."""
    return call.ended_ns is not None and call.ended_ns <= newer.since_ns
