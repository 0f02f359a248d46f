"""The bytes of a pool's ledger: what was acknowledged and lies in no object.

Records of calls without media, records that changed after their recording was sealed, what was
sealed with which SHA-256, erasures. Each entry is authenticated under a key of the pool, and what
names people is sealed besides, under the call's own DEK: with that it is gone from every copy. A
ledger is only ever appended to; from it and the objects the index can be made anew.
FORMAT.md §7.1 specifies the bytes. Where they lie: storaged.pools.ledgerfile. Pure.
"""

import hmac
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

MAGIC: Final = b"SVLEDGR1"
ENTRY_MAGIC: Final = b"SVLE"
HEAD_BYTES: Final = 48
BODY_MAX: Final = 16 << 20

RECORD: Final = 1  # a sealed record (storaged.format.record); id: the call's
SEALED: Final = 2  # an object that was sealed; id: the recording's
ERASURE: Final = 3  # messages.Erasure as MessagePack; id: its own
TARGET: Final = 4  # a place that the feed is copied to; id: zeros
PLACED: Final = 5  # a call that waits in another pool's intake; id: the call's
DAY_KEY: Final = 6  # the key of a day's search rows from now on; id: zeros
KINDS: Final = (RECORD, SEALED, ERASURE, TARGET, PLACED, DAY_KEY)

_HEAD: Final = struct.Struct("<8s16sB7x16s")  # magic, store id, tier, 0, random
_ENTRY: Final = struct.Struct("<4sIB3s16s")  # magic, bytes of the body, kind, 0, id
_SEALED: Final = struct.Struct("<QQ32s")
_DAY_KEY: Final = struct.Struct("<iQ")
_AT: Final = struct.Struct("<Q")
_TAG: Final = 16
_ID: Final = 16

assert _HEAD.size == HEAD_BYTES


class Bytes(Protocol):
    """What can be read: bytes, or a file that reads the slice it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


class Entry(NamedTuple):
    """One entry, perhaps of a kind that a later program writes. id: 16 bytes, whose it is."""

    kind: int
    id: bytes
    body: bytes


class Seal(NamedTuple):
    """Body of a SEALED entry. sha256: of the object's first `size` bytes."""

    key_id: int
    size: int
    sha256: bytes

    def serialize(self) -> bytes:
        """48 bytes."""
        return _SEALED.pack(*self)

    @classmethod
    def parse(cls, body: bytes) -> "Seal":
        """Raises ValueError."""
        return cls(*_fields(_SEALED, body, "a seal"))


class Placed(NamedTuple):
    """Body of a PLACED entry. recordings: those of other calls that hold streams of this one."""

    tier: int
    recordings: tuple[bytes, ...]

    def serialize(self) -> bytes:
        """1 byte, and 16 for each recording."""
        return bytes((self.tier,)) + b"".join(self.recordings)

    @classmethod
    def parse(cls, body: bytes) -> "Placed":
        """Raises ValueError."""
        if len(body) % _ID != 1:
            raise ValueError(f"a place of {len(body)} bytes")
        return cls(body[0], tuple(body[at : at + _ID] for at in range(1, len(body), _ID)))


class Target(NamedTuple):
    """Body of a TARGET entry. row: what the index has of it."""

    name: bytes
    row: bytes

    def serialize(self) -> bytes:
        """1 byte, the name, the row."""
        return bytes((len(self.name),)) + self.name + self.row

    @classmethod
    def parse(cls, body: bytes) -> "Target":
        """Raises ValueError."""
        if not body or len(body) <= body[0] or not body[0]:
            raise ValueError(f"a target of {len(body)} bytes")
        return cls(body[1 : 1 + body[0]], body[1 + body[0] :])


class DayKey(NamedTuple):
    """Body of a DAY_KEY entry. day: since 1970-01-01 UTC."""

    day: int
    key_id: int

    def entry(self) -> Entry:
        """As it stands in the pool's ledger."""
        return Entry(DAY_KEY, bytes(_ID), _DAY_KEY.pack(*self))

    @classmethod
    def parse(cls, body: bytes) -> "DayKey":
        """Raises ValueError."""
        return cls(*_fields(_DAY_KEY, body, "a day's key"))


class Place(NamedTuple):
    """How far a ledger is acknowledged: all files before this one, and so much of it."""

    name: str
    size: int


class Found(NamedTuple):
    """What lies at a byte of a ledger: an entry, or what is wrong there."""

    offset: int
    entry: Entry | None
    fault: str = ""


def length(entry: Entry) -> int:
    """Bytes of an entry in a file."""
    return _ENTRY.size + len(entry.body) + _TAG


def key_of(index_key: bytes) -> bytes:
    """The key that a pool's entries are authenticated under: RFC 5869 §2.3."""
    return hmac.digest(index_key, b"spanvault ledger/1\x01", "sha256")


def head(store_id: bytes, tier: int, salt: bytes) -> bytes:
    """What a file begins with. salt: 16 random bytes, so that no entry fits into another file."""
    return _HEAD.pack(MAGIC, store_id, tier, salt)


def serialize(entries: Iterable[Entry], head: bytes, at: int, key: bytes) -> bytes:
    """Entries as they lie in a file that begins with `head`, the first of them at byte `at`."""
    parts: list[bytes] = []
    for entry in entries:
        plain = _ENTRY.pack(ENTRY_MAGIC, len(entry.body), entry.kind, bytes(3), entry.id)
        plain += entry.body
        parts += plain, _tag(key, head, at, plain)
        at += len(plain) + _TAG
    return b"".join(parts)


def check_head(data: Bytes, store_id: bytes, tier: int) -> bytes:
    """The head of a file. Raises ValueError if it is none of this pool."""
    head = data[:HEAD_BYTES]
    if len(head) < HEAD_BYTES:
        raise ValueError(f"ledger cut: {len(head)} of {HEAD_BYTES} bytes")
    magic, store, number, _ = _HEAD.unpack(head)
    if magic != MAGIC:
        raise ValueError("not a ledger: wrong magic")
    if (store, number) != (store_id, tier):
        raise ValueError("the ledger of another store or pool")
    return head


def walk(data: Bytes, head: bytes, key: bytes | None) -> Iterator[Found]:
    """The entries of a file, in order; what is no entry is told of, and passed over.

    key: None leaves tags unchecked. A torn tail, as a crash leaves it, is told of as well.
    """
    at = HEAD_BYTES
    while at < len(data):
        try:
            entry, end = _parse(data, head, at, key)
        except ValueError as error:
            yield Found(at, None, str(error))
            at = _next(data, at + 1)
            continue
        yield Found(at, entry)
        at = end


def claimed(data: Bytes, at: int) -> Entry | None:
    """What an entry that does not authenticate says that it is, if another begins at its end."""
    try:
        entry, end = _parse(data, b"", at, None)
    except ValueError:
        return None
    fits = end == len(data) or data[end : end + len(ENTRY_MAGIC)] == ENTRY_MAGIC
    return entry if fits else None


def _parse(data: Bytes, head: bytes, at: int, key: bytes | None) -> tuple[Entry, int]:
    """The entry at a byte, and where it ends. Raises ValueError."""
    start = data[at : at + _ENTRY.size]
    if len(start) < _ENTRY.size:
        raise ValueError("entry cut")
    magic, size, kind, zeros, owner = _ENTRY.unpack(start)
    if magic != ENTRY_MAGIC or any(zeros) or size > BODY_MAX:
        raise ValueError("no entry begins here")
    body_at = at + _ENTRY.size
    end = body_at + size + _TAG
    rest = data[body_at:end]
    if len(rest) < size + _TAG:
        raise ValueError("entry cut")
    body, tag = rest[:size], rest[size:]
    if key is not None and not hmac.compare_digest(tag, _tag(key, head, at, start + body)):
        raise ValueError("entry does not authenticate")
    return Entry(kind, owner, body), end


def _fields(layout: struct.Struct, body: bytes, what: str) -> tuple[Any, ...]:
    """Those of a body of fixed size. Raises ValueError."""
    if len(body) != layout.size:
        raise ValueError(f"{what} of {len(body)} bytes")
    return layout.unpack(body)


def _next(data: Bytes, at: int, step: int = 1 << 16) -> int:
    """Where the next entry may begin."""
    for start in range(at, len(data), step):
        found = data[start : start + step + len(ENTRY_MAGIC) - 1].find(ENTRY_MAGIC)
        if found >= 0:
            return start + found
    return len(data)


def _tag(key: bytes, head: bytes, at: int, plain: bytes) -> bytes:
    return hmac.digest(key, head + _AT.pack(at) + plain, "sha256")[:_TAG]
