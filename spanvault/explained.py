"""What `python -m capture.explain` tells of a capture file: one JSON document a line.

Calls as they become final, streams that no call claimed, then what was counted. The command renders
them (spanvault.commands.explain) or passes them on; docs/command.md says what a reader may rely on.
Times are nanoseconds by the capture's clock. No key, payload or digit is in any of them.
"""

import msgspec

from spanvault.messages import Call, Party

# What is concluded of a message that was there before, between the same two.
AGAIN = "sent again (retransmission): changes nothing"


class Step(msgspec.Struct):
    """One message or event of a call, and what followed from it.

    concluded: sentences, in the order in which they were concluded.
    """

    time_ns: int
    words: str  # "INVITE sip:1002@pbx", "200 OK"; of what was not sent, as a timeout, the event
    source: str = ""  # ip:port; "" where nothing was sent
    destination: str = ""
    transport: str = ""
    description: str = ""  # of its SDP, in one line
    concluded: list[str] = []


class Flow(msgspec.Struct):
    """One RTP stream: one SSRC from one source to one destination."""

    source: str
    destination: str
    ssrc: int
    first_ns: int
    last_ns: int
    packets: int  # unique; of a stream that no call claimed, all that were heard
    lost: int
    duplicates: int
    codec: str  # "unknown" where nobody said
    party: Party = "unknown"  # who speaks
    concluded: list[str] = []
    theirs: "TheirFlow | None" = None
    differences: list[str] = []


class TheirFlow(msgspec.Struct):
    """A stream as tshark counts it: a packet heard twice is two, and one lost less."""

    source: str
    destination: str
    ssrc: int
    packets: int
    lost: int
    codec: str


class TheirCall(msgspec.Struct):
    """A call as tshark's dissection of its SIP messages has it."""

    call_id: str
    messages: int
    caller: str
    callee: str
    state: str  # of Wireshark's VoIP calls: "call setup", "ringing", "in call", "completed", …


class Told(msgspec.Struct, tag_field="kind", tag=str.lower):
    """A document."""


class Explained(Told, tag="call"):
    """A call, whole. steps: only of calls that were asked for.

    passed_over: messages more than are kept; a step in their place says so.
    """

    call: Call
    messages: int  # SIP messages that were its
    steps: list[Step] = []
    passed_over: int = 0
    flows: list[Flow] = []
    remedies: list[str] = []
    theirs: TheirCall | None = None
    differences: list[str] = []


class Unowned(Told, tag="stream"):
    """An RTP stream that no call claimed, and why."""

    flow: Flow
    why: str


class OnlyTheirs(Told, tag="only_tshark"):
    """What tshark has and we have not. Exactly one is set."""

    call: TheirCall | None = None
    flow: TheirFlow | None = None
    why: str = ""


class Count(msgspec.Struct):
    """Something that was counted, in words, and what can be done about it."""

    what: str
    count: int
    remedy: str = ""


class Summary(Told, tag="summary"):
    """The last document. found: whether the Call-ID that was asked for was there."""

    frames: int
    calls: int
    streams: int  # that calls hold
    unowned: int
    found: bool
    encapsulations: list[Count] = []
    counts: list[Count] = []
    sip: int = 0  # messages that could be read
    tshark: str = ""  # its version, "" where it was not asked
    without_tshark: str = ""  # why it was not asked, or not to its end
    faults: list[str] = []  # of the file


Document = Explained | Unowned | OnlyTheirs | Summary
