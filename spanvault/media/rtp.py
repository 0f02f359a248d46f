"""RTP packets that a recording holds whole (chunk.WHOLE), as payloads.

An encrypted packet is authenticated with all of its header, so one with CSRCs, a header extension
or padding is kept as it was heard. Columns of packets at once, for the capture:
capture.packets.rtpheader.
Sources: RFC 3550 §5.1, §5.3.1. Opening what is encrypted: spanvault.media.srtp.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from spanvault.media.chunk import TRUNCATED, WHOLE, Chunk, with_payloads

FIXED: Final = 12  # bytes of a header without CSRCs and extension
PADDING, EXTENSION, CSRC_COUNT = 0x20, 0x10, 0x0F  # of the first byte


def header_length(packet: bytes) -> int:
    """Bytes before the payload; may be more than a packet has that was cut."""
    length = FIXED + 4 * (packet[0] & CSRC_COUNT) if packet else FIXED
    if packet and packet[0] & EXTENSION:
        length += 4 + 4 * int.from_bytes(packet[length + 2 : length + 4], "big")
    return length


def without_padding(payload: bytes, first: int) -> bytes:
    """first: the packet's first byte. A count that cannot be leaves the payload as it is."""
    if not first & PADDING or not payload or not 0 < payload[-1] <= len(payload):
        return payload
    return payload[: -payload[-1]]


def payloads(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Chunks that hold payloads alone. What is encrypted must have been opened before."""
    return map(_payloads, chunks)


def _payloads(chunk: Chunk) -> Chunk:
    flags = chunk.frames["flags"]
    if not (flags & WHOLE).any():
        return chunk
    found = [
        payload(bytes(one), flag)
        for one, flag in zip(chunk.payloads(), flags.tolist(), strict=True)
    ]
    return with_payloads(chunk, found)


def payload(packet: bytes, flags: int) -> bytes:
    """The payload of what a frame holds. flags: the frame's, as in chunk.FRAME."""
    if not flags & WHOLE:
        return packet
    found = packet[header_length(packet) :]
    return found if flags & TRUNCATED else without_padding(found, packet[0] if packet else 0)
