"""How a camera was held: coordination of video orientation (CVO), in RTP header extensions.

A telephone that is turned sends its pictures as the camera has them, and says by how much they lie
on their side. A file has one orientation a track: that of most packets.
Sources: 3GPP TS 26.114 §7.4.5 (the byte), RFC 8285 §4.2, §4.3 (header extensions).
"""

from collections import Counter
from typing import NamedTuple

from spanvault.media.chunk import WHOLE, Chunk
from spanvault.media.rtp import CSRC_COUNT, EXTENSION, FIXED

ONE_BYTE, TWO_BYTES = 0xBEDE, 0x1000  # what an extension begins with; the latter's low bits are any
PADDING, STOP = 0, 15  # ids
TURN, FLIP = 0x03, 0x04  # of the byte


class Held(NamedTuple):
    """quarters: by which a picture is to be turned, clockwise. flipped: left for right, as sent."""

    quarters: int = 0
    flipped: bool = False


class Orientation:
    """One stream's. extension: the id that SDP gave it."""

    def __init__(self, extension: int) -> None:
        self._extension = extension
        self._told: Counter[Held] = Counter()

    def receive(self, chunk: Chunk) -> None:
        """A chunk as it was heard, headers and all."""
        for flags, packet in zip(chunk.frames["flags"].tolist(), chunk.payloads(), strict=True):
            told = extension(bytes(packet), self._extension) if flags & WHOLE else b""
            if told:
                self._told[Held(told[0] & TURN, bool(told[0] & FLIP))] += 1

    @property
    def held(self) -> Held:
        """How it was most of the time."""
        return max(self._told, key=lambda one: self._told[one], default=Held())

    @property
    def otherwise(self) -> int:
        """Packets that tell of another."""
        return self._told.total() - self._told[self.held]


def extension(packet: bytes, wanted: int) -> bytes:
    """What a packet's header extension holds under an id; empty where there is none."""
    if len(packet) < FIXED or not packet[0] & EXTENSION:
        return b""
    at = FIXED + 4 * (packet[0] & CSRC_COUNT)
    form, words = (int.from_bytes(packet[at + n : at + n + 2], "big") for n in (0, 2))
    data, at = packet[at + 4 : at + 4 + 4 * words], 0
    one_byte = form == ONE_BYTE
    if not one_byte and form & 0xFFF0 != TWO_BYTES:
        return b""
    while at < len(data):
        number = data[at] >> 4 if one_byte else data[at]
        if number == PADDING:
            at += 1
            continue
        if one_byte and number == STOP:
            break
        size = data[at] % 16 + 1 if one_byte else int.from_bytes(data[at + 1 : at + 2], "big")
        at += 1 if one_byte else 2
        if number == wanted:
            return data[at : at + size]
        at += size
    return b""
