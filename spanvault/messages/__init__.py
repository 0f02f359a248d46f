"""Every message the daemons and the command exchange, as data.

One struct a message, told apart by its `kind`. Bulk bytes never travel inside a struct: they are
frames of their own behind it (WIRE.md). Times are nanoseconds since 1970-01-01T00:00Z.
"""

from spanvault.messages.call import (
    Call,
    Codec,
    FarEnd,
    MediaKey,
    MediaKind,
    Outcome,
    Participant,
    Party,
    Related,
    RelationKind,
    Siprec,
    Span,
    Stream,
)
from spanvault.messages.copies import (
    Change,
    Feed,
    FeedReply,
    Import,
    Mend,
    Mending,
    MendReply,
    ReadObject,
    ReadObjectReply,
    Receipt,
    Return,
)
from spanvault.messages.erasing import (
    Certify,
    CertifyReply,
    Copy,
    DayKey,
    Erase,
    ErasedRecording,
    EraseReply,
    Erasure,
    ErasureReceipt,
    Erasures,
    ErasuresReply,
    IngestKey,
    Move,
    MoveReply,
    RekeyedPage,
)
from spanvault.messages.hearing import (
    Check,
    CheckReply,
    Fetch,
    FetchReply,
    Get,
    GetReply,
    Search,
    SearchReply,
    Several,
    Status,
    StatusReply,
    Verify,
    VerifyReply,
)
from spanvault.messages.ingest import (
    Acknowledge,
    Batch,
    Health,
    Hello,
    Refuse,
    Sealed,
    Slot,
    Welcome,
)
from spanvault.messages.keys import (
    Keys,
    KeysReply,
    Lock,
    OfferShare,
    OfferShareReply,
    PoolKeys,
    Recipients,
    Rotate,
    Unlock,
)
from spanvault.messages.kind import (
    Done,
    Failure,
    Message,
)

__all__ = [
    "Acknowledge",
    "Batch",
    "Call",
    "Certify",
    "CertifyReply",
    "Change",
    "Check",
    "CheckReply",
    "Codec",
    "Copy",
    "DayKey",
    "Done",
    "Erase",
    "EraseReply",
    "ErasedRecording",
    "Erasure",
    "ErasureReceipt",
    "Erasures",
    "ErasuresReply",
    "Failure",
    "FarEnd",
    "Feed",
    "FeedReply",
    "Fetch",
    "FetchReply",
    "FromIngest",
    "Get",
    "GetReply",
    "Health",
    "Hello",
    "Import",
    "IngestKey",
    "Keys",
    "KeysReply",
    "Lock",
    "MediaKey",
    "MediaKind",
    "Mend",
    "MendReply",
    "Mending",
    "Message",
    "Move",
    "MoveReply",
    "OfferShare",
    "OfferShareReply",
    "Outcome",
    "Participant",
    "Party",
    "PoolKeys",
    "ReadObject",
    "ReadObjectReply",
    "Receipt",
    "Recipients",
    "Refuse",
    "RekeyedPage",
    "Related",
    "RelationKind",
    "Reply",
    "Request",
    "Return",
    "Rotate",
    "Sealed",
    "Search",
    "SearchReply",
    "Several",
    "Siprec",
    "Slot",
    "Span",
    "Status",
    "StatusReply",
    "Stream",
    "ToIngest",
    "Unlock",
    "Verify",
    "VerifyReply",
    "Welcome",
]

Request = (
    Status | Search | Several | Get | Fetch | Verify | Feed | ReadObject | Receipt | Import | Health
    | Erase | ErasureReceipt | Erasures | Certify | Keys | Unlock | OfferShare | Lock | Rotate
    | Recipients | Return | Mend | Move | Check
)  # fmt: skip
Reply = (
    Failure | Done | StatusReply | SearchReply | GetReply | FetchReply | VerifyReply
    | FeedReply | ReadObjectReply | EraseReply | ErasuresReply | CertifyReply
    | KeysReply | OfferShareReply | MendReply | MoveReply | CheckReply
)  # fmt: skip
ToIngest = Hello | Batch | Sealed | Health
FromIngest = Welcome | Acknowledge | Refuse
