"""Batches that must wait on a capture's disk: sealed to the store's public ingest key.

A stolen or compromised capture host yields no past audio: it holds the public half only.
Source: RFC 9180 (HPKE, base mode; X25519, HKDF-SHA256, AES-256-GCM). Bytes: WIRE.md, "Spool".
Who keeps the private half: storaged.keys.keyring. Who writes the files: capture.delivery.outbox.
"""

import contextlib
import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from spanvault.wire import PROTOCOL

SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
# `cryptography` offers no associated data in single-shot HPKE: the protocol is bound by info.
INFO: Final = b"spanvault spool/1 " + PROTOCOL
ENCAPSULATED: Final = 32  # bytes of the encapsulated key that a ciphertext begins with
_LENGTH: Final = struct.Struct("<I")


def shred(path: Path) -> None:
    """Remove a sealed batch's file so that what the disk keeps of it opens with no key.

    The first 32 bytes, the encapsulated key, are overwritten and synced: without them the ingest
    key is of no use. Best effort on flash and copy-on-write filesystems. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        with path.open("r+b", buffering=0) as file:
            file.write(bytes(ENCAPSULATED))
            os.fsync(file.fileno())  # before the name goes: else it might never be written
        path.unlink()


def shred_torn(path: Path) -> None:
    """Remove what a crash or a full disk left of a batch: so much of it as is there may open, too.

    A block that takes no writes keeps nothing from going on. Raises OSError if it stays.
    """
    try:
        shred(path)
    except OSError:
        path.unlink(missing_ok=True)


def finish_shredding(folder: Path) -> None:
    """Remove the files of a folder whose removal a crash cut off: what they held was taken.

    Raises OSError.
    """
    for path in folder.glob("*.sealed"):
        with path.open("rb", buffering=0) as file:
            begins = file.read(ENCAPSULATED)
        if begins == bytes(ENCAPSULATED):  # no key encapsulates to that
            path.unlink()


def key_id(public_key: bytes) -> str:
    """The name of a public key (32 bytes): the first 8 bytes of its SHA-256, in hex."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def seal_batch(frames: Sequence[Any], public_key: bytes) -> bytes:
    """Seal a Batch's wire frames (all of them, frame 1 included) to a public ingest key.

    public_key: X25519, 32 bytes (Welcome.ingest_key).  Returns the one bulk frame of a Sealed.
    Raises ValueError if the key is none.
    """
    parts: list[Any] = []
    for frame in frames[1:]:
        parts += (_LENGTH.pack(memoryview(frame).nbytes), frame)
    return SUITE.encrypt(b"".join(parts), X25519PublicKey.from_public_bytes(public_key), INFO)


def open_plain(ciphertext: bytes | memoryview, private_key: bytes) -> bytes:
    """What was sealed, frames and lengths in one. Raises ValueError as open_batch() does."""
    try:
        return SUITE.decrypt(
            bytes(ciphertext), X25519PrivateKey.from_private_bytes(private_key), INFO
        )
    except InvalidTag:
        raise ValueError("spooled batch: does not open with this ingest key") from None


def reseal(ciphertext: bytes, private_key: bytes, public_key: bytes) -> bytes:
    """The same under another key. Raises ValueError as open_batch() does."""
    plain = open_plain(ciphertext, private_key)
    return SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(public_key), INFO)


def open_batch(ciphertext: bytes | memoryview, private_key: bytes) -> list[bytes | memoryview]:
    """Give back the wire frames, frame 1 included, that seal_batch was given.

    private_key: X25519, 32 bytes.  Raises ValueError if the key is another one, or the bytes
    were changed or cut.
    """
    plain = open_plain(ciphertext, private_key)
    view, at, frames = memoryview(plain), 0, [memoryview(PROTOCOL)]
    while at < len(view):
        if len(view) - at < _LENGTH.size:
            raise ValueError("spooled batch: a frame's length is cut")
        (size,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if size > len(view) - at:
            raise ValueError("spooled batch: a frame is cut")
        frames.append(view[at : at + size])
        at += size
    return list(frames)
