"""The calls that are live, those whose last record is not yet safe, and a memory of past ones.

Found by id or by Call-ID and tags; bounded, so that no flood of INVITEs or Call-IDs takes more
than its share; written to bytes and read back for a restart. What happens to calls:
capture.calls.calls.
Sources: RFC 3261 §12.1 (dialog ids), §22.2 (challenges).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from operator import length_hint
from typing import Final

import msgspec

from capture.calls.beginning import begins_call, reveals_call
from capture.calls.livecall import LiveCall
from capture.clock import Reading
from capture.signalling.dialog import State
from capture.signalling.sip import SipMessage
from spanvault.messages import Call

MAX_CALLS: Final = 50_000
MAX_SAME_CALL_ID: Final = 16
MAX_PAST: Final = 65_536
PAST_SAVED: Final = 1_024
MAX_TAGS: Final = 16  # remembered of one past call
LONG_TAG: Final = 64  # characters; one that is longer is remembered by its digest
# Why a message is of no call, and under what name that is counted; what is of no dialog is not.
REFUSALS: Final = {"late": "sip_late", "call_id_abused": "call_id_abused"}


class Past(msgspec.Struct, array_like=True):
    """What is remembered of a final call, so that stray messages of it begin no new one."""

    tags: list[str]
    timed_out: bool


class Table(msgspec.Struct):
    """What survives a restart."""

    calls: list[msgspec.Raw]
    finals: list[Call]
    past: list[tuple[str, Past]]
    clock_ns: int = 0  # what the time of day was ahead of theirs
    host: Reading | None = None


class CallTable:
    """All calls that are live or whose last record is not yet acknowledged."""

    def __init__(self) -> None:
        self._calls: dict[bytes, LiveCall] = {}
        self._by_call_id: dict[str, list[LiveCall]] = {}
        self._unanswered: OrderedDict[bytes, None] = OrderedDict()  # oldest first
        self._finals: OrderedDict[bytes, Call] = OrderedDict()
        self._past: OrderedDict[str, Past] = OrderedDict()
        self._saved: dict[bytes, bytes] = {}  # encoded calls, until they change
        self._turn: Iterator[bytes] = iter([])  # ids of those whose turn comes

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[LiveCall]:
        return iter(list(self._calls.values()))

    def get(self, call_id: bytes) -> LiveCall | None:
        """The live call with this id."""
        return self._calls.get(call_id)

    def newest(self, call_id: str) -> LiveCall | None:
        """The latest live call with this Call-ID."""
        known = self._by_call_id.get(call_id)
        return known[-1] if known else None

    @property
    def crowded(self) -> LiveCall | None:
        """Whom to let go before another may be taken in; None: there is room.

        A flood of INVITEs must not push out the calls that are being recorded.
        """
        if len(self._calls) < MAX_CALLS:
            return None
        return self._calls[next(iter(self._unanswered or self._calls))]

    def in_turn(self, count: int) -> Iterator[LiveCall]:
        """The next so many of all calls, round and round."""
        for call_id in islice(self._turn, count):
            if (call := self._calls.get(call_id)) is not None:
                yield call
        if not length_hint(self._turn):
            self._turn = iter(list(self._calls))

    def abused(self, call_id: str) -> bool:
        """Whether so many live calls bear this Call-ID that it can only be an attack."""
        return len(self._by_call_id.get(call_id, [])) >= MAX_SAME_CALL_ID

    def refuses(self, message: SipMessage) -> str:
        """Why a message that no live call knows is of no call either; "" if it is of a new one."""
        if not begins_call(message):
            if not reveals_call(message):
                return "no_dialog"
            if self.stray(message):
                return "late"
        return "call_id_abused" if self.abused(message.call_id) else ""

    def find(self, message: SipMessage) -> LiveCall | None:
        """The newest call of this Call-ID that one of the tags belongs to."""
        known = self._by_call_id.get(message.call_id)
        if not known:
            return None
        tags = {message.from_.tag, message.to.tag}
        mine = [call for call in reversed(known) if call.caller_tag in tags]
        if mine:
            # A late copy of what ended one call must not end the next under the same Call-ID.
            return next((call for call in mine if _callee_tags(call) & tags), mine[0])
        last = known[-1]
        if not begins_call(message):
            return last if len(known) == 1 and not _of_another(last, tags) else None
        if last.dialog.state is State.CHALLENGED:
            # RFC 3261 §22.2 says SHOULD: some phones answer the challenge under a new tag.
            last.caller_tag = message.from_.tag
            return last
        return None

    def stray(self, message: SipMessage) -> bool:
        """Whether a message that no live call knows is a late copy of one that is over."""
        past = self._past.get(message.call_id)
        if past is None or not set(_short([message.from_.tag, message.to.tag])) & set(past.tags):
            return False
        # One that we gave up too early goes on as another call.
        goes_on = message.is_request and message.method in ("INVITE", "UPDATE")
        return not (past.timed_out and goes_on)

    def insert(self, call: LiveCall) -> None:
        """Take a call in."""
        self._calls[call.id] = call
        if call.call_id:  # RTP without signalling has none
            self._by_call_id.setdefault(call.call_id, []).append(call)
        if call.dialog.answered_ns is None:
            self._unanswered[call.id] = None

    def changed(self, call: LiveCall) -> None:
        """Something about the call is new: it must be saved again."""
        self._saved.pop(call.id, None)
        if call.dialog.answered_ns is not None:
            self._unanswered.pop(call.id, None)

    def bury(self, call: LiveCall, record: Call) -> int:
        """The call left as a final record. Returns how many unacknowledged ones this pushed out."""
        del self._calls[call.id]
        self._unanswered.pop(call.id, None)
        self._saved.pop(call.id, None)
        if call.call_id:
            self._remember(call)
        self._finals[record.id] = record
        if len(self._finals) > MAX_PAST:
            self._finals.popitem(last=False)
            return 1
        return 0

    def _remember(self, call: LiveCall) -> None:
        """Stray messages of a call that has left shall begin no new one."""
        same = [other for other in self._by_call_id.pop(call.call_id) if other is not call]
        if same:
            self._by_call_id[call.call_id] = same
        tags = [call.caller_tag, *call.confirmed, *call.offer_answer.sessions]
        self._past.pop(call.call_id, None)
        known = _short(list(dict.fromkeys(tags))[:MAX_TAGS])
        self._past[call.call_id] = Past(known, call.dialog.end_reason == "timeout")
        if len(self._past) > MAX_PAST:
            self._past.popitem(last=False)

    def settled(self, call_id: bytes) -> None:
        """The call's final record is stored for good: it need not survive a restart."""
        self._finals.pop(call_id, None)

    def snapshot(self, clock_ns: int = 0, host: Reading | None = None) -> bytes:
        """Everything that a restarted capture needs to go on; only changed calls cost time.

        clock_ns: what the time of day is ahead of theirs.  host: its clocks now.
        """
        for call_id, call in self._calls.items():
            if call_id not in self._saved:
                self._saved[call_id] = msgspec.msgpack.encode(call)
        calls = [msgspec.Raw(data) for data in self._saved.values()]
        past = list(self._past.items())[-PAST_SAVED:]
        finals = list(self._finals.values())
        return msgspec.msgpack.encode(Table(calls, finals, past, clock_ns, host))

    def restore(
        self, table: bytes, host: Reading | None = None
    ) -> tuple[list[LiveCall], list[Call]]:
        """The live calls and unacknowledged final records of a snapshot. Rows are forgotten.

        host: its clocks now, as they may have been set meanwhile.
        Raises ValueError if the bytes are no snapshot; nothing is changed then.
        """
        try:
            saved = msgspec.msgpack.decode(table, type=Table)
            calls = [msgspec.msgpack.decode(data, type=LiveCall) for data in saved.calls]
            for call in calls:
                call.record("", final=False)  # else the first one asked for would end the capture
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no call table: {error}") from None
        set_ns = host.set_since(saved.host) if host else 0
        for call in calls:
            call.shift(saved.clock_ns + set_ns)
            call.rows = [None] * len(call.streams)
            if not call.over:
                call.flags |= {"capture_restarted"} | ({"clock_set"} if set_ns else set())
            self.insert(call)
        self._past.update(saved.past)
        self._finals.update((record.id, record) for record in saved.finals)
        return calls, saved.finals


def _short(tags: list[str]) -> list[str]:
    """Tags as a past call keeps them: 65,536 calls with tags as long as a header took gigabytes."""
    return [tag if len(tag) <= LONG_TAG else _digest(tag) for tag in tags]


def _digest(tag: str) -> str:
    return hashlib.blake2b(tag.encode("utf-8", "replace"), digest_size=16).hexdigest()


def _of_another(call: LiveCall, tags: set[str]) -> bool:
    """Whether a message whose From tag is not the call's is of another one under its Call-ID.

    One tag may be damaged on the way. Two are those of a dialog whose INVITE was missed.
    """
    known = _callee_tags(call)
    return not known & tags and "" not in tags and (call.over or bool(known))


def _callee_tags(call: LiveCall) -> set[str]:
    return {*call.confirmed, *call.offer_answer.sessions} - {call.caller_tag, ""}
