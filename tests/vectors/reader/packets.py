"""Packets that a chunk keeps, and what SRTP encrypted of them: FORMAT.md §4.4, RFC 3550, RFC 3711.

Of the suites AES_CM_*_HMAC_SHA1_*: who has the key of the call's record opens with `unprotect` what
`Chunk.packets` gives, and then asks for the `payload_of` it.
"""

import hmac
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from . import Fault

FIXED = 12  # bytes of an RTP header without CSRCs and extension


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
