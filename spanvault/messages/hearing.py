"""Finding, hearing and checking calls: WIRE.md §6."""

from typing import Any, Literal

from spanvault.messages.call import Call, MediaKey, Outcome
from spanvault.messages.copies import Receipt
from spanvault.messages.kind import Message


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
    receipts: list[Receipt]


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


class Check(Message):
    """Ask to check all key files (in one answer), or the call records behind a cursor.

    recordings: ask only which there are behind it, in open pools, each to be checked by Verify.
    ledgers: a file of theirs an answer, then what damaged ones held is written anew.

    A damaged root or record is brought back at once where that is possible. Needs no listening
    rights.
    """

    what: Literal["keys", "records", "recordings", "ledgers"]
    cursor: bytes = b""


class CheckReply(Message):
    """What was found, by names of key files or ids of calls in hex. `cursor`: None is the end.

    unchecked: what nobody can tell while its pool is locked: names of key files, or of pools.
    """

    checked: int
    faults: dict[str, str] = {}
    mended: list[str] = []
    unchecked: list[str] = []
    cursor: bytes | None = None
    recordings: list[bytes] = []
