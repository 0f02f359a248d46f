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
SLOW_PROTOCOLS: Final = [TCP, AUTHENTICATION, *IP_PROTOCOLS]
SLOW_NEXT_HEADERS: Final = [44, *SLOW_PROTOCOLS, *IPV6_EXTENSIONS]  # 44: fragment
LARGEST_IP: Final = 1500  # more in one packet on an ordinary network: the card merged several (GRO)

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

    def decode(self, block: Block) -> tuple[Datagrams, NDArray[np.int64]]:
        """The plain UDP datagrams of a block, and the frames that were refused.

        refused: int64[m], rows of the block for the slow path. Everything else is counted.
        """
        everything = np.arange(len(block.start))
        if block.link_type not in LINKS:
            return _none(block.data), everything
        inner = block.start + LINKS[block.link_type][0]
        kind = self._kinds(block, inner)
        if (kind == IPV4).all():
            found, refused = self._ipv4(block, everything, inner)
            return found, refused
        four, six = np.flatnonzero(kind == IPV4), np.flatnonzero(kind == IPV6)
        v4, refused4 = self._ipv4(block, four, inner[four])
        v6, refused6 = self._ipv6(block, six, inner[six])
        other = np.flatnonzero((kind != IPV4) & (kind != IPV6))
        odd = other[np.isin(kind[other], SLOW_ETHERTYPES)]
        self.counters["not_ip"] += len(other) - len(odd)
        refused = np.sort(np.concatenate((refused4, refused6, odd)))
        return (merge(v4, v6) if len(six) else v4), refused

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
        self, block: Block, frame: NDArray[np.int64], at: NDArray[np.int64]
    ) -> tuple[Datagrams, NDArray[np.int64]]:
        header = fields(block.data, at, V4)
        end = (block.start + block.length)[frame]
        plain = (
            (header["version"] == 0x45)
            & (header["protocol"] == UDP)
            & (header["fragment"] & FRAGMENT == 0)
            & (end - at >= V4.itemsize)
        )
        refused = frame[:0]
        if not plain.all():
            other = np.flatnonzero(~plain)
            refused = self._refuse(frame[other], header["protocol"][other], SLOW_PROTOCOLS)
            keep = np.flatnonzero(plain)
            header, frame, at, end = header[keep], frame[keep], at[keep], end[keep]
        total = header["total"].astype(np.int64)
        datagrams = self._udp(
            block, frame, header, at + 28, at + np.where(total > 0, total, end - at), end, at + 12
        )
        datagrams.source_key = _key4(header["source"], header["source_port"])
        datagrams.destination_key = _key4(header["destination"], header["destination_port"])
        return self._without_tunnels(datagrams, refused)

    def _ipv6(
        self, block: Block, frame: NDArray[np.int64], at: NDArray[np.int64]
    ) -> tuple[Datagrams, NDArray[np.int64]]:
        header = fields(block.data, at, V6)
        end = (block.start + block.length)[frame]
        plain = (header["version"] >> 4 == 6) & (header["next"] == UDP) & (end - at >= V6.itemsize)
        other = np.flatnonzero(~plain)
        refused = self._refuse(frame[other], header["next"][other], SLOW_NEXT_HEADERS)
        keep = np.flatnonzero(plain)
        header, frame, at, end = header[keep], frame[keep], at[keep], end[keep]
        size = header["payload"].astype(np.int64)
        datagrams = self._udp(
            block, frame, header, at + 48, at + np.where(size > 0, size + 40, end - at), end, at + 8
        )
        datagrams.source_key = self._fold(header["addresses"][:, :2], header["source_port"])
        datagrams.destination_key = self._fold(
            header["addresses"][:, 2:], header["destination_port"]
        )
        return self._without_tunnels(datagrams, refused)

    def _refuse(
        self, frame: NDArray[np.int64], protocol: NDArray[np.uint8], slow: list[int]
    ) -> NDArray[np.int64]:
        """Of frames that are not plain UDP, those the slow path can do something with."""
        wanted = np.isin(protocol, [UDP, *slow])
        self.counters["other_ip"] += len(frame) - int(wanted.sum())
        return frame[wanted]

    def _udp(
        self,
        block: Block,
        frame: NDArray[np.int64],
        header: NDArray[Any],
        start: NDArray[np.int64],
        ip_end: NDArray[np.int64],
        captured_end: NDArray[np.int64],
        address: NDArray[np.int64],
    ) -> Datagrams:
        """Columns of the datagrams, keys still missing. The shorter of both lengths counts."""
        length = header["length"].astype(np.int64)
        merged = int(np.count_nonzero(length > LARGEST_IP))
        if merged:
            self.counters["oversized"] += merged
        end = np.minimum(start - 8 + np.where(length > 0, length, 1 << 16), ip_end)
        end = np.maximum(end, start)
        limit = np.minimum(end, captured_end)
        none = np.empty(0, np.uint64)
        return Datagrams(
            block.data, frame, block.time_ns[frame], none, none, address, start, end, limit
        )

    def _without_tunnels(
        self, datagrams: Datagrams, refused: NDArray[np.int64]
    ) -> tuple[Datagrams, NDArray[np.int64]]:
        """Refuse what goes to a tunnel's port and does not begin as RTP does."""
        port = datagrams.destination_key.astype(np.uint16)
        tunnel = np.zeros(len(port), np.bool_)
        for number in TUNNEL_PORTS:
            tunnel |= port == number
        if tunnel.any():
            version = rows(datagrams.data, datagrams.start, 1).view(np.uint8) >> 6
            tunnel &= version != 2
            refused = np.concatenate((refused, datagrams.frame[tunnel]))
            datagrams = datagrams.select(~tunnel)
        return datagrams, refused

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


def merge(one: Datagrams, other: Datagrams) -> Datagrams:
    """Both, in order of arrival."""
    order = np.argsort(np.concatenate((one.frame, other.frame)), kind="stable")
    columns = (
        np.concatenate((getattr(one, name), getattr(other, name)))[order]
        for name in Datagrams.__slots__[1:]
    )
    return Datagrams(one.data, *columns)


def _key4(address: NDArray[Any], port: NDArray[Any]) -> NDArray[np.uint64]:
    """Keys of IPv4 endpoints: address and port, exactly."""
    key = address.astype(np.uint64)
    key <<= PORT_BITS
    key |= port
    return key


def _none(data: NDArray[np.uint8]) -> Datagrams:
    empty = np.empty(0, np.int64)
    keys = np.empty(0, np.uint64)
    return Datagrams(data, empty, empty, keys, keys, empty, empty, empty, empty)
