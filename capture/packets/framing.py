"""Where SIP messages begin and end in a stream of bytes, as TCP and WebSocket carry them.

Whoever sends chooses how small the pieces are, so nothing is searched twice: the work grows with
the bytes, not with the pieces.
Sources: RFC 3261 §7 (start lines), §18.3 (framing by Content-Length). Segments:
capture.packets.tcp. Frames of WebSocket: capture.packets.websocket. Parsing:
capture.signalling.sip.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from capture.packets import websocket

MAX_MESSAGE: Final = 128 << 10  # bytes of one message, headers and body
LONGEST_START: Final = 4096  # a start line is shorter; longer junk is none
VERSION: Final = b"SIP/2.0"
BEHIND_VERSION: Final = 5  # bytes that a start line has behind it before it can be told: " 200 "

START_LINE: Final = re.compile(  # no part of it could match less than it does: ++, }+
    rb"SIP/2\.0 [1-6]\d\d |"
    rb"[A-Z][A-Za-z0-9.!%*_+`'~-]{0,31}+ [^\s\x00-\x1f]{1,2048}+ SIP/2\.0\r?\n"
)
HEADERS_END: Final = re.compile(rb"\r\n\r\n|\n\n|\n\r\n")
CONTENT_LENGTH: Final = re.compile(  # its value may be folded: RFC 3261 §7.3.1
    rb"(?:^|\n)(?:content-length|l)[ \t]*:(?:\r?\n[ \t]|[ \t])*(\S*)", re.I
)
Count = Callable[[str], None]


class Framing(Protocol):
    """What takes messages out of one direction of a connection."""

    def __len__(self) -> int:
        """Bytes held."""

    def receive(self, data: bytes, count: Count) -> list[bytes]:
        """The messages that these bytes complete. Raises ValueError if no more can be read."""

    def clear(self) -> bytes:
        """Forget a message that has begun; gives what is there of it."""


def beginning(payload: bytes) -> tuple[str, int]:
    """How a segment that carries SIP is framed and where that begins; "" if it carries none."""
    text = websocket.begins(payload)
    if text is not None and START_LINE.match(text):
        return "ws", 0
    # The plain search spares other people's traffic the costly one.
    found = START_LINE.search(payload) if VERSION in payload else None
    return ("tcp", found.start()) if found else ("", 0)


class Plain:
    """Messages one after the other; junk before a start line is skipped."""

    __slots__ = ("_begun", "_bytes", "_ends", "_searched", "_unended")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._begun = False  # they begin with a start line
        self._searched = 0  # bytes in which no start line begins, if none did
        self._unended = 0  # bytes in which no headers end
        self._ends = 0  # where the message at the front ends, once its headers are there

    def __len__(self) -> int:
        return len(self._bytes)

    def receive(self, data: bytes, count: Count) -> list[bytes]:
        """See Framing. Raises nothing."""
        self._bytes += data
        found: list[bytes] = []
        while len(self._bytes) >= self._ends and (self._begun or self._begin()):
            if not self._ends and not self._end_of_headers(count):
                break
            if self._begun and self._ends <= len(self._bytes):
                found.append(bytes(self._bytes[: self._ends]))
                self._forget(self._ends)
        return found

    def clear(self) -> bytes:
        """See Framing."""
        rest = bytes(self._bytes)
        self._forget(len(rest))
        return rest

    def _begin(self) -> bool:
        """Come to a start line, if there is one."""
        where = max(0, self._searched - len(VERSION) - BEHIND_VERSION)
        found = START_LINE.search(self._bytes) if self._bytes.find(VERSION, where) >= 0 else None
        if found is None:
            # A start line may be cut in two here; anything longer than one is junk.
            self._forget(max(0, len(self._bytes) - LONGEST_START))
            self._searched = len(self._bytes)
            return False
        self._forget(found.start())
        self._begun = True
        return True

    def _end_of_headers(self, count: Count) -> bool:
        """Find out where the message ends, or leave what cannot be one. False: more must come."""
        end = HEADERS_END.search(self._bytes, max(0, self._unended - 3))
        if end is None:
            self._unended = len(self._bytes)
            if len(self._bytes) <= MAX_MESSAGE:
                return False
            count("tcp_messages_oversized")
            # Past this start line; the next one is looked for. One so far ahead is none either.
            self._forget(max(8, len(self._bytes) - MAX_MESSAGE))
            return True
        length = _content_length(self._bytes[: end.start()])
        if length is None or end.end() + length > MAX_MESSAGE:
            # RFC 3261 §18.3: nothing says where such a message ends.
            count("tcp_content_length_bad")
            self._forget(end.end())
        else:
            self._ends = end.end() + length
        return True

    def _forget(self, size: int) -> None:
        """Take bytes off the front."""
        del self._bytes[:size]
        self._begun, self._ends = False, 0
        self._searched, self._unended = max(0, self._searched - size), max(0, self._unended - size)


def _content_length(headers: bytearray) -> int | None:
    """Bytes of body; 0 where the header is missing, None where it is nonsense."""
    found = CONTENT_LENGTH.search(headers)
    if found is None:
        return 0
    return int(found[1]) if found[1].isdigit() and len(found[1]) < 7 else None


FRAMINGS: Final[Mapping[str, Callable[[], Framing]]] = {
    "tcp": Plain, "ws": websocket.Messages
}  # fmt: skip
