"""Rows of the index that are no MessagePack, and ids of what is kept apart: FORMAT.md §7, §8.1."""

import hashlib
import struct
from typing import Any

from . import Fault


def read_row(table: str, key: bytes, value: bytes) -> dict[str, Any]:
    """What a row says, by the words of §7. Raises Fault."""
    try:
        return {"state": _state, "open": _open, "time": _time, "feed": _feed}[table](key, value)
    except struct.error:
        raise Fault("length") from None


def apart(call: bytes, capture: str) -> bytes:
    """The id under which is kept what another capture sends of a call."""
    digest = hashlib.sha256(b"spanvault kept apart/1" + call + capture.encode()).digest()
    return call[:6] + digest[:10]


def _state(_: bytes, value: bytes) -> dict[str, Any]:
    value += bytes(2) if len(value) == 56 else b""  # a row of before, without `closed`
    fields = struct.unpack("<QQ32siBBHH", value)
    key_id, size, digest, revision, tier, bits, capture, closed = fields
    return {"key id": key_id, "size": size, "sha256": digest.hex(), "revision": revision,
            "tier": tier, "bits": bits, "capture": capture, "closed": closed}  # fmt: skip


def _open(_: bytes, value: bytes) -> dict[str, Any]:
    if len(value) == 8:
        return {"bytes": struct.unpack("<Q", value)[0]}
    size, header, sequence, segments, streams = struct.unpack_from("<QQIHH", value)
    latest = list(struct.iter_unpack("<Hq", value[24:]))
    if len(latest) != streams:
        raise Fault("length")
    return {"bytes": size, "header": header, "sequence": sequence, "segments": segments,
            "latest": [list(one) for one in latest]}  # fmt: skip


def _time(key: bytes, value: bytes) -> dict[str, Any]:
    started, call = struct.unpack(">Q16s", key)
    duration, outcome, final, _ = struct.unpack("<IBBH", value)
    return {"started": started - (1 << 63), "call": call.hex(), "duration": duration,
            "outcome": outcome, "final": final}  # fmt: skip


def _feed(key: bytes, value: bytes) -> dict[str, Any]:
    (position,) = struct.unpack(">Q", key)
    return {"position": position, "kind": value[:1].decode(), "what": value[1:].hex()}
