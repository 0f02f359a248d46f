"""Roots and pages: from an unlock key, and a token's secret where there is one, to a DEK.

FORMAT.md §5.1, §5.2, §5.8.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import Fault

SLOTS = 4096


Token = Callable[[str, bytes], bytes]  # an object's label and data → HMAC-SHA256, in the token


def open_root(
    data: bytes, private_key: bytes, token: Token | None = None
) -> tuple[bytes, dict[tuple[int, int, int], bytes]]:
    """Store id, and secrets by (kind, generation, number). Raises Fault.

    token: makes the root key of what the envelopes hold, where the slot says so (§5.8).
    """
    if len(data) < 64:
        raise Fault("cut")
    if data[:8] != b"SVRROOT1":
        raise Fault("magic")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise Fault("digest")
    store_id = data[8:24]
    epoch, tier, slot, envelopes = struct.unpack_from("<IBBH", data, 24)
    ours = X25519PrivateKey.from_private_bytes(private_key)
    at, held = 32, None
    for _ in range(envelopes):
        kind, _, length = struct.unpack_from("<BBH", data, at)
        public, sealed = data[at + 4 : at + 36], data[at + 36 : at + 36 + length]
        at += 36 + length
        if at > len(data) - 36:
            raise Fault("envelopes")
        if kind == 1 and public == ours.public_key().public_bytes_raw():
            held = _open_envelope(sealed, ours, b"spanvault root/1" + data[:32])
    if held is None:
        raise Fault("other key")
    root_key = held
    if slot == 1 and token is not None:
        root_key = token(f"spanvault {store_id.hex()} {tier} {epoch}", held)
    elif slot != 0:
        raise Fault("slot")
    (count,) = struct.unpack_from("<I", data, at)
    if len(data) != at + 4 + 68 * count + 32:
        raise Fault("secrets")
    secrets = {}
    for number in range(count):
        kind, _, generation, which, nonce, sealed = struct.unpack_from(
            "<BBHI12s48s", data, at + 4 + 68 * number
        )
        name = struct.pack("<IBHI", epoch, kind, generation, which)
        try:
            secret = AESGCM(root_key).decrypt(nonce, sealed, b"SVRROOT1" + store_id + name)
        except InvalidTag:
            raise Fault("secret", at + 4 + 68 * number) from None
        secrets[kind, generation, which] = secret
    return store_id, secrets


def _open_envelope(sealed: bytes, key: X25519PrivateKey, info: bytes) -> bytes:
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    try:
        return suite.decrypt(sealed, key, info)
    except InvalidTag:
        raise Fault("envelope") from None


def token_of(secrets: dict[str, bytes]) -> Token:
    """A token that holds these secrets by label. It gives Fault where it has none of a label."""

    def sign(label: str, data: bytes) -> bytes:
        if label not in secrets:
            raise Fault("token")
        return hmac.digest(secrets[label], data, "sha256")

    return sign


def open_page(
    data: bytes, page: int, generation: int, store_id: bytes, page_key: bytes
) -> list[bytes]:
    """The DEKs of a page file. Raises Fault."""
    if len(data) != 28 + 32 * SLOTS + 16:
        raise Fault("cut")
    if data[:8] != b"SVRPAGE1":
        raise Fault("magic")
    if struct.unpack_from("<IH", data, 8) != (page, generation):
        raise Fault("other page")
    try:
        plain = AESGCM(page_key).decrypt(data[16:28], data[28:], data[:16] + store_id)
    except InvalidTag:
        raise Fault("page") from None
    return [plain[32 * slot : 32 * slot + 32] for slot in range(SLOTS)]


def find_dek(
    keys: Path, store_id: bytes, secrets: dict[tuple[int, int, int], bytes], key_id: int
) -> bytes:
    """The DEK of a key id out of a pool's keys folder, whose root is open. Raises Fault: destroyed,
    too."""
    page, slot = divmod(key_id, SLOTS)
    generation = max((g for kind, g, number in secrets if (kind, number) == (1, page)), default=-1)
    if generation < 0:
        raise Fault("no page")
    data = (keys / f"page-{page:06d}.{generation}").read_bytes()
    dek = open_page(data, page, generation, store_id, secrets[1, generation, page])[slot]
    if dek == bytes(32):
        raise Fault("destroyed")
    return dek
