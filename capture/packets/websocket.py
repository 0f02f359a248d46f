"""SIP messages out of plain WebSocket frames: browsers and softphones that register over HTTP.

The upgrade itself need not be heard: a frame whose text begins as SIP does tells. Compressed frames
(RFC 7692) cannot be read without what came before them, and are counted.
Sources: RFC 6455 §5.2, §5.4; RFC 7118. Segments: capture.packets.tcp.
"""

from collections.abc import Callable
from struct import unpack_from
from typing import Final, NamedTuple

MAX_MESSAGE: Final = 128 << 10
CONTINUATION, TEXT, BINARY, CONTROL = 0, 1, 2, 8
FIN, COMPRESSED, RESERVED = 0x80, 0x40, 0x30


class Frame(NamedTuple):
    """A frame's header. size: of header and payload; the payload may not be there yet."""

    flags: int
    opcode: int
    mask: bytes
    start: int
    size: int


def header(data: bytes | bytearray) -> Frame | None:
    """The header at the front, or None if it is not whole. Raises ValueError if it can be none."""
    if len(data) < 2:
        return None
    flags, opcode, size, start = data[0] & 0xF0, data[0] & 0x0F, data[1] & 0x7F, 2
    if flags & RESERVED or opcode not in (CONTINUATION, TEXT, BINARY, 8, 9, 10):
        raise ValueError("no WebSocket frame")
    if size > 125:
        start = 4 if size == 126 else 10
        if len(data) < start:
            return None
        size = unpack_from("!H" if size == 126 else "!Q", data, 2)[0]
    if size > MAX_MESSAGE:
        raise ValueError(f"WebSocket frame of {size} bytes")
    mask = bytes(data[start : start + 4]) if data[1] & 0x80 else b""
    start += 4 if data[1] & 0x80 else 0
    if start > len(data):
        return None
    return Frame(flags, opcode, mask, start, start + size)


def payload(frame: Frame, data: bytes | bytearray) -> bytes:
    """What a frame carries, as far as it is there."""
    masked = bytes(data[frame.start : frame.size])
    if not frame.mask:
        return masked
    key = (frame.mask * (len(masked) // 4 + 1))[: len(masked)]
    return (int.from_bytes(masked) ^ int.from_bytes(key)).to_bytes(len(masked))


def begins(data: bytes) -> bytes | None:
    """The text that a segment's first frame begins with, or None if that is no text."""
    if data[:1] not in (b"\x81", b"\x82", b"\x01", b"\x02"):
        return None
    try:
        frame = header(data)
    except ValueError:
        return None
    return None if frame is None else payload(frame, data)


class Messages:
    """Whole messages out of one direction of a connection, put together where they came in parts.

    A frame is looked at once: what came of a message without an end is not read again with each
    segment.
    """

    __slots__ = ("_frames", "_parts", "_size")

    def __init__(self) -> None:
        self._frames = bytearray()  # not whole yet
        self._parts: list[bytes] = []  # of a message whose end did not come yet
        self._size = 0  # theirs

    def __len__(self) -> int:
        """Bytes held."""
        return len(self._frames) + self._size

    def receive(self, data: bytes, count: Callable[[str], None]) -> list[bytes]:
        """The messages that these bytes complete.

        Raises ValueError if they are no frames: the connection cannot be followed any more.
        """
        self._frames += data
        found: list[bytes] = []
        at, frames = 0, self._frames
        while (frame := header(frames[at : at + 14])) and at + frame.size <= len(frames):
            if frame.flags & COMPRESSED:
                count("websocket_compressed")
            elif frame.opcode < CONTROL:
                self._add(payload(frame, frames[at : at + frame.size]))
            if frame.flags & FIN and frame.opcode < CONTROL and self._parts:
                found.append(self._message())
            at += frame.size
        del frames[:at]
        return found

    def clear(self) -> bytes:
        """Forget a message that did not end; gives what is there of it."""
        self._frames.clear()
        return self._message()

    def _message(self) -> bytes:
        parts, self._parts, self._size = self._parts, [], 0
        return b"".join(parts)

    def _add(self, part: bytes) -> None:
        if part:  # or parts of nothing would take memory without end
            self._parts.append(part)
            self._size += len(part)
        if self._size > MAX_MESSAGE:
            raise ValueError("WebSocket message without an end")
