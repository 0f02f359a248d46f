"""The frames the vectorised decoder refused, one by one: tunnels, fragments, options, TCP.

What comes out are datagrams as if they had been plain: SIP for the dialogs, RTP for the streams.
Bounded by packet time: a flood of odd frames is counted and dropped, never allowed to starve the
ring. Headers: capture.tunnels; odd link types: capture.dissect. Parts: capture.fragments. SIP over
TCP: capture.tcp.
"""

from collections import Counter
from collections.abc import Iterable
from struct import unpack_from
from typing import Final

from capture import dissect
from capture.fragments import Fragments
from capture.model import Block, Datagram, Endpoint
from capture.tcp import TcpStreams
from capture.tunnels import LINK_TYPES, Packet, peel, tunnelled

TCP: Final = 6
UDP: Final = 17
# Frames a second of packet time: a mirror that comes through a tunnel altogether at 20 µs a frame
# takes most of a core; more than this and the ring would overflow.
FRAMES_PER_SECOND: Final = 50_000


class SlowPath:
    """Frames in, datagrams out. counters: what was peeled, dropped and why."""

    def __init__(self, frames_per_second: int = FRAMES_PER_SECOND) -> None:
        self.counters: Counter[str] = Counter()
        self._fragments = Fragments(self._count)
        self._tcp = TcpStreams(self._count)
        self._rate = frames_per_second
        self._second = -1
        self._left = frames_per_second

    def receive(self, block: Block, rows: Iterable[int]) -> list[Datagram]:
        """The UDP datagrams and whole SIP messages in these frames of a block, in their order.

        rows: indices into the block's columns. Raises nothing: what cannot be read is counted.
        """
        found: list[Datagram] = []
        data = block.data.data
        for row in rows:
            time_ns = int(block.time_ns[row])
            if not self._allowed(time_ns):
                self.counters["flood_dropped"] += 1
                continue
            start = int(block.start[row])
            frame = data[start : start + int(block.length[row])]
            try:
                found += self._frame(frame, block.link_type, time_ns)
            except ValueError:
                self.counters["frames_unreadable"] += 1
        return found

    def _frame(self, frame: memoryview, link_type: int, time_ns: int) -> list[Datagram]:
        self.counters["frames"] += 1
        packet = self._peel(frame, link_type)
        if packet.fragment:
            whole = self._fragments.receive(packet, time_ns)
            if whole is None:
                return []
            packet = whole
            inner = tunnelled(packet)  # an outer packet that had to be cut for its tunnel
            if inner is not None:
                packet = peel(packet.payload[inner.start : inner.end], inner.kind)
                if packet.fragment:
                    return self._inner_fragment(packet, time_ns)
        return self._transport(packet, time_ns)

    def _peel(self, frame: memoryview, link_type: int) -> Packet:
        kind = LINK_TYPES.get(link_type)
        if kind is not None:
            return peel(frame, kind)
        self._left -= dissect.FRAMES_EACH
        return peel(dissect.ip_packet(frame, link_type), "ip")

    def _inner_fragment(self, packet: Packet, time_ns: int) -> list[Datagram]:
        whole = self._fragments.receive(packet, time_ns)
        return [] if whole is None else self._transport(whole, time_ns)

    def _transport(self, packet: Packet, time_ns: int) -> list[Datagram]:
        if packet.protocol == UDP:
            return [_udp(packet, time_ns)]
        if packet.protocol == TCP:
            return self._tcp.receive(packet, time_ns)
        # ICMP errors end here: the RTP or SIP they quote was not sent by them.
        self.counters["frames_other"] += 1
        return []

    def _allowed(self, time_ns: int) -> bool:
        second = time_ns // 1_000_000_000
        if second != self._second:
            self._second, self._left = second, self._rate
        self._left -= 1
        return self._left >= 0

    def _count(self, name: str) -> None:
        self.counters[name] += 1


def _udp(packet: Packet, time_ns: int) -> Datagram:
    """Raises ValueError if the header is cut or its length impossible."""
    data = packet.payload
    if len(data) < 8:
        raise ValueError("UDP header cut")
    source, destination, length = unpack_from("!HHH", data)
    if 0 < length < 8:
        raise ValueError(f"UDP length {length}")
    end = min(len(data), length) if length else len(data)
    return Datagram(
        time_ns,
        Endpoint(packet.source, source),
        Endpoint(packet.destination, destination),
        bytes(data[8:end]),
        "udp",
    )
