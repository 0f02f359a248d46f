"""From frames to UDP datagrams, all frames of a block at once: link, IPv4, IPv6 and UDP headers.

What is rare or takes a loop is refused, for capture.slowpath: fragments, IP options and extension
headers, TCP, tunnels, odd link types. IP and UDP lengths are believed, not the frame's: Ethernet
pads short frames. Checksums are never verified: the kernel leaves them to the card.
Sources: RFC 791, 768, 8200; IEEE 802.1Q; LINKTYPE_ values of libpcap. Contents: capture.decode.
"""

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.columns import fields, rows
from capture.model import Block, Datagram, Endpoint
from capture.tunnels import ETHER_TYPES, IP_PROTOCOLS, IPV6_EXTENSIONS, TUNNEL_PORTS

# Link type: bytes before the IP header, and where the EtherType lies (None: the IP version tells).
LINKS: Final[dict[int, tuple[int, int | None]]] = {
    0: (4, None),  # NULL: BSD loopback, address family in the order of the host
    1: (14, 12),  # Ethernet
    12: (0, None),  # RAW, as some systems write it
    14: (0, None),
    101: (0, None),  # RAW
    108: (4, None),  # LOOP
    113: (16, 14),  # Linux cooked, v1
    228: (0, None),  # IPv4
    229: (0, None),  # IPv6
    276: (20, 0),  # Linux cooked, v2
}
IPV4, IPV6 = 0x0800, 0x86DD
TAGS: Final = (0x8100, 0x88A8, 0x9100, 0x9200)  # 802.1Q, 802.1ad and what switches used before
MAX_TAGS: Final = 4
UDP, TCP, AUTHENTICATION = 17, 6, 51
SLOW_ETHERTYPES: Final = [number for number in ETHER_TYPES if number not in (IPV4, IPV6)]
SLOW_PROTOCOLS: Final = [UDP, TCP, AUTHENTICATION, *IP_PROTOCOLS]
SLOW_NEXT_HEADERS: Final = [44, *SLOW_PROTOCOLS, *IPV6_EXTENSIONS]  # 44: fragment
LARGEST_UDP: Final = 1472  # of payload; more on an ordinary network: the card merged several (GRO)
TUNNELS: Final = np.zeros(1 << 16, np.bool_)
TUNNELS[list(TUNNEL_PORTS)] = True

V4: Final = np.dtype(
    {
        "names": ["version", "total", "fragment", "protocol", "source", "destination",
                  "source_port", "destination_port", "length"],
        "formats": ["u1", ">u2", "<u2", "u1", ">u4", ">u4", ">u2", ">u2", ">u2"],
        "offsets": [0, 2, 6, 9, 12, 16, 20, 22, 24],
        "itemsize": 28,
    }
)  # fmt: skip
V6: Final = np.dtype(
    {
        "names": ["version", "payload", "next", "addresses",
                  "source_port", "destination_port", "length"],
        "formats": ["u1", ">u2", "u1", ("<u8", 4), ">u2", ">u2", ">u2"],
        "offsets": [0, 4, 6, 8, 40, 42, 44],
        "itemsize": 48,
    }
)  # fmt: skip
FRAGMENT: Final = 0xFF3F  # more-fragments and offset, of the field read with its bytes swapped
IS_IPV6: Final = np.uint64(1 << 63)
PORT_BITS: Final = np.uint64(16)

Flags = NDArray[np.bool_]


@dataclass(slots=True)
class Datagrams:
    """UDP datagrams as columns of n, in order of arrival. Offsets are into data."""

    data: NDArray[np.uint8]
    frame: NDArray[np.int64]  # row in the block
    time_ns: NDArray[np.int64]
    source_key: NDArray[np.uint64]
    destination_key: NDArray[np.uint64]
    address: NDArray[np.int64]  # of the source's address, the destination's follows
    start: NDArray[np.int64]  # of the payload
    end: NDArray[np.int64]  # of the payload as its lengths say
    limit: NDArray[np.int64]  # of what the capture holds of it, at most end

    def select(self, which: NDArray[Any]) -> "Datagrams":
        """Some of them. which: bool[n] or int64[m]."""
        columns = (getattr(self, name)[which] for name in self.__slots__[1:])
        return Datagrams(self.data, *columns)

    def endpoints(self, row: int) -> tuple[Endpoint, Endpoint]:
        """Source and destination of one of them."""
        keys = int(self.source_key[row]), int(self.destination_key[row])
        size = 16 if keys[0] >> 63 else 4
        at = int(self.address[row])
        address = bytes(self.data[at : at + 2 * size])
        return (
            Endpoint(address[:size], keys[0] & 0xFFFF),
            Endpoint(address[size:], keys[1] & 0xFFFF),
        )


class Network:
    """The headers around UDP. counters: what was met besides it."""

    def __init__(self, counters: Counter[str], seed: int | None = None) -> None:
        self.counters = counters
        # IPv6 addresses are folded into 47 bits with secret odd factors: nobody outside can
        # construct two that meet.
        self._factors = np.random.default_rng(
            secrets.randbits(128) if seed is None else seed
        ).integers(0, 1 << 64, 4, np.uint64, endpoint=False) | np.uint64(1)

    def decode(self, block: Block) -> tuple[Datagrams, Flags, NDArray[np.int64]]:
        """The UDP datagrams of a block, and the frames that were refused.

        Returns a row for each frame, the mask of those that are plain UDP (the others hold
        nonsense: leaving them in costs less than taking them out twice), and int64[m], the rows
        for the slow path. Everything else is counted.
        """
        if block.link_type not in LINKS:
            nothing = np.zeros(len(block.start), np.bool_)
            return _as_they_are(block), nothing, np.arange(len(block.start))
        inner = block.start + LINKS[block.link_type][0]
        kind = self._kinds(block, inner)
        datagrams, plain, protocol = self._ipv4(block, inner)
        odd = np.flatnonzero(kind != IPV4)
        plain[odd] = False
        six = odd[kind[odd] == IPV6]
        if len(six):
            self._ipv6(block, inner, six, datagrams, plain, protocol)
        merged = plain & (datagrams.end - datagrams.start > LARGEST_UDP)
        self.counters["oversized"] += int(np.count_nonzero(merged))
        self._leave_tunnels(datagrams, plain)
        refused = np.flatnonzero(~plain)
        if len(refused):
            refused = refused[self._slow(kind[refused], protocol[refused])]
        return datagrams, plain, refused

    def admit(self, datagrams: Sequence[Datagram]) -> Datagrams:
        """Datagrams that the slow path found, as the same columns."""
        sizes = [len(datagram.payload) for datagram in datagrams]
        parts = [
            part
            for datagram in datagrams
            for part in (datagram.source.address, datagram.destination.address, datagram.payload)
        ]
        data = np.frombuffer(b"".join(parts), np.uint8)
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)[2::3]
        starts = ends - np.array(sizes, np.int64)
        keys = np.array(
            [(self.key(each.source), self.key(each.destination)) for each in datagrams], np.uint64
        ).reshape(-1, 2)
        widths = np.array([2 * len(datagram.source.address) for datagram in datagrams], np.int64)
        times = np.array([datagram.time_ns for datagram in datagrams], np.int64)
        frame = np.full(len(datagrams), -1)
        return Datagrams(
            data, frame, times, keys[:, 0], keys[:, 1], starts - widths, starts, ends, ends
        )

    def key(self, endpoint: Endpoint) -> int:
        """The 64-bit key of an address and port, as the columns have it."""
        if len(endpoint.address) == 4:
            return int.from_bytes(endpoint.address, "big") << 16 | endpoint.port
        words = np.frombuffer(endpoint.address, "<u8").reshape(1, 2)
        return int(self._fold(words, np.array([endpoint.port]))[0])

    def _kinds(self, block: Block, inner: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Each frame's EtherType behind any VLAN tags, whose 4 bytes are added to inner."""
        before, at = LINKS[block.link_type]
        if at is None:
            version = rows(block.data, inner, 1).view(np.uint8) >> 4
            kind = np.select([version == 4, version == 6], [IPV4, IPV6], 0).astype(np.uint16)
        else:
            kind = rows(block.data, block.start + at, 2).view(">u2").astype(np.uint16)
        kind[block.length < before] = 0
        for _ in range(MAX_TAGS):
            other = np.flatnonzero((kind != IPV4) & (kind != IPV6))
            tagged = other[np.isin(kind[other], TAGS)]
            if not len(tagged):
                break
            inner[tagged] += 4
            kind[tagged] = rows(block.data, inner[tagged] - 2, 2).view(">u2")
        return kind

    def _ipv4(
        self, block: Block, at: NDArray[np.int64]
    ) -> tuple[Datagrams, Flags, NDArray[np.uint8]]:
        """All frames read as if they were IPv4 and UDP: columns, which are, IP's protocol."""
        header = fields(block.data, at, V4)
        frame_end = block.start + block.length
        plain = header["version"] == 0x45
        plain &= header["protocol"] == UDP
        plain &= header["fragment"] & FRAGMENT == 0
        plain &= frame_end - at >= V4.itemsize
        start = at + V4.itemsize
        end = _end(at, header["total"], 0, start, header["length"], frame_end)
        datagrams = Datagrams(
            block.data, np.arange(len(at)), block.time_ns,
            _key4(header["source"], header["source_port"]),
            _key4(header["destination"], header["destination_port"]),
            at + 12, start, end, np.minimum(end, frame_end),
        )  # fmt: skip
        return datagrams, plain, header["protocol"].copy()

    def _ipv6(
        self,
        block: Block,
        inner: NDArray[np.int64],
        six: NDArray[np.int64],
        datagrams: Datagrams,
        plain: Flags,
        protocol: NDArray[np.uint8],
    ) -> None:
        """Put right what is IPv6. six: rows."""
        at = inner[six]
        header = fields(block.data, at, V6)
        frame_end = block.start[six] + block.length[six]
        protocol[six] = header["next"]
        plain[six] = (
            (header["version"] >> 4 == 6)
            & (header["next"] == UDP)
            & (frame_end - at >= V6.itemsize)
        )
        start = at + V6.itemsize
        end = _end(at, header["payload"], 40, start, header["length"], frame_end)
        addresses = header["addresses"]
        datagrams.source_key[six] = self._fold(addresses[:, :2], header["source_port"])
        datagrams.destination_key[six] = self._fold(addresses[:, 2:], header["destination_port"])
        datagrams.address[six], datagrams.start[six] = at + 8, start
        datagrams.end[six], datagrams.limit[six] = end, np.minimum(end, frame_end)

    def _leave_tunnels(self, datagrams: Datagrams, plain: Flags) -> None:
        """Not plain is what goes to a tunnel's port and does not begin as RTP does."""
        port = datagrams.destination_key.astype(np.uint16)
        tunnel = np.flatnonzero(TUNNELS[port] & plain)
        if len(tunnel):
            version = rows(datagrams.data, datagrams.start[tunnel], 1).view(np.uint8) >> 6
            plain[tunnel[version != 2]] = False

    def _slow(self, kind: NDArray[np.uint16], protocol: NDArray[np.uint8]) -> Flags:
        """Of frames that are not plain UDP, those the slow path can do something with."""
        four, six = kind == IPV4, kind == IPV6
        known: Flags = four & np.isin(protocol, SLOW_PROTOCOLS)
        known |= six & np.isin(protocol, SLOW_NEXT_HEADERS)
        odd = np.isin(kind, SLOW_ETHERTYPES)
        self.counters["other_ip"] += int(np.count_nonzero((four | six) & ~known))
        self.counters["not_ip"] += int(np.count_nonzero(~(four | six | odd)))
        return known | odd

    def _fold(self, address: NDArray[np.uint64], port: NDArray[Any]) -> NDArray[np.uint64]:
        """Keys of IPv6 endpoints. address: uint64[n, 2]."""
        mixed = address[:, 0] * self._factors[0]
        mixed ^= mixed >> np.uint64(32)
        mixed = (mixed + address[:, 1]) * self._factors[1]
        mixed ^= mixed >> np.uint64(29)
        mixed *= self._factors[2]
        key: NDArray[np.uint64] = mixed >> np.uint64(17) << PORT_BITS
        key |= port.astype(np.uint64)
        key |= IS_IPV6
        return key


def _end(
    at: NDArray[np.int64],
    total: NDArray[Any],
    header: int,
    start: NDArray[np.int64],
    length: NDArray[Any],
    frame_end: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where each payload ends: the shorter of IP's length and UDP's counts.

    total: IP's length, without so many bytes of its header.  length: UDP's. 0 in either means
    that the sender left it to its card to say.
    """
    ip_end = at + total
    ip_end += header
    udp_end = start - 8 + length
    if not total.all():
        ip_end = np.where(total == 0, frame_end, ip_end)
    if not length.all():
        udp_end = np.where(length == 0, ip_end, udp_end)
    end: NDArray[np.int64] = np.maximum(np.minimum(ip_end, udp_end), start)
    return end


def _key4(address: NDArray[Any], port: NDArray[Any]) -> NDArray[np.uint64]:
    """Keys of IPv4 endpoints: address and port, exactly."""
    key = address.astype(np.uint64)
    key <<= PORT_BITS
    key |= port
    return key


def _as_they_are(block: Block) -> Datagrams:
    """Rows for frames of which nothing is known."""
    keys = np.zeros(len(block.start), np.uint64)
    start, end = block.start, block.start + block.length
    return Datagrams(
        block.data, np.arange(len(start)), block.time_ns, keys, keys, start, start, end, end
    )
