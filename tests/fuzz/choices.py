"""Bytes read as choices, so that what a fuzzer mutates is a story and not the text of it.

Like atheris' FuzzedDataProvider, and without it: every test run reads the corpus, too.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Takes choices off the front; behind the end all are 0."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> bool:
        """Whether there are more."""
        return self._at < len(self._data)

    def number(self, below: int) -> int:
        """A number of one byte, or of two where it can be greater."""
        size = 1 if below <= 256 else 2
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken) % below

    def of(self, values: Sequence[T]) -> T:
        """One of these."""
        return values[self.number(len(values))]

    def bytes(self, most: int) -> bytes:
        """Some bytes, led by how many."""
        size = self.number(most + 1)
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken


def cut(data: bytes) -> list[bytes]:
    """Parts, each led by its length in two bytes."""
    parts, at = [], 0
    while at + 2 <= len(data):
        (size,) = struct.unpack_from(">H", data, at)
        parts.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return parts


def joined(parts: Iterable[bytes]) -> bytes:
    """What cut() takes apart."""
    return b"".join(struct.pack(">H", len(part)) + part for part in parts)
