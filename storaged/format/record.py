"""Call records as they lie in the index: sealed, and found by tokens that name nobody.

A stolen disk shows when calls were and how long, never whose. FORMAT.md §6 specifies the bytes.
Rows that tokens make: storaged.index.labels. Tables: storaged.index. Pure; nonces are handed in.
"""

import hmac
import math
import struct
import unicodedata
from typing import Final, NamedTuple, get_args

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spanvault.messages import Call, FarEnd, Outcome, Stream

MAGIC: Final = b"SVM1"
NUMBER: Final = b"n"
CALL_ID: Final = b"c"
ID_PREFIX: Final = b"i"  # of a search, in the access log alone
TOKEN_BYTES: Final = 16
OUTCOMES: Final[tuple[str, ...]] = get_args(Outcome)
NOT_ENDED: Final = 0xFFFF_FFFF  # in place of a duration
MAX_TEXT: Final = 8192  # characters of one name, address or Call-ID; a SIP header line has fewer
MAX_KEY: Final = 256  # bytes of an SRTP master key and salt; RFC 6188's have 46
MAX_RECORD: Final = 4 << 20  # bytes of one call as MessagePack: some thousand streams

_HEAD: Final = struct.Struct("<4siQ")  # magic, revision, key id
_NONCE: Final = 12
_TIMES: Final = range(-(1 << 63), 1 << 63)
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
    """Raise ValueError for a call that cannot be stored as it is. Never says what was in it."""
    if len(call.id) != 16:
        raise ValueError(f"a call's id has 16 bytes, not {len(call.id)}")
    times = (
        call.started_ns, call.answered_ns or 0, call.ended_ns or 0, call.expires_ns or 0,
    )  # fmt: skip
    spans = [time for each in call.in_clear for time in (each.from_ns, each.until_ns or 0)]
    _check_numbers("call's time (ns)", _TIMES, *times, *spans)
    _check_numbers("call's revision", range(1 << 31), call.revision)
    _check_texts(
        "call", call.capture, *call.call_ids, call.caller, call.callee, call.end_reason or "",
        *call.flags, *(other.call_id for other in call.related), call.dialled, *call.hosts,
        *call.headers, *(value for values in call.headers.values() for value in values),
    )  # fmt: skip
    if call.siprec is not None:
        _check_texts(
            "call", "", *call.siprec.sessions, *call.siprec.groups,
            *(text for each in call.siprec.participants for text in (each.aor, each.name)),
        )  # fmt: skip
    for key in call.keys:
        _check_texts("key", key.suite)
        _check_numbers("key's length", range(MAX_KEY + 1), len(key.key))
        _check_numbers("key's mki", range(256), key.mki)
        _check_numbers("key's rate", range((1 << 24) + 1), key.rate)
    for stream in (*call.streams, *call.beside):
        _check_stream(stream)
    if (size := len(_encode(call))) > MAX_RECORD:
        raise ValueError(f"a call record of {size} bytes, at most {MAX_RECORD} are stored")


def _check_stream(stream: Stream) -> None:
    if stream.stored_in is not None and len(stream.stored_in) != 16:
        raise ValueError("stored_in is no recording id")
    _check_numbers("stream number", range(1 << 16), stream.number, stream.stored_as or 0)
    _check_numbers("stream's SSRC", range(1 << 32), stream.ssrc)
    _check_numbers("stream's time (ns)", _TIMES, stream.first_ns, stream.last_ns)
    _check_numbers("stream's payload type", range(256), *stream.codecs, *stream.payload_types)
    _check_numbers(
        "stream's count", range(1 << 63), *stream.payload_types.values(),
        stream.packets, stream.lost, stream.duplicates, stream.late,
    )  # fmt: skip
    _check_numbers("stream's header extension", range(256), stream.orientation)
    _check_numbers("stream's BYE (ns)", _TIMES, stream.bye_ns or 0)
    far = stream.far_end or FarEnd()
    _check_numbers("far end's count", _TIMES, far.reports, far.lost, far.round_trips)
    if not all(map(math.isfinite, (stream.jitter, far.worst, far.jitter, far.round_trip_ms or 0))):
        raise ValueError("a stream's jitter, loss or round trip is no number")
    _check_texts("stream", stream.source, stream.destination)
    for codec in stream.codecs.values():
        _check_texts("codec", codec.name, codec.parameters)
        _check_numbers("codec's clock rate or channels", range(1 << 32),
                       codec.clock_rate, codec.channels)  # fmt: skip


def _check_numbers(name: str, allowed: range, *values: int) -> None:
    for value in values:
        if value not in allowed:
            raise ValueError(f"a {name} is not in {allowed.start} … {allowed.stop - 1}")


def _check_texts(name: str, *texts: str) -> None:
    longest = max(map(len, texts))
    if longest > MAX_TEXT:
        raise ValueError(f"a {name}'s text of {longest} characters, at most {MAX_TEXT} are stored")


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


def kept(old: Call | None, new: Call) -> Call:
    """A later revision as it is stored: of a call that had its last word nothing is taken away.

    A capture that was taken over must not make streams, keys, numbers or times of an ended call
    disappear, nor have it go earlier, nor begin earlier: from that its pool's terms count. What it
    adds or corrects counts.
    """
    if old is None or not old.final:
        return new
    known = {each.key for each in new.keys}
    return msgspec.structs.replace(
        new,
        final=True,
        started_ns=max(old.started_ns, new.started_ns),
        call_ids=[*new.call_ids, *(one for one in old.call_ids if one not in new.call_ids)],
        caller=new.caller or old.caller,
        callee=new.callee or old.callee,
        dialled=new.dialled or old.dialled,
        answered_ns=old.answered_ns if new.answered_ns is None else new.answered_ns,
        ended_ns=old.ended_ns if new.ended_ns is None else new.ended_ns,
        streams=_united(old.streams, new.streams),
        beside=_united(old.beside, new.beside),
        keys=[*(each for each in old.keys if each.key not in known), *new.keys],
        expires_ns=_later(old.expires_ns, new.expires_ns),
    )


def _united(old: list[Stream], new: list[Stream]) -> list[Stream]:
    """The newer account of each stream, and those that it leaves out."""
    numbers = {stream.number for stream in new}
    return [*new, *(stream for stream in old if stream.number not in numbers)]


def _later(old_ns: int | None, new_ns: int | None) -> int | None:
    """The later of two times; None is never."""
    return None if old_ns is None or new_ns is None else max(old_ns, new_ns)


def recordings_of(call: Call) -> set[bytes]:
    """The recordings of other calls that hold streams of this one."""
    streams = (*call.streams, *call.beside)
    return {stream.stored_in for stream in streams if stream.stored_in not in (None, call.id)}


def token(index_key: bytes, kind: bytes, text: str) -> bytes:
    """What a number or Call-ID is looked up by. kind: one of the above. TOKEN_BYTES bytes."""
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
