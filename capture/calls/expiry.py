"""When a call counts as over of which no end is heard, and when its last media will have come.

Unanswered calls end by the timers of SIP, answered ones by silence, recordings without signalling
as capture.calls.orphans says. All times are the packets'. Who asks, and what follows:
capture.calls.calls.
Source: RFC 3261 table 4.
"""

from collections.abc import Callable
from typing import Final

from capture.calls.livecall import LiveCall
from capture.calls.orphans import LOOK_NS, Orphans
from capture.calls.witness import Decision, Witness
from capture.model import StreamTotals
from capture.signalling.dialog import Event
from spanvault.daemon.config import CaptureConfig

SECOND_NS: Final = 1_000_000_000
REPORT_NS: Final = 60 * SECOND_NS  # a long call's record is renewed so often


class Expiry:
    """Reads deadlines off calls, and ends those that are past theirs."""

    def __init__(
        self,
        settings: CaptureConfig,
        orphans: Orphans,
        totals: Callable[[int], StreamTotals],
        count: Callable[[str], None],
        witness: Witness,
    ) -> None:
        self._settings, self._orphans, self._totals = settings, orphans, totals
        self._count, self._witness = count, witness
        self._grace_ns = int(settings.bye_grace_s * SECOND_NS)

    def due_ns(self, call: LiveCall, now_ns: int) -> int:
        """When the call is to be looked at next."""
        if call.over:
            return self.gone_ns(call, now_ns)
        if call.ends is not None:
            return min(self._orphans.deadline_ns(call)[0], now_ns + LOOK_NS)
        deadline_ns, _ = self._deadline_ns(call)
        return min(deadline_ns, max(call.recorded_ns, call.started_ns) + REPORT_NS)

    def gone_ns(self, call: LiveCall, now_ns: int) -> int:
        """When a call that is over has had its last media, as far as that can be told."""
        ended_ns, until_ns = call.ended_ns or 0, call.media_until_ns or 0
        if now_ns < until_ns:
            until_ns = min(until_ns, max(ended_ns, call.last_media_ns(self._totals) or 0))
        return until_ns + self._grace_ns

    def expire(self, call: LiveCall, now_ns: int) -> bool:
        """End a call that is past its deadline. Returns whether it was."""
        if call.ends is not None:
            return self._expire_orphan(call, now_ns)
        deadline_ns, ends_ns = self._deadline_ns(call)
        if now_ns < deadline_ns:
            return False
        call.dialog.receive(Event.EXPIRE, ends_ns)
        self._witness.decided(Decision.EXPIRED, call, at_ns=now_ns)
        return True

    def _expire_orphan(self, call: LiveCall, now_ns: int) -> bool:
        """A recording without signalling: it fell silent, is long enough, or takes too much."""
        deadline_ns, ends_ns = self._orphans.deadline_ns(call)
        if now_ns >= deadline_ns:
            call.dialog.receive(Event.EXPIRE, ends_ns)
            self._witness.decided(Decision.EXPIRED, call, at_ns=ends_ns)
            return True
        if self._orphans.too_much(call, now_ns):
            call.dialog.stop(now_ns, "evicted")
            self._witness.decided(Decision.STOPPED, call, reason="evicted")
            self._count("orphans_evicted")
            return True
        return False

    def _deadline_ns(self, call: LiveCall) -> tuple[int, int]:
        """(when the call counts as over, the end that it then has)."""
        deadline_ns = call.dialog.deadline_ns()
        heard = "started_mid_call" in call.flags and call.last_media_ns(self._totals) is not None
        # Whoever is heard to talk need not be heard to answer.
        if deadline_ns is None or heard:
            return self._silent_ns(call)
        return deadline_ns, deadline_ns

    def _silent_ns(self, call: LiveCall) -> tuple[int, int]:
        """(when an answered call counts as over, when it was last heard of)."""
        media_ns = call.last_media_ns(self._totals)
        heard_ns = max(media_ns or 0, call.heard_ns)
        wait_s = self._settings.no_media_s if media_ns is None else self._settings.silence_s
        if call.held:
            wait_s = max(wait_s, self._settings.hold_s)
        return heard_ns + int(wait_s * SECOND_NS), heard_ns
