"""The call table at work: datagrams and streams in, attachments and call records out.

A call is one Call-ID and caller's tag. It lives from the first message heard of it until its last
media cannot come any more; then its record is final. All times are the packets': a file replayed
gives what was recorded live. No clock, socket or file here, and no randomness but what is given.
What a message means: capture.calls.signalling. Where a stream belongs: capture.calls.attachment.
When a call is over: capture.calls.expiry. Which one a message is of, and what a restart finds:
capture.calls.calltable.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from capture.calls.association import Association
from capture.calls.attachment import Attachments
from capture.calls.beginning import (
    RETRANSMITTED_NS,
    begins_anew,
    begins_call,
    begun,
    new_call,
    overtaken,
)
from capture.calls.calltable import REFUSALS, CallTable
from capture.calls.control import Control
from capture.calls.expiry import REPORT_NS, Expiry
from capture.calls.handshakes import Handshakes
from capture.calls.livecall import LiveCall
from capture.calls.orphans import PAUSE_NS, Orphans
from capture.calls.relations import Relations
from capture.calls.signalling import Signalling
from capture.calls.timers import Timers
from capture.calls.witness import SILENT, Decision, Witness
from capture.clock import Clock, Reading
from capture.model import Attach, Close, Contest, Datagram, NewStream, Overdue, StreamTotals
from capture.signalling import sip
from capture.signalling.sip import SipMessage
from capture.signalling.siptls import SipTls
from spanvault.daemon.config import CaptureConfig
from spanvault.media import chunk
from spanvault.messages import Call

SECOND_NS: Final = 1_000_000_000
FRESHENED: Final = 500  # calls whose totals are renewed a second, in what a restart finds
# A second, besides first ones: 5,000 calls hung up together held the ring up for 0.5 s.
MAX_RECORDS: Final = 1000
TIDY_NS: Final = 5 * SECOND_NS


class Calls:
    """All calls of one capture. Fed in order of time, except that media may lag by a block."""

    def __init__(
        self,
        settings: CaptureConfig,
        totals: Callable[[int], StreamTotals],
        new_id: Callable[[], bytes],
        witness: Witness = SILENT,
        clock: Clock | None = None,
    ) -> None:
        """totals: what media has heard on a row so far.  new_id: 16 bytes, never the same."""
        self.clock = clock or Clock()  # of whoever feeds us
        self._witness = witness
        self.counters: Counter[str] = Counter()
        self.sip_tls = SipTls()
        self._settings, self._totals, self._new_id = settings, totals, new_id
        patience_ns = int(settings.unmatched_s * SECOND_NS)
        grace_ns = int(settings.bye_grace_s * SECOND_NS)
        self._table = CallTable()
        self._association = Association(patience_ns, grace_ns)
        self._orphans = Orphans(settings, totals, new_id, self._count, self.clock)
        self._attachments = Attachments(
            self._association, self._orphans, totals, patience_ns, grace_ns, self._count, witness
        )
        self._signalling = Signalling(self._association, self._attachments, self._count, witness)
        self._control = Control(self._attachments, self._count)
        self._relations = Relations(self._table.get, witness)
        self._expiry = Expiry(settings, self._orphans, totals, self._count, witness)
        self._handshakes = Handshakes()
        self._timers = Timers()
        self._without_sdp: set[bytes] = set()  # ids of calls begun before we listened
        self._changed: dict[bytes, None] = {}  # ids whose record is to be renewed, in order
        self._over: dict[bytes, None] = {}  # ids whose next record is the final one
        self._ready: list[Call] = []
        self._now_ns = 0
        self._tidied_ns = 0
        self._lossy_until_ns = 0  # a call first heard in its midst may owe that to us

    @property
    def active(self) -> int:
        """Calls whose final record has not left yet."""
        return len(self._table)

    # --- in ---------------------------------------------------------------------------------

    def receive(self, datagram: Datagram) -> None:
        """Take a SIP message in; anything else is counted. Raises nothing."""
        try:
            message = sip.parse(
                datagram.payload,
                datagram=datagram.transport != "tcp" or datagram.missing > 0,
                cut=datagram.missing > 0,
            )
        except ValueError as error:
            self.counters["sip_unreadable"] += 1
            self._witness.unreadable(datagram, str(error))
            return
        self.counters["sip_messages"] += 1
        self._witness.heard(datagram, message)
        self.sip_tls.heard(datagram)
        self._now_ns = max(self._now_ns, datagram.time_ns)
        call = self._table.find(message)
        if call is not None and overtaken(call, message, datagram):
            begun(call, message, datagram, self._settings.headers)
            self._invited(call, message, datagram)
        elif call is not None and begins_call(message) and begins_anew(call, message, datagram):
            call = None
        call = call or self._begin(message, datagram)
        if call is not None:
            self._apply(call, message, datagram)

    def opened(self, stream: NewStream) -> None:
        """Media heard a stream for the first time, or anew after a Close."""
        self._attachments.opened(stream)
        self._collect()

    def control(self, datagram: Datagram) -> None:
        """Take in RTCP, or what agrees upon media's keys, after the media before. Opens nothing."""
        if self._handshakes.receive(datagram):
            return
        for call in self._control.receive(datagram):
            self._table.changed(call)

    def overdue(self, streams: Iterable[Overdue]) -> None:
        """Media is about to let go of what it holds of these: those that nobody claims are kept."""
        for stream in streams:
            call = self._attachments.overdue(stream)
            if call is not None and self._table.get(call.id) is None:
                self._make_room()
                self._table.insert(call)
            if call is not None:
                self._touch(call)
                self._schedule(call)

    def dropped(self, slow: bool = False) -> None:
        """The capture itself lost frames: no record of a call that was up may hide it.

        slow: only such as take the slow path.
        """
        if not slow:
            self._lossy_until_ns = self._now_ns + RETRANSMITTED_NS
        for call in self._table:
            if (call.slow or not slow) and not call.over and "capture_loss" not in call.flags:
                call.flags.add("capture_loss")
                self._touch(call)

    def clock_set(self) -> None:
        """The clock was set. Time goes on for us; who looks for a call by the hour shall know."""
        self.counters["clock_steps"] += 1
        for call in self._table:
            if not call.over:
                call.flags.add("clock_set")
                self._touch(call)

    def live(self) -> Iterable[LiveCall]:
        """Those whose final record has not left yet."""
        return self._table

    def counted(self, now_ns: int) -> None:
        """totals count all media before this time."""
        if self._attachments.counted(now_ns) > PAUSE_NS:
            for call in self._orphans.silent(now_ns):  # a sparse capture: these ended meanwhile
                self._expire(call, now_ns)

    def tick(self, now_ns: int) -> None:
        """Let time pass: timeouts, final records, what is due for renewal.

        now_ns: the packets' clock; totals must count all media before it.
        """
        self._now_ns = max(self._now_ns, now_ns)
        self.counted(now_ns)
        for call_id in self._without_sdp:
            self._claim_by_hosts(self._table.get(call_id), last=False)
        for call_id in self._timers.due(now_ns):
            call = self._table.get(call_id)
            if call is not None:
                self._check(call, now_ns)
        if now_ns - self._tidied_ns >= TIDY_NS:
            self._tidied_ns = now_ns
            self._attachments.expire(now_ns)

    def finish(
        self, now_ns: int, reason: str = "capture_end", overdue: Iterable[Overdue] = ()
    ) -> None:
        """The capture ends, and with it every call: all records become final.

        overdue: what media holds and nobody has claimed.
        """
        for call in self._table:
            if call.ends is None:
                self._finish(call, now_ns, reason)
        self.overdue(overdue)
        for call in self._table:
            if call.ends is not None:
                self._finish(call, now_ns, reason)

    def _finish(self, call: LiveCall, now_ns: int, reason: str) -> None:
        if not call.over:
            self._expire(call, now_ns)
        if not call.over:
            call.dialog.stop(now_ns, reason)
            self._witness.decided(Decision.STOPPED, call, reason=reason)
            self._attachments.ended(call)
        self._claim_by_hosts(call, last=True)
        self._over[call.id] = None

    def renew(self) -> None:
        """Give a record of every call that is heard: its totals do not outlive a restart."""
        for call in self._table:
            if any(row is not None for row in call.rows):
                self._touch(call)

    def settled(self, ids: Iterable[bytes]) -> None:
        """These calls' final records are stored for good: they need not survive a restart."""
        for call_id in ids:
            self._table.settled(call_id)

    # --- out --------------------------------------------------------------------------------

    def commands(self) -> list[Attach | Close | Contest]:
        """What media is to do, since last asked."""
        return self._attachments.commands()

    def records(self, everything: bool = False) -> list[Call]:
        """The calls that changed since last asked, whole; final ones are then forgotten.

        Not more than a bound, but for first records: those of whom media leaves already. The others
        follow when asked again, in order, unless everything is wanted.
        """
        self._collect()
        records, self._ready = self._ready, []
        due = dict.fromkeys((*self._changed, *self._over))
        left = max(MAX_RECORDS, len(due) // 8)  # a backlog never only grows
        for call_id in due:
            call = self._table.get(call_id)
            if call is not None and call.revision and not everything:
                if not left:
                    continue
                left -= 1
            self._changed.pop(call_id, None)
            final = call_id in self._over
            self._over.pop(call_id, None)
            if call is not None:
                records.append(self._record(call, final))
        return records

    def media(self) -> chunk.Media:
        """The RTCP that is kept, since last asked: before the records that count it."""
        for call in self._control.claimed():
            self._table.changed(call)
        return self._control.media()

    def released(self) -> list[int]:
        """Rows that media may forget, since last asked."""
        rows = self._attachments.released()
        for row in rows:
            self._control.release(row)
        return rows

    def snapshot(self, host: Reading | None = None) -> bytes:
        """Everything that a restarted capture needs to go on with the calls it knew.

        host: its clocks now, where they are those of the frames.
        """
        self._freshen()
        return self._table.snapshot(self.clock.offset_ns, host)

    def restore(self, table: bytes, host: Reading | None = None) -> None:
        """Take up what a snapshot held. Media is new: its streams get new numbers.

        host: its clocks now: calls go on where they were set meanwhile, too.
        Raises ValueError if the bytes are no snapshot; nothing is changed then.
        """
        calls, finals = self._table.restore(table, host)
        for call in calls:
            self._now_ns = max(self._now_ns, call.heard_ns)
            self._association.restore(call)
            self._orphans.restore(call)
            self._schedule(call)
            self._touch(call)
            if not call.bindings and "started_mid_call" in call.flags:
                self._without_sdp.add(call.id)
        self._ready += finals

    # --- how a call begins and leaves -------------------------------------------------------

    def _begin(self, message: SipMessage, datagram: Datagram) -> LiveCall | None:
        """A new call, if this message is of one."""
        begins = begins_call(message)
        if why := self._table.refuses(message):
            if name := REFUSALS.get(why):
                self.counters[name] += 1
            self._witness.decided(Decision.NO_CALL, why=why)
            return None
        self._make_room()
        call = new_call(message, datagram, self._new_id(), self._settings.headers)
        call.clock_ns = self.clock.offset_ns
        self._table.insert(call)
        self._witness.decided(Decision.BEGINS, call, mid_call=not begins)
        if begins:
            self._invited(call, message, datagram)
        else:
            call.flags.add("started_mid_call")
            if datagram.time_ns < self._lossy_until_ns:
                call.flags.add("capture_loss")  # its INVITE may be among what was lost
            self._without_sdp.add(call.id)
        self._touch(call)
        return call

    def _invited(self, call: LiveCall, message: SipMessage, datagram: Datagram) -> None:
        for kind, named in (("replaces", message.replaces), ("joins", message.join)):
            if named is not None:
                other = self._table.newest(named.call_id)
                self._relations.named(kind, call, named.call_id, other)
        self._relations.invited(call, message, datagram)
        self._touch(call)

    def _make_room(self) -> None:
        while (call := self._table.crowded) is not None:
            call.dialog.stop(self._now_ns, "evicted")
            self._witness.decided(Decision.STOPPED, call, reason="evicted")
            self._attachments.ended(call)
            self.counters["calls_evicted"] += 1
            self._ready.append(self._record(call, final=True))

    def _record(self, call: LiveCall, final: bool) -> Call:
        """The call as it leaves now. Final: it is forgotten with it."""
        call.refresh(self._totals)
        self._handshakes.mark(call)
        record = call.record(self._settings.name, final)
        call.recorded_ns = self._now_ns
        self._table.changed(call)
        if final:
            self._attachments.finish(call)
            self._association.forget(call)
            self._relations.forget(call)
            self._orphans.forget(call)
            self._timers.cancel(call.id)
            self._without_sdp.discard(call.id)
            self.counters["finals_evicted"] += self._table.bury(call, record)
        return record

    # --- what happens to it -----------------------------------------------------------------

    def _apply(self, call: LiveCall, message: SipMessage, datagram: Datagram) -> None:
        was_over, was_until_ns = call.over, call.media_until_ns
        call.slow |= datagram.slow
        self._witness.decided(Decision.BELONGS, call)
        changed = self._signalling.receive(call, message, datagram)
        if message.method == "REFER" and message.is_request and message.transfers:
            replaces = message.refer_replaces
            replaced = replaces and self._table.newest(replaces.call_id)
            self._relations.referred(call, message, datagram, replaced)
        if call.bindings:
            self._without_sdp.discard(call.id)
        elif message.cut:
            self._without_sdp.add(call.id)  # the snap length cut its addresses off
        if call.over and not was_over:
            self._ended(call)
        elif call.media_until_ns != was_until_ns:
            self._attachments.ended(call)
        if changed:
            self._touch(call)
        self._table.changed(call)
        self._schedule(call)
        self._collect()

    def _ended(self, call: LiveCall) -> None:
        self._relations.ended(call)
        self._attachments.ended(call)

    def _check(self, call: LiveCall, now_ns: int) -> None:
        """A timer of this call is due."""
        if not call.over:
            self._expire(call, now_ns)
        if call.over and now_ns > self._expiry.gone_ns(call, now_ns):
            self._claim_by_hosts(call, last=True)
            self._over[call.id] = None
            return
        if now_ns - call.recorded_ns >= REPORT_NS:
            self._touch(call)
        self._schedule(call)

    def _expire(self, call: LiveCall, now_ns: int) -> None:
        """End a call that signalling or silence says is over."""
        if self._expiry.expire(call, now_ns):
            self._ended(call)
            self._touch(call)

    def _schedule(self, call: LiveCall) -> None:
        """Set the call's timer to what comes next."""
        self._timers.set(call.id, self._expiry.due_ns(call, self._now_ns))

    def _claim_by_hosts(self, call: LiveCall | None, last: bool) -> None:
        if call is not None and call.id in self._without_sdp:
            self._attachments.claim_hosts(call, self._now_ns, last)

    def _freshen(self) -> None:
        """Bring the totals of some calls up to date in the table, in turn: a kill loses no more."""
        for call in self._table.in_turn(FRESHENED):
            if any(row is not None for row in call.rows):
                call.refresh(self._totals)
                self._table.changed(call)

    def _collect(self) -> None:
        """Gather the calls that streams or relations have changed."""
        for call_id in (*self._attachments.changed(), *self._relations.changed):
            call = self._table.get(call_id)
            if call is not None:
                self._touch(call)
                if call.ends is not None:
                    self._schedule(call)  # a call may have taken it over
        self._relations.changed.clear()

    def _touch(self, call: LiveCall) -> None:
        self._changed[call.id] = None
        self._table.changed(call)

    def _count(self, name: str) -> None:
        self.counters[name] += 1
