"""Every message the daemons and the command exchange, as data.

One struct a message, told apart by its `kind`. Bulk bytes never travel inside a struct: they are
frames of their own behind it (WIRE.md). Times are nanoseconds since 1970-01-01T00:00Z.
"""

from typing import Any, Literal

import msgspec

Outcome = Literal[
    "answered", "cancelled", "busy", "declined", "no_answer",
    "not_found", "failed", "in_progress", "unknown",
]  # fmt: skip
Party = Literal["caller", "callee", "unknown"]
MediaKind = Literal["audio", "video", "fax", "events", "control"]
RelationKind = Literal["transfer", "b2bua", "fork", "replaces", "joined", "continued"]


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
    numbered spanvault.chunk.EVENTS or CONTROL above it. Packets of events count here, too: they
    share the sequence numbers.
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


class MediaKey(msgspec.Struct, frozen=True):
    """An SRTP master key and salt as SDP told it (RFC 4568), for a suite of spanvault.sdes."""

    suite: str
    key: bytes  # and salt behind it
    mki: int = 0  # bytes of master key identifier in each packet


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
    dialled: str = ""  # user of the first INVITE's Request-URI
    hosts: list[str] = []  # addresses of that INVITE's two ends
    headers: dict[str, list[str]] = {}  # of it, those that the capture was told to keep; lower case
    siprec: Siprec | None = None  # of a recording client's leg: caller and callee are its speakers
    revision: int = 0
    final: bool = False  # nothing more will come: the recording is sealed
    expires_ns: int | None = None  # when it may go; None: as the store's rules say


class Message(msgspec.Struct, tag_field="kind", tag=str.lower):
    """Whatever has a `kind`."""


# --- capture → storaged (ingest) ----------------------------------------------------------------


class Hello(Message):
    """A capture is there; asks for the key to seal its spool to."""

    capture: str


class Slot(msgspec.Struct, frozen=True):
    """Where a batch's media lies in the memory that its capture has handed over (WIRE.md §4)."""

    memory: bytes  # its name, 16 random bytes
    offset: int
    sizes: tuple[int, int, int]  # bytes of chunk table, frames, payload, one behind the other


class Batch(Message):
    """Calls and media. Followed by three frames: chunk table, frames, payload; or slot has them."""

    capture: str
    sequence: int  # this capture's, strictly rising, never reused
    calls: list[Call] = []
    slot: Slot | None = None


class Sealed(Message):
    """A batch that lay on the capture's disk. Followed by one frame: the HPKE ciphertext."""

    capture: str
    sequence: int
    key_id: str


class Health(Message):
    """A daemon's own account of itself, kept for `spanvault status`."""

    daemon: str
    state: str  # one line for people
    fields: dict[str, Any] = {}


# --- storaged → capture -------------------------------------------------------------------------


class Welcome(Message):
    """The store's public ingest key: X25519, 32 bytes."""

    store_id: str
    key_id: str
    ingest_key: bytes
    instance: str = ""  # new at each start of storaged: what was in flight must be sent again
    user: int = -1  # that storaged runs as; a capture on its host may hand it memory


class Acknowledge(Message):
    """These batches are on disk, synced. Only now may the capture forget them."""

    sequences: list[int]


class Refuse(Message):
    """This batch can never be stored as it is; it was set aside and counted."""

    sequence: int
    error: str
    hint: str


# --- requests to storaged, and their replies ----------------------------------------------------


class Failure(Message):
    """A request that was not carried out: what, and what to do."""

    code: Literal[
        "invalid", "denied", "not_found", "erased", "corrupt", "locked", "full", "unavailable"
    ]
    error: str
    hint: str = ""


class Done(Message):
    """Carried out; nothing to return."""


class Status(Message):
    """Ask how the appliance is."""


class StatusReply(Message):
    """What storaged knows of itself and of the daemons that report to it."""

    store_id: str
    state: str
    fields: dict[str, Any]
    daemons: list[dict[str, Any]]  # Health, with age_s


class Search(Message):
    """Ask for calls, newest first. Only what is given restricts."""

    since_ns: int | None = None
    until_ns: int | None = None
    number: str | None = None  # exact caller or callee
    outcome: Outcome | None = None
    longer_s: float | None = None
    shorter_s: float | None = None
    call_id: str | None = None
    id_prefix: str | None = None  # hex digits that the call's id begins with
    limit: int = 200
    cursor: bytes | None = None


class Several(Message):
    """Ask for calls by their ids, 500 at most; those that are there come, in that order."""

    ids: list[bytes]


class SearchReply(Message):
    """A page of calls; `cursor` asks for the next, None is the end.

    locked: pools whose calls were left out, whether any would have been found or not.
    """

    calls: list[Call]
    cursor: bytes | None = None
    locked: list[str] = []


class Get(Message):
    """Ask for one call by its id."""

    id: bytes


class GetReply(Message):
    """The call, the state of its recording, and the receipts of its copies."""

    call: Call
    sealed: bool  # the recording ended and its last frame is on disk
    size: int  # bytes of ciphertext; 0 without media
    pool: str
    receipts: list["Receipt"]


class Fetch(Message):
    """Ask for the media of one call, in storage order, a page at a time.

    digits: its telephone events instead, which takes a right of their own. from_ns: pass over what
    lies before that moment, where that is quick; some of it may come all the same.
    """

    id: bytes
    cursor: int = 0
    digits: bool = False
    from_ns: int | None = None


class FetchReply(Message):
    """Followed by three frames as a Batch is. `cursor` asks for the next page, None is the end.

    Chunks of a stream that another recording holds bear this call's id and stream number.
    `faults`: what of this page could not be opened, a line each; what could be is there.
    """

    cursor: int | None
    faults: list[str] = []
    keys: list[MediaKey] = []  # of the call's SRTP, with the first page


class Verify(Message):
    """Ask to check one recording by hash and tag; needs no listening rights."""

    id: bytes


class VerifyReply(Message):
    """What was found. `faults` is empty where all is well."""

    id: bytes
    sealed: bool
    frames: int
    size: int
    sha256: str  # of the object as it lies on disk
    faults: list[str]


class Keys(Message):
    """Ask how the pools' keys are: which are open, and what opens them."""


class PoolKeys(msgspec.Struct):
    """The keys of one pool, as far as they may be told."""

    pool: str
    locked: bool
    epoch: int  # of the root; 0 while it is locked
    recipients: list[str]  # ids of the public keys that it is sealed to
    ingest_keys: int  # generations of the ingest key; 0 while it is locked
    waiting: int  # batches in its intake
    grade: str = ""  # how surely what is erased in it is gone; empty while it is locked


class KeysReply(Message):
    """The keys of all pools."""

    pools: list[PoolKeys]


class Unlock(Message):
    """Open a pool with one of the private keys that it is sealed to. Answered by Done.

    drill: only say whether it would open; nothing is changed.
    """

    pool: str
    key: bytes  # X25519, private, 32 bytes
    drill: bool = False


class Lock(Message):
    """Let a pool's keys go: it records on, and nothing of it is read."""

    pool: str


class Rotate(Message):
    """A new root key, or a new ingest key, of a pool. Answered by Done."""

    pool: str
    what: Literal["root", "ingest"]


class Recipients(Message):
    """Change who can open a pool. Answered by Done.

    key: a private key that opens it now: who changes this must prove to be one of them.
    """

    pool: str
    key: bytes
    add: list[bytes] = []  # public keys, X25519
    remove: list[str] = []  # ids of public keys


class Feed(Message):
    """Ask for what changed behind a position, oldest first; waits for `wait_ms` if nothing did."""

    position: int
    limit: int = 500
    wait_ms: int = 0
    target: str = ""  # for which place: what it holds must be erased there, too


class Change(msgspec.Struct):
    """One change that a replica must make its own.

    kind: `object` (a sealed recording: read it with ReadObject), `record` (a call record: its
    ciphertext is `data`), `keys` (a file of sealed key material: `name`, `data`), `erase` (an
    Erasure, as MessagePack in `data`; `id` is its own), `log` (how far the access log is: a
    logchain.Head, as MessagePack in `data`).
    """

    position: int
    kind: Literal["object", "record", "keys", "erase", "log"]
    id: bytes = b""
    pool: str = ""
    name: str = ""
    size: int = 0
    sha256: str = ""
    data: bytes = b""


class FeedReply(Message):
    """Changes, the position to go on from, and the store's newest position (what lag is from).

    wanted: what is damaged in the store and asked back of this target (Return).
    """

    store_id: str
    changes: list[Change]
    position: int
    head: int = 0
    wanted: list[Change] = []


class ReadObject(Message):
    """Ask for the ciphertext of a sealed recording."""

    id: bytes
    offset: int
    size: int


class ReadObjectReply(Message):
    """Followed by one frame: the bytes. `total` is the object's size."""

    total: int


class Return(Message):
    """What a target holds of something that the store asked back. Answered by Done.

    The bytes from `offset` follow as one frame; or `fault` says why the target has it not.
    """

    target: str
    change: Change
    offset: int = 0
    fault: str = ""


class Mend(Message):
    """Ask how it stands with damaged recordings: these, or all that are known.

    again: check them first, and ask all targets anew for what is damaged.
    """

    ids: list[bytes] = []
    again: bool = True


class Mending(msgspec.Struct):
    """One damaged recording. told: by target, what came of asking there."""

    id: bytes
    state: Literal["whole", "asked", "hopeless"]
    fault: str = ""
    told: dict[str, str] = {}


class MendReply(Message):
    """How it stands with each of them."""

    recordings: list[Mending]


class Receipt(Message):
    """A copy was made and its checksum read back at the target. Answered by Done."""

    id: bytes
    target: str
    size: int
    sha256: str
    verified_ns: int


class Erase(Message):
    """Destroy the keys of calls and their recordings, for good: all of them, or none."""

    ids: list[bytes]
    reason: str  # stays for ever, also at the targets: it should name nobody
    unfinished: bool = False  # also calls whose end has not come; what still comes is let go


class EraseReply(Message):
    """What was erased. already: ids that had been before; pending: targets that must follow."""

    erasure: bytes
    erased: int
    already: list[bytes] = []
    pending: list[str] = []


class Move(Message):
    """Move calls up into a higher pool, and erase the lower copies: all of them, or none."""

    ids: list[bytes]
    pool: str
    reason: str  # stays for ever, also at the targets: it should name nobody


class MoveReply(Message):
    """What was moved, recordings that had to go along included. already: ids that were there.

    erasure: of the lower copies; empty if there was none. pending: targets that must follow it.
    """

    erasure: bytes
    moved: int
    already: list[bytes] = []
    pending: list[str] = []


class Copy(msgspec.Struct, frozen=True):
    """Where a recording was copied to before it was erased."""

    target: str
    verified_ns: int


class ErasedRecording(msgspec.Struct, frozen=True):
    """What stays known of an erased call: nothing that names anybody."""

    id: bytes
    pool: str
    key_ids: list[int]
    size: int  # of the sealed object; 0 without one
    sha256: str  # of the same, hex; empty without one
    copies: list[Copy] = []


class RekeyedPage(msgspec.Struct, frozen=True):
    """A page of keys that lost some: its generation before and after."""

    pool: str
    page: int
    before: int
    after: int


class ErasureReceipt(Message):
    """A target followed an erasure. Signed (spanvault.certificate). Answered by Done."""

    erasure: bytes
    target: str
    at_ns: int
    grade: str
    signer: bytes = b""  # Ed25519 public key, 32 bytes
    signature: bytes = b""


class Erasure(msgspec.Struct):
    """One batch of erased calls."""

    id: bytes  # 16 bytes that sort by time
    at_ns: int
    who: str
    reason: str
    recordings: list[ErasedRecording]
    pages: list[RekeyedPage] = []
    epochs: dict[str, int] = {}  # of each pool's root since then
    grades: dict[str, str] = {}  # by pool, how surely its keys are gone
    refused: int = 0  # refused batches that held some of it, destroyed
    moved_to: str = ""  # the pool where the calls live on; empty: they are gone
    done: bool = False
    receipts: list[ErasureReceipt] = []
    pending: list[str] = []  # targets that have not confirmed


class Erasures(Message):
    """Ask for erasures, newest first; of one call only if its `id` is given."""

    id: bytes | None = None
    limit: int = 20
    cursor: bytes | None = None


class ErasuresReply(Message):
    """A page of erasures; `cursor` asks for the next, None is the end."""

    erasures: list[Erasure]
    cursor: bytes | None = None


class Certify(Message):
    """Ask for the certificate of an erased call."""

    id: bytes


class CertifyReply(Message):
    """The certificate: a JSON document, signed (spanvault.certificate)."""

    document: str


class Import(Message):
    """Put a replica's change into an empty store. An `object`'s bytes follow as one frame.

    For an object sent in parts, `offset` says where the part begins; `change.size` is the whole.
    """

    store_id: str
    change: Change
    offset: int = 0


Request = (
    Status | Search | Several | Get | Fetch | Verify | Feed | ReadObject | Receipt | Import | Health
    | Erase | ErasureReceipt | Erasures | Certify | Keys | Unlock | Lock | Rotate | Recipients
    | Return | Mend | Move
)  # fmt: skip
Reply = (
    Failure | Done | StatusReply | SearchReply | GetReply | FetchReply | VerifyReply
    | FeedReply | ReadObjectReply | EraseReply | ErasuresReply | CertifyReply
    | KeysReply | MendReply | MoveReply
)  # fmt: skip
ToIngest = Hello | Batch | Sealed | Health
FromIngest = Welcome | Acknowledge | Refuse
