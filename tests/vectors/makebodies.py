"""Makes bodies.json: what a store keeps as MessagePack, whole, and with one fault each.

A row a struct: all its fields, those alone that it must have, one that nobody knows; then faults.
FORMAT.md §6, §7. Part of tests.vectors.make.
"""

from typing import Any, Final

import msgspec

from spanvault import messages as m
from spanvault.messages.copies import Receipt
from spanvault.messages.erasing import (
    Copy,
    DayKey,
    ErasedRecording,
    Erasure,
    IngestKey,
    RekeyedPage,
)
from storaged.index.damage import Damage
from storaged.integrity.scrub import Round
from storaged.requests.receipts import Place
from tests.support.vault import START, call_id, make_call

# By table the product's struct; by table and field a value of a wrong type.
TYPES: Final[dict[str, type[msgspec.Struct]]] = {
    "call": m.Call, "erasure": Erasure, "confirmed": m.ErasureReceipt, "receipt": Receipt,
    "target": Place, "damaged": Damage, "scrub": Round,
}  # fmt: skip
_WRONG: Final[dict[str, dict[str, Any]]] = {
    "call": {"started_ns": "noon", "id": "text", "outcome": "lost", "streams": [1], "final": 1,
             "revision": True, "call_ids": None, "headers": {"x": "no list"}},
    "erasure": {"recordings": {}, "epochs": {"base": "1"}}, "confirmed": {"at_ns": None,
                                                                          "kind": "receipt"},
    "receipt": {"size": b"1", "kind": "done"}, "target": {"noted": "yes"},
    "damaged": {"faults": "frame"}, "scrub": {"until": None, "records_mended": "text"},
}  # fmt: skip


def whole() -> dict[str, msgspec.Struct]:
    """One of each, every field other than when it is left out."""
    stream = m.Stream(
        1, "caller", "audio", 0xCAFEBABE, "192.0.2.1:4000", "192.0.2.2:5000",
        {8: m.Codec("PCMA", 8000), 111: m.Codec("opus", 48_000, 2, "useinbandfec=1")},
        {8: 3000}, START, START + 60, 3000, 4, 1, 2, 17.5, call_id(2), 3,
        m.FarEnd(12, -1, 0.25, 30.0, 41.5, 5), START + 61, 7, True,
    )  # fmt: skip
    call = make_call(
        1, caller="Zoë", flags=["kept_apart"], related=[m.Related("transfer", "other")],
        streams=[stream], beside=[m.Stream(32769, "callee", "events", 1, "", "", {})],
        keys=[m.MediaKey("AES_CM_128_HMAC_SHA1_80", bytes(30), 4, False, 1 << 20)],
        in_clear=[m.Span(START), m.Span(START, START + 9)], dialled="112", hosts=["192.0.2.1"],
        headers={"x-case": ["1", "2"]}, revision=300, expires_ns=START + 10**18, heard_by="site b",
        siprec=m.Siprec(["s"], ["g"], [m.Participant("sip:a@b", "A", "callee")]),
    )  # fmt: skip
    receipt = m.ErasureReceipt(bytes(16), "siteb", START, "best effort", b"s" * 32, b"v" * 64, 9)
    erased = ErasedRecording(call.id, "base", [4103], 1 << 33, "ab" * 32, [Copy("siteb", START)])
    erasure = Erasure(
        bytes(range(16)), START, "officer/Zoë", "asked for", [erased],
        [RekeyedPage("base", 1, 2, 3)], {"base": 9}, {"base": "best effort"}, 1, "core", True,
        [DayKey("base", 4104)], [RekeyedPage("base", 1, 3, -1)], START + 5,
        [IngestKey("base", "0123456789abcdef")], START + 6, [receipt], ["sitec"],
    )  # fmt: skip
    return {
        "call": call, "erasure": erasure, "confirmed": receipt,
        "receipt": Receipt(call.id, "siteb", 1234, "ab" * 32, START),
        "target": Place("replicator/b", b"s" * 32, True), "damaged": Damage(START, ["frame 1"]),
        "scrub": Round(START, call.id, 10, 3, call_id(2), 5, 2, START + 1, START - 1,
                       "base/20231114-000001.svl", 1, b"\1at", 2),
    }  # fmt: skip


def bodies() -> list[dict[str, Any]]:
    """The rows of bodies.json."""
    rows: list[dict[str, Any]] = []

    def add(table: str, name: str, code: str, body: bytes) -> None:
        row = {"name": f"{table}, {name}", "error": code, "table": table, "body": body.hex()}
        if not code:
            row["says"] = said(msgspec.msgpack.decode(body, type=TYPES[table]))
        rows.append(row)

    pack = msgspec.msgpack.encode
    for table, made in whole().items():
        body = pack(made)
        fields: dict[str, Any] = msgspec.msgpack.decode(body, strict=False)
        must = [field.name for field in msgspec.structs.fields(made) if field.required]
        least = {name: fields[name] for name in ("kind", *must) if name in fields}
        add(table, "whole", "", body)
        add(table, "what it must have", "", pack(least))
        add(table, "in another order, with more", "", pack(_with_more(made)))
        add(table, "empty", "cut", b"")
        add(table, "cut", "cut", body[:-1])
        add(table, "more behind it", "cut", body + b"\xc0")
        add(table, "no map", "type", pack([1]))
        for name, wrong in _WRONG[table].items():
            add(table, f"{name} of another type", "type", pack(fields | {name: wrong}))
        for name in must:
            without = {key: value for key, value in fields.items() if key != name}
            add(table, f"without {name}", "missing", pack(without))
    return rows


def _with_more(made: Any) -> Any:
    """A struct, and those in it, as a later program might write them."""
    if isinstance(made, msgspec.Struct):
        about = made.__struct_config__
        kind = {about.tag_field: about.tag} if about.tag_field else {}
        fields = {
            one.encode_name: _with_more(getattr(made, one.name))
            for one in reversed(msgspec.structs.fields(made))
        }
        return {"from_later": [{"a": -1.5}, None], **kind, **fields}
    if isinstance(made, dict):
        return {key: _with_more(one) for key, one in made.items()}
    return [_with_more(one) for one in made] if isinstance(made, list) else made


def said(made: Any) -> Any:
    """A struct, or what the other reader found, as JSON has it: bytes as hex, keys as text."""
    return msgspec.json.decode(msgspec.json.encode(_plain(msgspec.to_builtins(
        made, builtin_types=(bytes,)))))  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.hex() if isinstance(value, bytes) else value
