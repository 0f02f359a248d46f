"""Rows of the index that are no MessagePack: FORMAT.md §7."""

import struct
from typing import Any

from . import Fault


def read_row(table: str, key: bytes, value: bytes) -> dict[str, Any]:
    """What a row says, by the words of §7. Raises Fault."""
    try:
        return {"state": _state, "open": _open, "time": _time, "feed": _feed}[table](key, value)
    except struct.error:
        raise Fault("length") from None


def _state(_: bytes, value: bytes) -> dict[str, Any]:
    key_id, size, digest, revision, tier, bits, _ = struct.unpack("<QQ32siBBH", value)
    return {"key id": key_id, "size": size, "sha256": digest.hex(), "revision": revision,
            "tier": tier, "bits": bits}  # fmt: skip


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
