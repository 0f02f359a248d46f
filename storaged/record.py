"""Call records as they lie in the index: sealed, and found by tokens that name nobody.

A stolen disk shows when calls were and how long, never whose. FORMAT.md §6 specifies the bytes.
Tables and search: storaged.index. Pure; nonces are handed in.
"""

import hmac
import struct
import unicodedata
from typing import Final, NamedTuple, get_args

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spanvault.messages import Call, Outcome

MAGIC: Final = b"SVM1"
NUMBER: Final = b"n"
CALL_ID: Final = b"c"
TOKEN_BYTES: Final = 16
OUTCOMES: Final[tuple[str, ...]] = get_args(Outcome)
NOT_ENDED: Final = 0xFFFF_FFFF  # in place of a duration

_HEAD: Final = struct.Struct("<4siQ")  # magic, revision, key id
_NONCE: Final = 12
_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Call)


class RecordHead(NamedTuple):
    """The clear part of a sealed record."""

    revision: int
    key_id: int


def encode_call(call: Call) -> bytes:
    """MessagePack, as on the wire."""
    return _encode(call)


def decode_call(data: bytes) -> Call:
    """Raises ValueError if these bytes are no call."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"call record: {error}") from None


def check_call(call: Call) -> None:
    """Raise ValueError for a call that cannot be stored as it is."""
    if len(call.id) != 16:
        raise ValueError(f"a call's id has 16 bytes, not {len(call.id)}")
    times = {
        "started_ns": call.started_ns,
        "answered_ns": call.answered_ns or 0,
        "ended_ns": call.ended_ns or 0,
    }
    for name, value in times.items():
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"{name} {value} is no 64-bit time")
    if not 0 <= call.revision < 1 << 31:
        raise ValueError(f"revision {call.revision} is no 31-bit number")
    for stream in call.streams:
        if stream.stored_in is not None and len(stream.stored_in) != 16:
            raise ValueError("stored_in is no recording id")
        for number in (stream.number, stream.stored_as or 0):
            if not 0 <= number < 1 << 16:
                raise ValueError(f"stream number {number} is no 16-bit number")


def seal_call(call: Call, key_id: int, dek: bytes, nonce: bytes) -> bytes:
    """A call as a sealed record. nonce: 12 fresh random bytes."""
    head = _HEAD.pack(MAGIC, call.revision, key_id)
    return head + nonce + AESGCM(_meta_key(dek)).encrypt(nonce, _encode(call), call.id + head)


def parse_head(data: bytes | memoryview) -> RecordHead:
    """Read a sealed record's clear part. Raises ValueError."""
    if len(data) < _HEAD.size + _NONCE + 16:
        raise ValueError(f"sealed record cut: {len(data)} bytes")
    magic, revision, key_id = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("not a sealed call record")
    return RecordHead(revision, key_id)


def open_call(call_id: bytes, data: bytes, dek: bytes) -> Call:
    """Open a sealed record. Raises ValueError: another key, another call's, or changed bytes."""
    parse_head(data)
    head, rest = data[: _HEAD.size], data[_HEAD.size :]
    try:
        plain = AESGCM(_meta_key(dek)).decrypt(rest[:_NONCE], rest[_NONCE:], call_id + head)
    except InvalidTag:
        raise ValueError("call record does not authenticate") from None
    return decode_call(plain)


def token(index_key: bytes, kind: bytes, text: str) -> bytes:
    """What a number or Call-ID is looked up by. kind: NUMBER or CALL_ID. TOKEN_BYTES bytes."""
    normal = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    return hmac.digest(index_key, kind + normal, "sha256")[:TOKEN_BYTES]


def tokens(index_key: bytes, call: Call) -> set[bytes]:
    """All tokens of a call."""
    numbers = {token(index_key, NUMBER, text) for text in (call.caller, call.callee) if text}
    return numbers | {token(index_key, CALL_ID, text) for text in call.call_ids}


def duration_ms(call: Call) -> int:
    """Length of the conversation: from answer to end; 0 where nobody answered.

    NOT_ENDED while it lasts. A call met in the middle (outcome unknown) counts from its start.
    """
    if call.ended_ns is None:
        return NOT_ENDED
    start_ns = call.answered_ns
    if start_ns is None:
        if call.outcome not in ("answered", "unknown"):
            return 0
        start_ns = call.started_ns
    return min(max(0, call.ended_ns - start_ns) // 1_000_000, NOT_ENDED - 1)


def _meta_key(dek: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt, info `meta`."""
    return hmac.digest(hmac.digest(bytes(32), dek, "sha256"), b"meta\x01", "sha256")
