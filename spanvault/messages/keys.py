"""The pools' keys: which are open, what opens them, and new ones in their place."""

from typing import Literal

import msgspec

from spanvault.messages.kind import Message


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
    to_go: list[str] = []  # of each ingest key that an erasure waits for: its id, and why it stays


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


class OfferShare(Message):
    """Give one share of a key that a pool is sealed to; with the last that is needed it opens."""

    pool: str
    share: str  # as it stands on paper


class OfferShareReply(Message):
    """Which shares of the set are there, how many are needed, and whether the pool is open now."""

    given: list[int]
    needed: int
    open: bool


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
