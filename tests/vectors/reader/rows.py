"""What has fixed fields: rows of the index, bodies of a ledger's entries. FORMAT.md §7, §7.1.

And ids of what is kept apart: §8.1.
"""

import hashlib
from typing import Any

from . import Fault

# Of each table the fields of key and value, each a name and a type: u8 … little-endian, i signed,
# U big-endian, T and D big-endian with their sign turned, a number: so many bytes; rest: those that
# are left, text: the same as UTF-8, name: a text with its length before it, word: a letter; x*: as
# often as it fits. What is called `-` is of no matter.
TABLES: dict[str, tuple[str, str]] = {
    "state": ("call 16", "key id u64, size u64, sha256 32, revision i32, tier u8, bits u8, "
                         "capture u16, closed u16"),
    "open": ("call 16", "bytes u64, header u64, sequence u32, segments u16, streams u16, "
                        "latest rest"),
    "time": ("started T64, call 16", "duration u32, outcome u8, final u8, - u16"),
    "feed": ("position U64", "kind word, what rest"),
    "fed": ("kind word, what rest", "position U64"),
    "label": ("tier u8, key id U56, label 16", "started T64, call 16"),
    "day": ("day D32, tier u8", "key ids U64*"),
    "strayed": ("call 16", "day D32, tier u8"),
    "due": ("tier u8, key id U56, erasure 16", ""),
    "spooled": ("tier u8, key id 8, erasure 16", ""),
    "holds": ("daemon 16, capture text", "known u8, keys rest"),
    "placed": ("call 16", "tier u8, capture u16"),
    "shared": ("recording 16", "call 16"),
    "former": ("call 16", "key id u64"),
    "follow": ("recording 16", "tier u8"),
    "expires": ("expires T64, call 16", ""),
    "erased": ("call 16", "erasure 16"),
    "moved": ("call 16", "erasure 16"),
    "unfinished": ("at U64, - rest", ""),
    "capture": ("name text", "number u16"),
    "meta": ("name text", "number u64"),
    "meta told": ("name text", "sha256 32, size u64, position u64"),
    "meta ledger": ("name text", "bytes u64, file text"),
    "meta ledgerhead": ("name text", "head 48"),
    "meta ledgersize": ("name text", "bytes u64"),
    "entry sealed": ("recording 16", "key id u64, size u64, sha256 32"),
    "entry target": ("- 16", "name name, row rest"),
    "entry placed": ("call 16", "tier u8, recordings 16*"),
    "entry day's key": ("- 16", "day i32, key id u64"),
}  # fmt: skip
_LATEST = "stream u16, start i64"


def read_row(table: str, key: bytes, value: bytes) -> dict[str, Any]:
    """What a row, or an entry of a ledger (id and body), says, by the words of §7. Raises Fault."""
    if table == "meta":
        table = f"meta {key.decode().partition('/')[0]}"
        table = table if table in TABLES else "meta"
    if table == "state" and len(value) == 56:
        value += bytes(2)  # a row of before, without `closed`
    if table == "placed" and len(value) == 1:
        value += bytes(2)  # of an index made anew
    if table == "open" and len(value) == 8:
        return _fields("call 16", key) | _fields("bytes u64", value)
    of_key, of_value = TABLES[table]
    said = _fields(of_key, key) | _fields(of_value, value)
    if table == "open":
        some = bytes.fromhex(said["latest"])
        latest = [_fields(_LATEST, some[at : at + 10]) for at in range(0, len(some), 10)]
        if len(latest) != said.pop("streams"):
            raise Fault("length")
        said["latest"] = [[one["stream"], one["start"]] for one in latest]
    return said


def apart(call: bytes, capture: str) -> bytes:
    """The id under which is kept what another capture sends of a call."""
    digest = hashlib.sha256(b"spanvault kept apart/1" + call + capture.encode()).digest()
    return call[:6] + digest[:10]


def _fields(layout: str, data: bytes) -> dict[str, Any]:
    said, at = dict[str, Any](), 0
    for field in filter(None, layout.split(", ")):
        name, _, kind = field.rpartition(" ")
        many, kind = kind.endswith("*"), kind.rstrip("*")
        found = list[Any]()
        while at < len(data) if many else not found:
            size = _size(kind, data, at)
            if at + size > len(data):
                raise Fault("length")
            found.append(_value(kind, data[at : at + size]))
            at += size
        said[name] = found if many else found[0]
    said.pop("-", None)
    if at != len(data):
        raise Fault("length")
    return said


def _size(kind: str, data: bytes, at: int) -> int:
    if kind in ("rest", "text"):
        return len(data) - at
    if kind == "word":
        return 1
    if kind == "name":  # its length before it, as u8
        return 1 + sum(data[at : at + 1])
    return int(kind) if kind.isdigit() else int(kind[1:]) // 8


def _value(kind: str, data: bytes) -> Any:
    if kind in ("text", "word"):
        return data.decode()
    if kind == "name":
        return data[1:].decode()
    if kind == "rest" or kind.isdigit():
        return data.hex()
    number = int.from_bytes(data, "little" if kind[0] in "iu" else "big", signed=kind[0] == "i")
    return number - (1 << 8 * len(data) - 1) if kind[0] in "TD" else number
