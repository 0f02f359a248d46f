"""The access log as a chain: what fits, what a crash may leave, what somebody changed.

Each line carries the SHA-256 of the line before. That alone shows a changed or missing line in the
midst; who can write the log can write all behind it anew. So its head (size, and hash of the last
line) is signed by the store and told to the replicas, which keep every head they were told of.
FORMAT.md §10. Pure. Who writes the log: storaged.requests.accesslog; the heads:
storaged.requests.witness.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

import msgspec

from spanvault import certificate

_BETWEEN: Final = re.compile(rb"[\n\0]+")
FIRST: Final = "0" * 64  # `prev` of the first line
HEAD: Final = "spanvault access log head/1"
# Kinds whose line is on the medium before the reply leaves, and so before the next line.
SYNCED: Final = frozenset(
    {
        "search",
        "several",
        "get",
        "fetch",
        "erase",
        "move",
        "unlock",
        "lock",
        "rotate",
        "recipients",
        "offershare",
    }
)


class Head(msgspec.Struct, frozen=True):
    """How far the log was, and what its last line was, at a moment. Signed by the store."""

    store: str
    at_ns: int
    size: int  # bytes, up to a line feed
    sha256: str  # of the last of these lines, without its line feed
    signer: bytes = b""  # Ed25519
    signature: bytes = b""

    def facts(self) -> dict[str, Any]:
        """What is signed."""
        return {"store": self.store, "at_ns": self.at_ns, "size": self.size, "sha256": self.sha256}

    @property
    def is_signed(self) -> bool:
        """Whether the signature is the signer's. Whose key that is, the caller must know."""
        return certificate.is_signed(HEAD, self.facts(), self.signer, self.signature)


class Finding(NamedTuple):
    """Something that does not fit. line: from 1; 0 if it is about the whole."""

    what: Literal["torn", "changed", "cut short", "rewritten", "not signed"]
    line: int
    text: str


def digest(line: bytes) -> str:
    """What the next line bears. line: without its line feed."""
    return hashlib.sha256(line).hexdigest()


def follows(line: bytes, last: str) -> bool:
    """Whether a line is one, and bears the digest of the one before."""
    return _prev(line) == last


def is_room(rest: bytes) -> bool:
    """Whether these bytes behind a whole line are room that no line was written to yet."""
    return not rest.strip(b"\0")


def is_torn(rest: bytes) -> bool:
    """Whether a crash can have left these bytes behind a whole line: nothing of them was answered.

    A crash leaves the last line cut, or zeros where bytes should be; nothing else that is not
    whole. And before a line that is synced, unless it is the last, all is whole.
    """
    rest = rest.rstrip(b"\0")
    first, more, _ = rest.partition(b"\n")
    if more and b"\0" not in first:
        return False
    return not any(_kind(line) in SYNCED for line in _BETWEEN.split(rest)[1:-2])


def check(lines: bytes, heads: Iterable[Head] = ()) -> Iterator[Finding]:
    """Everything that does not fit in a log, and between it and the heads that were told."""
    last, at = FIRST, 0
    ends = {0: FIRST}
    for number, line in enumerate(lines.splitlines(keepends=True), 1):
        text = line.removesuffix(b"\n")
        if is_room(line) and is_room(lines[at:]):
            break
        if not line.endswith(b"\n") or not follows(text, last):
            odd = b"\0" in text or text == line  # else it is no crash's, without a look at the rest
            if odd and is_torn(lines[at:]):
                yield Finding("torn", number, f"{len(lines) - at} bytes that a crash left")
                break
            yield Finding("changed", number, "it does not follow the line before")
        last, at = digest(text), at + len(line)
        ends[at] = last
        if cut := _field(text, "cut"):
            yield Finding("torn", number, f"{cut} bytes that a crash had left were cut here")
    yield from _witnessed(ends, at, heads)


def _witnessed(ends: dict[int, str], size: int, heads: Iterable[Head]) -> Iterator[Finding]:
    for head in sorted(heads, key=lambda one: one.size):
        if not head.is_signed:
            yield Finding("not signed", 0, f"the head of {head.at_ns} ns")
        elif head.size > size:
            yield Finding("cut short", 0, f"{head.size} bytes were told of at {head.at_ns} ns")
        elif ends.get(head.size) != head.sha256:
            told = f"up to byte {head.size} it is not what was told of at {head.at_ns} ns"
            yield Finding("rewritten", 0, told)


def _field(line: bytes, name: str) -> Any:
    try:
        return json.loads(line).get(name)
    except (ValueError, AttributeError, RecursionError):
        return None


def _prev(line: bytes) -> str | None:
    prev = _field(line, "prev")
    return prev if isinstance(prev, str) else None


def _kind(line: bytes) -> Any:
    return _field(line, "kind")
