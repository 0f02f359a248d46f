"""MessagePack (github.com/msgpack/msgpack, spec.md), as much as the store needs of it."""

import struct
from typing import Any

_NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))
_SIZES = {0xC4: "B", 0xC5: "H", 0xC6: "I", 0xD9: "B", 0xDA: "H", 0xDB: "I",
          0xDC: "H", 0xDD: "I", 0xDE: "H", 0xDF: "I"}  # fmt: skip
_WORDS = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack(data: bytes) -> Any:
    """What a whole document says. Raises ValueError for one that is cut, or goes on behind it."""
    found, end = _unpack(data, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes behind the document")
    return found


def _take(data: bytes, at: int, layout: str) -> tuple[Any, int]:
    size = struct.calcsize(">" + layout)
    if at + size > len(data):
        raise ValueError("cut short")
    return struct.unpack_from(">" + layout, data, at)[0], at + size


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    kind, at = _take(data, at, "B")
    if kind < 0x80 or kind >= 0xE0:
        return kind - (256 if kind >= 0xE0 else 0), at
    if kind in _WORDS:
        return _WORDS[kind], at
    if kind in _NUMBERS:
        return _take(data, at, _NUMBERS[kind])
    if kind < 0xA0:
        return _many(data, at, kind & 15, of_pairs=kind < 0x90)
    if kind < 0xC0:
        return _piece(data, at, kind & 31, text=True)
    if kind not in _SIZES:
        raise ValueError(f"MessagePack {kind:#x}")
    size, at = _take(data, at, _SIZES[kind])
    if kind >= 0xDC:
        return _many(data, at, size, of_pairs=kind >= 0xDE)
    return _piece(data, at, size, text=kind >= 0xD9)


def _piece(data: bytes, at: int, size: int, *, text: bool) -> tuple[Any, int]:
    piece = data[at : at + size]
    if len(piece) < size:
        raise ValueError("cut short")
    return piece.decode() if text else piece, at + size


def _many(data: bytes, at: int, size: int, *, of_pairs: bool) -> tuple[Any, int]:
    found = []
    for _ in range(size * (2 if of_pairs else 1)):
        one, at = _unpack(data, at)
        found.append(one)
    return (dict(zip(found[::2], found[1::2], strict=True)) if of_pairs else found), at
