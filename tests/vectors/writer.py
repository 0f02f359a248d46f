"""Another writer of a store, from storaged/FORMAT.md and spanvault/WIRE.md §4 alone.

As the reader beside it, it shares no line with the product: the standard library and `cryptography`
only. It writes what a small recorder would: a root sealed to an unlock key, one page of DEKs, a
ledger, a sealed recording, one that goes on, and a call without media; and, beside these, what a
later program might: a secret, an entry and a name of which nobody knows today. It has no index:
storaged makes that (§7.2). Held to the product: tests/vectors/test_writer.py.
"""

import hashlib
import hmac
import json
import os
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

SLOTS = 4096
DATA, LAST, EVENTS = 0, 1, 2
PAGE, INGEST, INDEX, SIGNING, LATER = 1, 2, 3, 4, 9  # kinds of secrets
RECORD, SEALED, OF_LATER = 1, 2, 200  # kinds of entries
SECOND = 10**9


def pack(value: Any) -> bytes:
    """MessagePack of what a call's record is made of."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return b"\xdf" + struct.pack(">I", len(value)) + b"".join(
            pack(key) + pack(one) for key, one in value.items()
        )  # fmt: skip
    return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))


def chunk(recording: bytes, stream: int, start_ns: int, payloads: list[bytes]) -> bytes:
    """A packed chunk: WIRE.md §4."""
    count, size = len(payloads), sum(map(len, payloads))
    head = struct.pack("<16sHHIIIq4IfI", recording, stream, 0, 7, count, size, start_ns,
                       count, 0, 0, 0, 0.0, 0)  # fmt: skip
    frames = b"".join(
        struct.pack("<IIqBBH", 65536 + number, 160 * number, start_ns, 0, 0, len(payload))
        for number, payload in enumerate(payloads)
    )
    return head + frames + b"".join(payloads)


class Segment:
    """One segment of an object, and the trailer of all that was written: FORMAT.md §4."""

    def __init__(self, recording: bytes, key_id: int, dek: bytes, created_ns: int) -> None:
        salt = os.urandom(16)

        def derive(name: bytes) -> bytes:
            return HKDF(hashes.SHA256(), 32, salt, name + recording).derive(dek)

        self.data = b"\x89SVR\r\n\x1a\n" + struct.pack(
            "<HHBBH16sQIIq", 1, 1, 0, 0, 0, recording, key_id, 1 << 20, 0, created_ns
        ) + salt + derive(b"commit")  # fmt: skip
        audio = AESGCM(derive(b"audio"))
        self._keys = {DATA: audio, LAST: audio, EVENTS: AESGCM(derive(b"events"))}
        self._aad, self._sequence = hashlib.sha256(self.data).digest(), 0
        self._listed = b""

    def chunks(self, flag: int, first_ns: int, last_ns: int, *chunks: bytes) -> None:
        """A DATA or EVENTS frame."""
        self._listed += struct.pack("<QIIqq", len(self.data), 0, self._sequence, first_ns, last_ns)
        self._frame(flag, b"".join(chunks))

    def last(self, record: bytes) -> None:
        """The LAST frame and its locator."""
        rows, at, sequence = len(self._listed) // 32, len(self.data), self._sequence
        self._frame(LAST, struct.pack("<IQI", 1, 0, rows) + self._listed
                    + struct.pack("<I", len(record)) + record)  # fmt: skip
        self.data += struct.pack("<QQQ", 0, at, sequence) + b"SVRLAST\n"

    def _frame(self, flag: int, plain: bytes) -> None:
        nonce = self._sequence.to_bytes(11, "big") + bytes((flag,))
        sealed = self._keys[flag].encrypt(nonce, plain, self._aad)
        self.data += struct.pack("<IB", len(sealed), flag) + sealed
        self._sequence += 1


class Writer:
    """A store that is being written. unlock: an X25519 key's public half."""

    def __init__(self, folder: Path, unlock: bytes) -> None:
        self._folder, self._id = folder, os.urandom(16)
        self._page_key, self._index_key = os.urandom(32), os.urandom(32)
        self._deks = os.urandom(32 * SLOTS)
        self._taken, self._entries = 0, [(OF_LATER, bytes(16), b"what it says")]
        for name in ("keys", "log", "pools/base/objects", "pools/base/ledger"):
            (folder / name).mkdir(parents=True)
        (folder / "keys/page-000000.0").write_bytes(self._page())
        (folder / "keys/root").write_bytes(self._root(unlock))

    def recording(self, call: dict[str, Any], stream: int, *, sealed: bool) -> None:
        """A second of sound and one of digits of a call, and its record."""
        key_id, start_ns, one = self.take(), call["started_ns"], call["id"]
        segment = Segment(one, key_id, self.dek(key_id), start_ns)
        segment.chunks(DATA, start_ns, start_ns, chunk(one, stream, start_ns, [b"sound", b"more"]))
        later_ns = start_ns + SECOND
        segment.chunks(EVENTS, later_ns, later_ns, chunk(one, 32768 + stream, later_ns, [b"1234"]))
        if sealed:
            segment.last(pack(call))
            digest = hashlib.sha256(segment.data).digest()
            self._entries.append(
                (SEALED, one, struct.pack("<QQ", key_id, len(segment.data)) + digest)
            )
        else:
            self.record(call, key_id)
        path = self._folder / f"pools/base/objects/{one.hex()[-2:]}/{one.hex()}.svr"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(segment.data)

    def record(self, call: dict[str, Any], key_id: int) -> None:
        """A call's record into the ledger: FORMAT.md §6."""
        head = b"SVM1" + struct.pack("<iQ", call["revision"], key_id)
        nonce, key = os.urandom(12), HKDF(hashes.SHA256(), 32, None, b"meta").derive(
            self.dek(key_id)
        )  # fmt: skip
        sealed = AESGCM(key).encrypt(nonce, pack(call), call["id"] + head)
        self._entries.append((RECORD, call["id"], head + nonce + sealed))

    def take(self) -> int:
        """The next slot."""
        self._taken += 1
        return self._taken - 1

    def dek(self, key_id: int) -> bytes:
        """The bytes in it."""
        return self._deks[32 * key_id : 32 * key_id + 32]

    def finish(self) -> None:
        """The ledger; and last of all what makes the folder a store."""
        head = b"SVLEDGR1" + self._id + bytes(8) + os.urandom(16)
        key = HKDFExpand(hashes.SHA256(), 32, b"spanvault ledger/1").derive(self._index_key)
        data = head
        for kind, one, body in self._entries:
            entry = b"SVLE" + struct.pack("<IB3x16s", len(body), kind, one) + body
            tag = hmac.digest(key, head + struct.pack("<Q", len(data)) + entry, "sha256")[:16]
            data += entry + tag
        (self._folder / "pools/base/ledger/20231114-000000.svl").write_bytes(data)
        about = {"format": "spanvault store", "version": 3, "store_id": self._id.hex()}
        (self._folder / "format.json").write_text(json.dumps(about))

    def _page(self) -> bytes:
        head, nonce = b"SVRPAGE1" + struct.pack("<IHBB", 0, 0, 0, 0), os.urandom(12)
        return head + nonce + AESGCM(self._page_key).encrypt(nonce, self._deks, head + self._id)

    def _root(self, unlock: bytes) -> bytes:
        root_key = os.urandom(32)
        head = b"SVRROOT1" + self._id + struct.pack("<IBBH", 1, 0, 0, 1)
        suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
        public = X25519PublicKey.from_public_bytes(unlock)
        sealed = suite.encrypt(root_key, public, b"spanvault root/1" + head)
        data = head + struct.pack("<BBH", 1, 0, len(sealed)) + unlock + sealed
        secrets = {PAGE: self._page_key, INGEST: os.urandom(32), INDEX: self._index_key,
                   SIGNING: os.urandom(32), LATER: b"l" * 32}  # fmt: skip
        data += struct.pack("<I", len(secrets))
        for kind, secret in secrets.items():
            nonce, name = os.urandom(12), struct.pack("<IBHI", 1, kind, 0, 0)
            wrapped = AESGCM(root_key).encrypt(nonce, secret, b"SVRROOT1" + self._id + name)
            data += struct.pack("<BBHI", kind, 0, 0, 0) + nonce + wrapped
        return data + hashlib.sha256(data).digest()
