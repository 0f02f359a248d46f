"""Between capture and storaged: WIRE.md §5. Chunk table, frames and payload travel behind them."""

from typing import Any

import msgspec

from spanvault.messages.call import Call
from spanvault.messages.kind import Message


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
