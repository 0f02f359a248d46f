"""One call while it is followed: plain data, so that a restart can take it up again.

What changes it: capture.calls.calls (signalling), capture.calls.attachment (streams),
capture.calls.relations. How it begins: capture.calls.beginning. What leaves: the call record,
spanvault.messages.Call.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from capture.calls.inclear import InClear
from capture.model import Endpoint, StreamTotals, host_text
from capture.share import SHARE
from capture.signalling.dialog import Dialog, State
from capture.signalling.offer_answer import OfferAnswer, signalled_flags
from capture.signalling.siprec import Metadata
from spanvault.media.chunk import CONTROL, EVENTS
from spanvault.media.payloadtypes import STATIC, is_fec, is_sound, primary
from spanvault.messages import Call, Codec, MediaKey, MediaKind, Party, Related, Stream

MAX_RELATED: Final = 64
MAX_KEYS: Final = 64
MAX_HOPS: Final = 16
UNANSWERED_NS: Final = 32_000_000_000  # 64·T1: a BYE is sent again so long
EARLY_MEDIA_NS: Final = 200_000_000  # RTP so much before the answer is no mere race with the 200
ENCRYPTED: Final = frozenset({"srtp_sdes", "srtp_dtls", "zrtp"})
MANY: Final = 50  # packets: of fewer some that come again say nothing


class Binding(msgspec.Struct, array_like=True):
    """For some time, a party of a call receives one kind of media at an endpoint."""

    endpoint: Endpoint
    party: Party
    kind: MediaKind
    codecs: dict[int, Codec]
    since_ns: int
    owner: bytes  # address that sent the SDP: whose word it is
    until_ns: int | None = None
    rtcp_port: int | None = None  # where its RTCP goes, if that is said (RFC 3605)
    candidate: bool = False  # of ICE: it may turn out to be where media is received (RFC 8839)
    orientation: int = 0  # id of the header extension that tells how a camera is held
    tags: list[str] = []  # of the callee's forks that named it


class Referral(msgspec.Struct, array_like=True):
    """A REFER heard in a call: who was sent where."""

    time_ns: int
    referee: bytes  # host that shall call
    target: str  # user it shall call
    replaces: str | None  # Call-ID of the dialog it shall take over


class LiveCall(msgspec.Struct, array_like=True):
    """A call attempt in progress, or ended and waiting for its last media."""

    id: bytes
    call_id: str
    caller_tag: str
    caller: str
    callee: str
    started_ns: int
    dialog: Dialog
    offer_answer: OfferAnswer
    caller_host: bytes | None = None  # where their signalling comes from
    callee_host: bytes | None = None
    invite_target: bytes = b""  # host that the first INVITE heard went to
    invites: list[str] = []  # "CSeq branch" of INVITEs that begin the call
    confirmed: list[str] = []  # the callee's tags of dialogs that are up
    parted: list[str] = []  # and of those that saw BYE
    flags: set[str] = set()
    related: list[Related] = []
    referrals: list[Referral] = []
    legs: list[bytes] = []  # ids of the calls by which a B2BUA called on
    bindings: list[Binding] = []
    streams: list[Stream] = []
    keys: list[MediaKey] = []  # of its SRTP, oldest first
    rows: list[int | None] = []  # of each stream; None: another call's, or from before a restart
    held: bool = False
    heard_ns: int = 0  # last signalling
    revision: int = 0
    recorded_ns: int = 0
    beside: dict[int, Stream] = {}  # events and RTCP of its streams, by number
    slow: bool = False  # some of it came by the slow path: a flood there may touch it
    dialled: str = ""  # user of the Request-URI of the first INVITE
    headers: dict[str, list[str]] = {}  # of that INVITE, those that are to be kept
    siprec: Metadata | None = None
    labels: dict[str, str] = {}  # of its m= lines, by endpoint, where metadata names them
    byes: dict[str, bool] = {}  # by branch, a hop each: whether a final response was heard
    ends: tuple[Endpoint, Endpoint] | None = (
        None  # of RTP without signalling: capture.calls.orphans
    )
    expires_ns: int | None = None  # when its record says that it may go
    clock_ns: int = 0  # what the time of day was ahead when it began: capture.clock
    keyless: bool = False  # an m= line of its SRTP named no key that can be used
    in_clear: InClear = msgspec.field(default_factory=InClear)
    challenged: list[str] = []  # "CSeq branch" of INVITEs that were to be tried anew
    hops: dict[str, list[str]] = {}  # how media is encrypted, by the hosts that agreed upon it

    @property
    def ended_ns(self) -> int | None:
        """When it ended, or None."""
        return self.dialog.ended_ns

    @property
    def media_until_ns(self) -> int | None:
        """Until when RTP is its own, but for what is on its way; None while it lasts.

        Who has not got the BYE goes on sending: RFC 3261 §17.1.2.2 gives it 64·T1 to get there.
        """
        ended_ns = self.dialog.ended_ns
        if ended_ns is None or self.dialog.end_reason != "bye" or all(self.byes.values()):
            return ended_ns
        return ended_ns + UNANSWERED_NS

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.dialog.state is State.TERMINATED

    @property
    def secure(self) -> bool:
        """Whether its media, and its RTCP with it, was agreed to be encrypted, if on one hop."""
        flags = signalled_flags(self.offer_answer)
        return any(self.hops.values()) or not flags.isdisjoint(("srtp_sdes", "srtp_dtls"))

    def agree(self, at_ns: int, anew: bool, hop: str, answered: set[str]) -> None:
        """Both sides have described their media. anew: they had before, or were not heard to.

        hop: between which hosts.  answered: how it is encrypted there, as the answer says.
        """
        flags = signalled_flags(self.offer_answer) | answered
        if hop in self.hops or len(self.hops) < MAX_HOPS:
            self.hops[hop] = sorted(answered)
        # For good: what is agreed upon later does not make plain, or heard, what came before.
        self.flags |= flags
        secure = not ENCRYPTED.isdisjoint(flags)
        if len(self.hops) > 1 and "zrtp" not in flags:
            # What keys open is told from what is in the clear on another hop: they authenticate.
            sealed = self.keyless or any("srtp_dtls" in how for how in self.hops.values())
            secure = any(self.hops.values()) if sealed else all(self.hops.values())
        self.in_clear.agree(secure, at_ns if anew else self.started_ns)

    @property
    def name(self) -> str:
        """What others are told of it by: its Call-ID, or its id where it has none."""
        return self.call_id or self.id.hex()

    def relate(self, kind: str, call_id: str) -> bool:
        """Note another call; a B2BUA may have kept our Call-ID. Returns whether that is news."""
        other = Related(kind, call_id)  # type: ignore[arg-type]
        if other in self.related or len(self.related) >= MAX_RELATED:
            return False
        self.related.append(other)
        return True

    def learn(self, keys: list[MediaKey]) -> None:
        """Note SRTP keys that SDP named. Of more than MAX_KEYS the newest are kept."""
        fresh = [key for key in keys if key not in self.keys]
        self.keys = [*self.keys, *fresh][-MAX_KEYS:]

    def shift(self, by_ns: int) -> None:
        """Count all times by another clock; what is told of them stays."""
        self.clock_ns -= by_ns
        self.streams = [_moved(stream, by_ns) for stream in self.streams]
        self.beside = {number: _moved(each, by_ns) for number, each in self.beside.items()}
        dialog = self.dialog
        dialog.changed_ns += by_ns
        dialog.answered_ns = _at(dialog.answered_ns, by_ns)
        dialog.ended_ns = _at(dialog.ended_ns, by_ns)
        dialog.cancelled_ns = _at(dialog.cancelled_ns, by_ns)
        self.started_ns += by_ns
        self.heard_ns += by_ns
        self.recorded_ns += by_ns
        self.expires_ns = _at(self.expires_ns, by_ns)
        self.in_clear.spans = self.in_clear.shifted(by_ns)
        for referral in self.referrals:
            referral.time_ns += by_ns
        for binding in self.bindings:
            binding.since_ns += by_ns
            binding.until_ns = _at(binding.until_ns, by_ns)

    def last_media_ns(self, totals: Callable[[int], StreamTotals]) -> int | None:
        """When its latest RTP packet was heard, or None."""
        latest = max((stream.last_ns for stream in self.streams), default=0)
        for row in self.rows:
            if row is not None:
                latest = max(latest, totals(row).last_ns)
        return latest or None

    def refresh(self, totals: Callable[[int], StreamTotals]) -> None:
        """Bring the streams' totals up to date."""
        for stream, row in zip(self.streams, self.rows, strict=True):
            if row is not None:
                told = totals(row)
                _copy_totals(stream, told)
                if told.events:
                    self.put_beside(
                        stream, EVENTS, told.events, told.events_first_ns, told.events_last_ns
                    )

    def put_beside(
        self, stream: Stream, at: int, packets: int, first_ns: int, last_ns: int
    ) -> None:
        """Note what was heard of a stream's events or RTCP. at: chunk.EVENTS or CONTROL."""
        beside = self.beside.get(stream.number + at)
        if beside is None:
            beside = self.beside[stream.number + at] = Stream(
                stream.number + at, stream.party, "events" if at == EVENTS else "control",
                stream.ssrc, stream.source, stream.destination, {},
            )  # fmt: skip
        beside.packets, beside.first_ns, beside.last_ns = packets, first_ns, last_ns
        if stream.stored_in is not None and stream.stored_as is not None:
            beside.stored_in, beside.stored_as = stream.stored_in, stream.stored_as + at
        beside.codecs = stream.codecs if at == EVENTS else {}

    def record(self, capture: str, final: bool) -> Call:
        """The call as a message, one revision on. The streams' totals must be fresh."""
        self.revision += 1
        streams, beside = self._streams()
        caller, callee = self._speakers()
        flags = self.flags | self._signalled_flags() | self._media_flags(streams)
        ahead_ns = self.clock_ns
        return Call(
            id=self.id,
            capture=capture,
            call_ids=[self.call_id] if self.call_id else [],
            caller=caller,
            callee=callee,
            started_ns=self.started_ns + ahead_ns,
            answered_ns=_at(self.dialog.answered_ns, ahead_ns),
            ended_ns=_at(self.dialog.ended_ns, ahead_ns),
            outcome=self.dialog.outcome,
            end_reason=self.dialog.end_reason,
            flags=sorted(flags),
            related=list(self.related),
            streams=[_moved(stream, ahead_ns) for stream in streams],
            beside=[_moved(stream, ahead_ns) for stream in beside],
            keys=list(self.keys),
            in_clear=[] if ENCRYPTED.isdisjoint(flags) else self.in_clear.shifted(ahead_ns),
            siprec=self.siprec.told() if self.siprec else None,
            dialled=self.dialled,
            hosts=[host_text(host) for host in self._hosts() if host],
            headers=self.headers,
            revision=self.revision,
            final=final,
            expires_ns=_at(self.expires_ns, ahead_ns),
        )

    def _streams(self) -> tuple[list[Stream], list[Stream]]:
        """Copies, as what was handed over must not change behind its owner's back."""
        sides = self.siprec.parties(self.labels.values()) if self.siprec else {}
        parties = {
            stream.number: sides.get(self._label(stream), stream.party) for stream in self.streams
        }
        lost = self._lost_forks()
        streams = [
            msgspec.structs.replace(
                stream,
                party=parties[stream.number],
                lost_fork=not lost.isdisjoint((stream.source, stream.destination)),
                codecs=dict(stream.codecs),
                payload_types=dict(stream.payload_types),
                far_end=stream.far_end and msgspec.structs.replace(stream.far_end),
            )
            for stream in self.streams
        ]
        beside = [
            msgspec.structs.replace(stream, party=parties.get(number % CONTROL, stream.party))
            for number, stream in sorted(self.beside.items())
        ]
        return streams, beside

    def _lost_forks(self) -> set[str]:
        """The ends of phones that were rung and heard, but did not answer: another one had."""
        won = set(self.confirmed)
        if "forked" not in self.flags or not won:
            return set()
        return {
            str(binding.endpoint)
            for binding in self.bindings
            if binding.tags and won.isdisjoint(binding.tags)
        }

    def _label(self, stream: Stream) -> str:
        return self.labels.get(stream.destination) or self.labels.get(stream.source, "")

    def _speakers(self) -> tuple[str, str]:
        """Caller and callee; of a recording client's leg the first two it recorded."""
        names = self.siprec.names() if self.siprec else []
        return (names[0], names[1]) if len(names) > 1 else (self.caller, self.callee)

    def _hosts(self) -> tuple[bytes | None, bytes]:
        """Whom the first INVITE went between."""
        return self.caller_host, self.invite_target

    def _signalled_flags(self) -> set[str]:
        flags = signalled_flags(self.offer_answer)
        if "srtp_sdes" in flags | self.flags and (self.keyless or not self.keys):
            flags.add("srtp_no_key")
        return flags

    def _media_flags(self, streams: list[Stream]) -> set[str]:
        """What only the streams can tell."""
        heard = [stream for stream in streams if stream.packets]
        flags = set()
        answered_ns = self.dialog.answered_ns
        if self.dialog.outcome == "answered":
            if not heard:
                flags.add("no_media")
            elif len({stream.party for stream in heard if stream.media == "audio"}) == 1:
                flags.add("one_way")
        if any(
            answered_ns is None or stream.first_ns < answered_ns - EARLY_MEDIA_NS
            for stream in heard
            if "started_mid_call" not in self.flags and stream.party == "callee"
        ):
            flags.add("early_media")
        if heard and _twice(heard):
            flags.add("mirrored_twice")
        if any(is_fec(codec) for stream in heard for codec in _heard(stream)):
            flags.add("fec")
        for party in ("caller", "callee"):
            sounds = {
                codec.name.lower()
                for stream in heard
                if stream.party == party and stream.media == "audio"
                for codec in _sounds(stream)
            }
            if len(sounds) > 1:
                flags.add("codec_changed")
        return flags


def _at(time_ns: int | None, ahead_ns: int) -> int | None:
    """A time by a clock that is ahead by so much."""
    return None if time_ns is None else time_ns + ahead_ns


def _moved(stream: Stream, ahead_ns: int) -> Stream:
    """A stream's times by a clock that is ahead by so much."""
    if not ahead_ns:
        return stream
    return msgspec.structs.replace(
        stream,
        first_ns=stream.first_ns + ahead_ns,
        last_ns=stream.last_ns + ahead_ns,
        bye_ns=_at(stream.bye_ns, ahead_ns),
    )


def _copy_totals(stream: Stream, totals: StreamTotals) -> None:
    stream.packets, stream.lost, stream.duplicates = totals.packets, totals.lost, totals.duplicates
    stream.late, stream.jitter = totals.late, totals.jitter
    stream.first_ns = totals.first_ns or stream.first_ns
    stream.last_ns = totals.last_ns or stream.last_ns
    stream.payload_types = dict(totals.payload_types)
    for number in stream.payload_types.keys() & STATIC.keys():
        # Heard but not negotiated: a static payload type has its meaning all the same.
        stream.codecs.setdefault(number, STATIC[number])


def _twice(streams: list[Stream]) -> bool:
    """Whether so many packets came again as of a mirror: what senders repeat is far less."""
    packets = sum(stream.packets for stream in streams)
    return packets >= MANY and sum(stream.duplicates for stream in streams) >= SHARE * packets


def _sounds(stream: Stream) -> list[Codec]:
    """The codecs that were heard in a stream: events, comfort noise and repair apart."""
    heard = [primary(codec, stream.codecs) for codec in _heard(stream)]
    return [codec for codec in heard if is_sound(codec)]


def _heard(stream: Stream) -> list[Codec]:
    """What the payload types that were heard in a stream mean."""
    return [stream.codecs[number] for number in stream.payload_types if number in stream.codecs]
