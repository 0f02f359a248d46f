"""Real calls in other clothes: link layers, tags, tunnels, copies and cuts around the same packets.

A wrapping takes an Ethernet frame with IP in it and gives the frames that a mirror of another kind
would show in its place. Nothing of ours is used in the making: headers are written down from their
specifications (capture.packets.tunnels names them).
"""

import ipaddress
import itertools
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.support.callgen import SECOND, Frame
from tests.support.frames import ethernet, ipv4, ipv6

Wrap = Callable[[Frame], list[Frame]]
HEAD = 14  # bytes of Ethernet
OUTER = {"source": "203.0.113.1", "destination": "203.0.113.2"}
OUTER6 = (ipaddress.ip_address("2001:db8::1").packed, ipaddress.ip_address("2001:db8::2").packed)
MACS = bytes.fromhex("001122334455 46aabbccddee")  # the second one begins as IPv4 does
UDP = 17


class Wrapping(NamedTuple):
    """link_type: of the frames that wrap gives."""

    link_type: int
    wrap: Wrap


def _each(make: Callable[[bytes], bytes]) -> Wrap:
    """A frame for a frame."""
    return lambda frame: [Frame(frame.time_ns, make(frame.data))]


def _kind(frame: bytes) -> bytes:
    return frame[12:14]


def _link(head: Callable[[bytes], bytes]) -> Wrap:
    """Another link header. head: what comes before the IP packet, given its EtherType."""
    return _each(lambda frame: head(_kind(frame)) + frame[HEAD:])


def _tag(*tags: tuple[int, int]) -> Wrap:
    def make(frame: bytes) -> bytes:
        types = b"".join(struct.pack(">HH", kind, vlan) for kind, vlan in tags)
        return frame[:12] + types + frame[12:]

    return _each(make)


def _in_ip(protocol: int, head: bytes = b"", skip: int = 0) -> Wrap:
    """In an outer IPv4 packet. skip: bytes of the frame that are left out."""
    return _each(lambda frame: ethernet(ipv4(head + frame[skip:], protocol=protocol, **OUTER)))


def _in_udp(port: int, head: bytes, skip: int = 0) -> Wrap:
    return _each(lambda frame: ethernet(ipv4(_udp(port, head + frame[skip:]), **OUTER)))


def _udp(port: int, payload: bytes) -> bytes:
    return struct.pack(">HHHH", 40_000, port, 8 + len(payload), 0) + payload


def _gre(flags: int, protocol: int, *words: int) -> bytes:
    return struct.pack(f">HH{len(words)}I", flags, protocol, *words)


def _gtp(flags: int, *extensions: bytes) -> Wrap:
    """GTP-U; its length is that of what follows the first 8 bytes."""
    options = b"\0\1\0" + b"\x85" + b"".join(extensions) if flags & 7 else b""

    def make(frame: bytes) -> bytes:
        body = options + frame[HEAD:]
        head = struct.pack(">BBHI", 0x30 | flags, 255, len(body), 0x1234)
        return ethernet(ipv4(_udp(2152, head + body), **OUTER))

    return _each(make)


def _pppoe(frame: bytes) -> bytes:
    protocol = b"\0\x57" if _kind(frame) == b"\x86\xdd" else b"\0\x21"
    size = len(frame) - HEAD + 2
    head = struct.pack(">BBHH", 0x11, 0, 7, size) + protocol
    return frame[:12] + b"\x88\x64" + head + frame[HEAD:]


def _options(frame: bytes) -> bytes:
    """An IPv4 header with a Router Alert option."""
    head = bytearray(frame[HEAD : HEAD + 20])
    head[0] = 0x46
    head[2:4] = struct.pack(">H", int.from_bytes(head[2:4], "big") + 4)
    return frame[:HEAD] + bytes(head) + b"\x94\x04\0\0" + frame[HEAD + 20 :]


def _authenticated(frame: bytes) -> bytes:
    """An Authentication Header of 24 bytes between IP and UDP."""
    head = bytearray(frame[HEAD : HEAD + 20])
    head[2:4] = struct.pack(">H", int.from_bytes(head[2:4], "big") + 24)
    following, head[9] = head[9], 51
    guard = bytes([following, 4]) + bytes(22)
    return frame[:HEAD] + bytes(head) + guard + frame[HEAD + 20 :]


def _chunk(kind: int, value: bytes) -> bytes:
    return struct.pack(">HHH", 0, kind, 6 + len(value)) + value


def _hep3(compress: bool = False) -> Wrap:
    def make(frame: Frame) -> list[Frame]:
        ends = _udp_of(frame.data)
        if ends is None:
            return [frame]
        addresses, ports, payload = ends
        seconds, rest = divmod(frame.time_ns, SECOND)
        chunks = [
            _chunk(1, b"\x02"), _chunk(2, b"\x11"), _chunk(3, addresses[:4]),
            _chunk(4, addresses[4:]), _chunk(7, ports[:2]), _chunk(8, ports[2:]),
            _chunk(9, struct.pack(">I", seconds)), _chunk(10, struct.pack(">I", rest // 1000)),
            _chunk(11, b"\x01"), _chunk(12, struct.pack(">I", 2001)),
            struct.pack(">HHH", 4, 1, 10) + b"kama",  # a vendor's own
            _chunk(16, zlib.compress(payload)) if compress else _chunk(15, payload),
        ]  # fmt: skip
        body = b"".join(chunks)
        return [_hep(frame, b"HEP3" + struct.pack(">H", 6 + len(body)) + body)]

    return make


def _hep2(frame: Frame) -> list[Frame]:
    ends = _udp_of(frame.data)
    if ends is None:
        return [frame]
    addresses, ports, payload = ends
    seconds, rest = divmod(frame.time_ns, SECOND)
    head = (
        b"\x02\x1c\x02\x11" + ports + addresses + struct.pack("<IIHH", seconds, rest // 1000, 1, 0)
    )
    return [_hep(frame, head + payload)]


def _hep(frame: Frame, data: bytes) -> Frame:
    """The agent's datagram arrives a little later than what it tells of."""
    return Frame(frame.time_ns + 3_000_000, ethernet(ipv4(_udp(9060, data), **OUTER)))


def _udp_of(frame: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Addresses, ports and payload of an IPv4 UDP frame."""
    if _kind(frame) != b"\x08\0" or frame[HEAD] != 0x45 or frame[HEAD + 9] != UDP:
        return None
    if _is_fragment(frame):
        return None
    size = int.from_bytes(frame[HEAD + 24 : HEAD + 26], "big")
    return (
        frame[HEAD + 12 : HEAD + 20],
        frame[HEAD + 20 : HEAD + 24],
        frame[HEAD + 28 : HEAD + 20 + size],
    )


def _is_fragment(frame: bytes) -> bool:
    return int.from_bytes(frame[HEAD + 6 : HEAD + 8], "big") & 0x3FFF != 0


_identities = itertools.count(1)


def fragments(packet: bytes, size: int) -> list[bytes]:
    """An IPv4 packet without options, cut up. size: bytes of each part, a multiple of 8."""
    identity = next(_identities) & 0xFFFF
    total = int.from_bytes(packet[2:4], "big")
    payload = packet[20:total]
    parts = []
    for at in range(0, len(payload), size):
        part = payload[at : at + size]
        more = 0x2000 if at + size < len(payload) else 0
        head = bytearray(packet[:20])
        head[2:8] = struct.pack(">HHH", 20 + len(part), identity, more | at // 8)
        parts.append(bytes(head) + part)
    return parts


def _cut_up(size: int, order: Callable[[list[bytes]], Iterable[bytes]] = list) -> Wrap:
    def make(frame: Frame) -> list[Frame]:
        if frame.data[12:15] != b"\x08\0\x45" or _is_fragment(frame.data):
            return [frame]
        pieces = order(fragments(frame.data[HEAD:], size))
        return [Frame(frame.time_ns, frame.data[:HEAD] + piece) for piece in pieces]

    return make


def _cut_up6(size: int, extension: bytes = b"") -> Wrap:
    """In IPv6 with a Fragment header, RFC 8200 §4.5. extension: options that are cut up, too."""

    def make(frame: Frame) -> list[Frame]:
        identity = next(_identities)
        payload = extension + frame.data[HEAD:]
        pieces = []
        for at in range(0, len(payload), size):
            more = at + size < len(payload)
            head = struct.pack(">BBHI", 60 if extension else 4, 0, at | more, identity)
            packet = ipv6(head + payload[at : at + size], *OUTER6, following=44)
            pieces.append(Frame(frame.time_ns, ethernet(packet, 0x86DD)))
        return pieces

    return make


def then(*wraps: Wrap) -> Wrap:
    """One around the other, innermost first."""

    def make(frame: Frame) -> list[Frame]:
        frames = [frame]
        for wrap in wraps:
            frames = [outer for inner in frames for outer in wrap(inner)]
        return frames

    return make


# --- copies ---------------------------------------------------------------------------------------


def routed(frame: bytes) -> bytes:
    """The next hop's copy: other MAC addresses, a lower TTL, so another header checksum."""
    packet = bytearray(frame[HEAD:])
    packet[8] -= 1
    packet[10:12] = b"\0\0"
    total = sum(struct.unpack(">10H", packet[:20]))
    total = (total & 0xFFFF) + (total >> 16)
    packet[10:12] = struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF)
    return MACS + frame[12:HEAD] + bytes(packet)


def _copied(change: Callable[[bytes], bytes], after_ns: int) -> Wrap:
    def make(frame: Frame) -> list[Frame]:
        return [frame, Frame(frame.time_ns + after_ns, change(frame.data))]

    return make


VXLAN = b"\x08\0\0\0" + b"\0\0\x2a\0"
VXLAN_GROUP = b"\x88\x08\x12\x34" + b"\0\0\x2a\0"
GENEVE = b"\x01\0\x65\x58" + b"\0\0\x2a\0" + b"\x01\x02\x00\x00"  # with an option of no words
TZSP = b"\x01\0\0\1" + b"\x0a\1\x7f" + b"\0" + b"\x01"  # a signal strength, padding, the end
ERSPAN2 = struct.pack(">II", 0x1000_0001, 5)
ERSPAN3 = struct.pack(">III", 0x2000_0001, 0, 0x8000)  # P: an Ethernet frame
ERSPAN3_SUBHEADER = struct.pack(">IIIQ", 0x2000_0001, 0, 0x8001, 7)
ERSPAN3_IP = struct.pack(">III", 0x2000_0001, 0, 2 << 10)
LABELS = struct.pack(">II", 16 << 12 | 64, 17 << 12 | 0x100 | 64)
ERF = struct.pack("<Q", 0) + struct.pack(">BBHHH", 2, 4, 0, 0, 0)
ERF_EXTENDED = (
    struct.pack("<Q", 0) + struct.pack(">BBHHH", 0x82, 4, 0, 0, 0)
    + b"\x83" + bytes(7) + b"\x03" + bytes(7) + b"\0\0"
)  # fmt: skip

CAPWAP = b"\0\x10\x02\0" + bytes(4)  # two words, WBID 1, 802.3
CAPWAP_WIFI = b"\0\x10\x03\0" + bytes(4)


def _wifi(control: bytes, quality: bytes = b"") -> Callable[[bytes], bytes]:
    """A data frame of 802.11 with LLC and SNAP. quality: of service, if it has that field."""
    return lambda kind: control + bytes(22) + quality + b"\xaa\xaa\x03\0\0\0" + kind


def _in_capwap(control: bytes, quality: bytes = b"") -> Wrap:
    head = _wifi(control, quality)
    return _each(
        lambda f: ethernet(ipv4(_udp(5247, CAPWAP_WIFI + head(_kind(f)) + f[HEAD:]), **OUTER))
    )


def _capwap_parts(size: int, order: Callable[[list[bytes]], Iterable[bytes]] = list) -> Wrap:
    """Cut up by CAPWAP itself, RFC 5415 §3.4. size: bytes of each part, a multiple of 8."""

    def make(frame: Frame) -> list[Frame]:
        whole = _wifi(b"\x08\x01")(_kind(frame.data)) + frame.data[HEAD:]
        identity, parts = next(_identities) & 0xFFFF, []
        for at in range(0, len(whole), size):
            flags = 0x80 | (0x40 if at + size >= len(whole) else 0)
            head = struct.pack(">BBBBHH", 0, 0x10, 0x03, flags, identity, at)
            parts.append(head + whole[at : at + size])
        return [
            Frame(frame.time_ns, ethernet(ipv4(_udp(5247, part), **OUTER))) for part in order(parts)
        ]

    return make


WRAPPINGS: dict[str, Wrapping] = {
    "NULL": Wrapping(0, _link(lambda kind: b"\x02\0\0\0")),
    "LOOP": Wrapping(108, _link(lambda kind: b"\0\0\0\x02")),
    "RAW": Wrapping(101, _link(lambda kind: b"")),
    "RAW of BSD": Wrapping(12, _link(lambda kind: b"")),
    "cooked": Wrapping(113, _link(lambda kind: struct.pack(">HHHQ", 0, 1, 6, 0) + kind)),
    "cooked 2": Wrapping(
        276, _link(lambda kind: kind + struct.pack(">HIHBBQ", 0, 1, 1, 0, 6, 0))
    ),
    "HDLC": Wrapping(104, _link(lambda kind: b"\x0f\0" + kind)),
    "PPP": Wrapping(9, _link(lambda kind: b"\xff\x03\0\x21")),
    "PPP, compressed": Wrapping(9, _link(lambda kind: b"\x21")),
    "ERF": Wrapping(197, _each(lambda frame: ERF + b"\0\0" + frame)),
    "ERF, extended": Wrapping(
        197,
        _each(lambda frame: ERF_EXTENDED + frame),
    ),
    "VLAN": Wrapping(1, _tag((0x8100, 7))),
    "QinQ": Wrapping(1, _tag((0x88A8, 1), (0x8100, 2))),
    "QinQ of old": Wrapping(1, _tag((0x9100, 1), (0x8100, 2))),
    "five tags": Wrapping(1, _tag(*[(0x8100, vlan) for vlan in range(5)])),
    "VN-Tag": Wrapping(1, _each(lambda f: f[:12] + b"\x89\x26\0\1\0\2" + f[12:])),
    "PPPoE": Wrapping(1, _each(_pppoe)),
    "MPLS": Wrapping(1, _each(lambda f: f[:12] + b"\x88\x47" + LABELS + f[HEAD:])),
    "pseudowire": Wrapping(1, _each(lambda f: f[:12] + b"\x88\x47" + LABELS + MACS + f[12:])),
    "pseudowire from 46:…": Wrapping(
        1, _each(lambda f: f[:12] + b"\x88\x47" + LABELS + MACS[6:] + MACS[:6] + f[12:])
    ),
    "pseudowire with control word": Wrapping(
        1, _each(lambda f: f[:12] + b"\x88\x47" + LABELS + b"\0\0\0\1" + MACS + f[12:])
    ),
    "Cisco MetaData": Wrapping(1, _each(lambda f: f[:12] + b"\x89\x09\1\1\0\1\0\7" + f[12:])),
    "Cisco MetaData behind a tag": Wrapping(
        1, _each(lambda f: f[:12] + b"\x81\0\0\7\x89\x09\1\1\0\1\0\7" + f[12:])
    ),
    "MAC in MAC": Wrapping(
        1, _each(lambda f: MACS + b"\x88\xa8\0\1\x88\xe7" + b"\0\0\0\5" + f)
    ),
    "NSH": Wrapping(
        1, _each(lambda f: MACS + b"\x89\x4f" + b"\x0f\xc6\1\3\0\0\1\xff" + bytes(16) + f)
    ),
    "IPv4 options": Wrapping(1, _each(_options)),
    "authentication header": Wrapping(1, _each(_authenticated)),
    "IP in IP": Wrapping(1, _in_ip(4, skip=HEAD)),
    "4 in 6": Wrapping(
        1, _each(lambda f: ethernet(ipv6(f[HEAD:], *OUTER6, following=4), 0x86DD))
    ),
    "4 in 6 in 4": Wrapping(
        1, _each(lambda f: ethernet(ipv4(ipv6(f[HEAD:], *OUTER6, following=4), protocol=41)))
    ),
    "extension headers": Wrapping(
        1,
        _each(
            lambda f: ethernet(
                ipv6(b"\x3c\0" + bytes(6) + b"\x04\1" + bytes(14) + f[HEAD:], *OUTER6, following=0),
                0x86DD,
            )
        ),
    ),
    "GRE": Wrapping(1, _in_ip(47, _gre(0, 0x0800), HEAD)),
    "GRE with checksum, key, sequence": Wrapping(
        1, _in_ip(47, _gre(0xB000, 0x0800, 0, 5, 9), HEAD)
    ),
    "GRE of Ethernet": Wrapping(1, _in_ip(47, _gre(0, 0x6558))),
    "ERSPAN I": Wrapping(1, _in_ip(47, _gre(0, 0x88BE))),
    "ERSPAN II": Wrapping(1, _in_ip(47, _gre(0x1000, 0x88BE, 1) + ERSPAN2)),
    "ERSPAN III": Wrapping(1, _in_ip(47, _gre(0x1000, 0x22EB, 1) + ERSPAN3)),
    "ERSPAN III with subheader": Wrapping(
        1, _in_ip(47, _gre(0x1000, 0x22EB, 1) + ERSPAN3_SUBHEADER)
    ),
    "ERSPAN III of IP": Wrapping(1, _in_ip(47, _gre(0x1000, 0x22EB, 1) + ERSPAN3_IP, HEAD)),
    "VXLAN": Wrapping(1, _in_udp(4789, VXLAN)),
    "VXLAN with group policy": Wrapping(1, _in_udp(4789, VXLAN_GROUP)),
    "GENEVE": Wrapping(1, _in_udp(6081, GENEVE)),
    "VXLAN-GPE": Wrapping(1, _in_udp(4790, b"\x0c\0\0\3" + b"\0\0\x2a\0")),
    "MPLS in UDP": Wrapping(1, _in_udp(6635, LABELS, HEAD)),
    "EtherIP": Wrapping(1, _in_ip(97, b"\x30\0")),
    "L2TP": Wrapping(1, _in_udp(1701, b"\0\2\0\7\0\x09" + b"\xff\3\0\x21", HEAD)),
    "L2TP with length, sequence, offset": Wrapping(
        1,
        _in_udp(1701, b"\x4a\2\0\0\0\7\0\x09\0\1\0\2\0\2\0\0" + b"\0\x21", HEAD),
    ),
    "L2TPv3": Wrapping(1, _in_ip(115, b"\0\0\0\x09")),
    "L2TPv3 with cookie and sublayer": Wrapping(
        1, _in_ip(115, b"\0\0\0\x09" + b"\xc0\x0c" * 4 + b"\x40\0\0\1")
    ),
    "CAPWAP": Wrapping(1, _in_udp(5247, CAPWAP)),
    "CAPWAP of Wi-Fi": Wrapping(1, _in_capwap(b"\x08\x01")),
    "CAPWAP of Wi-Fi, Cisco": Wrapping(1, _in_capwap(b"\x01\x88", b"\6\0")),
    "CAPWAP, cut up": Wrapping(1, _capwap_parts(96)),
    "CAPWAP, cut up, last one first": Wrapping(1, _capwap_parts(96, lambda parts: parts[::-1])),
    "TZSP": Wrapping(1, _in_udp(37008, TZSP)),
    "GTP-U": Wrapping(1, _gtp(0)),
    "GTP-U with extension": Wrapping(1, _gtp(4, b"\x01\x10\x09\0")),
    "GTP-U with sequence": Wrapping(1, _gtp(2)),
    "HEP2": Wrapping(1, _hep2),
    "HEP3": Wrapping(1, _hep3()),
    "HEP3, compressed": Wrapping(1, _hep3(compress=True)),
    "GRE in VXLAN in QinQ": Wrapping(
        1,
        then(
            _in_ip(47, _gre(0, 0x0800), HEAD), _in_udp(4789, VXLAN), _tag((0x88A8, 1), (0x8100, 2))
        ),
    ),
    "fragments": Wrapping(1, _cut_up(96)),
    "fragments, each twice": Wrapping(
        1, _cut_up(96, lambda parts: [each for part in parts for each in (part, part)])
    ),
    "fragments, last one first": Wrapping(1, _cut_up(96, lambda parts: parts[::-1])),
    "fragments in IPv6": Wrapping(1, _cut_up6(96)),
    "fragments in IPv6 with options": Wrapping(1, _cut_up6(96, b"\x04\1" + bytes(14))),
    "fragments behind an authentication header": Wrapping(
        1, then(_each(_authenticated), _cut_up(96))
    ),
    "fragments in VXLAN": Wrapping(1, then(_cut_up(96), _in_udp(4789, VXLAN))),
    "fragments of VXLAN": Wrapping(1, then(_in_udp(4789, VXLAN), _cut_up(96))),
    "fragments of VXLAN of fragments": Wrapping(
        1, then(_cut_up(96), _in_udp(4789, VXLAN), _cut_up(96))
    ),
}  # fmt: skip
COPIES: dict[str, Wrapping] = {
    "of each fragment": Wrapping(1, _cut_up(96, lambda parts: [*parts, *parts])),
    "both directions": Wrapping(1, _copied(lambda frame: frame, 5_000)),
    "in another VLAN": Wrapping(1, _copied(lambda f: f[:12] + b"\x81\0\0\7" + f[12:], 20_000)),
    "behind a router": Wrapping(1, _copied(routed, 400_000)),
    "in a tunnel as well": Wrapping(
        1, lambda frame: [frame, *_in_udp(4789, VXLAN)(Frame(frame.time_ns + 9_000, frame.data))]
    ),
}  # fmt: skip


def wrapped(frames: Iterable[Frame], wrap: Wrap) -> list[Frame]:
    """All frames of a call in these clothes, in order of time."""
    made = [outer for frame in frames for outer in wrap(frame)]
    return sorted(made, key=lambda frame: frame.time_ns)
