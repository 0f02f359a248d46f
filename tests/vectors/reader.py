"""Another reader of a store, written from storaged/FORMAT.md and spanvault/WIRE.md §4 alone.

It shares no line with the product: the standard library and `cryptography` only. Whoever is given
an object and its DEK, or the keys folder and an unlock key, has the recording with this:

    python tests/vectors/reader.py OBJECT --dek HEX
    python tests/vectors/reader.py OBJECT --keys STORE/keys[/POOL] --unlock FILE

Prints what is in it as JSON; exit code 1 if something does not fit. Of SRTP, who has the key of the
call's record opens here what AES in counter mode encrypted: `unprotect` of what `Chunk.packets`
gives, then `payload_of`. Held to the same vectors as the product: tests/vectors/test_vectors.py.
"""

import argparse
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

MAGIC = bytes.fromhex("89 53 56 52 0D 0A 1A 0A")
HEADER, LOCATOR = 104, 32
DATA, LAST, EVENTS = 0, 1, 2
FIRST_EVENTS = 32768  # streams of telephone events are numbered from here
SLOTS = 4096
MARKER, CUT, WHOLE = 1, 2, 4  # flags of a frame
FIXED = 12  # bytes of an RTP header without CSRCs and extension


class Fault(ValueError):
    """Something that does not fit. code: a word of FORMAT.md §4.5."""

    def __init__(self, code: str, place: int = 0) -> None:
        super().__init__(f"{code} at byte {place}")
        self.code = code


class Chunk(NamedTuple):
    """About a second of one stream."""

    stream: int
    ssrc: int
    start_ns: int
    frames: list[tuple[int, int, int, int, int]]  # sequence, timestamp, arrival ns, type, flags
    payloads: list[bytes]

    def packets(self) -> list[bytes]:
        """Each frame as the RTP packet that was heard: FORMAT.md §4.4."""
        found = []
        for (sequence, timestamp, _, kind, flags), kept in zip(
            self.frames, self.payloads, strict=True
        ):
            second = (flags & MARKER) << 7 | kind
            head = struct.pack(">BBHII", 0x80, second, sequence & 0xFFFF, timestamp, self.ssrc)
            found.append(kept if flags & WHOLE else head + kept)
        return found


class Opened:
    """What is in an object. faults: codes, in order of place."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.record: bytes | None = None
        self.sealed = False
        self.faults: list[str] = []


class Segment(NamedTuple):
    """A header, and the keys of what follows it, by flag; none if it does not open."""

    recording: bytes
    key_id: int
    number: int
    keys: dict[int, AESGCM]
    aad: bytes


def key_id_of(data: bytes) -> int:
    """Which DEK an object wants. Raises Fault."""
    return _header(data, 0, None).key_id


def open_object(data: bytes, dek: bytes) -> Opened:
    """Everything that opens. Raises Fault if not even the first header can be used."""
    found = Opened()
    segment = _header(data, 0, dek)
    first, begun, at, sequence = segment, 0, HEADER, 0
    headers, frames = [0], []
    if not segment.keys:
        found.faults.append("commitment")
    while at < len(data):
        if data[at : at + 8] == MAGIC:
            if len(data) - at < HEADER:
                break  # a torn tail
            segment, begun = _header(data, at, dek), at
            if not segment.keys:
                found.faults.append("commitment")
            if (segment.recording, segment.key_id) != (first.recording, first.key_id):
                found.faults.append("other recording")
                break
            if segment.number != len(headers):
                found.faults.append("segment")
            headers.append(at)
            at, sequence, found.sealed = at + HEADER, 0, False
            continue
        if found.sealed:
            found.faults.append("structure")
            break
        if len(data) - at < 5:
            break
        length, flag = struct.unpack_from("<IB", data, at)
        if flag > EVENTS or not 16 <= length <= (64 << 20) + 16:
            found.faults.append("structure")
            at = _next_header(data, at)
            continue
        end = at + 5 + length
        if end + (LOCATOR if flag == LAST else 0) > len(data):
            if data.find(MAGIC, at) >= 0:
                found.faults.append("structure")
                at = _next_header(data, at)
                continue
            break
        plain = _open(segment, sequence, flag, data[at + 5 : end])
        if plain is None and segment.keys:
            found.faults.append("frame")
        if flag != LAST:
            frames.append((at, len(headers) - 1, sequence))
            if plain is not None:
                _take_chunks(plain, first.recording, flag, found)
            at, sequence = end, sequence + 1
            continue
        if plain is not None:
            _take_trailer(plain, headers, frames, found)
        locator = data[end : end + LOCATOR]
        wanted = struct.pack("<QQQ", begun, at, sequence) + b"SVRLAST\n"
        if locator != wanted:
            found.faults.append("locator")
        found.sealed = True
        at, sequence = end + LOCATOR, sequence + 1
    return found


def _header(data: bytes, at: int, dek: bytes | None) -> Segment:
    """FORMAT.md §4.2 and §4.3."""
    head = data[at : at + HEADER]
    if len(head) < HEADER:
        raise Fault("cut", at)
    if head[:8] != MAGIC:
        raise Fault("magic", at)
    version, suite, _, zero, number = struct.unpack_from("<HHBBH", head, 8)
    if version != 1:
        raise Fault("version", at)
    if suite != 1:
        raise Fault("suite", at)
    if zero or head[44:48] != bytes(4):
        raise Fault("reserved", at)
    recording = head[16:32]
    (key_id,) = struct.unpack_from("<Q", head, 32)
    keys: dict[int, AESGCM] = {}
    if dek is not None:

        def derive(name: bytes) -> bytes:
            return HKDF(hashes.SHA256(), 32, head[56:72], name + recording).derive(dek)

        if hmac.compare_digest(derive(b"commit"), head[72:104]):
            audio = AESGCM(derive(b"audio"))
            keys = {DATA: audio, LAST: audio, EVENTS: AESGCM(derive(b"events"))}
    return Segment(recording, key_id, number, keys, hashlib.sha256(head).digest())


def _open(segment: Segment, sequence: int, flag: int, sealed: bytes) -> bytes | None:
    """FORMAT.md §4.4."""
    if not segment.keys:
        return None
    try:
        nonce = sequence.to_bytes(11, "big") + bytes((flag,))
        return segment.keys[flag].decrypt(nonce, sealed, segment.aad)
    except InvalidTag:
        return None


def _next_header(data: bytes, at: int) -> int:
    behind = data.find(MAGIC, at + 1)
    return behind if behind >= 0 else len(data)


def _take_chunks(plain: bytes, recording: bytes, flag: int, found: Opened) -> None:
    """WIRE.md §4; which chunks a frame may hold: FORMAT.md §4.4."""
    at = 0
    while at < len(plain):
        if len(plain) - at < 64:
            found.faults.append("chunk")
            return
        stream, _, ssrc, count, size, start_ns = struct.unpack_from("<HHIIIq", plain, at + 16)
        frames_at = at + 64
        payload_at = frames_at + 20 * count
        misplaced = (stream >= FIRST_EVENTS) != (flag == EVENTS)
        if plain[at : at + 16] != recording or misplaced or payload_at + size > len(plain):
            found.faults.append("chunk")
            return
        frames, payloads = [], []
        byte = payload_at
        for number in range(count):
            *frame, length = struct.unpack_from("<IIqBBH", plain, frames_at + 20 * number)
            frames.append(tuple(frame))
            payloads.append(plain[byte : byte + length])
            byte += length
        if byte != payload_at + size:
            found.faults.append("chunk")
            return
        found.chunks.append(Chunk(stream, ssrc, start_ns, frames, payloads))
        at = byte


def _take_trailer(
    plain: bytes, headers: list[int], frames: list[tuple[int, int, int]], found: Opened
) -> None:
    try:
        (count,) = struct.unpack_from("<I", plain)
        at = 4 + 8 * count
        listed_headers = list(struct.unpack_from(f"<{count}Q", plain, 4))
        (rows,) = struct.unpack_from("<I", plain, at)
        listed = [struct.unpack_from("<QII", plain, at + 4 + 32 * row) for row in range(rows)]
        at += 4 + 32 * rows
        (size,) = struct.unpack_from("<I", plain, at)
    except struct.error:
        found.faults.append("trailer")
        return
    if listed_headers != headers or listed != frames or at + 4 + size != len(plain):
        found.faults.append("trailer")
    found.record = plain[at + 4 : at + 4 + size]


# --- packets: RFC 3550 §5.1, RFC 3711 ----------------------------------------------------------


def header_of(packet: bytes) -> int:
    """Bytes before the payload. Raises Fault where the packet is shorter than its header."""
    length = FIXED + 4 * (packet[0] & 15) if packet else FIXED
    if packet and packet[0] & 0x10:
        length += 4 + 4 * int.from_bytes(packet[length + 2 : length + 4], "big")
    if length > len(packet):
        raise Fault("packet")
    return length


def payload_of(packet: bytes, cut: bool = False) -> bytes:
    """What a packet that is not encrypted carries. cut: its end is missing, and so its padding.

    Raises Fault.
    """
    payload = packet[header_of(packet) :]
    if cut or not packet[0] & 0x20:
        return payload
    if not payload or not 0 < payload[-1] <= len(payload):
        raise Fault("packet")
    return payload[: -payload[-1]]


def unprotect(packet: bytes, key: bytes, sequence: int, tag: int = 10) -> bytes:
    """An SRTP packet as RTP, of the suites AES_CM_*_HMAC_SHA1_*: RFC 3711 §3.3.

    key: master key and 14 bytes of salt.  sequence: the frame's; its rollovers are those since the
    stream was first heard.  tag: bytes of it.  Raises Fault where the packet does not authenticate.
    """
    master, salt = key[:-14], key[-14:]

    def derive(label: int, size: int) -> bytes:  # §4.3.1
        start = int.from_bytes(salt, "big") ^ label << 48
        return _keystream(master, start << 16, size)

    signed, told = packet[:-tag], packet[-tag:]
    rollovers = (sequence >> 16) - 1
    if rollovers < 0:
        raise Fault("packet")  # older than the first that was heard
    digest = hmac.digest(derive(1, 20), signed + struct.pack(">I", rollovers), "sha1")
    if not hmac.compare_digest(digest[:tag], told):
        raise Fault("packet")
    behind = header_of(signed)
    index, ssrc = sequence - 65536, int.from_bytes(packet[8:12], "big")
    start = int.from_bytes(derive(2, 14), "big") << 16 ^ ssrc << 64 ^ index << 16  # §4.1.1
    stream = _keystream(derive(0, len(master)), start, len(signed) - behind)
    opened = bytes(a ^ b for a, b in zip(signed[behind:], stream, strict=True))
    return signed[:behind] + opened


def _keystream(key: bytes, start: int, size: int) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.CTR(start.to_bytes(16, "big")))
    return cipher.encryptor().update(bytes(size))


# --- keys: FORMAT.md §5 -----------------------------------------------------------------------


def open_root(data: bytes, private_key: bytes) -> tuple[bytes, dict[tuple[int, int, int], bytes]]:
    """Store id, and secrets by (kind, generation, number). Raises Fault."""
    if len(data) < 64:
        raise Fault("cut")
    if data[:8] != b"SVRROOT1":
        raise Fault("magic")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise Fault("digest")
    store_id = data[8:24]
    epoch, _, _, envelopes = struct.unpack_from("<IBBH", data, 24)
    ours = X25519PrivateKey.from_private_bytes(private_key)
    at, root_key = 32, None
    for _ in range(envelopes):
        kind, _, length = struct.unpack_from("<BBH", data, at)
        public, sealed = data[at + 4 : at + 36], data[at + 36 : at + 36 + length]
        at += 36 + length
        if kind == 1 and public == ours.public_key().public_bytes_raw():
            root_key = _open_envelope(sealed, ours, b"spanvault root/1" + data[:32])
    if root_key is None:
        raise Fault("other key")
    (count,) = struct.unpack_from("<I", data, at)
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


def open_page(data: bytes, store_id: bytes, page_key: bytes) -> list[bytes]:
    """The DEKs of a page file. Raises Fault."""
    if data[:8] != b"SVRPAGE1":
        raise Fault("magic")
    try:
        plain = AESGCM(page_key).decrypt(data[16:28], data[28:], data[:16] + store_id)
    except InvalidTag:
        raise Fault("page") from None
    return [plain[32 * slot : 32 * slot + 32] for slot in range(SLOTS)]


def read_ledger(
    data: bytes, store_id: bytes, tier: int, index_key: bytes
) -> tuple[list[tuple[int, bytes, bytes]], list[int]]:
    """(kind, id, body) of every entry of a ledger's file, and where something does not fit.

    Raises Fault if it is none of this store and pool. FORMAT.md §7.1.
    """
    head = data[:48]
    if len(head) < 48 or head[:8] != b"SVLEDGR1":
        raise Fault("magic")
    if head[8:24] != store_id or head[24] != tier:
        raise Fault("other pool")
    key = HKDFExpand(hashes.SHA256(), 32, b"spanvault ledger/1").derive(index_key)
    entries, faults, at = [], [], 48
    while at < len(data):
        end = at + 44  # without a body
        if data[at : at + 4] == b"SVLE" and len(data) >= end:
            end += struct.unpack_from("<I", data, at + 4)[0]
        entry, tag = data[at : end - 16], data[end - 16 : end]
        made = hmac.digest(key, head + struct.pack("<Q", at) + entry, "sha256")[:16]
        if len(tag) == 16 and hmac.compare_digest(tag, made):
            entries.append((entry[8], entry[12:28], entry[28:]))
            at = end
        else:
            faults.append(at)
            found = data.find(b"SVLE", at + 1)
            at = found if found >= 0 else len(data)
    return entries, faults


def open_record(call: bytes, sealed: bytes, dek: bytes) -> bytes:
    """The MessagePack of a sealed record. Raises Fault. FORMAT.md §6."""
    if sealed[:4] != b"SVM1":
        raise Fault("magic")
    key = HKDF(hashes.SHA256(), 32, None, b"meta").derive(dek)
    try:
        return AESGCM(key).decrypt(sealed[16:28], sealed[28:], call + sealed[:16])
    except InvalidTag:
        raise Fault("record") from None


def find_dek(keys: Path, unlock: bytes, key_id: int) -> bytes:
    """The DEK of a key id out of a pool's keys folder. Raises Fault: destroyed, too."""
    store_id, secrets = open_root((keys / "root").read_bytes(), unlock)
    page, slot = divmod(key_id, SLOTS)
    generation = max((g for kind, g, number in secrets if (kind, number) == (1, page)), default=-1)
    if generation < 0:
        raise Fault("no page")
    data = (keys / f"page-{page:06d}.{generation}").read_bytes()
    dek = open_page(data, store_id, secrets[1, generation, page])[slot]
    if dek == bytes(32):
        raise Fault("destroyed")
    return dek


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Opens a sealed recording.")
    parser.add_argument("object", type=Path)
    parser.add_argument("--dek")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--unlock", type=Path)
    asked = parser.parse_args()
    data = asked.object.read_bytes()
    if asked.dek:
        dek = bytes.fromhex(asked.dek)
    else:
        lines = asked.unlock.read_text().splitlines()
        (key,) = (line for line in lines if line and not line.startswith("#"))
        dek = find_dek(asked.keys, bytes.fromhex(key), key_id_of(data))
    found = open_object(data, dek)
    about: dict[str, Any] = {"sealed": found.sealed, "faults": found.faults}
    about["chunks"] = [
        {"stream": chunk.stream, "ssrc": chunk.ssrc, "start_ns": chunk.start_ns,
         "frames": len(chunk.frames), "bytes": sum(map(len, chunk.payloads)),
         "sha256": hashlib.sha256(b"".join(chunk.payloads)).hexdigest()}
        for chunk in found.chunks
    ]  # fmt: skip
    print(json.dumps(about))
    return int(bool(found.faults))


if __name__ == "__main__":
    sys.exit(main())
