"""Ledgers, and the sealed records in them: FORMAT.md §6, §7.1."""

import hmac
import struct
import unicodedata

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from . import Fault


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


def key_id_of(sealed: bytes) -> int:
    """Which DEK a sealed record wants. Raises Fault. FORMAT.md §6."""
    if sealed[:4] != b"SVM1" or len(sealed) < 44:
        raise Fault("magic")
    return int.from_bytes(sealed[8:16], "little")


def open_record(call: bytes, sealed: bytes, dek: bytes) -> bytes:
    """The MessagePack of a sealed record. Raises Fault. FORMAT.md §6."""
    key_id_of(sealed)
    key = HKDF(hashes.SHA256(), 32, None, b"meta").derive(dek)
    try:
        return AESGCM(key).decrypt(sealed[16:28], sealed[28:], call + sealed[:16])
    except InvalidTag:
        raise Fault("record") from None


def search_row(
    index_key: bytes, dek: bytes, place: tuple[int, int], text: tuple[str, str], number: int
) -> bytes:
    """The key of a row that leads to a call of a number (kind n) or Call-ID (c). FORMAT.md §6.

    place: tier and id of the day's key, whose bytes are dek. number: the how manieth that day.
    """
    kind, said = text
    normal = unicodedata.normalize("NFC", said).encode()
    token = int.from_bytes(hmac.digest(index_key, kind.encode() + normal, "sha256")[:16], "big")
    key = HKDFExpand(hashes.SHA256(), 32, b"spanvault label/1").derive(dek)
    block = ((token + number) % (1 << 128)).to_bytes(16, "big")
    label = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)
    return bytes((place[0],)) + place[1].to_bytes(7, "big") + label
