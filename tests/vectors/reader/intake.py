"""What waits: the list of intake keys, and sealed batches. FORMAT.md §5.5, §13; WIRE.md, Spool."""

import hashlib
import hmac
import struct
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from . import Fault, bodies
from .msgpack import unpack


def read_keys(data: bytes, certificate: bytes) -> tuple[bytes, dict[int, bytes]]:
    """Store id, and public ingest keys by tier. certificate: storaged's CURVE secret key, Z85."""
    body, mac = data[:-32], data[-32:]
    key = hmac.digest(certificate, b"spanvault intake keys/1", "sha256")
    if not hmac.compare_digest(hmac.digest(key, body, "sha256"), mac):
        raise Fault("mac")
    if body[:8] != b"SVRINTK1":
        raise Fault("magic")
    if len(body) != 25 + 33 * body[24]:
        raise Fault("count")
    return body[8:24], {body[at]: body[at + 1 : at + 33] for at in range(25, len(body), 33)}


def key_named(name: str) -> str:
    """The id of the ingest key that a waiting file is sealed to, by its name. Raises Fault."""
    parts = name.split(".")
    if parts[-1] == "sealed" and len(parts) in (3, 4):  # N.KEYID.sealed, N.KEYID.NAME.sealed
        return parts[1]
    if parts[-1] == "moving" and len(parts) == 4:  # MOVE.N.KEYID.moving
        return parts[2]
    raise Fault("name")


def public_of(private_key: bytes) -> bytes:
    """The public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def id_of(private_key: bytes) -> str:
    """How its public half is called: FORMAT.md §5.5, WIRE.md, Spool."""
    return hashlib.sha256(public_of(private_key)).hexdigest()[:16]


def calls_of(frames: list[bytes]) -> list[dict[str, Any]]:
    """The records of a batch: WIRE.md §5."""
    batch = unpack(frames[0])
    return [bodies.of_map("call", one) for one in batch["calls"]]


def open_batch(name: str, data: bytes, private_key: bytes) -> list[bytes]:
    """The wire frames behind frame 1. Raises Fault."""
    key = X25519PrivateKey.from_private_bytes(private_key)
    if key_named(name) != id_of(private_key):
        raise Fault("other key")
    if data[:32] == bytes(32):
        raise Fault("removed")
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    try:
        plain = suite.decrypt(data, key, b"spanvault spool/1 SPANVAULT/1")
    except InvalidTag:
        raise Fault("sealed") from None
    frames, at = [], 0
    while at < len(plain):
        if len(plain) - at < 4:
            raise Fault("frame", at)
        (size,) = struct.unpack_from("<I", plain, at)
        at += 4 + size
        if at > len(plain):
            raise Fault("frame", at)
        frames.append(plain[at - size : at])
    return frames
