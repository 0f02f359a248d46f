"""A private key in M-of-N shares, each a text that is written on paper and typed back from it.

Any `threshold` shares give the key, fewer say nothing of it. The arithmetic is PyCryptodome's
(GF(2^128), two halves of 16 bytes); it is not constant-time, so shares are made and joined on a
machine that one trusts at that moment. Source: Shamir 1979. Bytes: storaged/FORMAT.md §5.7.
"""

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from Crypto.Protocol.SecretSharing import Shamir

from spanvault.keys.keyfile import public_of

VERSION: Final = 1
MAX_SHARES: Final = 16
_SHARE: Final = struct.Struct("<B4sBBB32s")  # version, set, threshold, count, number, share
_CHECK: Final = 5  # bytes; 45 in all are 72 letters
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford: no I, L, O, U
_HALF: Final = 16
_LINE: Final = 24  # letters printed on a line
_LETTERS: Final = 72


class Share(NamedTuple):
    """One share of one key. set_id: of the key, the same in all of its shares."""

    set_id: bytes  # 4 bytes
    threshold: int
    total: int
    number: int  # 1 …
    share: bytes  # 32 bytes

    @property
    def set_name(self) -> str:
        """How the set is told to people."""
        return self.set_id.hex().upper()


def split(private_key: bytes, threshold: int, count: int) -> list[Share]:
    """Make a set of shares. Raises ValueError for an impossible number of them."""
    if not 2 <= threshold <= count <= MAX_SHARES:
        raise ValueError(
            f"{threshold} of {count} shares cannot be: 2 to {MAX_SHARES}, and no more needed than "
            "there are"
        )
    halves = [Shamir.split(threshold, count, private_key[at : at + _HALF]) for at in (0, _HALF)]
    return [
        Share(set_of(public_of(private_key)), threshold, count, number, first + second)
        for (number, first), (_, second) in zip(*halves, strict=True)
    ]


def combine(shares: Iterable[Share]) -> bytes:
    """The private key. Raises ValueError: too few, of several sets, or one was forged."""
    known = {share.number: share for share in shares}
    if not known:
        raise ValueError("no share was given")
    some = list(known.values())
    first = some[0]
    if any(share[:3] != first[:3] for share in some):
        raise ValueError("these shares are of several sets")
    if len(some) < first.threshold:
        raise ValueError(
            f"set {first.set_name} needs {first.threshold} different shares, {len(some)} were given"
        )
    halves = [
        Shamir.combine([(s.number, s.share[at : at + _HALF]) for s in some[: first.threshold]])
        for at in (0, _HALF)
    ]
    private_key = b"".join(halves)
    if set_of(public_of(private_key)) != first.set_id:
        raise ValueError(f"these shares do not give the key of set {first.set_name}")
    return private_key


def set_of(public_key: bytes) -> bytes:
    """The 4 bytes that name the set of shares of a key."""
    return hashlib.sha256(public_key).digest()[:4]


def write(share: Share) -> str:
    """A share as text: 72 letters in groups, and a line for people before."""
    data = _SHARE.pack(VERSION, *share)
    number = int.from_bytes(data + _check(data), "big")
    letters = "".join(_ALPHABET[(number >> shift) & 31] for shift in range(355, -1, -5))
    groups = [letters[at : at + 6] for at in range(0, _LETTERS, 6)]
    lines = ["  ".join(groups[at : at + 4]) for at in range(0, 12, 4)]
    head = f"# spanvault share {share.number} of {share.total}, {share.threshold} are needed; set "
    return "\n".join([head + share.set_name, *lines]) + "\n"


def parse(text: str) -> Share:
    """A share as it was typed: any case, spaces and dashes; O is 0, I and L are 1.

    Raises ValueError that says what to look at.
    """
    letters = _letters(text)
    if strange := set(letters) - set(_ALPHABET):
        raise ValueError(f"a share has no '{min(strange)}'")
    if len(letters) != _LETTERS:
        raise ValueError(f"a share has {_LETTERS} letters in 12 groups, {len(letters)} were typed")
    number = 0
    for letter in letters:
        number = number << 5 | _ALPHABET.index(letter)
    data = number.to_bytes(45, "big")
    if _check(data[: _SHARE.size]) != data[_SHARE.size :]:
        raise ValueError("a letter of this share is wrong: compare it with the paper")
    version, *fields = _SHARE.unpack_from(data)
    share = Share(*fields)
    if version != VERSION or not 2 <= share.threshold <= share.total <= MAX_SHARES:
        raise ValueError("this share is of another version of spanvault")
    if not 1 <= share.number <= share.total:
        raise ValueError("this share is of another version of spanvault")
    return share


def parse_all(text: str) -> Sequence[Share]:
    """Shares of a file, parted by their comment lines or by empty lines. Raises ValueError."""
    parts = re.split(r"(?m)^\s*(?:#.*)?$", text)
    return [parse(part) for part in parts if part.strip()]


def goes_on(text: str) -> bool:
    """Whether whole lines of a share, as write() makes them, are still to be typed."""
    return len(_letters(text)) in range(0, _LETTERS, _LINE)


def _letters(text: str) -> str:
    """What counts of what was typed."""
    typed = "".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    letters = re.sub(r"[\s\-_.]", "", typed).upper()
    return letters.translate(str.maketrans("OIL", "011"))


def _check(data: bytes) -> bytes:
    return hashlib.sha256(b"spanvault share" + data).digest()[:_CHECK]
