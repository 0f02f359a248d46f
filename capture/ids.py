"""Names for calls: 16 bytes, in the order of time, never the same twice. Source: RFC 9562 §5.7."""

import os
import time


def new_id() -> bytes:
    """A UUIDv7: 48 bits of milliseconds, then version, variant and 74 random bits."""
    random = bytearray(os.urandom(10))
    random[0] = 0x70 | random[0] & 0x0F
    random[2] = 0x80 | random[2] & 0x3F
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + bytes(random)
