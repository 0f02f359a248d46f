"""What is kept without signalling, and the call that it turns out to be.

A call that names the ends of such a recording takes it over if it can explain it: it was there
when the recording began, or had been met in its midst. It lists what is stored there, and what is
heard from then on is its own.
What is kept at all: capture.calls.orphans. Calls of which no SDP was heard: capture.calls.byhosts.
"""

from collections.abc import Callable
from typing import Final

from capture.calls.association import Association, Match, met_in_its_midst
from capture.calls.listing import add_joined
from capture.calls.livecall import LiveCall
from capture.calls.rows import Row, Rows
from capture.calls.tenure import Tenure
from capture.calls.witness import Decision, Witness
from capture.model import NewStream
from spanvault.media.chunk import CONTROL, EVENTS

MAX_STREAMS: Final = 1_024  # of one call; a sender that changes SSRC with each packet gets no more


class Joining:
    """Has calls take over what was kept. changed: calls that did, and what they took."""

    def __init__(
        self,
        rows: Rows,
        association: Association,
        tenure: Tenure,
        patience_ns: int,
        count: Callable[[str], None],
        witness: Witness,
    ) -> None:
        self.changed: set[bytes] = set()
        self._rows, self._association, self._tenure = rows, association, tenure
        self._patience_ns, self._count, self._witness = patience_ns, count, witness

    def reclaim(self, row: Row, call: LiveCall) -> None:
        """A call names an end of a stream that is kept without signalling."""
        kept = row.call
        assert kept is not None
        for match in self._association.matches(row.stream):
            self.join(kept, match, row.stream)
        if kept.over or row.closed_ns is not None:
            return
        # It began long before the call did. If it had fallen silent, what comes now is the call's.
        now = row.stream._replace(time_ns=call.heard_ns)
        for match in self._association.matches(now)[:1]:
            if self._tenure.was_silent(row, match.since_ns):
                self._tenure.close(row, match.since_ns, "taken")

    def join(self, kept: LiveCall, match: Match, stream: NewStream) -> None:
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
            listed = add_joined(known, number, kept, match, there)
            for at in (EVENTS, CONTROL):
                if (beside := kept.beside.get(known.number + at)) is not None:
                    heard = beside.packets, beside.first_ns, beside.last_ns
                    call.put_beside(listed, at, *heard)
            row = self._rows.get(number)
            if row is not None:
                row.sharers.append(call)
                self._tenure.close(row, at_ns, "joined")
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
        if (match.to is None and match.from_ is None) or in_its_midst(match):
            return True
        behind = any(other.kind == "continued" for other in kept.related)
        return not behind and kept.started_ns >= match.since_ns - self._patience_ns


def in_its_midst(match: Match) -> bool:
    """Whether the call's media may be older than what is known of it."""
    return any(
        met_in_its_midst(match.call, one) for one in (match.to, match.from_) if one is not None
    )
