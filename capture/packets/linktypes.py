"""Link types of captures: what header a frame begins with, those included that programs made up.

A capture program may write headers of its own in front of what it heard: which way it went, which
interface, which rule of a firewall it met, how well it was received; or, in place of all headers,
what Wireshark had made of them.
Sources: libpcap's LINKTYPE_ list; linux/netfilter/nfnetlink_log.h; Apple's pktap.h; radiotap.org;
PPI 1.0.10; ERF of Endace; epan/exported_pdu.h of Wireshark; RFC 2427 (frame relay). What follows:
capture.packets.tunnels. Link types that only scapy knows: capture.packets.dissect.
"""

from collections.abc import Callable, Mapping
from struct import pack, unpack_from
from typing import Final

from capture.packets.inet import need
from capture.packets.packet import Next, Packet
from capture.packets.unread import LINK_TYPE, Unread

Kind = str

LINK_TYPES: Final[Mapping[int, Kind]] = {
    0: "null", 1: "ethernet", 9: "ppp", 12: "ip", 14: "ip", 50: "ppp", 51: "pppoe", 101: "ip",
    104: "hdlc", 105: "wifi", 107: "frelay", 108: "null", 113: "sll", 119: "prism",
    127: "radiotap", 149: "pktap", 163: "avs", 192: "ppi", 197: "erf", 204: "ppp_way",
    205: "hdlc_way", 206: "frelay_way", 219: "mpls", 228: "ip", 229: "ip", 239: "nflog",
    240: "analyzer", 252: "exported", 258: "pktap", 276: "sll2",
}  # fmt: skip
NFLOG_PAYLOAD: Final = 9
NLPID_IP: Final = 0xCC
WIFI: Final = 105
PKTAP_LEAST: Final = 108
UDP: Final = 17
# Tags of exported PDUs.
END, IPV4, IPV6, SOURCE_PORT, DESTINATION_PORT = 0, (20, 21), (22, 23), 25, 26


def follows(kind: Kind, size: int, what: str) -> Callable[[memoryview, int, int], Next]:
    """A header of fixed size that is always followed by the same."""

    def decapsulate(data: memoryview, start: int, end: int) -> Next:
        need(data, start, end, size, what)
        return Next(kind, start + size, end)

    return decapsulate


def _sized(layout: str, at: int, kind: Kind, what: str) -> Callable[[memoryview, int, int], Next]:
    """A header that tells its own length."""

    def decapsulate(data: memoryview, start: int, end: int) -> Next:
        need(data, start, end, 8, what)
        size: int = unpack_from(layout, data, start + at)[0]
        need(data, start, end, max(size, 8), what)
        return Next(kind, start + size, end)

    return decapsulate


def of(link_type: int, start: int, end: int) -> Next:
    """What a frame of a link type begins with. Raises Unread."""
    kind = LINK_TYPES.get(link_type)
    if kind is None:
        raise Unread(LINK_TYPE, link_type)
    return Next(kind, start, end)


def _ppi(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 8, "PPI header")
    size, link_type = unpack_from("<HI", data, start + 2)
    need(data, start, end, max(size, 8), "PPI header")
    return of(link_type, start + size, end)


def _pktap(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, PKTAP_LEAST, "PKTAP header")
    size, record, link_type = unpack_from("<III", data, start)
    if record != 1 or size < PKTAP_LEAST:
        raise ValueError(f"PKTAP record {record} of {size} bytes")
    return of(link_type, start + size, end)


def _nflog(data: memoryview, start: int, end: int) -> Next:
    """TLVs in the byte order of who captured; the payload is one of them, an IP packet."""
    at = start + 4
    while at + 4 <= end:
        size, kind = unpack_from("<HH", data, at)
        if kind > 0xFF:  # there are some twenty kinds
            size, kind = unpack_from(">HH", data, at)
        if size < 4:
            break
        if kind == NFLOG_PAYLOAD:
            return Next("ip", at + 4, min(end, at + size))
        at += size + -size % 4
    raise ValueError("NFLOG without a packet")


def _erf(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 18, "ERF header")
    kind, at = data[start + 8], start + 16
    more = kind & 0x80
    while more:  # extension headers; each says whether another follows
        need(data, at, end, 8, "ERF extension header")
        more, at = data[at] & 0x80, at + 8
    kind &= 0x7F
    if kind in (2, 11, 16, 20):  # Ethernet, also coloured: two bytes of padding before it
        return Next("ethernet", at + 2, end)
    if kind in (22, 23):
        return Next("ip", at, end)
    raise ValueError(f"ERF type {kind} carries neither Ethernet nor IP")


def _frame_relay(data: memoryview, start: int, end: int) -> Next:
    """Q.922 address, RFC 2427 §4.1: IP by its NLPID, else SNAP; or Cisco's EtherType."""
    at = start
    while at < end and not data[at] & 1:  # the last octet of the address ends so
        at += 1
    at += 1
    need(data, at, end, 8, "frame relay header")
    if data[at] != 3:
        return Next("typed", at, end)
    at += 1
    at += data[at] == 0  # padding
    if data[at] == NLPID_IP:
        return Next("ip", at + 1, end)
    if data[at] == 0x80 and not any(data[at + 1 : at + 4]):
        return Next("typed", at + 4, end)
    raise ValueError(f"frame relay of NLPID {data[at]:#04x}")


def _exported(data: memoryview, start: int, end: int) -> Packet:
    """What Wireshark exported of an upper protocol, with its ends, as if it had come by UDP."""
    found: dict[int, memoryview] = {}
    at = start
    while True:
        need(data, at, end, 4, "tag of an exported PDU")
        tag, size = unpack_from("!HH", data, at)
        at += 4
        if tag == END:
            break
        need(data, at, end, size, "tag of an exported PDU")
        found[tag] = data[at : at + size]
        at += size
    ends = next((ends for ends in (IPV4, IPV6) if found.keys() >= set(ends)), None)
    if ends is None:
        raise ValueError("an exported PDU without addresses")
    source, destination = (bytes(found[end]) for end in ends)
    if {len(source), len(destination)} not in ({4}, {16}):
        raise ValueError("an exported PDU's address of a wrong length")
    ports = [_port(found.get(tag)) for tag in (SOURCE_PORT, DESTINATION_PORT)]
    payload = bytes(data[at:end])
    header = pack("!HHHH", *ports, min(8 + len(payload), 0xFFFF), 0)
    return Packet(source, destination, UDP, memoryview(header + payload))


def _port(value: memoryview | None) -> int:
    if value is None or len(value) != 4:
        raise ValueError("an exported PDU without ports")
    return int(unpack_from("!I", value)[0]) & 0xFFFF


OF_LINKS: Final[Mapping[Kind, Callable[[memoryview, int, int], Next | Packet]]] = {
    "erf": _erf,
    "radiotap": _sized("<H", 2, "wifi", "radiotap header"),
    "prism": _sized("<I", 4, "wifi", "Prism header"),
    "avs": _sized("!I", 4, "wifi", "AVS header"),
    "ppi": _ppi,
    "pktap": _pktap,
    "nflog": _nflog,
    "frelay": _frame_relay,
    "ppp_way": follows("ppp", 1, "direction"),
    "hdlc_way": follows("hdlc", 1, "direction"),
    "frelay_way": follows("frelay", 1, "direction"),
    "analyzer": follows("ethernet", 4, "netANALYZER header"),
    "exported": _exported,
}
