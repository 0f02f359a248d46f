"""A private key from shares on paper: FORMAT.md §5.7."""

import hashlib
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from . import Fault

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
MODULUS = 1 << 128 | 0x87  # x^128 + x^7 + x^2 + x + 1


class Share(NamedTuple):
    """What the 40 bytes say."""

    key: bytes  # 4 bytes
    threshold: int
    count: int
    number: int
    values: tuple[int, int]


def parse(text: str) -> Share:
    """One share as it was typed. Raises Fault."""
    typed = "".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    letters = typed.upper().translate(str.maketrans("OIL", "011", " -\t"))
    if len(letters) != 72 or set(letters) - set(LETTERS):
        raise Fault("letters")
    value = 0
    for letter in letters:
        value = value * 32 + LETTERS.index(letter)
    data = value.to_bytes(45, "big")
    if hashlib.sha256(b"spanvault share" + data[:40]).digest()[:5] != data[40:]:
        raise Fault("check")
    version, threshold, count, number = data[0], data[5], data[6], data[7]
    if version != 1 or not 2 <= threshold <= count <= 16 or not 1 <= number <= count:
        raise Fault("version")
    halves = int.from_bytes(data[8:24], "big"), int.from_bytes(data[24:40], "big")
    return Share(data[1:5], threshold, count, number, halves)


def join(shares: list[Share]) -> bytes:
    """The private key. Raises Fault."""
    if len({share[:3] for share in shares}) != 1:
        raise Fault("sets")
    some = list({share.number: share for share in shares}.values())[: shares[0].threshold]
    if len(some) < shares[0].threshold:
        raise Fault("few")
    key = b"".join(
        _at_zero([(share.number, share.values[half]) for share in some]).to_bytes(16, "big")
        for half in (0, 1)
    )
    public = X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
    if hashlib.sha256(public).digest()[:4] != shares[0].key:
        raise Fault("forged")
    return key


def _at_zero(points: list[tuple[int, int]]) -> int:
    """Lagrange's polynomial through the points, at 0. In this field minus is plus: exclusive or."""
    total = 0
    for x, y in points:
        above, below = 1, 1
        for other, _ in points:
            if other != x:
                above, below = _times(above, other), _times(below, x ^ other)
        total ^= _times(y, _times(above, _inverse(below)))
    return total


def _times(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = a << 1, b >> 1
        if a >> 128:
            a ^= MODULUS
    return product


def _inverse(a: int) -> int:
    """a to the power 2^128 - 2."""
    result = 1
    for _ in range(127):
        a = _times(a, a)
        result = _times(result, a)
    return result
