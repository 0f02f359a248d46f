"""SIP messages out of plain WebSocket frames: browsers and softphones that register over HTTP.

The upgrade itself need not be heard: a frame whose text begins as SIP does tells. Compressed frames
(RFC 7692) cannot be read without what came before them, and are counted.
Sources: RFC 6455 §5.2, §5.4; RFC 7118. Segments: capture.tcp.
"""

from collections.abc import Callable, Iterator
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


def messages(buffer: bytearray, count: Callable[[str], None]) -> Iterator[bytes]:
    """Take whole messages off the front of the buffer, put together where they came in parts.

    Raises ValueError if what is there is no frame: the connection cannot be followed any more.
    """
    parts: list[bytes] = []
    at = 0
    while (frame := header(buffer[at : at + 14])) is not None and at + frame.size <= len(buffer):
        if frame.flags & COMPRESSED:
            count("websocket_compressed")
        elif frame.opcode < CONTROL:
            parts.append(payload(frame, buffer[at : at + frame.size]))
        at += frame.size
        last = frame.flags & FIN and frame.opcode < CONTROL
        if last and parts:
            yield b"".join(parts)
        if last or not parts:
            del buffer[:at]
            parts, at = [], 0
    if len(buffer) > 2 * MAX_MESSAGE:
        raise ValueError("WebSocket message without an end")
