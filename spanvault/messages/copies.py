"""What a replica is fed, what it confirms, and what comes back from it."""

from typing import Literal

import msgspec

from spanvault.messages.kind import Message


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

    The bytes from `offset` follow as one frame; or `fault` says why the target has it not. more: of
    a record, that the target may have others: that this one does not open is not its last word.
    """

    target: str
    change: Change
    offset: int = 0
    fault: str = ""
    more: bool = False


class Mend(Message):
    """Ask how it stands with damaged recordings: these, or all that are known.

    again: check them first, and ask all targets anew for what is damaged.
    """

    ids: list[bytes] = []
    again: bool = True


class Mending(msgspec.Struct):
    """Something damaged. id: a recording's, or `keys/` and a key file's name, as bytes.

    told: by target, what came of asking there.
    """

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


class Import(Message):
    """Put a replica's change into an empty store. An `object`'s bytes follow as one frame.

    For an object sent in parts, `offset` says where the part begins; `change.size` is the whole.
    """

    store_id: str
    change: Change
    offset: int = 0
