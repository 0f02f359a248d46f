"""A payload to the frames of its codec, as a decoder takes them; an empty frame is 'no speech'.

Comfort noise that a codec describes itself (SID) is an empty frame too: what was not said is
silence. Each function is a generator of bytes and raises ValueError for a payload that is none of
its codec. Sources: RFC 3551 §4.5 (framing), RFC 3952 §4.2 (iLBC). AMR: amr.py.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

Split = Callable[[bytes], Iterator[bytes]]


def whole(payload: bytes) -> Iterator[bytes]:
    """The payload is one frame."""
    yield payload


def every(size: int) -> Split:
    """Frames of one size. A payload of another length is none of this codec."""

    def split(payload: bytes) -> Iterator[bytes]:
        if len(payload) % size:
            raise ValueError(f"{len(payload)} bytes are no frames of {size}")
        for start in range(0, len(payload), size):
            yield payload[start : start + size]

    return split


def g729(payload: bytes) -> Iterator[bytes]:
    """Frames of 10 bytes; two bytes at the end are Annex B's comfort noise.

    Source: RFC 3551 §4.5.6.
    """
    if len(payload) % 10 not in (0, 2):
        raise ValueError(f"G729: {len(payload)} bytes are no frames of 10")
    for start in range(0, len(payload), 10):
        frame = payload[start : start + 10]
        yield frame if len(frame) == 10 else b""


G723_SIZES: Final = (24, 20, 4, 1)  # by the two low bits of a frame's first byte


def g723(payload: bytes) -> Iterator[bytes]:
    """Frames of 24 or 20 bytes, and 4 or 1 of comfort noise. Source: RFC 3551 §4.5.3."""
    at = 0
    while at < len(payload):
        size = G723_SIZES[payload[at] & 3]
        if at + size > len(payload):
            raise ValueError(f"G723: {len(payload) - at} bytes are no frame of {size}")
        yield payload[at : at + size] if size > 4 else b""
        at += size


STEP_INDEXES: Final = 89


def dvi4(payload: bytes) -> Iterator[bytes]:
    """A payload as the block of IMA ADPCM that WAV files hold; its first sample is not ours.

    Both begin with the decoder's state, but DVI4 has it in network order and its first sample in
    the upper half of a byte. Source: RFC 3551 §4.5.1.
    """
    if len(payload) < 4 or payload[2] >= STEP_INDEXES:
        raise ValueError("DVI4: no state of a decoder at the front")
    predict, index = struct.unpack(">hB", payload[:3])
    swapped = bytes((one & 0x0F) << 4 | one >> 4 for one in payload[4:])
    yield struct.pack("<hBx", predict, index) + swapped + bytes(-len(swapped) % 4)
