"""A run of the feed's changes as one file. LAYOUT.md, "Bundles", is the specification.

Call records lie in it whole (their ciphertext); recordings and key files, which are files of their
own, only with name, size and SHA-256: so a target tells what it should hold, and whether it is
sound, without asking the store that may be gone. Pure: bytes in, bytes out.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from spanvault.messages import Change

MAGIC: Final = b"SVBUNDLE"
VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sHHI")  # magic, version, reserved, number of changes
_LENGTH: Final = struct.Struct("<I")
_DIGEST_BYTES: Final = 32
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Change)


def serialize(changes: Sequence[Change]) -> bytes:
    """The bundle's bytes. changes: in order of position, not empty."""
    parts = [_HEAD.pack(MAGIC, VERSION, 0, len(changes))]
    for change in changes:
        entry = _encoder.encode(described(change))
        parts += (_LENGTH.pack(len(entry)), entry)
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def described(change: Change) -> Change:
    """The change as a bundle keeps it: with digest and size, data for a record or an erasure."""
    if change.kind == "object":
        return change
    return msgspec.structs.replace(
        change,
        size=len(change.data),
        sha256=hashlib.sha256(change.data).hexdigest(),
        data=b"" if change.kind == "keys" else change.data,
    )


def parse(data: bytes) -> list[Change]:
    """The changes in a bundle, in order. Raises ValueError, naming the fault."""
    if len(data) < _HEAD.size + _DIGEST_BYTES:
        raise ValueError(f"bundle cut: {len(data)} bytes")
    magic, version, _, count = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("not a bundle: it does not begin with SVBUNDLE")
    if version != VERSION:
        raise ValueError(f"bundle version {version}, this program reads {VERSION}")
    body = data[:-_DIGEST_BYTES]
    if hashlib.sha256(body).digest() != data[-_DIGEST_BYTES:]:
        raise ValueError("bundle damaged: its SHA-256 is another")
    return _entries(body, count)


def _entries(body: bytes, count: int) -> list[Change]:
    changes: list[Change] = []
    at = _HEAD.size
    while at < len(body):
        if len(body) - at < _LENGTH.size:
            raise ValueError(f"entry {len(changes)} cut")
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if length > len(body) - at:
            raise ValueError(f"entry {len(changes)} cut: {length} bytes, {len(body) - at} left")
        changes.append(_entry(body[at : at + length], len(changes)))
        at += length
    if len(changes) != count:
        raise ValueError(f"bundle names {count} changes, {len(changes)} are there")
    return changes


def _entry(data: bytes, number: int) -> Change:
    try:
        change = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"entry {number}: {error}") from None
    if (
        change.kind in ("record", "erase", "log")
        and hashlib.sha256(change.data).hexdigest() != change.sha256
    ):
        raise ValueError(f"entry {number}: its SHA-256 is another")
    return change
