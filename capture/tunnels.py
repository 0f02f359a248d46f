"""Peel what lies around an IP packet: link layers, tags, tunnels. One table, no packet twice.

Each decapsulator takes a view and says what follows and where, or refuses with ValueError. IP
addresses, fragments and transport come out of the last IP header met (capture.slowpath goes on).
Sources: IEEE 802.1Q; RFC 2516 (PPPoE), 3032 (MPLS), 791, 8200, 2003 (IPIP), 2784 and 2890 (GRE),
7348 (VXLAN), 8926 (GENEVE); draft-foschiano-erspan; libpcap's LINKTYPE_ list.
"""

from collections.abc import Callable, Mapping
from struct import unpack_from
from typing import Final, NamedTuple

MAX_DEPTH: Final = 16  # headers peeled from one frame; real nests have six or seven

Kind = str


class Next(NamedTuple):
    """What follows a header, and the bytes it may use: data[start:end]."""

    kind: Kind
    start: int
    end: int


class Packet(NamedTuple):
    """The innermost IP packet reached. Addresses have 4 or 16 bytes; protocol is IANA's number.

    A fragment has offset or more set; identity then tells which datagram it belongs to.
    """

    source: bytes
    destination: bytes
    protocol: int
    payload: memoryview
    identity: int = 0
    offset: int = 0
    more: bool = False

    @property
    def fragment(self) -> bool:
        """Whether this is only a part of a datagram."""
        return self.more or self.offset > 0


LINK_TYPES: Final[Mapping[int, Kind]] = {
    0: "null", 1: "ethernet", 12: "ip", 14: "ip", 101: "ip", 108: "null",
    113: "sll", 228: "ip", 229: "ip", 276: "sll2", 51: "pppoe", 9: "ppp",
}  # fmt: skip
ETHER_TYPES: Final[Mapping[int, Kind]] = {
    0x0800: "ip", 0x86DD: "ip", 0x8100: "vlan", 0x88A8: "vlan", 0x9100: "vlan", 0x9200: "vlan",
    0x8847: "mpls", 0x8848: "mpls", 0x8864: "pppoe", 0x8926: "vntag", 0x6558: "ethernet",
    0x88BE: "erspan2", 0x22EB: "erspan3", 0x880B: "ppp",
}  # fmt: skip
IP_PROTOCOLS: Final[Mapping[int, Kind]] = {4: "ip", 41: "ip", 47: "gre", 137: "mpls"}
# UDP ports whose datagrams carry frames. A decoder of plain UDP must leave these to the slow path.
TUNNEL_PORTS: Final[Mapping[int, Kind]] = {
    4789: "vxlan", 8472: "vxlan", 6081: "geneve", 37008: "tzsp",
}  # fmt: skip
IPV6_EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})
UDP: Final = 17


def peel(data: memoryview, kind: Kind) -> Packet:
    """The innermost IP packet in data, which begins with a header of this kind.

    Raises ValueError if there is none: another protocol, or a header that is cut or nonsense.
    """
    at = Next(kind, 0, len(data))
    for _ in range(MAX_DEPTH):
        if at.kind == "ip":
            packet = ip(data, at.start, at.end)
            inner = None if packet.fragment else tunnelled(packet)
            if inner is None:
                return packet
            data, at = packet.payload, inner
            continue
        at = DECAPSULATORS[at.kind](data, at.start, at.end)
    raise ValueError(f"more than {MAX_DEPTH} headers around one packet")


def tunnelled(packet: Packet) -> Next | None:
    """What a whole IP packet carries if that is a tunnel, else None. Raises ValueError."""
    kind = IP_PROTOCOLS.get(packet.protocol)
    if kind is not None:
        return Next(kind, 0, len(packet.payload))
    if packet.protocol != UDP or len(packet.payload) < 16:
        return None
    kind = TUNNEL_PORTS.get(unpack_from("!H", packet.payload, 2)[0])
    if kind is None or not _TUNNEL_SIGNS[kind](packet.payload):
        return None
    return Next(kind, 8, len(packet.payload))


def _is_vxlan(data: memoryview) -> bool:
    return data[8] & 0xF7 == 0 and bool(data[8] & 0x08)  # RFC 7348: only the I flag is set


def _is_geneve(data: memoryview) -> bool:
    return data[8] >> 6 == 0 and unpack_from("!H", data, 10)[0] in ETHER_TYPES


def _is_tzsp(data: memoryview) -> bool:
    return data[8] == 1 and data[9] in (0, 1)


# An RTP stream may well use port 4789: only bytes that can be the tunnel's are taken for one.
_TUNNEL_SIGNS: Final = {"vxlan": _is_vxlan, "geneve": _is_geneve, "tzsp": _is_tzsp}


def ip(data: memoryview, start: int, end: int) -> Packet:
    """An IPv4 or IPv6 packet, told apart by its version. Bytes behind its length are trailer."""
    _need(data, start, end, 20, "IP header")
    version = data[start] >> 4
    if version == 4:
        return _ipv4(data, start, end)
    if version == 6:
        return _ipv6(data, start, end)
    raise ValueError(f"IP version {version}")


def _ipv4(data: memoryview, start: int, end: int) -> Packet:
    header = (data[start] & 15) * 4
    total, identity, fragment = unpack_from("!HHH", data, start + 2)
    if header < 20 or header > end - start:
        raise ValueError(f"IPv4 header length {header}")
    # A total length of 0 is what segmentation offload leaves behind; the frame's end counts then.
    stop = min(end, start + total) if total else end
    if start + header > stop:
        raise ValueError(f"IPv4 total length {total} is less than its header")
    return Packet(
        source=bytes(data[start + 12 : start + 16]),
        destination=bytes(data[start + 16 : start + 20]),
        protocol=data[start + 9],
        payload=data[start + header : stop],
        identity=identity,
        offset=(fragment & 0x1FFF) * 8,
        more=bool(fragment & 0x2000),
    )


def _ipv6(data: memoryview, start: int, end: int) -> Packet:
    _need(data, start, end, 40, "IPv6 header")
    length = unpack_from("!H", data, start + 4)[0]
    stop = min(end, start + 40 + length) if length else end
    protocol, at = data[start + 6], start + 40
    identity = offset = 0
    more = False
    for _ in range(MAX_DEPTH):
        if protocol == 44:  # Fragment, RFC 8200 §4.5
            _need(data, at, stop, 8, "IPv6 fragment header")
            protocol = data[at]
            flags, identity = unpack_from("!HI", data, at + 2)
            offset, more, at = flags & 0xFFF8, bool(flags & 1), at + 8
            if offset:
                break  # what follows is the middle of something
        elif protocol in IPV6_EXTENSIONS:
            _need(data, at, stop, 8, "IPv6 extension header")
            protocol, at = data[at], at + 8 * (data[at + 1] + 1)
        elif protocol == 51:  # Authentication Header counts in words of 4, RFC 4302 §2.2
            _need(data, at, stop, 8, "authentication header")
            protocol, at = data[at], at + 4 * (data[at + 1] + 2)
        else:
            break
    if at > stop:
        raise ValueError("IPv6 extension headers are longer than the packet")
    return Packet(
        source=bytes(data[start + 8 : start + 24]),
        destination=bytes(data[start + 24 : start + 40]),
        protocol=protocol,
        payload=data[at:stop],
        identity=identity,
        offset=offset,
        more=more,
    )


def _need(data: memoryview, start: int, end: int, size: int, what: str) -> None:
    if min(end, len(data)) - start < size:
        raise ValueError(f"{what} cut")


def _by_ether_type(ether_type: int, start: int, end: int) -> Next:
    kind = ETHER_TYPES.get(ether_type)
    if kind is None:
        raise ValueError(f"EtherType {ether_type:#06x} carries no IP")
    return Next(kind, start, end)


def _ether_type_at(where: int, size: int, what: str) -> Callable[[memoryview, int, int], Next]:
    """A header of fixed size whose EtherType lies at a fixed place."""

    def decapsulate(data: memoryview, start: int, end: int) -> Next:
        _need(data, start, end, size, what)
        return _by_ether_type(unpack_from("!H", data, start + where)[0], start + size, end)

    return decapsulate


def _null(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 4, "loopback header")
    # The family is in the byte order of whoever captured; the IP version behind it says enough.
    return Next("ip", start + 4, end)


def _pppoe(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 8, "PPPoE header")
    return Next("ppp", start + 6, min(end, start + 6 + unpack_from("!H", data, start + 4)[0]))


def _ppp(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 4, "PPP header")
    if bytes(data[start : start + 2]) == b"\xff\x03":  # address and control, RFC 1662
        start += 2
    if data[start] & 1:  # a protocol compressed to one byte, RFC 1661 §6.5
        protocol, start = data[start], start + 1
    else:
        protocol, start = unpack_from("!H", data, start)[0], start + 2
    kind = {0x21: "ip", 0x57: "ip", 0x281: "mpls"}.get(protocol)
    if kind is None:
        raise ValueError(f"PPP protocol {protocol:#06x} carries no IP")
    return Next(kind, start, end)


def _mpls(data: memoryview, start: int, end: int) -> Next:
    for at in range(start, end - 4, 4):
        if data[at + 2] & 1:  # bottom of stack
            if data[at + 4] >> 4 in (4, 6):
                return Next("ip", at + 4, end)
            # A pseudowire: its control word begins with 0 (RFC 4385), then comes Ethernet.
            word = 4 if data[at + 4] >> 4 == 0 else 0
            return Next("ethernet", at + 4 + word, end)
    raise ValueError("MPLS label stack has no bottom")


def _gre(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 4, "GRE header")
    flags, protocol = unpack_from("!HH", data, start)
    if flags & 0x4000:
        raise ValueError("GRE with routing is obsolete")
    if flags & 7 == 1:  # enhanced GRE, RFC 2637: key, then sequence and acknowledgement if flagged
        size = 8 + 4 * bool(flags & 0x1000) + 4 * bool(flags & 0x0080)
    else:
        size = 4 + 4 * (bool(flags & 0x8000) + bool(flags & 0x2000) + bool(flags & 0x1000))
    if protocol == 0x88BE and not flags & 0x1000:
        return Next("ethernet", start + size, end)  # ERSPAN I: no sequence number, no own header
    return _by_ether_type(protocol, start + size, end)


def _erspan2(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 8, "ERSPAN header")
    return Next("ethernet", start + 8, end)


def _erspan3(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 12, "ERSPAN III header")
    frame_type = data[start + 10] >> 3 & 0x1F if data[start + 10] & 0x80 else 0
    size = 12 + 8 * (data[start + 11] & 1)
    return Next("ip" if frame_type & 0x0F == 2 else "ethernet", start + size, end)


def _vxlan(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 8, "VXLAN header")
    return Next("ethernet", start + 8, end)


def _geneve(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 8, "GENEVE header")
    options = (data[start] & 0x3F) * 4
    return _by_ether_type(unpack_from("!H", data, start + 2)[0], start + 8 + options, end)


def _tzsp(data: memoryview, start: int, end: int) -> Next:
    _need(data, start, end, 5, "TZSP header")
    if unpack_from("!H", data, start + 2)[0] != 1:
        raise ValueError("TZSP carries something other than Ethernet")
    at = start + 4
    while at < end:
        tag = data[at]
        if tag == 1:  # end of tags
            return Next("ethernet", at + 1, end)
        if tag != 0 and at + 1 >= end:
            break
        at += 1 if tag == 0 else 2 + data[at + 1]
    raise ValueError("TZSP tags have no end")


DECAPSULATORS: Final[Mapping[Kind, Callable[[memoryview, int, int], Next]]] = {
    "ethernet": _ether_type_at(12, 14, "Ethernet header"),
    "vlan": _ether_type_at(2, 4, "802.1Q tag"),
    "vntag": _ether_type_at(4, 6, "VN-Tag"),
    "sll": _ether_type_at(14, 16, "Linux cooked header"),
    "sll2": _ether_type_at(0, 20, "Linux cooked v2 header"),
    "null": _null,
    "pppoe": _pppoe,
    "ppp": _ppp,
    "mpls": _mpls,
    "gre": _gre,
    "erspan2": _erspan2,
    "erspan3": _erspan3,
    "vxlan": _vxlan,
    "geneve": _geneve,
    "tzsp": _tzsp,
}
