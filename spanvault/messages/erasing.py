"""Erasing calls, moving them up, and the proof of both."""

import msgspec

from spanvault.messages.kind import Message


class Erase(Message):
    """Destroy the keys of calls and their recordings, for good: all of them, or none."""

    ids: list[bytes]
    reason: str  # stays for ever, also at the targets: it should name nobody
    unfinished: bool = False  # also calls whose end has not come; what still comes is let go


class EraseReply(Message):
    """What was erased. already: ids that had been before; pending: targets that must follow.

    days: search rows of so many days must be brought under new keys; it is being done.
    ingest_keys: so many that a copy of a spool opens with are to be destroyed; that follows, too.
    """

    erasure: bytes
    erased: int
    already: list[bytes] = []
    pending: list[str] = []
    days: int = 0
    ingest_keys: int = 0


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


class DayKey(msgspec.Struct, frozen=True):
    """A key of a day's search rows in a pool, by its slot."""

    pool: str
    key_id: int


class IngestKey(msgspec.Struct, frozen=True):
    """An ingest key of a pool, by the id that captures know it by: 16 hex digits."""

    pool: str
    key_id: str


class ErasureReceipt(Message):
    """A target followed an erasure. Signed (spanvault.certificate). Answered by Done."""

    erasure: bytes
    target: str
    at_ns: int
    grade: str
    signer: bytes = b""  # Ed25519 public key, 32 bytes
    signature: bytes = b""
    position: int = 0  # in the feed, of what was followed; 0: a version before does not say


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
    day_keys: list[DayKey] = []  # of the days of the calls; destroyed when all else is done
    day_pages: list[RekeyedPage] = []  # where those lie; `after` is -1 until they are destroyed
    rows_gone_ns: int = 0  # since when no key opens search rows of the calls; 0: not yet
    ingest_keys: list[IngestKey] = []  # that something of the calls may have been spooled under
    spools_gone_ns: int = 0  # since when none of those is left to open a copy of it; 0: not yet
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
