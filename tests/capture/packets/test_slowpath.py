"""Frames that the fast path refuses: whatever lies around a datagram is peeled off."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III
from scapy.contrib.geneve import GENEVE
from scapy.contrib.mpls import MPLS
from scapy.contrib.tzsp import TZSP, TZSPTagEnd
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP, IPOption_Router_Alert, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from capture.model import Block, Datagram
from capture.packets.slowpath import SlowPath
from tests.support.callgen import START_NS, Frame
from tests.support.frames import ethernet, ipv4, udp
from tests.support.wrapping import WRAPPINGS

SECOND = 1_000_000_000
MAC = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}
ETHER = Ether(**MAC)
OUTER = ETHER / IP(src="203.0.113.1", dst="203.0.113.2")
MESSAGE = b"BYE sip:b@x SIP/2.0\r\nCall-ID: 1\r\nContent-Length: 0\r\n\r\n"
INNER = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=5060, dport=5070) / Raw(MESSAGE)
INNER6 = IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=5060, dport=5070) / Raw(MESSAGE)


def block(*frames: Packet | bytes, link_type: int = 1, times: list[int] | None = None) -> Block:
    """Frames a second apart, or at times given in nanoseconds."""
    data = [bytes(frame) for frame in frames]
    length = np.array([len(frame) for frame in data], np.int64)
    start = np.concatenate(([0], np.cumsum(length)[:-1])).astype(np.int64)
    when = times or [number * SECOND for number in range(1, len(data) + 1)]
    return Block(
        data=np.frombuffer(b"".join(data), np.uint8).copy(),
        start=start,
        length=length,
        original=length,
        time_ns=np.array(when, np.int64),
        link_type=link_type,
    )


def receive(*frames: Packet | bytes, link_type: int = 1, path: SlowPath | None = None):
    """All datagrams that these frames carry."""
    return (path or SlowPath()).receive(block(*frames, link_type=link_type), range(len(frames)))


def parts(found: list[Datagram]) -> list[tuple[str, str, bytes]]:
    return [(str(each.source), str(each.destination), each.payload) for each in found]


PLAIN = [("10.0.0.1:5060", "10.0.0.2:5070", MESSAGE)]
PLAIN6 = [("[fd00::1]:5060", "[fd00::2]:5070", MESSAGE)]

WRAPPED = {
    "plain": ETHER / INNER,
    "VLAN": ETHER / Dot1Q(vlan=7) / INNER,
    "QinQ": ETHER / Dot1AD(vlan=1) / Dot1Q(vlan=2) / INNER,
    "PPPoE": ETHER / PPPoE(sessionid=1) / PPP(proto=0x21) / INNER,
    "MPLS": ETHER / MPLS(label=1, s=0, ttl=9) / MPLS(label=2, s=1, ttl=9) / INNER,
    "IPv4 options": ETHER
    / IP(src="10.0.0.1", dst="10.0.0.2", options=[IPOption_Router_Alert()])
    / INNER[UDP],
    "IP in IP": OUTER / INNER,
    "GRE": OUTER / GRE() / INNER,
    "GRE with key, sequence, checksum": OUTER
    / GRE(key_present=1, key=5, seqnum_present=1, sequence_number=9, chksum_present=1)
    / INNER,
    "GRE of Ethernet": OUTER / GRE(proto=0x6558) / ETHER / INNER,
    "ERSPAN I": OUTER / GRE(proto=0x88BE) / Raw(bytes(ETHER / INNER)),
    "ERSPAN II": OUTER
    / GRE(proto=0x88BE, seqnum_present=1, sequence_number=1)
    / ERSPAN_II()
    / ETHER
    / INNER,
    "ERSPAN III": OUTER
    / GRE(proto=0x22EB, seqnum_present=1, sequence_number=1)
    / ERSPAN_III()
    / ETHER
    / INNER,
    "VXLAN": OUTER / UDP(sport=1, dport=4789) / VXLAN(vni=42, flags=8) / ETHER / INNER,
    "GENEVE": OUTER / UDP(sport=1, dport=6081) / GENEVE(proto=0x6558) / ETHER / INNER,
    "TZSP": OUTER / UDP(sport=1, dport=37008) / TZSP() / TZSPTagEnd() / ETHER / INNER,
    "GRE in VXLAN in QinQ": ETHER
    / Dot1AD(vlan=1)
    / Dot1Q(vlan=2)
    / OUTER[IP]
    / UDP(sport=1, dport=4789)
    / VXLAN(flags=8)
    / OUTER
    / GRE()
    / INNER,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_peeled(name):
    assert parts(receive(WRAPPED[name])) == PLAIN


@pytest.mark.parametrize(
    "headers", [(), (IPv6ExtHdrHopByHop(),), (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt())]
)
def test_ipv6_with_extension_headers(headers):
    packet = ETHER / IPv6(src="fd00::1", dst="fd00::2")
    for header in headers:
        packet /= header
    assert parts(receive(packet / INNER6[UDP])) == PLAIN6


SLL = struct.pack("!HHHQH", 0, 1, 6, 0, 0x0800)
SLL2 = struct.pack("!HHIHBB8s", 0x0800, 0, 1, 1, 0, 6, b"")


@pytest.mark.parametrize(
    ("link_type", "head"),
    [(113, SLL), (276, SLL2), (0, b"\x02\0\0\0"), (108, b"\0\0\0\x02"), (101, b""), (12, b"")],
)
def test_link_types(link_type, head):
    assert parts(receive(head + bytes(INNER), link_type=link_type)) == PLAIN


def test_bytes_behind_the_ip_length_are_trailer():
    assert parts(receive(bytes(ETHER / INNER) + b"\xee" * 18)) == PLAIN


def test_what_pads_a_fragment_or_an_acknowledgement_is_no_part_of_it():
    padded = [bytes(piece) + b"\xee" * 18 for piece in PIECES]
    assert [found.payload for found in receive(*padded)] == [LONG]
    cuts = (
        segment(ONE + TWO[:900], 0),
        segment(b"", len(ONE) + 900),
        segment(TWO[900:], len(ONE) + 900),
    )
    assert payloads(*(bytes(each) + bytes(6) for each in cuts)) == [ONE, TWO]


def test_an_icmp_error_that_quotes_sip_is_no_sip():
    path = SlowPath()
    assert receive(OUTER / ICMP(type=3, code=3) / INNER, path=path) == []
    assert path.counters["frames_other"] == 1


def test_rtp_on_a_tunnels_port_is_no_tunnel():
    rtp = OUTER / UDP(sport=4000, dport=4789) / Raw(b"\x80\x00" + bytes(170))
    [found] = receive(rtp)
    assert (found.destination.port, len(found.payload)) == (4789, 172)


# --- fragments ------------------------------------------------------------------------------

LONG = MESSAGE + b"x" * 4000
WHOLE = IP(src="10.0.0.1", dst="10.0.0.2", id=7) / UDP(sport=5060, dport=5070) / Raw(LONG)
PIECES = [ETHER / piece for piece in fragment(WHOLE, fragsize=1480)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 0, 1, 1, 2)])
def test_fragments_in_any_order_and_twice(order):
    [found] = receive(*(PIECES[number] for number in order))
    assert found.payload == LONG


def test_fragments_inside_a_tunnel_and_of_the_tunnel_itself():
    tunnel = OUTER / UDP(sport=1, dport=4789) / VXLAN(flags=8)
    assert [found.payload for found in receive(*(tunnel / piece for piece in PIECES))] == [LONG]
    outer = OUTER[IP] / UDP(sport=1, dport=4789) / VXLAN(flags=8) / ETHER / WHOLE
    cut = [ETHER / piece for piece in fragment(outer, fragsize=1480)]
    assert [found.payload for found in receive(*cut)] == [LONG]


def test_ipv6_fragments():
    whole = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(id=9)
    whole /= UDP(sport=5060, dport=5070) / Raw(LONG)
    [found] = receive(*(ETHER / piece for piece in fragment6(whole, 1280)))
    assert found.payload == LONG


def test_two_hosts_may_share_an_identification():
    elsewhere = WHOLE.copy()
    elsewhere.dst = "10.0.0.3"
    others = [ETHER / piece for piece in fragment(elsewhere, fragsize=1480)]
    mixed = [piece for pair in zip(PIECES, others, strict=True) for piece in pair]
    assert [str(found.destination) for found in receive(*mixed)] == [
        "10.0.0.2:5070",
        "10.0.0.3:5070",
    ]


def test_fragments_that_overlap_are_dropped_and_counted():
    evil = PIECES[1].copy()
    evil[IP].frag -= 2
    path = SlowPath()
    assert receive(PIECES[0], evil, PIECES[2], path=path) == []
    assert path.counters["fragments_overlapping"] == 1


def test_a_first_fragment_that_the_snap_length_cut_is_given_as_it_is():
    path = SlowPath()
    cut = [bytes(piece)[:300] for piece in PIECES]
    [found] = receive(*cut, path=path)
    assert found.payload == LONG[: 300 - 14 - 20 - 8]
    assert found.missing == len(LONG) - len(found.payload)
    assert (path.counters["fragments_cut"], len(path._fragments)) == (3, 0)


def test_fragments_that_never_complete_are_forgotten():
    path = SlowPath()
    frames = [ETHER / IP(src="10.0.0.1", dst="10.0.0.2", id=n, flags="MF") / Raw(bytes(1480))
              for n in range(6000)]  # fmt: skip
    path.receive(block(*frames, times=[SECOND + n for n in range(6000)]), range(6000))
    assert len(path._fragments) == 2048
    assert path.counters["fragments_evicted"] == 6000 - 2048
    receive(PIECES[0], *PIECES, path=path)
    late = block(*PIECES, times=[100 * SECOND] * 3)
    assert len(path.receive(late, range(3))) == 1
    assert len(path._fragments) == 0


# --- SIP over TCP ---------------------------------------------------------------------------


def segment(data: bytes, sequence: int, flags: str = "A") -> Packet:
    """From the phone to the server, sequence counted from 1000."""
    ends = {"sport": 40000, "dport": 5060}
    return (
        ETHER
        / IP(src="10.0.0.1", dst="10.0.0.2")
        / TCP(**ends, seq=(1000 + sequence) & 0xFFFFFFFF, flags=flags)
        / Raw(data)
    )


def bodied(number: int, body: bytes = b"v=0\r\n") -> bytes:
    head = f"INVITE sip:b@x SIP/2.0\r\nCall-ID: {number}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


ONE, TWO, THREE = bodied(1), bodied(2, b"v=0\r\n" * 400), bodied(3)


def payloads(*frames: Packet) -> list[bytes]:
    return [found.payload for found in receive(*frames)]


def test_several_messages_in_one_segment_and_keepalives_between():
    assert payloads(segment(ONE + b"\r\n\r\n" + THREE, 0)) == [ONE, THREE]


def test_one_message_in_several_segments():
    cuts = [TWO[:30], TWO[30:900], TWO[900:]]
    offsets = [0, 30, 900]
    frames = [segment(part, at) for part, at in zip(cuts, offsets, strict=True)]
    # A stream is only taken up where a start line is whole.
    assert payloads(segment(ONE, -len(ONE)), *frames) == [ONE, TWO]


def test_segments_out_of_order_and_again():
    first, second = segment(TWO[:900], len(ONE)), segment(TWO[900:], len(ONE) + 900)
    frames = (segment(ONE, 0), second, first, first, second)
    assert payloads(*frames, segment(THREE, len(ONE + TWO))) == [ONE, TWO, THREE]


def test_a_connection_is_taken_up_in_the_middle():
    tail = b"half a header\r\n\r\n" + ONE
    assert payloads(segment(tail, 5000), segment(THREE, 5000 + len(tail))) == [ONE, THREE]


def test_a_missing_segment_loses_only_what_it_held():
    frames, at = [segment(ONE, 0)], len(ONE) + 1448
    for number in range(70):
        data = bodied(number)
        frames.append(segment(data, at))
        at += len(data)
    assert payloads(*frames)[-1] == bodied(69)


def test_a_new_connection_on_the_same_ports():
    frames = (segment(ONE, 0), segment(b"", 77777, "S"), segment(THREE, 77778))
    assert payloads(*frames) == [ONE, THREE]


def test_sequence_numbers_wrap():
    start = (1 << 32) - 1000 - 20
    assert payloads(segment(ONE, start), segment(THREE, start + len(ONE))) == [ONE, THREE]


def test_a_content_length_that_lies_costs_one_message():
    lie = ONE.replace(b"Content-Length: 5", b"Content-Length: x")
    assert payloads(segment(lie + THREE, 0)) == [THREE]


def test_a_segment_that_the_snap_length_cut_ends_its_message_and_no_other():
    whole = bytes(segment(ONE + TWO, 0))
    short = whole[: 14 + 40 + len(ONE) + 100]
    [one, cut, three] = receive(short, segment(THREE, len(ONE + TWO)))
    assert (one.payload, one.missing) == (ONE, 0)
    assert (cut.payload, cut.missing) == (TWO[:100], len(TWO) - 100)
    assert three.payload == THREE


def test_other_peoples_connections_take_no_memory():
    path = SlowPath()
    for number in range(50):
        frame = segment(b"GET / HTTP/1.1\r\n\r\n" * 50, 0)
        frame[TCP].sport = 1024 + number
        receive(frame, path=path)
    assert len(path._tcp) == 0


# --- abuse ----------------------------------------------------------------------------------


def test_a_flood_of_odd_frames_is_bounded_by_packet_time():
    path = SlowPath(frames_per_second=8)
    frames = [ETHER / INNER] * 25
    # The block's own second, and a quarter of one that was saved.
    found = path.receive(block(*frames, times=[SECOND] * 24 + [2 * SECOND]), range(25))
    assert (len(found), path.counters["flood_dropped"]) == (10, 15)
    assert path.counters["frames"] == 10


@given(st.binary(max_size=200), st.sampled_from([1, 0, 9, 12, 51, 113, 276, 147]))
def test_any_bytes_are_survived(data, link_type):
    receive(data or b"\0", link_type=link_type)


CLOTHES = [
    (link_type, frame.data)
    for link_type, wrap in WRAPPINGS.values()
    for frame in wrap(Frame(START_NS, bytes(ETHER / INNER)))
]


@given(st.sampled_from(CLOTHES), st.integers(0, 200), st.integers(0, 255))
def test_any_damaged_header_is_survived(clothes, at, value):
    link_type, whole = clothes
    frame = bytearray(whole)
    frame[at % len(frame)] = value
    cut = bytes(frame[: at % len(frame) + 1])
    receive(bytes(frame), cut, link_type=link_type)


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 200), st.booleans()), max_size=30))
def test_any_fragments_are_survived(pieces):
    head = {"src": "10.0.0.1", "dst": "10.0.0.2", "id": 1}
    path = SlowPath()
    for offset, size, more in pieces:
        packet = IP(**head, frag=offset, flags="MF" if more else 0) / Raw(bytes(size))
        receive(ETHER / packet, path=path)
    assert path._fragments._bytes == sum(each.size for each in path._fragments._partials.values())


@given(st.lists(st.tuples(st.sampled_from([ONE, TWO, THREE, b"x\r\n"]), st.integers(0, 5000))))
def test_any_segments_are_survived(segments):
    path = SlowPath()
    for data, at in segments:
        receive(segment(data, at), path=path)


def test_parts_that_two_access_points_cut_off_under_one_number_do_not_mix():
    """CAPWAP numbers them for itself: whose they are, the outer addresses tell."""
    wrap = WRAPPINGS["CAPWAP, cut up"].wrap
    apart = []
    for host in (1, 2):
        inner = ethernet(ipv4(udp(b"INVITE sip:a SIP/2.0\r\n" + bytes([64 + host]) * 400)))
        parts = [part.data for part in wrap(Frame(0, inner))]
        apart.append([_numbered(part, host) for part in parts])
    mixed = [part for pair in zip(*apart, strict=True) for part in pair]
    found = SlowPath().receive(block(*mixed), range(len(mixed)))
    assert [each.payload[-1] for each in found] == [65, 66]
    assert {len(each.payload) for each in found} == {422}


def _numbered(part: bytes, host: int) -> bytes:
    """A part from this access point, under one number."""
    capwap = 14 + 20 + 8
    return part[:29] + bytes([host]) + part[30 : capwap + 4] + b"\0\7" + part[capwap + 6 :]
