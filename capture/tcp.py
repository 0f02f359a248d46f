"""SIP messages out of TCP segments: in order, several in one, or starting in the middle.

Only connections that once carried a SIP start line take memory, and together no more than a bound;
everything else on the wire is passed by. A hole that is not filled soon is skipped: the next start
line is found again.
Sources: RFC 9293, RFC 3261 §18.3 (framing by Content-Length). Parsing: capture.sip. Frames of
WebSocket: capture.websocket. Which segments come here: capture.triage.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from struct import unpack_from
from typing import Final

from capture import websocket
from capture.model import Datagram, Endpoint
from capture.packet import Packet

MAX_STREAMS: Final = 8_192
MAX_BYTES: Final = 32 << 20  # held of all streams together
MAX_MESSAGE: Final = 128 << 10  # bytes of one message, headers and body
MAX_WAITING: Final = 64  # segments behind a hole
IDLE_NS: Final = 3_600_000_000_000  # a connection may rest between two calls
SIP_TLS_PORT: Final = 5061

START_LINE: Final = re.compile(
    rb"SIP/2\.0 [1-6]\d\d |"
    rb"[A-Z][A-Za-z0-9.!%*_+`'~-]{0,31} [^\s\x00-\x1f]{1,2048} SIP/2\.0\r?\n"
)
HEADERS_END: Final = re.compile(rb"\r\n\r\n|\n\n|\n\r\n")
CONTENT_LENGTH: Final = re.compile(  # its value may be folded: RFC 3261 §7.3.1
    rb"(?:^|\n)(?:content-length|l)[ \t]*:(?:\r?\n[ \t]|[ \t])*(\S*)", re.I
)


@dataclass(slots=True)
class _Stream:
    """One direction of one connection."""

    next_sequence: int
    transport: str = "tcp"
    buffer: bytearray = field(default_factory=bytearray)
    waiting: dict[int, bytes] = field(default_factory=dict)  # by sequence, behind a hole
    last_ns: int = 0
    size: int = 0  # bytes held, as last counted


class TcpStreams:
    """Connections that carry SIP. Fed with packets, gives whole messages."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        # By addresses and ports, as they follow each other in a packet; least lately heard first.
        self._streams: OrderedDict[bytes, _Stream] = OrderedDict()
        self.held = 0  # bytes

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, key: object) -> bool:
        """Whether a connection carries SIP. key: its addresses, then its ports, source first."""
        return key in self._streams

    def receive(self, packet: Packet, time_ns: int) -> list[Datagram]:
        """The SIP messages this segment completed. Raises ValueError if its header is cut."""
        data = packet.payload
        if len(data) < 20:
            raise ValueError("TCP header cut")
        source_port, destination_port, sequence = unpack_from("!HHI", data)
        size, flags = (data[12] >> 4) * 4, data[13]
        if size < 20 or size > len(data):
            raise ValueError(f"TCP header length {size}")
        key = packet.source + packet.destination + bytes(data[:4])
        stream = self._stream(key, bytes(data[size:]), sequence, flags, time_ns)
        if stream is None:
            return []
        try:
            messages = list(FRAMINGS[stream.transport](stream.buffer, self._count))
        except ValueError:
            self._drop(key)
            raise
        source = Endpoint(packet.source, source_port)
        destination = Endpoint(packet.destination, destination_port)
        found = Datagram(time_ns, source, destination, b"", stream.transport)
        whole = [found._replace(payload=message) for message in messages]
        end = (sequence + len(data) - size) & 0xFFFFFFFF
        if packet.missing and stream.next_sequence == end:
            whole += _cut(stream, found, packet.missing)
        self._bound(stream)
        return whole

    def _stream(
        self, key: bytes, payload: bytes, sequence: int, flags: int, time_ns: int
    ) -> _Stream | None:
        """The stream with this segment's bytes in its buffer, or None if it is none of ours."""
        stream = self._streams.get(key)
        if flags & 0x06:  # SYN, RST: whatever was there is over
            if stream is not None:
                self._drop(key)
            return None
        if not payload:
            return None
        if stream is None or time_ns - stream.last_ns > IDLE_NS:
            stream = self._begin(key, payload, sequence)
            if stream is None:
                return None
        else:
            self._streams.move_to_end(key)
            _place(stream, sequence, payload, self._count)
        stream.last_ns = time_ns
        return stream

    def _begin(self, key: bytes, payload: bytes, sequence: int) -> _Stream | None:
        if key in self._streams:  # it rested for too long
            self._drop(key)
        transport, start = beginning(payload)
        if not transport:
            if payload[:2] == b"\x16\x03" and SIP_TLS_PORT in unpack_from("!HH", key, len(key) - 4):
                self._count("sip_tls_segments")
            return None
        stream = self._streams[key] = _Stream((sequence + len(payload)) & 0xFFFFFFFF, transport)
        stream.buffer += payload[start:]
        return stream

    def _bound(self, stream: _Stream) -> None:
        """Count what a stream holds now; those that were silent longest go for it."""
        size = len(stream.buffer) + sum(map(len, stream.waiting.values()))
        self.held += size - stream.size
        stream.size = size
        while len(self._streams) > MAX_STREAMS or self.held > MAX_BYTES:
            self._drop(next(iter(self._streams)))
            self._count("tcp_streams_evicted")

    def _drop(self, key: bytes) -> None:
        self.held -= self._streams.pop(key).size


def beginning(payload: bytes) -> tuple[str, int]:
    """How a segment that carries SIP is framed and where that begins; "" if it carries none."""
    text = websocket.begins(payload)
    if text is not None and START_LINE.match(text):
        return "ws", 0
    # The plain search spares other people's traffic the costly one.
    found = START_LINE.search(payload) if b"SIP/2.0" in payload else None
    return ("tcp", found.start()) if found else ("", 0)


def _cut(stream: _Stream, found: Datagram, missing: int) -> list[Datagram]:
    """What the snap length left of the message that a segment holds; the rest never comes."""
    rest = bytes(stream.buffer)
    stream.buffer.clear()
    stream.next_sequence = (stream.next_sequence + missing) & 0xFFFFFFFF
    if stream.transport == "tcp" and START_LINE.match(rest):
        return [found._replace(payload=rest, missing=missing)]
    return []


def _place(stream: _Stream, sequence: int, payload: bytes, count: Callable[[str], None]) -> None:
    """Append what is next, keep what is early, forget what was there before."""
    stream.waiting.setdefault(sequence, payload)
    _drain(stream)
    if len(stream.waiting) > MAX_WAITING:
        # The missing segment was never captured. What lies before the hole is no whole message.
        count("tcp_holes")
        stream.buffer.clear()
        stream.next_sequence = min(stream.waiting, key=lambda at: _ahead(at, stream.next_sequence))
        _drain(stream)


def _drain(stream: _Stream) -> None:
    progress = True
    while progress and stream.waiting:
        progress = False
        for sequence in list(stream.waiting):
            ahead = _ahead(sequence, stream.next_sequence)
            if ahead > 0:
                continue
            fresh = stream.waiting.pop(sequence)[-ahead:] if ahead else stream.waiting.pop(sequence)
            if fresh and -ahead < MAX_MESSAGE:
                stream.buffer += fresh
                stream.next_sequence = (stream.next_sequence + len(fresh)) & 0xFFFFFFFF
            progress = True


def _ahead(sequence: int, reference: int) -> int:
    """How far a sequence number lies ahead, in 32-bit arithmetic: RFC 9293 §3.4."""
    return ((sequence - reference + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _messages(buffer: bytearray, count: Callable[[str], None]) -> Iterator[bytes]:
    """Take whole messages off the front of the buffer; junk before a start line is skipped."""
    while buffer:
        found = START_LINE.search(buffer)
        if found is None:
            # A start line may be cut in two here; anything longer than one is junk.
            if len(buffer) > 4096:
                del buffer[:-4096]
            return
        if found.start():
            del buffer[: found.start()]
        end = HEADERS_END.search(buffer)
        if end is None:
            if len(buffer) > MAX_MESSAGE:
                count("tcp_messages_oversized")
                del buffer[:8]  # past this start line; the next one is looked for
                continue
            return
        length = _content_length(buffer[: end.start()])
        if length is None or end.end() + length > MAX_MESSAGE:
            # RFC 3261 §18.3: nothing says where such a message ends.
            count("tcp_content_length_bad")
            del buffer[: end.end()]
            continue
        if len(buffer) < end.end() + length:
            return
        yield bytes(buffer[: end.end() + length])
        del buffer[: end.end() + length]


def _content_length(headers: bytearray) -> int | None:
    """Bytes of body; 0 where the header is missing, None where it is nonsense."""
    found = CONTENT_LENGTH.search(headers)
    if found is None:
        return 0
    return int(found[1]) if found[1].isdigit() and len(found[1]) < 7 else None


FRAMINGS: Final = {"tcp": _messages, "ws": websocket.messages}
