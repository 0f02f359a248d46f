"""A call and its streams, as capture tells of them and storaged keeps them: data alone.

Times are nanoseconds since 1970-01-01T00:00Z.
"""

from typing import Literal

import msgspec

Outcome = Literal[
    "answered", "cancelled", "busy", "declined", "no_answer",
    "not_found", "failed", "in_progress", "unknown",
]  # fmt: skip
Party = Literal["caller", "callee", "unknown"]
MediaKind = Literal["audio", "video", "text", "fax", "events", "control"]
RelationKind = Literal["transfer", "b2bua", "fork", "replaces", "joins", "joined", "continued"]


class Codec(msgspec.Struct, frozen=True):
    """What a payload type means in one stream: RFC 8866 §6.6 rtpmap and fmtp."""

    name: str
    clock_rate: int
    channels: int = 1
    parameters: str = ""


class FarEnd(msgspec.Struct):
    """What those who hear a stream report of it: RTCP, RFC 3550 §6.4.1."""

    reports: int = 0
    lost: int = 0  # packets, as last reported; negative where copies came
    worst: float = 0.0  # greatest part of the packets between two reports that was lost, 0 to 1
    jitter: float = 0.0  # greatest, media clock units
    round_trip_ms: float | None = None  # from where we listen to the far end and back, on average
    round_trips: int = 0  # that it is the average of


class Stream(msgspec.Struct):
    """One RTP stream of a call: one SSRC from one source to one destination.

    Its telephone events and its RTCP are kept as streams of their own beside it (Call.beside),
    numbered spanvault.media.chunk.EVENTS or CONTROL above it. Packets of events count here, too:
    they share the sequence numbers.
    """

    number: int
    party: Party
    media: MediaKind
    ssrc: int
    source: str
    destination: str
    codecs: dict[int, Codec]  # by payload type
    payload_types: dict[int, int] = {}  # packets heard, by payload type
    first_ns: int = 0
    last_ns: int = 0
    packets: int = 0  # unique
    lost: int = 0
    duplicates: int = 0
    late: int = 0
    jitter: float = 0.0  # media clock units, RFC 3550 §6.4.1
    stored_in: bytes | None = None  # the recording that holds it, where it is another call's
    stored_as: int | None = None  # and its number there
    far_end: FarEnd | None = None
    bye_ns: int | None = None  # when RTCP said that it ends
    orientation: int = 0  # id of the header extension that tells how a camera is held; 0: none
    lost_fork: bool = False  # with a phone that was rung and did not answer: another one did


class MediaKey(msgspec.Struct, frozen=True):
    """An SRTP master key and salt as SDP told it (RFC 4568), for a suite of media.sdes."""

    suite: str
    key: bytes  # and salt behind it
    mki: int = 0  # bytes of master key identifier in each packet
    encrypted: bool = True  # else RTP is only authenticated
    rate: int = 0  # packets after which session keys are derived anew; 0: never


class Related(msgspec.Struct, frozen=True):
    """Another call that belongs to this one. call_id: its id in hex, where it has no Call-ID."""

    kind: RelationKind
    call_id: str


class Participant(msgspec.Struct, frozen=True):
    """One who took part in a recorded session: RFC 7865 §6.5. party: the side its sound is on."""

    aor: str  # address of record: "sip:alice@example.com"
    name: str
    party: Party = "unknown"


class Siprec(msgspec.Struct, frozen=True):
    """What a recording client told of the session that it has recorded: RFC 7865."""

    sessions: list[str]  # ids of communication sessions
    groups: list[str]  # and of groups they belong to
    participants: list[Participant]


class Span(msgspec.Struct, frozen=True):
    """From one moment on up to another; None: for good."""

    from_ns: int
    until_ns: int | None = None


class Call(msgspec.Struct):
    """One call attempt, whole; a later revision replaces an earlier one.

    id: 16 bytes, also the recording's id where media was heard.
    """

    id: bytes
    capture: str
    call_ids: list[str]
    caller: str
    callee: str
    started_ns: int
    answered_ns: int | None = None
    ended_ns: int | None = None
    outcome: Outcome = "in_progress"
    end_reason: str | None = None
    flags: list[str] = []
    related: list[Related] = []
    streams: list[Stream] = []
    beside: list[Stream] = []  # their telephone events and RTCP
    keys: list[MediaKey] = []  # of its SRTP, oldest first; storaged gives them with the media only
    in_clear: list[Span] = []  # when its media was, by agreement; of calls encrypted otherwise
    dialled: str = ""  # user of the first INVITE's Request-URI
    hosts: list[str] = []  # addresses of that INVITE's two ends
    headers: dict[str, list[str]] = {}  # of it, those that the capture was told to keep; lower case
    siprec: Siprec | None = None  # of a recording client's leg: caller and callee are its speakers
    revision: int = 0
    final: bool = False  # nothing more will come: the recording is sealed
    expires_ns: int | None = None  # when it may go; None: as the store's rules say
    heard_by: str = ""  # the capture whose key proved it; storaged's own note, in no answer
