"""The call table: datagrams and streams in, attachments and call records out.

A call is one Call-ID and caller's tag. It lives from the first message heard of it until its last
media cannot come any more; then its record is final. All times are the packets': a file replayed
gives what was recorded live. No clock, socket or file here, and no randomness but what is given.
What a message means: capture.signalling. Where a stream belongs: capture.attachment. What is kept
over a restart: snapshot and restore. What a record says: docs/calls.md.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from capture import sip
from capture.association import Association
from capture.attachment import Attachments
from capture.dialog import RETRIED, Dialog, Event, State
from capture.livecall import LiveCall
from capture.model import Attach, Close, Datagram, NewStream, StreamTotals
from capture.offer_answer import OfferAnswer
from capture.relations import Relations, outcome_behind
from capture.sip import SipMessage
from capture.signalling import Signalling, begins_call, reveals_call, sender
from capture.timers import Timers
from spanvault.config import CaptureConfig
from spanvault.messages import Call

MAX_CALLS: Final = 50_000
MAX_SAME_CALL_ID: Final = 16
MAX_PAST: Final = 65_536
REPORT_NS: Final = 60_000_000_000  # a long call's record is renewed so often
RETRANSMITTED_NS: Final = 32_000_000_000  # 64·T1: no copy of a message comes later
EXPIRE_NS: Final = 5_000_000_000
CLOCK_STEP_NS: Final = 12 * 3_600_000_000_000  # more than a quiet night: the clock was set
SECOND_NS: Final = 1_000_000_000


class Past(msgspec.Struct):
    """What is remembered of a final call, so that stray messages of it begin no new one."""

    tags: list[str]
    ended_ns: int
    timed_out: bool


class Table(msgspec.Struct):
    """What survives a restart."""

    calls: list[msgspec.Raw]
    finals: list[Call]
    past: list[tuple[str, Past]]


class Calls:
    """All calls that are live or whose last record is not yet acknowledged."""

    def __init__(
        self,
        settings: CaptureConfig,
        totals: Callable[[int], StreamTotals],
        new_id: Callable[[], bytes],
    ) -> None:
        """totals: what media has heard on a row so far.  new_id: 16 bytes, never the same."""
        self.counters: Counter[str] = Counter()
        self._settings, self._totals, self._new_id = settings, totals, new_id
        self._grace_ns = int(settings.bye_grace_s * SECOND_NS)
        patience_ns = int(settings.unmatched_s * SECOND_NS)
        self._association = Association(patience_ns, self._grace_ns)
        self._attachments = Attachments(
            self._association, totals, patience_ns, self._grace_ns, self._count
        )
        self._signalling = Signalling(self._association, self._attachments, self._count)
        self._calls: dict[bytes, LiveCall] = {}
        self._relations = Relations(self._calls.get)
        self._by_call_id: dict[str, list[LiveCall]] = {}
        self._unanswered: OrderedDict[bytes, None] = OrderedDict()  # oldest first
        self._without_sdp: set[bytes] = set()
        self._timers = Timers()
        self._changed: dict[bytes, None] = {}  # ids whose record is to be renewed, in order
        self._over: dict[bytes, None] = {}  # ids whose next record is the final one
        self._finals: OrderedDict[bytes, Call] = OrderedDict()  # not yet acknowledged
        self._again: list[Call] = []
        self._past: OrderedDict[str, Past] = OrderedDict()
        self._saved: dict[bytes, bytes] = {}  # encoded calls, until they change
        self._now_ns = 0
        self._expired_ns = 0
        self._dropped_ns = 0

    @property
    def active(self) -> int:
        """Calls that have not ended."""
        return sum(not call.over for call in self._calls.values())

    # --- in ---------------------------------------------------------------------------------

    def receive(self, datagram: Datagram) -> None:
        """Take a SIP message in; anything else is counted. Raises nothing."""
        try:
            message = sip.parse(datagram.payload, datagram=datagram.transport == "udp")
        except ValueError:
            self.counters["sip_unreadable"] += 1
            return
        self.counters["sip_messages"] += 1
        self._advance(datagram.time_ns)
        call = self._find(message)
        if call is not None and begins_call(message) and _begins_anew(call, message, datagram):
            call = None
        if call is None:
            call = self._begin(message, datagram)
        if call is not None:
            self._apply(call, message, datagram)

    def opened(self, stream: NewStream) -> None:
        """Media heard a stream for the first time, or anew after a Close."""
        self._attachments.opened(stream)
        self._collect()

    def dropped(self, now_ns: int) -> None:
        """The capture itself lost frames about now: no record may claim to be complete."""
        self._dropped_ns = now_ns
        for call in self._calls.values():
            if not call.over and "capture_loss" not in call.flags:
                call.flags.add("capture_loss")
                self._touch(call)

    def tick(self, now_ns: int) -> None:
        """Let time pass: timeouts, final records, what is due for renewal."""
        self._advance(now_ns)
        self._claim_by_hosts()
        for call_id in self._timers.due(now_ns):
            call = self._calls.get(call_id)
            if call is not None:
                self._check(call, now_ns)
        if now_ns - self._expired_ns >= EXPIRE_NS:
            self._expired_ns = now_ns
            self._attachments.expire(now_ns)

    def finish(self, now_ns: int, reason: str = "capture_end") -> None:
        """The capture ends, and with it every call: all records become final."""
        self._claim_by_hosts()
        for call in list(self._calls.values()):
            call.dialog.stop(now_ns, reason)
            self._attachments.ended(call)
            self._finalize(call)

    def settled(self, ids: Iterable[bytes]) -> None:
        """These calls' final records are stored for good: they need not survive a restart."""
        for call_id in ids:
            self._finals.pop(call_id, None)

    # --- out --------------------------------------------------------------------------------

    def commands(self) -> list[Attach | Close]:
        """What media is to do, since last asked."""
        commands, self._attachments.commands = self._attachments.commands, []
        return commands

    def records(self) -> list[Call]:
        """The calls that changed since last asked, whole; final ones are then forgotten."""
        self._collect()
        records, self._again = self._again, []
        changed = [*self._changed, *(call for call in self._over if call not in self._changed)]
        for call_id in changed:
            call = self._calls.get(call_id)
            if call is None:
                continue
            final = call_id in self._over
            call.refresh(self._totals)
            record = call.record(self._settings.name, final)
            call.recorded_ns = self._now_ns
            records.append(record)
            self._saved.pop(call_id, None)
            if final:
                self._forget(call, record)
        self._changed.clear()
        self._over.clear()
        return records

    def released(self) -> list[int]:
        """Rows that media may forget, since last asked."""
        rows, self._attachments.released = self._attachments.released, []
        return rows

    # --- over a restart ---------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Everything that a restarted capture needs to go on with the calls it knew."""
        for call_id, call in self._calls.items():
            if call_id not in self._saved:
                self._saved[call_id] = msgspec.msgpack.encode(call)
        calls = [msgspec.Raw(data) for data in self._saved.values()]
        recent = list(self._past.items())[-1024:]
        return msgspec.msgpack.encode(Table(calls, list(self._finals.values()), recent))

    def restore(self, table: bytes) -> None:
        """Take up what a snapshot held. Media is new: its streams get new numbers.

        Raises ValueError if the bytes are no snapshot; nothing is changed then.
        """
        try:
            saved = msgspec.msgpack.decode(table, type=Table)
            calls = [msgspec.msgpack.decode(data, type=LiveCall) for data in saved.calls]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"no call table: {error}") from None
        for call in calls:
            call.rows = [None] * len(call.streams)
            if not call.over:
                call.flags.add("capture_restarted")
            self._now_ns = max(self._now_ns, call.heard_ns)
            self._insert(call)
            self._association.restore(call)
            self._schedule(call)
        self._past.update(saved.past)
        self._finals.update((record.id, record) for record in saved.finals)
        self._again += saved.finals

    # --- which call -------------------------------------------------------------------------

    def _find(self, message: SipMessage) -> LiveCall | None:
        """The newest call of this Call-ID that one of the tags belongs to."""
        known = self._by_call_id.get(message.call_id, [])
        tags = (message.from_.tag, message.to.tag)
        for call in reversed(known):
            if call.caller_tag in tags:
                return call
        if not known:
            return None
        last = known[-1]
        if not begins_call(message):
            return last if len(known) == 1 else None  # tags were damaged on the way
        if last.dialog.state is State.CHALLENGED:
            # RFC 3261 §22.2 says SHOULD: some phones answer the challenge under a new tag.
            last.caller_tag = message.from_.tag
            return last
        return None

    def _begin(self, message: SipMessage, datagram: Datagram) -> LiveCall | None:
        """A new call, if this message is of one."""
        begins = begins_call(message)
        if not begins and (not reveals_call(message) or self._stray(message, datagram)):
            return None
        if len(self._by_call_id.get(message.call_id, [])) >= MAX_SAME_CALL_ID:
            self.counters["call_id_abused"] += 1
            return None
        self._make_room()
        call = self._new_call(message, datagram, begins)
        self._insert(call)
        if begins:
            replaced = self._by_id(message.replaces.call_id if message.replaces else None)
            self._relations.invited(call, message, datagram, replaced)
        self._touch(call)
        return call

    def _new_call(self, message: SipMessage, datagram: Datagram, begins: bool) -> LiveCall:
        ends = (datagram.source.address, datagram.destination.address)
        caller, callee = ends if message.is_request else ends[::-1]
        outside = message.is_request and message.method != "INVITE"
        call = LiveCall(
            id=self._new_id(),
            call_id=message.call_id,
            caller_tag=message.from_.tag,
            caller=message.from_.user,
            callee=message.to.user,
            started_ns=datagram.time_ns,
            dialog=Dialog(
                changed_ns=datagram.time_ns, outcome="unknown" if outside else "in_progress"
            ),
            offer_answer=OfferAnswer(),
            caller_host=caller,
            callee_host=callee,
            invite_source=ends[0],
            invite_target=ends[1],
        )
        if not begins:
            call.flags.add("started_mid_call")
        return call

    def _stray(self, message: SipMessage, datagram: Datagram) -> bool:
        """Whether a message is a late copy of a call that is over."""
        past = self._past.get(message.call_id)
        if past is None or not {message.from_.tag, message.to.tag} & set(past.tags):
            return False
        if past.timed_out and message.is_request and message.method in ("INVITE", "UPDATE"):
            return False  # we gave the call up too early: it goes on as another
        self.counters["sip_late"] += 1
        return True

    def _by_id(self, call_id: str | None) -> LiveCall | None:
        known = self._by_call_id.get(call_id, []) if call_id else []
        return known[-1] if known else None

    def _make_room(self) -> None:
        """A flood of INVITEs must not push out the calls that are being recorded."""
        while len(self._calls) >= MAX_CALLS:
            oldest = next(iter(self._unanswered or self._calls))
            call = self._calls[oldest]
            call.dialog.stop(self._now_ns, "evicted")
            self._attachments.ended(call)
            self.counters["calls_evicted"] += 1
            self._again.append(self._last_record(call))

    def _last_record(self, call: LiveCall) -> Call:
        call.refresh(self._totals)
        record = call.record(self._settings.name, final=True)
        self._forget(call, record)
        return record

    def _insert(self, call: LiveCall) -> None:
        self._calls[call.id] = call
        self._by_call_id.setdefault(call.call_id, []).append(call)
        if call.dialog.answered_ns is None:
            self._unanswered[call.id] = None
        if not call.bindings:
            self._without_sdp.add(call.id)

    def _forget(self, call: LiveCall, record: Call) -> None:
        """The call has left as a final record."""
        self._attachments.finish(call)
        self._association.forget(call)
        self._relations.forget(call)
        self._timers.cancel(call.id)
        del self._calls[call.id]
        same = [other for other in self._by_call_id[call.call_id] if other is not call]
        if same:
            self._by_call_id[call.call_id] = same
        else:
            del self._by_call_id[call.call_id]
        for index in (self._unanswered, self._changed, self._saved):
            index.pop(call.id, None)  # type: ignore[attr-defined]
        self._without_sdp.discard(call.id)
        self._finals[call.id] = record
        self._bury(call)
        while len(self._finals) > MAX_PAST:
            self._finals.popitem(last=False)
            self.counters["finals_evicted"] += 1

    def _bury(self, call: LiveCall) -> None:
        tags = [call.caller_tag, *call.confirmed, *call.offer_answer.sessions]
        timed_out = call.dialog.end_reason == "timeout"
        self._past.pop(call.call_id, None)
        self._past[call.call_id] = Past(tags, call.ended_ns or self._now_ns, timed_out)
        while len(self._past) > MAX_PAST:
            self._past.popitem(last=False)

    # --- what happens to it -----------------------------------------------------------------

    def _apply(self, call: LiveCall, message: SipMessage, datagram: Datagram) -> None:
        was_over = call.over
        changed = self._signalling.receive(call, message, datagram)
        if message.method == "REFER" and message.is_request:
            replaces = message.refer_replaces
            self._relations.referred(
                call, message, datagram, self._by_id(replaces.call_id if replaces else None)
            )
        if call.bindings:
            self._without_sdp.discard(call.id)
        if call.dialog.answered_ns is not None:
            self._unanswered.pop(call.id, None)
        if call.over and not was_over:
            self._ended(call)
        if changed:
            self._touch(call)
        self._saved.pop(call.id, None)
        self._schedule(call)
        self._collect()

    def _ended(self, call: LiveCall) -> None:
        if call.dialog.end_reason == "rejected":
            legs = [leg for leg in map(self._calls.get, call.legs) if leg is not None]
            meant = outcome_behind(call.dialog.status or 0, legs)
            call.dialog.outcome = meant or call.dialog.outcome
        self._attachments.ended(call)

    def _check(self, call: LiveCall, now_ns: int) -> None:
        """A timer of this call is due."""
        if not call.over:
            self._expire(call, now_ns)
        if call.over and now_ns >= (call.ended_ns or 0) + self._grace_ns:
            self._finalize(call)
            return
        if now_ns - call.recorded_ns >= REPORT_NS:
            self._touch(call)
        self._schedule(call)

    def _expire(self, call: LiveCall, now_ns: int) -> None:
        """End a call that signalling or silence says is over."""
        deadline_ns = call.dialog.deadline_ns()
        ends_ns = deadline_ns
        if deadline_ns is None:
            deadline_ns, ends_ns = self._silent_ns(call)
        if ends_ns is None or now_ns < deadline_ns:
            return
        call.dialog.receive(Event.EXPIRE, ends_ns)
        self._ended(call)
        self._touch(call)

    def _silent_ns(self, call: LiveCall) -> tuple[int, int]:
        """(when an answered call counts as over, when it was last heard of)."""
        media_ns = call.last_media_ns(self._totals)
        heard_ns = max(media_ns or 0, call.heard_ns)
        wait_s = self._settings.no_media_s if media_ns is None else self._settings.silence_s
        if call.held:
            wait_s = max(wait_s, self._settings.hold_s)
        return heard_ns + int(wait_s * SECOND_NS), heard_ns

    def _finalize(self, call: LiveCall) -> None:
        self._over[call.id] = None

    def _schedule(self, call: LiveCall) -> None:
        """Set the call's timer to what comes next."""
        if call.over:
            due_ns = (call.ended_ns or 0) + self._grace_ns
        else:
            deadline_ns = call.dialog.deadline_ns() or self._silent_ns(call)[0]
            due_ns = min(deadline_ns, max(call.recorded_ns, call.started_ns) + REPORT_NS)
        self._timers.set(call.id, due_ns)

    def _claim_by_hosts(self) -> None:
        for call_id in list(self._without_sdp):
            call = self._calls[call_id]
            if "started_mid_call" in call.flags:
                self._attachments.claim_hosts(call)
        self._collect()

    def _collect(self) -> None:
        """Gather the calls that streams or relations have changed."""
        for call_id in (*self._attachments.changed, *self._relations.changed):
            call = self._calls.get(call_id)
            if call is not None:
                self._touch(call)
        self._attachments.changed.clear()
        self._relations.changed.clear()

    def _touch(self, call: LiveCall) -> None:
        self._changed[call.id] = None
        self._saved.pop(call.id, None)

    def _advance(self, now_ns: int) -> None:
        """Follow the packets' clock; where it was set, move our timers with it."""
        step_ns = now_ns - self._now_ns
        if self._now_ns and abs(step_ns) > CLOCK_STEP_NS:
            self.counters["clock_steps"] += 1
            for call in self._calls.values():
                call.shift(step_ns)
                self._saved.pop(call.id, None)
                self._schedule(call)
            self._now_ns = now_ns
        self._now_ns = max(self._now_ns, now_ns)

    def _count(self, name: str) -> None:
        self.counters[name] += 1


def _begins_anew(call: LiveCall, message: SipMessage, datagram: Datagram) -> bool:
    """Whether an INVITE under a known Call-ID and tag is another call, not a copy or a retry."""
    numbers = [int(key.partition(" ")[0]) for key in call.invites]
    if call.over:
        late = datagram.time_ns - (call.ended_ns or 0) > RETRANSMITTED_NS
        retried = call.dialog.status in RETRIED and message.cseq not in numbers
        return not retried and (late or message.cseq not in numbers)
    return call.dialog.state is State.CONFIRMED and message.cseq > max(numbers, default=0) > 0
