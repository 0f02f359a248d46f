"""The frames the vectorised decoder refused, one by one: fragments, options, TCP, odd tunnels.

What comes out are datagrams as if they had been plain: SIP for the dialogs, RTP for the streams.
Bounded: a flood of odd frames is counted and dropped, never allowed to starve the ring; how many
pass is capture.packets.allowance's to say, and what is not even worth asking for,
capture.packets.triage's. Headers: capture.packets.tunnels; odd link types: capture.packets.dissect.
Parts: capture.packets.fragments. SIP over TCP: capture.packets.tcp. Merged packets:
capture.packets.offload.
"""

from collections import Counter
from collections.abc import Iterable
from struct import unpack_from
from typing import Final

import numpy as np

from capture.model import Block, Datagram, Endpoint
from capture.packets import dissect
from capture.packets.allowance import Allowance
from capture.packets.fragments import Fragments
from capture.packets.linktypes import LINK_TYPES
from capture.packets.offload import segments
from capture.packets.packet import Packet
from capture.packets.tcp import TcpStreams
from capture.packets.tls import Connections
from capture.packets.triage import Frames, outline, without_other_tcp
from capture.packets.tunnels import LARGEST_UDP, peel, tunnelled
from capture.packets.unread import PROTOCOL, Unread

TCP: Final = 6
UDP: Final = 17
# Of packet time, live, less what plain frames take: at 7 µs (a fragment) to 14 µs (RTP in a tunnel)
# a third to two thirds of a core. More, and the ring would overflow: plain ones would be lost.
FRAMES_PER_SECOND: Final = 50_000
REASSEMBLIES: Final = 4  # of one frame: a datagram in a tunnel in a tunnel, each cut up
# A forwarder's own time counts if its clock about agrees with ours: all must be of one clock.
CLOCKS_AGREE_NS: Final = 2_000_000_000


class SlowPath:
    """Frames in, datagrams out. counters: what was peeled, dropped and why; tls: what is TLS."""

    def __init__(self, frames_per_second: int | None = FRAMES_PER_SECOND) -> None:
        """frames_per_second: of packet time; None: all, where nothing is lost by taking long."""
        self.counters: Counter[str] = Counter()
        self.dropped = 0  # frames of the last block that there was no time for
        self._fragments = Fragments(self._count)
        self.tls = Connections()
        self._tcp = TcpStreams(self._count, self.tls)
        self._allowance = Allowance(frames_per_second)

    def receive(
        self, block: Block, rows: Iterable[int], inner: Block | None = None
    ) -> list[Datagram]:
        """The UDP datagrams and whole SIP messages in these frames of a block, in their order.

        rows: indices into the block's columns. inner: what others of its frames carried, likewise.
        Raises nothing: what cannot be read is counted.
        """
        parts = [outline(block, np.fromiter(rows, np.int64))]
        if inner is not None:
            parts.append(outline(inner, np.arange(len(inner.start))))
        parts = [without_other_tcp(part, self._tcp, self.tls, self._count) for part in parts]
        found: list[Datagram] = []
        for part, row in self._allowed(block, parts):
            found += self._one(parts[part].block, row)
        return found

    def _allowed(self, block: Block, parts: list[Frames]) -> Iterable[tuple[int, int]]:
        """The frames that there is time for, in order of time: which part, and the row in it."""
        times = np.concatenate([part.block.time_ns[part.row] for part in parts])
        senders = np.concatenate([part.senders() for part in parts])
        cost = 1 if block.link_type in LINK_TYPES else 1 + dissect.FRAMES_EACH
        beside = len(block.start) - len(times)
        chosen = self._allowance.choose(senders, times, cost, beside)
        self.dropped = len(times) - len(chosen)
        self._count("flood_dropped", self.dropped)
        if len(parts) > 1:
            chosen = chosen[np.argsort(times[chosen], kind="stable")]
        part = np.repeat(np.arange(len(parts)), [len(each.row) for each in parts])[chosen]
        row = np.concatenate([each.row for each in parts])[chosen]
        return zip(part.tolist(), row.tolist(), strict=True)

    def _one(self, block: Block, row: int) -> list[Datagram]:
        time_ns, start = int(block.time_ns[row]), int(block.start[row])
        frame = block.data.data[start : start + int(block.length[row])]
        try:
            return self._frame(frame, block.link_type, time_ns)
        except Unread as unread:
            unread.count(self.counters)
            self.counters["frames_other"] += 1
        except ValueError:
            self.counters["frames_unreadable"] += 1
        return []

    def _frame(self, frame: memoryview, link_type: int, time_ns: int) -> list[Datagram]:
        self.counters["frames"] += 1
        packet = self._peel(frame, link_type)
        for _ in range(REASSEMBLIES):
            if not packet.fragment:
                return self._transport(packet, time_ns)
            whole = self._fragments.receive(packet, time_ns)
            if whole is None:
                return []
            inner = tunnelled(whole)  # an outer packet that had to be cut for its tunnel
            packet = whole if inner is None else peel(whole.payload[inner.start :], inner.kind)
        raise ValueError(f"more than {REASSEMBLIES} reassemblies of one frame")

    def _peel(self, frame: memoryview, link_type: int) -> Packet:
        kind = LINK_TYPES.get(link_type)
        if kind is not None:
            return peel(frame, kind)
        return peel(dissect.ip_packet(frame, link_type), "ip")

    def _transport(self, packet: Packet, time_ns: int) -> list[Datagram]:
        if packet.protocol == UDP:
            return self._unmerged(_udp(packet, self._heard_ns(packet, time_ns)))
        if packet.protocol == TCP:
            return self._tcp.receive(packet, time_ns)
        # ICMP errors end here: the RTP or SIP they quote was not sent by them.
        raise Unread(PROTOCOL, packet.protocol)

    def _heard_ns(self, packet: Packet, time_ns: int) -> int:
        if packet.time_ns is None:
            return time_ns
        if abs(packet.time_ns - time_ns) < CLOCKS_AGREE_NS:
            return packet.time_ns
        self.counters["forwarders_clock_off"] += 1
        return time_ns

    def _unmerged(self, datagram: Datagram) -> list[Datagram]:
        if len(datagram.payload) <= LARGEST_UDP or datagram.missing:
            return [datagram]
        parts = segments(datagram.payload)
        self.counters["merged_split"] += len(parts) > 1
        return [datagram._replace(payload=part) for part in parts]

    def _count(self, name: str, count: int = 1) -> None:
        if count:
            self.counters[name] += count


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
        missing=max(0, min(length or 0xFFFF, len(data) + packet.missing) - end),
    )
