"""How a TLS client begins."""

import struct


def hello(*protocols: str, padding: int = 0) -> bytes:
    """A ClientHello in its record, as RFC 8446 §4.1.2 has it."""
    names = b"".join(bytes([len(name)]) + name.encode() for name in protocols)
    extensions = struct.pack("!HH", 21, padding) + bytes(padding)
    if protocols:
        extensions += struct.pack("!HHH", 16, len(names) + 2, len(names)) + names
    body = b"\x03\x03" + bytes(32) + b"\x20" + bytes(32) + b"\x00\x04\x13\x01\x13\x02\x01\x00"
    body += struct.pack("!H", len(extensions)) + extensions
    shake = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(shake)) + shake
