"""As tests.support.wrapping, of what few mirrors show: fabrics, odd tunnels, captures' own.

Headers are written down from their specifications (capture.packets.fabrics, .linktypes, .tunnels).
"""

import struct

from tests.support.callgen import Frame
from tests.support.frames import ethernet, ipv4, ipv6
from tests.support.wrapping import (
    HEAD,
    MACS,
    OUTER,
    OUTER6,
    VXLAN,
    Wrapping,
    _each,
    _gre,
    _in_ip,
    _in_udp,
    _kind,
    _link,
    _tag,
    _udp,
    _udp_of,
    _wifi,
    then,
)

QUALITY = b"\x88\x01" + bytes(22)  # a data frame of 802.11 with quality of service
SNAP = b"\xaa\xaa\x03\0\0\0"
SEGMENTS = b"\x8f\x02\x04\0" + bytes(4) + OUTER6[1]  # a routing header before Ethernet, RFC 8754


def _lan(head: bytes) -> Wrapping:
    """Tags between addresses and EtherType."""
    return Wrapping(1, _each(lambda f: f[:12] + head + f[12:]))


def _llc(head: bytes, typed: bool) -> Wrapping:
    """A length in place of the EtherType."""

    def make(frame: bytes) -> bytes:
        body = head + (_kind(frame) if typed else b"") + frame[HEAD:]
        return frame[:12] + struct.pack(">H", len(body) & 0x5FF) + body

    return Wrapping(1, _each(make))


def _isl(frame: bytes) -> bytes:
    head = b"\x01\0\x0c\0\0\0" + MACS[:6] + struct.pack(">H", (len(frame) + 12) & 0x5FF)
    return head + b"\xaa\xaa\x03" + b"\0\0\x0c" + b"\0\x0e" + bytes(4) + frame + b"\xca\xfe" * 2


def _trill(options: bytes) -> Wrapping:
    words = len(options) // 4 << 6 | 0x3F
    head = MACS + b"\x22\xf3" + struct.pack(">HHH", words, 1, 2) + options
    return Wrapping(1, _each(lambda f: head + f))


def _nflog(order: str) -> Wrapping:
    def make(frame: bytes) -> bytes:
        packet = frame[HEAD:]
        head = b"\2\0\0\0" + _tlv(order, 1, b"\x08\0\1\0") + _tlv(order, 10, b"prefix\0")
        return head + _tlv(order, 9, packet)

    return Wrapping(239, _each(make))


def _tlv(order: str, kind: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _exported(frame: Frame) -> list[Frame]:
    ends = _udp_of(frame.data)
    assert ends is not None
    addresses, ports, payload = ends
    numbers = [b"\0\0" + ports[:2], b"\0\0" + ports[2:]]
    tags = [(12, b"sip\0"), (20, addresses[:4]), (21, addresses[4:]), (24, b"\0\0\0\3"),
            (25, numbers[0]), (26, numbers[1]), (0, b"")]  # fmt: skip
    head = b"".join(struct.pack(">HH", kind, len(value)) + value for kind, value in tags)
    return [Frame(frame.time_ns, head + payload)]


def _subframe(frame: bytes) -> bytes:
    """The only one of an A-MSDU."""
    body = SNAP + _kind(frame) + frame[HEAD:]
    return QUALITY + b"\x80\0" + frame[:12] + struct.pack(">H", len(body)) + body


OF_FRAMES: dict[str, Wrapping] = {
    "pseudowire of many": Wrapping(1, _each(lambda f: MACS + b"\x88\x48" + b"\0\x01\x01\x40" + f)),
    "tag of old": Wrapping(1, _tag((0x9200, 7), (0x9100, 8))),
    "tags of old in VXLAN": Wrapping(1, then(_tag((0x9200, 7), (0x9100, 8)), _in_udp(4789, VXLAN))),
    "VXLAN at its old port": Wrapping(1, _in_udp(8472, VXLAN)),
    "priority tag": Wrapping(1, _tag((0x8100, 0xE000))),
    "E-TAG": _lan(b"\x89\x3f\xe0\0\0\1\0\0"),
    "HSR": _lan(b"\x89\x2f\0\x60\0\7"),
    "MACsec, signed": Wrapping(
        1, _each(lambda f: f[:12] + b"\x88\xe5\0\0\0\0\0\1" + f[12:] + bytes(16))
    ),
    "MACsec, signed, with SCI": Wrapping(
        1, _each(lambda f: f[:12] + b"\x88\xe5\x20\0\0\0\0\1" + bytes(8) + f[12:] + bytes(16))
    ),
    "TRILL": _trill(b""),
    "TRILL with options": _trill(bytes(8)),
    "FabricPath": Wrapping(1, _each(lambda f: MACS + b"\x89\x03\0\x60" + f)),
    "ISL": Wrapping(1, _each(_isl)),
    "NVGRE": Wrapping(1, _in_ip(47, _gre(0x2000, 0x6558, 0x123400))),
    "Ethernet in IPv6": Wrapping(
        1, _each(lambda f: ethernet(ipv6(SEGMENTS + f, *OUTER6, following=43), 0x86DD))
    ),
    "L2TPv3 over UDP": Wrapping(1, _in_udp(1701, b"\0\3\0\0" + b"\0\0\0\x09" + bytes(4))),
    "frame check sequence": Wrapping(1, _each(lambda f: f + b"\xca\xfe\xba\xbe")),
    "PRP trailer": Wrapping(1, _each(lambda f: f + b"\0\7\xa0\x60\x88\xfb")),
    "netANALYZER": Wrapping(240, _each(lambda f: b"\0\0\0\0" + f)),
}
OF_IP: dict[str, Wrapping] = {
    "SNAP": _llc(SNAP, typed=True),
    "LLC of IP": _llc(b"\x06\x06\x03", typed=False),
    "MPLS in IP": Wrapping(1, _in_ip(137, b"\0\x01\x01\x40", HEAD)),
    "PPP in GRE": Wrapping(1, _in_ip(47, _gre(0x3001, 0x880B, 0x1234, 7) + b"\0\x21", HEAD)),
    "IP in IP, of old": Wrapping(1, _in_ip(94, skip=HEAD)),
    "FOU": Wrapping(1, _in_udp(5555, b"", HEAD)),
    "6 in UDP": Wrapping(
        1,
        _each(lambda f: ethernet(ipv4(_udp(3544, ipv6(f[HEAD:], *OUTER6, following=4)), **OUTER))),
    ),
    "GUE": Wrapping(1, _in_udp(6080, b"\0\4\0\0", HEAD)),
    "GUE with fields": Wrapping(1, _in_udp(6080, b"\2\4\x20\0" + bytes(8), HEAD)),
    "LISP": Wrapping(1, _in_udp(4341, b"\x80\0\0\1" + bytes(4), HEAD)),
    "Wi-Fi": Wrapping(105, _link(_wifi(b"\x08\x01"))),
    "Wi-Fi with quality of service": Wrapping(105, _link(_wifi(b"\x88\x02", b"\6\0"))),
    "Wi-Fi, A-MSDU of one": Wrapping(105, _each(_subframe)),
    "radiotap": Wrapping(
        127, _link(lambda kind: b"\0\0\x0a\0" + bytes(6) + _wifi(b"\x08\x01")(kind))
    ),
    "PPI": Wrapping(192, _link(lambda kind: b"\0\0\x08\0\x69\0\0\0" + _wifi(b"\x08\x01")(kind))),
    "AVS": Wrapping(
        163, _link(lambda kind: b"\x80\x21\x10\1\0\0\0\x40" + bytes(56) + _wifi(b"\x08\1")(kind))
    ),
    "Prism": Wrapping(
        119, _link(lambda kind: b"\0\0\0\x44\x90\0\0\0" + bytes(136) + _wifi(b"\x08\1")(kind))
    ),
    "NFLOG": _nflog("<"),
    "NFLOG, big-endian": _nflog(">"),
    "PKTAP": Wrapping(258, _link(lambda kind: struct.pack("<III", 108, 1, 101) + bytes(96))),
    "frame relay": Wrapping(107, _link(lambda kind: b"\x18\x41\x03\xcc")),
    "frame relay, SNAP": Wrapping(107, _link(lambda kind: b"\x18\x41\x03\0\x80\0\0\0" + kind)),
    "frame relay, Cisco's": Wrapping(107, _link(lambda kind: b"\x18\x41" + kind)),
    "PPP with direction": Wrapping(204, _link(lambda kind: b"\1\xff\x03\0\x21")),
    "HDLC with direction": Wrapping(205, _link(lambda kind: b"\0\x0f\0" + kind)),
    "frame relay with direction": Wrapping(206, _link(lambda kind: b"\1\x18\x41\x03\xcc")),
    "MPLS alone": Wrapping(219, _link(lambda kind: b"\0\x01\x01\x40")),
}
OF_UDP: dict[str, Wrapping] = {"exported PDU": Wrapping(252, _exported)}
RARE = OF_FRAMES | OF_IP | OF_UDP
