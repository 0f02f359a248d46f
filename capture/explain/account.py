"""The account of a capture: what was heard and decided, gathered call by call into documents.

Only what is asked for is kept: steps of calls whose Call-ID begins as wanted, of all others the
counts; a call's part goes with its last record, so a file of any length fits.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from capture.calls.livecall import LiveCall
from capture.calls.witness import Decision, Witness
from capture.explain import words
from capture.explain.remedies import remedies
from capture.explain.silence import Asked
from capture.explain.unowned import Named
from capture.media.engine import Media
from capture.model import Datagram, Endpoint, NewStream
from capture.signalling.sip import SipMessage
from spanvault.callline import main_codec
from spanvault.daemon.config import CaptureConfig
from spanvault.explained import AGAIN, Explained, Flow, Step, Unowned
from spanvault.media.payloadtypes import STATIC
from spanvault.messages import Call, Stream

MAX_STEPS: Final = 700  # of a call, from its beginning; a ladder of more is read by nobody
MAX_LAST: Final = 300  # and up to its end
MAX_CONCLUDED: Final = 32  # of one step or stream
MAX_UNOWNED: Final = 1_000  # remembered until it is known whose hosts they run between
POLL_NS: Final = 1_000_000_000
OF_CALLS: Final = {Decision.EXPIRED, Decision.STOPPED, Decision.AMBIGUOUS}


@dataclass(slots=True)
class _Call:
    """What is gathered of a call until its last record."""

    messages: int = 0
    steps: list[Step] = field(default_factory=list)
    last: deque[Step] = field(default_factory=lambda: deque(maxlen=MAX_LAST))
    passed_over: int = 0
    heard: set[tuple[object, ...]] = field(default_factory=set)  # messages, to know them again
    endpoints: list[Endpoint] = field(default_factory=list)  # that its SDP named
    rows: dict[int, int] = field(default_factory=dict)  # media's row, by the stream's number
    asked: Asked = field(default_factory=Asked)

    def all_steps(self) -> list[Step]:
        """What is kept, with a word between first and last where some are not."""
        words = f"… {self.passed_over} more messages are not shown"
        missing = [Step(self.last[0].time_ns, words)] if self.passed_over else []
        return [*self.steps, *missing, *self.last]


@dataclass(slots=True)
class _Stream:
    """What is gathered of a stream."""

    heard: NewStream
    owners: int = 0
    last_ns: int = 0
    packets: int = 0  # while nobody owned it
    refused: str = ""  # why its own call does not hold it
    concluded: list[str] = field(default_factory=list)
    closed: str = ""  # what was concluded last of its end

    def conclude(self, sentence: str) -> None:
        if len(self.concluded) < MAX_CONCLUDED:
            self.concluded.append(sentence)

    def close(self, sentence: str) -> None:
        """When it ends; an earlier word on that holds no more: a BYE that was answered, say."""
        if self.concluded and self.concluded[-1] == self.closed:
            self.concluded.pop()
        self.closed = sentence
        self.conclude(sentence)


class Account(Witness):
    """Told by the core while it hears a file. ready: documents, to be taken away."""

    def __init__(self, settings: CaptureConfig, wanted: str | None = None) -> None:
        """wanted: the beginning of a Call-ID, whose steps are kept; None: the overview."""
        self.ready: list[Explained | Unowned] = []
        self.calls = self.streams = self.unowned = 0
        self.apart: Counter[str] = Counter()  # SIP messages that are of no call, by method
        self.media: Media | None = None  # counts streams unowned
        self._wanted = wanted
        self._named = Named(settings)
        self._calls: dict[bytes, _Call] = {}
        self._streams: dict[int, _Stream] = {}
        self._orphans: dict[int, _Stream] = {}
        self._hosts: set[bytes] = set()  # of the calls that are wanted
        self._waiting: deque[tuple[NewStream, Unowned]] = deque(maxlen=MAX_UNOWNED)
        self._step, self._key = Step(0, ""), tuple[object, ...]()
        self._method = ""
        self._polled_ns = 0

    # --- what the core tells ----------------------------------------------------------------

    def heard(self, datagram: Datagram, message: SipMessage) -> None:
        """A message: the decisions that follow are about it."""
        self._method = message.method
        self._step = Step(
            datagram.time_ns,
            words.start_line(datagram, message) if self._wanted is not None else "",
            str(datagram.source),
            str(datagram.destination),
            datagram.transport,
        )
        kind = message.status or message.method
        self._key = (kind, message.cseq, message.from_.tag, message.to.tag, message.branch)

    def unreadable(self, datagram: Datagram, fault: str) -> None:
        """Counted by the core itself."""

    def decided(self, decision: Decision, call: LiveCall | None = None, **facts: Any) -> None:
        """A decision: of the message heard last, of a call, or of a stream."""
        if decision in _OF_STREAMS:
            _OF_STREAMS[decision](self, call, **facts)
        elif call is None:
            self.apart[self._method] += decision is Decision.NO_CALL
        else:
            self._of_call(decision, call, facts)

    def _of_call(self, decision: Decision, call: LiveCall, facts: dict[str, Any]) -> None:
        mine = self._calls.setdefault(call.id, _Call())
        if decision is Decision.BOUND:
            self._named.add(call, facts["binding"])
            mine.asked.bound(facts["binding"])
            if facts["new"]:
                mine.endpoints.append(facts["binding"].endpoint)
        if decision is Decision.DESCRIBED:
            mine.asked.described(facts["side"], facts["media"])
        if decision is Decision.BELONGS:
            mine.messages += 1
            mine.asked.message(self._step.source, self._step.destination)
        if self._wants(call.call_id):
            self._note(mine, decision, call, facts)

    def _wants(self, call_id: str) -> bool:
        return self._wanted is not None and call_id.startswith(self._wanted)

    def _note(self, mine: _Call, decision: Decision, call: LiveCall, facts: dict[str, Any]) -> None:
        sentence = words.sentence(decision, call, facts)
        if decision in OF_CALLS:
            self._keep(mine, Step(call.ended_ns or self._step.time_ns, sentence))
            return
        if decision is Decision.BELONGS:
            self._again(mine)
            self._keep(mine, self._step)
        elif decision is Decision.DESCRIBED:
            self._step.description = words.description(facts["media"])
        if sentence and len(self._step.concluded) < MAX_CONCLUDED:
            self._step.concluded.append(sentence)

    def _again(self, mine: _Call) -> None:
        """Tell a message that comes again, from where it came or on another hop."""
        step = self._step
        ends = (step.source, step.destination)
        if (*self._key, *ends) in mine.heard:
            step.concluded.append(AGAIN)
        elif self._key[:4] in mine.heard:
            step.concluded.append("the same message on another hop (proxy): the same call")
        if len(mine.heard) < 4 * MAX_STEPS:
            mine.heard |= {(*self._key, *ends), self._key[:4]}

    @staticmethod
    def _keep(mine: _Call, step: Step) -> None:
        if len(mine.steps) < MAX_STEPS:
            mine.steps.append(step)
        else:
            mine.passed_over += len(mine.last) == MAX_LAST
            mine.last.append(step)

    def _opened(self, _: LiveCall | None, stream: NewStream, attached: bool) -> None:
        mine = self._streams[stream.row] = _Stream(stream)
        if not attached:
            self._orphans[stream.row] = mine

    def _attached(self, call: LiveCall | None, row: int, match: Any) -> None:
        stream = self._streams.get(row)
        if call is None or stream is None:
            return
        waited = self._orphans.pop(row, None) is not None
        stream.owners += 1
        self._calls.setdefault(call.id, _Call()).rows[call.streams[-1].number] = row
        waited_ns = self._step.time_ns - stream.heard.time_ns if waited else 0
        stream.conclude(words.attached(match, waited_ns))

    def _shared(self, call: LiveCall | None, row: int, match: Any) -> None:
        self._attached(call, row, match)
        if row in self._streams:
            self._streams[row].conclude("two legs share it: stored once, listed by both")

    def _closed(self, _: LiveCall | None, row: int, at_ns: int, why: str) -> None:
        if row in self._streams:
            self._streams[row].close(words.closed(at_ns, why))

    def _refused(self, _: LiveCall | None, row: int) -> None:
        if row in self._streams:
            stream = self._orphans[row] = self._streams[row]
            stream.refused = "its call has more streams than are kept of one"

    def _unclaimed(self, _: LiveCall | None, row: int) -> None:
        self._poll(row)
        stream = self._orphans.pop(row, None)
        self._streams.pop(row, None)
        if stream is not None:
            self._disown(stream)

    # --- what the file's reader asks --------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Look at the streams that nobody claimed, before media lets them go."""
        if abs(now_ns - self._polled_ns) >= POLL_NS:
            self._polled_ns = now_ns
            for row in self._orphans:
                self._poll(row)

    def final(self, call: Call) -> None:
        """A call's last record: its part of the account is complete."""
        mine = self._calls.pop(call.id, _Call())
        self._named.ended(call, mine.endpoints)
        flows = [self._flow(stream, mine.rows.get(stream.number)) for stream in call.streams]
        self.calls += 1
        self.streams += sum(not stream.stored_in for stream in call.streams)
        if self._wanted is not None and not self._wants(call.call_ids[0]):
            return
        self._hosts |= {endpoint.address for endpoint in mine.endpoints}
        self.ready.append(
            Explained(
                msgspec.structs.replace(call, keys=[]),  # nobody who reads this may open anything
                mine.messages, sorted(mine.all_steps(), key=lambda step: step.time_ns),
                mine.passed_over, flows, remedies(call, mine.asked.answers(call)),
            )
        )  # fmt: skip

    def finish(self) -> None:
        """The file ends: what nobody claimed so far is nobody's."""
        for row in list(self._orphans):
            self._unclaimed(None, row)
        for heard, unowned in self._waiting:
            if {heard.source.address, heard.destination.address} & self._hosts:
                self.ready.append(unowned)
        self._waiting.clear()

    def _poll(self, row: int) -> None:
        stream = self._orphans.get(row)
        if stream is not None and self.media is not None:
            totals = self.media.totals(row)
            if totals.last_ns:
                stream.last_ns = totals.last_ns
                stream.packets = max(totals.packets, self.media.unclaimed(row))

    def _disown(self, stream: _Stream) -> None:
        heard = stream.heard
        last_ns = stream.last_ns or heard.time_ns
        flow = Flow(
            str(heard.source), str(heard.destination), heard.ssrc, heard.time_ns, last_ns,
            stream.packets or 1, 0, 0, words.codec_name(STATIC.get(heard.payload_type)),
        )  # fmt: skip
        self.unowned += 1
        unowned = Unowned(flow, stream.refused or self._named.why_not(heard, last_ns))
        if self._wanted is None:
            self.ready.append(unowned)
        else:
            self._waiting.append((heard, unowned))

    def _flow(self, stream: Stream, row: int | None) -> Flow:
        known = self._streams.get(row) if row is not None else None
        if known is not None and row is not None:
            known.owners -= 1
            if known.owners <= 0:
                del self._streams[row]
        return Flow(
            stream.source, stream.destination, stream.ssrc, stream.first_ns, stream.last_ns,
            stream.packets, stream.lost, stream.duplicates, words.codec_name(main_codec(stream)),
            stream.party, list(known.concluded) if known else [],
        )  # fmt: skip


_OF_STREAMS: Final[dict[Decision, Callable[..., None]]] = {
    Decision.OPENED: Account._opened,
    Decision.ATTACHED: Account._attached,
    Decision.SHARED: Account._shared,
    Decision.CLOSED: Account._closed,
    Decision.REFUSED: Account._refused,
    Decision.UNCLAIMED: Account._unclaimed,
}
