"""A call whose SDP was never heard takes the only streams between its two hosts.

Several at once cannot be told apart while they flow; when the call has ended, those that fell
silent with it can: what is heard on is another call's, be it the only one. None is taken where that
is not one per direction.
Calls whose SDP was heard: capture.calls.association.
"""

from collections.abc import Callable, Iterator
from typing import Final

from capture.calls.association import SOURCE, Match
from capture.calls.livecall import LiveCall
from capture.calls.rows import Row, Rows
from capture.calls.witness import Decision, Witness
from capture.model import StreamTotals
from spanvault.messages import Party

MAX_COMPARED: Final = 8
MIDCALL_NS: Final = 3_000_000_000  # RTP of a call ends so long before the call does, at most
BEHIND_NS: Final = 500_000_000  # and so long behind its BYE: the way to the other side and back


class ByHosts:
    """Finds the streams of calls that named no addresses."""

    def __init__(self, rows: Rows, totals: Callable[[int], StreamTotals], witness: Witness) -> None:
        self._rows, self._totals, self._witness = rows, totals, witness

    def claims(self, call: LiveCall, now_ns: int, last: bool) -> Iterator[tuple[Row, Match]]:
        """What the call may take, one after the other: taking one may give it the next.

        now_ns: up to when media was heard.  last: the call will not ask again.
        """
        if call.caller_host is None or call.callee_host is None:
            return
        if call.ended_ns is not None and now_ns <= call.ended_ns + BEHIND_NS and not last:
            return  # what falls silent with it is not told from what is another call's yet
        ways: tuple[tuple[bytes, bytes, Party], ...] = (
            (call.caller_host, call.callee_host, "caller"),
            (call.callee_host, call.caller_host, "callee"),
        )
        for host, peer, speaker in ways:
            if any(stream.party == speaker for stream in call.streams):
                continue
            rows = list(self._rows.between(host, peer))
            if len(rows) > MAX_COMPARED and not last:
                continue  # a trunk between two switches: looked at once, when there is more to know
            rows = [row for row in rows if self._lived_with(call, row)]
            if len(rows) == 1:
                yield rows[0], Match(call, speaker, SOURCE, None, None)
            elif rows and last:
                call.flags.add("ambiguous_media")
                self._witness.decided(Decision.AMBIGUOUS, call)

    def _lived_with(self, call: LiveCall, row: Row) -> bool:
        last_ns = self._totals(row.stream.row).last_ns or row.stream.time_ns
        if call.ended_ns is None:
            return last_ns >= call.heard_ns - MIDCALL_NS
        return -MIDCALL_NS <= last_ns - call.ended_ns <= BEHIND_NS
