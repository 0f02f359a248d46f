"""Peel what lies around an IP packet: link layers, tags, tunnels. One table, no packet twice.

Each decapsulator takes a view and says what follows and where, or refuses with ValueError. IP
addresses, fragments and transport come out of the last IP header met (capture.packets.slowpath goes
on).
Sources: IEEE 802.1Q, 802.1ad, 802.1ah; Cisco VN-Tag and MetaData; RFC 1661, 1662 (PPP), 2516
(PPPoE), 3032 (MPLS), 4385 and 4448 (pseudowires), 7510 (MPLS in UDP), 2003 (IPIP), 4213 (6in4),
3378 (EtherIP), 8986 §9.1 (Ethernet in IPv6), 2784, 2890 and 2637 (GRE), 2661 and 3931 (L2TP), 7348
(VXLAN), draft-smith-vxlan-group-policy, draft-ietf-nvo3-vxlan-gpe, draft-ietf-intarea-gue, 8926
(GENEVE), 8300 (NSH), 9300 §5.1 (LISP), 4380 (Teredo); 3GPP TS 29.281 (GTP-U);
draft-foschiano-erspan-03; TZSP as Wireshark reads it. IP: capture.packets.inet.
HEP: capture.packets.hep. Wi-Fi: capture.packets.wireless. Fabrics: capture.packets.fabrics. Link
types: capture.packets.linktypes. What none of them knows: capture.packets.unread.
"""

from collections.abc import Callable, Mapping
from struct import unpack_from
from typing import Final

from capture.packets import fabrics, hep, inet, wireless
from capture.packets.inet import need
from capture.packets.linktypes import LINK_TYPES, OF_LINKS, follows
from capture.packets.packet import Next, Packet
from capture.packets.unread import DEPTH, ETHER_TYPE, LEAST_ETHER_TYPE, PPP, Unread

MAX_DEPTH: Final = 16  # headers peeled from one frame; real nests have six or seven

Kind = str

ETHER_TYPES: Final[Mapping[int, Kind]] = {
    0x0800: "ip", 0x86DD: "ip", 0x8100: "vlan", 0x88A8: "vlan", 0x9100: "vlan", 0x9200: "vlan",
    0x8847: "mpls", 0x8848: "mpls", 0x8864: "pppoe", 0x8926: "vntag", 0x6558: "ethernet",
    0x88BE: "erspan2", 0x22EB: "erspan3", 0x880B: "ppp", 0x8909: "cmd", 0x88E7: "itag",
    0x894F: "nsh", 0x893F: "etag", 0x892F: "hsr", 0x22F3: "trill", 0x8903: "fabricpath",
    0x88E5: "macsec",
}  # fmt: skip
IP_PROTOCOLS: Final[Mapping[int, Kind]] = {
    4: "ip", 41: "ip", 47: "gre", 94: "ip", 97: "etherip", 115: "l2tp3", 137: "mpls",
    143: "ethernet",
}  # fmt: skip
CUT_UP: Final[Mapping[int, Kind]] = {
    wireless.PARTS_OF_WIFI: "wifi", wireless.PARTS_OF_ETHERNET: "ethernet",
}  # fmt: skip
PPP_PROTOCOLS: Final[Mapping[int, Kind]] = {0x21: "ip", 0x57: "ip", 0x281: "mpls"}
# UDP ports whose datagrams carry frames. A decoder of plain UDP must leave these to the slow path.
TUNNEL_PORTS: Final[Mapping[int, Kind]] = {
    1701: "l2tp", 2152: "gtp", 4341: "lisp", 4789: "vxlan", 4790: "gpe", 5247: "capwap",
    6080: "gue", 6081: "geneve", 6635: "mpls", 8472: "vxlan", 9060: "hep", 37008: "tzsp",
}  # fmt: skip
UDP: Final = 17
GROUP_POLICY: Final = 0x88  # VXLAN's first byte with G besides I; RTP would have eight CSRCs
SNAP: Final = 0xAAAA  # how LLC begins that leads to an EtherType
L2TP_3: Final = 0x0003_0000  # RFC 3931 §4.1.2.2
LARGEST_UDP: Final = 1472  # of payload; more on an ordinary network: the card merged several (GRO)


def peel(data: memoryview, kind: Kind) -> Packet:
    """The innermost IP packet in data, which begins with a header of this kind.

    Raises ValueError if there is none: another protocol, or a header that is cut or nonsense.
    """
    at, outer = Next(kind, 0, len(data)), None
    for _ in range(MAX_DEPTH):
        found = DECAPSULATORS[at.kind](data, at.start, at.end)
        if isinstance(found, Next):
            at = found
            continue
        if outer is not None and not found.source:  # a part that its tunnel cut off, by CAPWAP
            found = found._replace(
                source=outer.source, destination=outer.destination, missing=outer.missing
            )
        inner = None if found.fragment else tunnelled(found)
        if inner is None:
            return found
        data, at, outer = found.payload, inner, found
    raise Unread(DEPTH, MAX_DEPTH)


def layers(data: memoryview, link_type: int) -> list[Kind]:
    """The headers of a frame down to the innermost IP packet, as far as they can be read."""
    kind, found = LINK_TYPES.get(link_type), list[Kind]()
    at = Next(kind, 0, len(data)) if kind else None
    while at is not None and len(found) < MAX_DEPTH:
        found.append(at.kind)
        try:
            inner = DECAPSULATORS[at.kind](data, at.start, at.end)
            if isinstance(inner, Packet):
                following = None if inner.fragment else tunnelled(inner)
                data, at = inner.payload, following
            else:
                at = inner
        except ValueError:
            break
    return found


def tunnelled(packet: Packet) -> Next | None:
    """What a whole IP packet carries if that is a tunnel, else None. Raises ValueError."""
    kind = IP_PROTOCOLS.get(packet.protocol) or CUT_UP.get(packet.protocol)
    if kind is not None:
        return Next(kind, 0, len(packet.payload))
    if packet.protocol != UDP or len(packet.payload) < 16:
        return None
    kind = TUNNEL_PORTS.get(unpack_from("!H", packet.payload, 2)[0])
    if kind is None and bytes(packet.payload[8:12]) == hep.MAGIC:
        kind = "hep"  # its agents are told any port; nothing else begins so
    if kind is None and inet.fills(packet.payload, 8):
        return Next("ip", 8, len(packet.payload))  # FOU, Teredo: on any port, too
    if kind is None or not _TUNNEL_SIGNS[kind](packet.payload):
        return None
    return Next(kind, 8, len(packet.payload))


def _is_vxlan(data: memoryview) -> bool:
    return data[8] == 0x08 or (data[8] == GROUP_POLICY and data[9] & 0xB7 == 0)


def _is_geneve(data: memoryview) -> bool:
    return data[8] >> 6 == 0 and unpack_from("!H", data, 10)[0] in ETHER_TYPES


def _is_tzsp(data: memoryview) -> bool:
    return data[8] == 1 and data[9] in (0, 1)


def _is_gtp(data: memoryview) -> bool:
    return data[8] >> 4 == 3 and data[9] == 255  # version 1, GTP not GTP'; a G-PDU


def _is_gpe(data: memoryview) -> bool:
    return data[8] & 0xF2 == 0 and data[8] & 0x0C == 0x0C and data[11] in GPE_PROTOCOLS


def _is_l2tp(data: memoryview) -> bool:
    """A data message of version 2, or one of 3, whose flags are all zero."""
    second = data[8] & 0xB4 == 0 and data[9] == 2
    return second or unpack_from("!I", data, 8)[0] == L2TP_3


def _is_gue(data: memoryview) -> bool:
    return data[8] & 0xE0 == 0 and data[9] in IP_PROTOCOLS  # version 0, no control message


def _is_lisp(data: memoryview) -> bool:
    return inet.fills(data, 16)


def _is_mpls(data: memoryview) -> bool:
    return data[10] & 1 == 1 or data[14] & 1 == 1  # a stack of one or two, as is usual


def _is_hep(data: memoryview) -> bool:
    return hep.begins(data[8:])


# An RTP stream may well use port 4789: only bytes that can be the tunnel's are taken for one.
_TUNNEL_SIGNS: Final = {
    "vxlan": _is_vxlan, "geneve": _is_geneve, "tzsp": _is_tzsp, "gtp": _is_gtp, "hep": _is_hep,
    "gpe": _is_gpe, "l2tp": _is_l2tp, "capwap": wireless.is_capwap, "mpls": _is_mpls,
    "gue": _is_gue, "lisp": _is_lisp,
}  # fmt: skip


def _by_ether_type(ether_type: int, start: int, end: int) -> Next:
    kind = "llc" if ether_type < LEAST_ETHER_TYPE else ETHER_TYPES.get(ether_type)
    if kind is None:
        raise Unread(ETHER_TYPE, ether_type)
    return Next(kind, start, end)


def _ether_type_at(where: int, size: int, what: str) -> Callable[[memoryview, int, int], Next]:
    """A header of fixed size whose EtherType lies at a fixed place."""

    def decapsulate(data: memoryview, start: int, end: int) -> Next:
        need(data, start, end, size, what)
        return _by_ether_type(unpack_from("!H", data, start + where)[0], start + size, end)

    return decapsulate


def _null(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 4, "loopback header")
    # The family is in the byte order of whoever captured; the IP version behind it says enough.
    return Next("ip", start + 4, end)


def _pppoe(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 8, "PPPoE header")
    return Next("ppp", start + 6, min(end, start + 6 + unpack_from("!H", data, start + 4)[0]))


def _ppp(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 4, "PPP header")
    if bytes(data[start : start + 2]) == b"\xff\x03":  # address and control, RFC 1662
        start += 2
    if data[start] & 1:  # a protocol compressed to one byte, RFC 1661 §6.5
        protocol, start = data[start], start + 1
    else:
        protocol, start = unpack_from("!H", data, start)[0], start + 2
    kind = PPP_PROTOCOLS.get(protocol)
    if kind is None:
        raise Unread(PPP, protocol)
    return Next(kind, start, end)


def _mpls(data: memoryview, start: int, end: int) -> Next:
    for at in range(start, end - 4, 4):
        if data[at + 2] & 1:  # bottom of stack
            return _behind_labels(data, at + 4, end)
    raise ValueError("MPLS label stack has no bottom")


def _behind_labels(data: memoryview, at: int, end: int) -> Next:
    """IP, or a pseudowire's Ethernet with or without a control word: no label tells which.

    A control word begins with 0, but so do most MAC addresses; and some begin with 4 or 6, as IP
    does. The EtherType decides.
    """
    if data[at] >> 4 == 0 and _is_ethernet(data, at + 4, end):
        return Next("ethernet", at + 4, end)
    if data[at] >> 4 not in (4, 6) or _is_ethernet(data, at, end):
        return Next("ethernet", at, end)
    return Next("ip", at, end)


def _is_ethernet(data: memoryview, at: int, end: int) -> bool:
    """Whether an Ethernet header may begin here: by its EtherType, or by SNAP behind a length."""
    if min(end, len(data)) - at < 16:
        return False
    ether_type, service = unpack_from("!HH", data, at + 12)
    return ether_type in ETHER_TYPES or (ether_type < LEAST_ETHER_TYPE and service == SNAP)


def _gre(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 4, "GRE header")
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


def _erspan3(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 12, "ERSPAN III header")
    frame_type = data[start + 10] >> 2 & 0x1F  # 0 Ethernet, 2 IP without its link header
    size = 12 + 8 * (data[start + 11] & 1)
    return Next("ip" if frame_type == 2 else "ethernet", start + size, end)


def _geneve(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 8, "GENEVE header")
    options = (data[start] & 0x3F) * 4
    return _by_ether_type(unpack_from("!H", data, start + 2)[0], start + 8 + options, end)


def _tzsp(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 5, "TZSP header")
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


def _gtp(data: memoryview, start: int, end: int) -> Next:
    """GTP-U, TS 29.281 §5.1; extension headers (§5.2) are a chain, 0 ends it."""
    need(data, start, end, 12, "GTP-U header")
    end = min(end, start + 8 + unpack_from("!H", data, start + 2)[0])
    if not data[start] & 7:
        return Next("ip", start + 8, end)
    following, at = data[start + 11] if data[start] & 4 else 0, start + 12
    while following:
        need(data, at, end, 4, "GTP-U extension header")
        size = data[at] * 4
        if not size or at + size > end:
            raise ValueError(f"GTP-U extension header of {size} bytes")
        following, at = data[at + size - 1], at + size
    return Next("ip", at, end)


GPE_PROTOCOLS: Final[Mapping[int, Kind]] = {1: "ip", 2: "ip", 3: "ethernet", 4: "nsh"}
NSH_PROTOCOLS: Final[Mapping[int, Kind]] = {1: "ip", 2: "ip", 3: "ethernet", 5: "mpls"}


def _gpe(data: memoryview, start: int, end: int) -> Next:
    """VXLAN that says what it carries, draft-ietf-nvo3-vxlan-gpe §3.1."""
    need(data, start, end, 8, "VXLAN-GPE header")
    return Next(GPE_PROTOCOLS[data[start + 3]], start + 8, end)


def _nsh(data: memoryview, start: int, end: int) -> Next:
    """RFC 8300 §2.2: the length is in words, and counts from the beginning."""
    need(data, start, end, 8, "NSH header")
    size, kind = (data[start + 1] & 0x3F) * 4, NSH_PROTOCOLS.get(data[start + 3])
    if kind is None or size < 8:
        raise ValueError(f"NSH of {size} bytes with protocol {data[start + 3]}")
    return Next(kind, start + size, end)


def _etherip(data: memoryview, start: int, end: int) -> Next:
    need(data, start, end, 2, "EtherIP header")
    if data[start] >> 4 != 3:
        raise ValueError(f"EtherIP version {data[start] >> 4}")
    return Next("ethernet", start + 2, end)


def _l2tp(data: memoryview, start: int, end: int) -> Next:
    """A data message of version 2, RFC 2661 §3.1: PPP behind what its flags say; or of 3."""
    need(data, start, end, 8, "L2TP header")
    flags = unpack_from("!H", data, start)[0]
    if flags == L2TP_3 >> 16:
        return _l2tp3(data, start + 4, end)
    at = start + 6 + 2 * bool(flags & 0x4000) + 4 * bool(flags & 0x0800)
    if flags & 0x0200:
        need(data, at, end, 2, "L2TP header")
        at += 2 + unpack_from("!H", data, at)[0]
    return Next("ppp", at, end)


def _l2tp3(data: memoryview, start: int, end: int) -> Next:
    """RFC 3931 §4.1.1: how long cookie and sublayer are was agreed upon; the EtherType tells."""
    need(data, start, end, 4, "L2TPv3 header")
    if not any(data[start : start + 4]):
        raise ValueError("L2TPv3 control message")
    for at in range(start + 4, start + 20, 4):
        if _is_ethernet(data, at, end):
            return Next("ethernet", at, end)
    raise ValueError("L2TPv3 carries no Ethernet that we know")


def _gue(data: memoryview, start: int, end: int) -> Next:
    """Version 0: a protocol number, and as many words of fields as it says."""
    need(data, start, end, 4, "GUE header")
    return Next(IP_PROTOCOLS[data[start + 1]], start + 4 + (data[start] & 0x1F) * 4, end)


def _hep(data: memoryview, start: int, end: int) -> Packet:
    return hep.packet(data[start:end])


DECAPSULATORS: Final[Mapping[Kind, Callable[[memoryview, int, int], Next | Packet]]] = {
    "ip": inet.packet,
    "ethernet": _ether_type_at(12, 14, "Ethernet header"),
    "vlan": _ether_type_at(2, 4, "802.1Q tag"),
    "vntag": _ether_type_at(4, 6, "VN-Tag"),
    "sll": _ether_type_at(14, 16, "Linux cooked header"),
    "sll2": _ether_type_at(0, 20, "Linux cooked v2 header"),
    "hdlc": _ether_type_at(2, 4, "HDLC header"),
    "null": _null,
    "pppoe": _pppoe,
    "ppp": _ppp,
    "mpls": _mpls,
    "gre": _gre,
    "erspan2": follows("ethernet", 8, "ERSPAN header"),
    "erspan3": _erspan3,
    "vxlan": follows("ethernet", 8, "VXLAN header"),
    "geneve": _geneve,
    "tzsp": _tzsp,
    "gtp": _gtp,
    "hep": _hep,
    "cmd": _ether_type_at(6, 8, "Cisco MetaData"),
    "itag": follows("ethernet", 4, "I-TAG"),
    "etag": _ether_type_at(6, 8, "E-TAG"),
    "hsr": _ether_type_at(4, 6, "HSR tag"),
    "trill": fabrics.trill,
    "fabricpath": follows("ethernet", 2, "FabricPath tag"),
    "macsec": fabrics.macsec,
    "llc": fabrics.llc,
    "gue": _gue,
    "lisp": follows("ip", 8, "LISP header"),
    "nsh": _nsh,
    "gpe": _gpe,
    "etherip": _etherip,
    "l2tp": _l2tp,
    "l2tp3": _l2tp3,
    "capwap": wireless.capwap,
    "wifi": wireless.frame,
    "typed": _ether_type_at(0, 2, "EtherType"),
    **OF_LINKS,
}
