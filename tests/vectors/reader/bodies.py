"""What a store keeps as MessagePack: calls and rows of the index. FORMAT.md §6, §7; WIRE.md §3.

A type is `bytes`, `text`, `int`, `float`, `bool`, a word of a list (a|b), a map's name, or one of
these in [ ], as the values of { }, and with ? where it may be nil. A field with a value behind its
type may be left out, and has this then. Fields that are not listed are passed over.
"""

from typing import Any

from . import Fault
from .msgpack import unpack

_PARTY = "caller|callee|unknown"
_PAGES = {"pool": ("text",), "page": ("int",), "before": ("int",), "after": ("int",)}
FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "call": {
        "id": ("bytes",), "capture": ("text",), "call_ids": ("[text",), "caller": ("text",),
        "callee": ("text",), "started_ns": ("int",), "answered_ns": ("?int", None),
        "ended_ns": ("?int", None),
        "outcome": ("answered|cancelled|busy|declined|no_answer|not_found|failed|in_progress"
                    "|unknown", "in_progress"),
        "end_reason": ("?text", None), "flags": ("[text", []), "related": ("[related", []),
        "streams": ("[stream", []), "beside": ("[stream", []), "keys": ("[media key", []),
        "in_clear": ("[span", []), "dialled": ("text", ""), "hosts": ("[text", []),
        "headers": ("{[text", {}), "siprec": ("?siprec", None), "revision": ("int", 0),
        "final": ("bool", False), "expires_ns": ("?int", None), "heard_by": ("text", ""),
    },
    "stream": {
        "number": ("int",), "party": (_PARTY,), "media": ("audio|video|text|fax|events|control",),
        "ssrc": ("int",), "source": ("text",), "destination": ("text",), "codecs": ("{codec",),
        "payload_types": ("{int", {}), "first_ns": ("int", 0), "last_ns": ("int", 0),
        "packets": ("int", 0), "lost": ("int", 0), "duplicates": ("int", 0), "late": ("int", 0),
        "jitter": ("float", 0.0), "stored_in": ("?bytes", None), "stored_as": ("?int", None),
        "far_end": ("?far end", None), "bye_ns": ("?int", None), "orientation": ("int", 0),
        "lost_fork": ("bool", False),
    },
    "codec": {"name": ("text",), "clock_rate": ("int",), "channels": ("int", 1),
              "parameters": ("text", "")},
    "far end": {"reports": ("int", 0), "lost": ("int", 0), "worst": ("float", 0.0),
                "jitter": ("float", 0.0), "round_trip_ms": ("?float", None),
                "round_trips": ("int", 0)},
    "media key": {"suite": ("text",), "key": ("bytes",), "mki": ("int", 0),
                  "encrypted": ("bool", True), "rate": ("int", 0)},
    "related": {"kind": ("transfer|b2bua|fork|replaces|joins|joined|continued",),
                "call_id": ("text",)},
    "span": {"from_ns": ("int",), "until_ns": ("?int", None)},
    "siprec": {"sessions": ("[text",), "groups": ("[text",), "participants": ("[participant",)},
    "participant": {"aor": ("text",), "name": ("text",), "party": (_PARTY, "unknown")},
    "erasure": {
        "id": ("bytes",), "at_ns": ("int",), "who": ("text",), "reason": ("text",),
        "recordings": ("[erased",), "pages": ("[page", []), "epochs": ("{int", {}),
        "grades": ("{text", {}), "refused": ("int", 0), "moved_to": ("text", ""),
        "done": ("bool", False), "day_keys": ("[day key", []), "day_pages": ("[page", []),
        "rows_gone_ns": ("int", 0), "ingest_keys": ("[ingest key", []),
        "spools_gone_ns": ("int", 0), "receipts": ("[confirmed", []), "pending": ("[text", []),
    },
    "erased": {"id": ("bytes",), "pool": ("text",), "key_ids": ("[int",), "size": ("int",),
               "sha256": ("text",), "copies": ("[copy", [])},
    "copy": {"target": ("text",), "verified_ns": ("int",)},
    "page": _PAGES,
    "day key": {"pool": ("text",), "key_id": ("int",)},
    "ingest key": {"pool": ("text",), "key_id": ("text",)},
    "confirmed": {"kind": ("erasurereceipt", "erasurereceipt"), "erasure": ("bytes",),
                  "target": ("text",), "at_ns": ("int",), "grade": ("text",),
                  "signer": ("bytes", b""), "signature": ("bytes", b""), "position": ("int", 0)},
    "receipt": {"kind": ("receipt", "receipt"), "id": ("bytes",), "target": ("text",),
                "size": ("int",), "sha256": ("text",), "verified_ns": ("int",)},
    "target": {"owner": ("text", ""), "signer": ("bytes", b""), "noted": ("bool", False)},
    "damaged": {"found_ns": ("int",), "faults": ("[text",)},
    "scrub": {
        "begun_ns": ("int",), "until": ("bytes",), "planned": ("int", 0), "objects": ("int", 0),
        "at": ("bytes", b""), "read": ("int", 0), "checked": ("int", 0),
        "ended_ns": ("?int", None), "before_ns": ("?int", None), "ledger": ("text", ""),
        "records_mended": ("int", 0), "rows": ("bytes", b""), "rows_mended": ("int", 0),
    },
}  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "bytes": (bytes,), "text": (str,), "int": (int,), "float": (float, int), "bool": (bool,)
}  # fmt: skip


def read_body(table: str, data: bytes) -> dict[str, Any]:
    """All fields of a call (`call`) or of a row of this table. Raises Fault.

    Codes: `cut` for what is no whole MessagePack, `type`, `missing`.
    """
    try:
        found = unpack(data)
    except (ValueError, TypeError):
        raise Fault("cut") from None
    return of_map(table, found)


def of_map(table: str, found: Any) -> dict[str, Any]:
    """The same of MessagePack that was unpacked. Raises Fault."""
    made: dict[str, Any] = _read(table, found)
    return made


def _read(kind: str, found: Any) -> Any:
    if kind[0] == "?":
        return None if found is None else _read(kind[1:], found)
    if kind[0] == "[" and isinstance(found, list):
        return [_read(kind[1:], one) for one in found]
    if kind[0] == "{" and isinstance(found, dict):
        return {key: _read(kind[1:], one) for key, one in found.items()}
    if kind in FIELDS and isinstance(found, dict):
        return {name: _field(found, name, *told) for name, told in FIELDS[kind].items()}
    if kind in _TYPES:
        is_bool = isinstance(found, bool)
        if isinstance(found, _TYPES[kind]) and is_bool == (kind == "bool"):
            return found
    elif isinstance(found, str) and found in kind.split("|"):
        return found
    raise Fault("type")


def _field(found: dict[str, Any], name: str, kind: str, *without: Any) -> Any:
    if name in found:
        return _read(kind, found[name])
    if not without:
        raise Fault("missing")
    return without[0]
