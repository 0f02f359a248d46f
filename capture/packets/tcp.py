"""SIP messages out of TCP segments: in order, several in one, or starting in the middle.

Only connections that once carried a SIP start line take memory, and together no more than a bound;
everything else on the wire is passed by. A hole that is not filled soon is skipped: the next start
line is found again.
Source: RFC 9293. Messages in what the segments hold: capture.packets.framing. Parsing:
capture.signalling.sip. Which segments come here: capture.packets.triage.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import unpack_from
from typing import Final

from capture.model import Datagram, Endpoint
from capture.packets.framing import FRAMINGS, MAX_MESSAGE, START_LINE, Framing, beginning
from capture.packets.packet import Packet
from capture.packets.tls import Connections

MAX_STREAMS: Final = 8_192
MAX_BYTES: Final = 32 << 20  # held of all streams together
MAX_WAITING: Final = 64  # segments behind a hole
IDLE_NS: Final = 3_600_000_000_000  # a connection may rest between two calls


@dataclass(slots=True)
class _Stream:
    """One direction of one connection."""

    next_sequence: int
    transport: str
    framing: Framing
    waiting: dict[int, bytes] = field(default_factory=dict)  # by sequence, behind a hole
    last_ns: int = 0
    size: int = 0  # bytes held, as last counted


class TcpStreams:
    """Connections that carry SIP. Fed with packets, gives whole messages."""

    def __init__(self, count: Callable[[str], None], secure: Connections) -> None:
        """secure: is told of what is TLS."""
        self._count, self._secure = count, secure
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
        stream, fresh = self._stream(key, bytes(data[size:]), sequence, flags, time_ns)
        if stream is None:
            return []
        try:
            messages = stream.framing.receive(fresh, self._count)
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
    ) -> tuple[_Stream | None, bytes]:
        """The stream, None if it is none of ours, and the bytes of it that can be read now."""
        stream = self._streams.get(key)
        if flags & 0x06:  # SYN, RST: whatever was there is over
            if stream is not None:
                self._drop(key)
            return None, b""
        if not payload:
            return None, b""
        if stream is None or time_ns - stream.last_ns > IDLE_NS:
            stream, fresh = self._begin(key, payload, sequence)
        else:
            self._streams.move_to_end(key)
            fresh = _place(stream, sequence, payload, self._count)
        if stream is not None:
            stream.last_ns = time_ns
        return stream, fresh

    def _begin(self, key: bytes, payload: bytes, sequence: int) -> tuple[_Stream | None, bytes]:
        if key in self._streams:  # it rested for too long
            self._drop(key)
        transport, start = beginning(payload)
        if not transport:
            self._secure.receive(key, memoryview(payload))
            return None, b""
        following = (sequence + len(payload)) & 0xFFFFFFFF
        stream = self._streams[key] = _Stream(following, transport, FRAMINGS[transport]())
        return stream, payload[start:]

    def _bound(self, stream: _Stream) -> None:
        """Count what a stream holds now; those that were silent longest go for it."""
        size = len(stream.framing) + sum(map(len, stream.waiting.values()))
        self.held += size - stream.size
        stream.size = size
        while len(self._streams) > MAX_STREAMS or self.held > MAX_BYTES:
            self._drop(next(iter(self._streams)))
            self._count("tcp_streams_evicted")

    def _drop(self, key: bytes) -> None:
        self.held -= self._streams.pop(key).size


def _cut(stream: _Stream, found: Datagram, missing: int) -> list[Datagram]:
    """What the snap length left of the message that a segment holds; the rest never comes."""
    rest = stream.framing.clear()
    stream.next_sequence = (stream.next_sequence + missing) & 0xFFFFFFFF
    if stream.transport == "tcp" and START_LINE.match(rest):
        return [found._replace(payload=rest, missing=missing)]
    return []


def _place(stream: _Stream, sequence: int, payload: bytes, count: Callable[[str], None]) -> bytes:
    """What can be read now; keep what is early, forget what was there before."""
    stream.waiting.setdefault(sequence, payload)
    fresh = _drain(stream)
    if len(stream.waiting) > MAX_WAITING:
        # The missing segment was never captured. What lies before the hole is no whole message.
        count("tcp_holes")
        stream.framing.clear()
        stream.next_sequence = min(stream.waiting, key=lambda at: _ahead(at, stream.next_sequence))
        fresh = _drain(stream)
    return fresh


def _drain(stream: _Stream) -> bytes:
    """Take what is next, and all that then is, from what waits."""
    taken: list[bytes] = []
    progress = True
    while progress and stream.waiting:
        progress = False
        for sequence in list(stream.waiting):
            ahead = _ahead(sequence, stream.next_sequence)
            if ahead > 0:
                continue
            fresh = stream.waiting.pop(sequence)[-ahead:] if ahead else stream.waiting.pop(sequence)
            if fresh and -ahead < MAX_MESSAGE:
                taken.append(fresh)
                stream.next_sequence = (stream.next_sequence + len(fresh)) & 0xFFFFFFFF
            progress = True
    return b"".join(taken)


def _ahead(sequence: int, reference: int) -> int:
    """How far a sequence number lies ahead, in 32-bit arithmetic: RFC 9293 §3.4."""
    return ((sequence - reference + 0x80000000) & 0xFFFFFFFF) - 0x80000000
