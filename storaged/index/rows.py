"""The tables of the index, and the bytes of their rows that are not MessagePack.

Values that name people are sealed (storaged.format.record). FORMAT.md §7 lists every table.
"""

import struct
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from storaged.faults import Fault
from storaged.format import record

TABLES: Final = (
    b"meta", b"record", b"state", b"open", b"time", b"feed", b"fed", b"receipt", b"placed",
    b"erasure", b"erased", b"unfinished", b"confirmed", b"target", b"damaged", b"moved", b"follow",
    b"damagedkey", b"damagedledger", b"damagedrecord", b"capture", b"expires", b"label", b"day",
    b"due", b"spooled", b"holds",
)  # fmt: skip
MULTIPLE: Final = (b"strayed", b"shared", b"former")  # with several values a key, all of one length

OBJECT: Final = 1  # bits of State.bits: a file of media exists
SEALED: Final = 2  # and ends in a LAST frame
FINAL: Final = 4  # the record is the capture's last word

FEED: Final = b"feed"  # kinds of what it tells of:
OBJECT_CHANGED: Final = b"o"
RECORD_CHANGED: Final = b"r"
KEYS_CHANGED: Final = b"k"
ERASED: Final = b"e"
LOG_HEAD: Final = b"l"

POSITION_ROW: Final = b"position"  # counters of table meta: the last one given in the feed
IMPORTING: Final = b"importing"  # this one: 0, or one of the next two
KEYS_WELCOME: Final = 1  # an import may bring key files
KEYS_DESTROYED: Final = 2  # it goes on, but keys went here since: a replica's would bring them back
RESERVED: Final = b"reserved"
UNINDEXED: Final = b"unindexed/"  # and a pool's name: it was locked when the index was made anew
LEDGER: Final = b"ledger/"  # and a pool's tier: how far its ledger is acknowledged
LEDGER_SIZE: Final = b"ledgersize/"  # and POOL/NAME of a file that is not the newest: its bytes
LEDGER_MENDING: Final = b"ledgermend/"  # and a pool's name: how far its ledger is made whole
ROTATED: Final = b"rotated/"  # and POOL/KEYID: since when an ingest key is replaced, ns

_STATE: Final = struct.Struct("<QQ32siBBHH")
_STATE_BEFORE: Final = _STATE.size - 2  # of a row that was written before calls could be closed
_TIME_KEY: Final = struct.Struct(">Q16s")
TIME_KEY_BYTES: Final = _TIME_KEY.size
TIME: Final = struct.Struct("<IBBH")  # value of table time
U64: Final = struct.Struct("<Q")
U16: Final = struct.Struct("<H")
ID_BYTES: Final = 16  # of a call, and so of its recording
_DAY_NS: Final = 86400 * 10**9
_REACH: Final = struct.Struct("<QQIHH")
_LATEST: Final = struct.Struct("<Hq")
POSITION: Final = struct.Struct(">Q")
_SIGN: Final = 1 << 63
R = TypeVar("R")


def reserved(tier: int) -> bytes:
    """The counter of a pool's slots that may be in use."""
    return RESERVED + (f"/{tier}".encode() if tier else b"")


class State(NamedTuple):
    """What the index knows of one recording besides its sealed record.

    capture: number of the one that it is bound to; closed: day of its last word. 0: not known.
    """

    key_id: int
    size: int  # of the object when it was last sealed
    sha256: bytes  # of the same; 32 bytes
    revision: int
    tier: int
    bits: int
    capture: int = 0
    closed: int = 0  # days since 1970


class Reach(NamedTuple):
    """How far an unsealed object reaches, and what must be known to go on behind that.

    size: acknowledged bytes. header: where the last segment begins. sequence: of the next frame in
    it. segments: how many there are. latest: the latest chunk start of each stream, in ns.
    """

    size: int
    header: int
    sequence: int
    segments: int
    latest: tuple[tuple[int, int], ...]


class TimeRow(NamedTuple):
    """One call in order of time. key: 24 bytes, sorts by start."""

    key: bytes
    id: bytes
    started_ns: int
    duration_ms: int
    outcome: str


class DamagedRow(Fault):
    """A row that cannot be: LMDB has no checksums, a medium may have changed it."""

    def __init__(self, table: bytes, fault: object) -> None:
        self.table = table.decode()
        super().__init__(
            "corrupt",
            f"index: a row of table {self.table} cannot be read ({fault})",
            "Stop storaged and run `spanvault reindex`, which makes the index anew; look after the "
            "store's medium.",
        )


def damaged(table: bytes, fault: object) -> DamagedRow:
    """What to say of a row that cannot be."""
    return DamagedRow(table, fault)


def check_id(table: bytes, key: bytes) -> None:
    """Raise DamagedRow for a key of a table of calls that is no id of a call."""
    if len(key) != ID_BYTES:
        raise damaged(table, f"a key of {len(key)} bytes")


def unpack(layout: struct.Struct, table: bytes, value: bytes) -> tuple[Any, ...]:
    """The fields of a key or value of fixed size. Raises Fault."""
    try:
        return layout.unpack(value)
    except struct.error as error:
        raise damaged(table, error) from None


def decode(decoder: "msgspec.msgpack.Decoder[R]", table: bytes, value: bytes) -> R:
    """A value that is MessagePack. Raises Fault."""
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise damaged(table, error) from None


def day_of(now_ns: int) -> int:
    """Days since 1970, as a row says when a call had its last word."""
    return min(max(0, now_ns // _DAY_NS), 0xFFFF)


def time_key(started_ns: int, call_id: bytes = bytes(16)) -> bytes:
    """24 bytes that sort by start, then by id."""
    return _TIME_KEY.pack(started_ns + _SIGN, call_id)


def parse_state(value: bytes) -> State:
    """One row of table state. Raises Fault."""
    if len(value) == _STATE_BEFORE:
        value += bytes(2)
    return State(*unpack(_STATE, b"state", value))


def serialize_state(state: State) -> bytes:
    """One row of table state."""
    return _STATE.pack(*state)


def serialize_reach(reach: Reach | int) -> bytes:
    """One row of table open."""
    if isinstance(reach, int):
        return U64.pack(reach)
    *fixed, latest = reach
    return _row_of(len(latest)).pack(*fixed, len(latest), *chain.from_iterable(latest))


@lru_cache(maxsize=128)
def _row_of(streams: int) -> struct.Struct:
    """_REACH and so many _LATEST, in one: a commit at full pace writes thousands."""
    return struct.Struct(_REACH.format + streams * _LATEST.format.removeprefix("<"))


def parse_reach(value: bytes) -> Reach | int:
    """One row of table open. Raises Fault."""
    if len(value) == U64.size:
        return int(U64.unpack(value)[0])
    head, rest = value[: _REACH.size], value[_REACH.size :]
    size, header, sequence, segments, streams = unpack(_REACH, b"open", head)
    if len(rest) != streams * _LATEST.size:
        raise damaged(b"open", f"{len(rest)} bytes of {streams} streams")
    return Reach(size, header, sequence, segments, tuple(_LATEST.iter_unpack(rest)))


def parse_time_row(key: bytes, value: bytes) -> TimeRow:
    """One row of table time."""
    started, call_id = unpack(_TIME_KEY, b"time", key)
    duration_ms, outcome, _, _ = unpack(TIME, b"time", value)
    if outcome >= len(record.OUTCOMES):
        raise damaged(b"time", f"outcome {outcome}")
    return TimeRow(bytes(key), call_id, started - _SIGN, duration_ms, record.OUTCOMES[outcome])
