"""Frames in, columns out: which are RTP, which SIP, which take the slow path."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.rtp import RTP
from scapy.packet import Raw

from capture.model import Datagram, Endpoint
from capture.packets import rtpheader
from capture.packets.decode import Decoded, Decoder
from capture.packets.network import LINKS
from tests.support.frames import EPOCH, block, ethernet, ipv4, ipv6, rtp, udp

SIX = bytes(range(16)), bytes(range(16, 32))
SIP = b"OPTIONS sip:a@b SIP/2.0\r\nCall-ID: 1\r\n\r\n"


def decode(*frames: bytes, link_type: int = 1) -> Decoded:
    return Decoder().decode(block(frames, link_type))


def payloads(decoded: Decoded) -> list[bytes]:
    """As packets have them that surely are not encrypted."""
    packets = decoded.packets
    start, length, whole = packets.payload_start, packets.payload_length.copy(), packets.whole
    start[whole], length[whole], _ = rtpheader.payloads(
        packets.data, start[whole], length[whole], packets.truncated[whole]
    )
    columns = zip(start.tolist(), length.tolist(), strict=True)
    return [bytes(packets.data[start : start + length]) for start, length in columns]


def test_an_rtp_packet_becomes_a_row() -> None:
    packet = rtp(7, 1120, 0xCAFE, b"hello", 9, marker=True)
    packets = decode(ethernet(ipv4(udp(packet)))).packets
    assert packets.sequence.tolist() == [7]
    assert packets.timestamp.tolist() == [1120]
    assert packets.ssrc.tolist() == [0xCAFE]
    assert packets.payload_type.tolist() == [9]
    assert packets.marker.tolist() == [True]
    assert packets.time_ns.tolist() == [EPOCH]
    assert packets.truncated.tolist() == [False]


def test_what_scapy_forges_is_read_alike() -> None:
    inner = UDP(sport=1111, dport=2222) / RTP(
        sequence=65535, timestamp=2**32 - 1, sourcesync=0xFFFFFFFF, payload_type=127, marker=1
    )
    frames = [
        Ether() / IP(src="192.0.2.1", dst="192.0.2.2") / inner / Raw(b"four"),
        Ether() / Dot1Q(vlan=5) / IP(src="192.0.2.1", dst="192.0.2.2") / inner / Raw(b"tagged"),
        Ether() / IPv6(src="2001:db8::1", dst="2001:db8::2") / inner / Raw(b"six"),
        Ether() / Dot1Q() / Dot1Q() / IPv6(src="2001:db8::1", dst="2001:db8::2") / inner / b"q",
    ]  # fmt: skip
    decoded = decode(*map(bytes, frames))
    assert payloads(decoded) == [b"four", b"tagged", b"six", b"q"]
    assert set(decoded.packets.sequence.tolist()) == {65535}
    assert set(decoded.packets.ssrc.tolist()) == {0xFFFFFFFF}
    ends = [tuple(map(str, decoded.endpoints(row))) for row in range(4)]
    assert ends[:2] == 2 * [("192.0.2.1:1111", "192.0.2.2:2222")]
    assert ends[2:] == 2 * [("[2001:db8::1]:1111", "[2001:db8::2]:2222")]


def test_ipv4_keys_are_address_and_port() -> None:
    packets = decode(ethernet(ipv4(udp(rtp(), 4000, 5000)))).packets
    assert packets.source_key.tolist() == [0x0A000001 << 16 | 4000]
    assert packets.destination_key.tolist() == [0x0A000002 << 16 | 5000]


def test_ipv6_keys_differ_where_addresses_or_ports_do() -> None:
    other = bytes([*SIX[0][:15], 99])
    frames = [
        ethernet(ipv6(udp(rtp(), source, 5000), address, SIX[1]), 0x86DD)
        for address in (SIX[0], other)
        for source in (4000, 4001)
    ]
    packets = decode(*frames).packets
    assert len(set(packets.source_key.tolist())) == 4
    assert len(set(packets.destination_key.tolist())) == 1
    assert (packets.source_key >> np.uint64(63) == 1).all()


@pytest.mark.parametrize(
    ("link_type", "header"),
    [
        (0, struct.pack("=I", 2)),
        (12, b""),
        (101, b""),
        (108, struct.pack(">I", 2)),
        (113, bytes(14) + b"\x08\x00"),
        (276, b"\x08\x00" + bytes(18)),
        (228, b""),
    ],
)
def test_other_link_layers(link_type: int, header: bytes) -> None:
    frame = header + ipv4(udp(rtp(payload=b"a voice")))
    assert payloads(decode(frame, link_type=link_type)) == [b"a voice"]


def test_csrcs_extension_and_padding_are_no_sound() -> None:
    decoded = decode(
        *(
            ethernet(ipv4(udp(each)))
            for each in (
                rtp(payload=b"plain"),
                rtp(payload=b"csrcs", csrcs=(1, 2, 3)),
                rtp(payload=b"extended", extension=b"12345678"),
                rtp(payload=b"empty extension", extension=b""),
                rtp(payload=b"padded", padding=b"\0\0\0\x04"),
                rtp(payload=b"all", csrcs=(9,), extension=b"word", padding=b"\0\x02"),
                rtp(payload=b""),
                rtp(payload=b"", padding=b"\0\0\x03"),
            )
        )
    )
    assert payloads(decoded) == [
        b"plain", b"csrcs", b"extended", b"empty extension", b"padded", b"all", b"", b"",
    ]  # fmt: skip


def test_an_impossible_padding_count_leaves_the_payload_as_it_is() -> None:
    frames = [ethernet(ipv4(udp(rtp(payload=b"so", padding=count)))) for count in (b"\0", b"\x09")]
    assert payloads(Decoder().decode(block(frames))) == [b"so\0", b"so\x09"]


@pytest.mark.parametrize(
    "packet",
    [
        rtp()[:11],  # too short for a header
        rtp(payload=b"", csrcs=range(15))[:40],  # CSRCs that are not there
        bytes([0x90]) + rtp(payload=b"")[1:],  # extension that is not there
        bytes([0x90]) + rtp(payload=b"\0\0\xff\xff")[1:],  # or longer than the packet
        bytes([0x40]) + rtp()[1:],  # version 1
        bytes([0x80, 200]) + bytes(26),  # RTCP sender report
        bytes([0x81, 207]) + bytes(26),  # RTCP extended report
    ],
)
def test_what_cannot_be_rtp_is_not(packet: bytes) -> None:
    decoded = decode(ethernet(ipv4(udp(packet))))
    assert not len(decoded.packets.ssrc)
    assert not decoded.refused.count


def test_rtcp_is_told_by_its_second_byte_and_only_by_it() -> None:
    frames = [
        ethernet(ipv4(udp(bytes([0x80, second]) + rtp(payload=b"x")[2:])))
        for second in (191, 192, 223, 224)
    ]
    decoder = Decoder()
    packets = decoder.decode(block(frames)).packets
    assert (packets.payload_type | packets.marker * np.uint8(128)).tolist() == [191, 224]
    assert decoder.counters["rtcp"] == 2


def test_ip_and_udp_lengths_are_believed_not_the_frames() -> None:
    trailer = ethernet(ipv4(udp(rtp(payload=b"short"))) + b"ethernet pads")
    behind_udp = ethernet(ipv4(udp(rtp(payload=b"short")) + b"behind"))
    beyond_ip = bytearray(ethernet(ipv4(udp(rtp(payload=b"short")))))
    beyond_ip[14 + 24 : 14 + 26] = struct.pack(">H", 999)  # a UDP length that lies
    assert payloads(decode(trailer, behind_udp, bytes(beyond_ip))) == 3 * [b"short"]


def test_a_frame_cut_by_the_snap_length_is_marked() -> None:
    whole = ethernet(ipv4(udp(rtp(payload=b"cut in the middle"))))
    decoded = decode(whole[:-7], whole, whole[: 14 + 28 + 12])
    assert payloads(decoded) == [b"cut in the", b"cut in the middle", b""]
    assert decoded.packets.truncated.tolist() == [True, False, True]


def test_sip_is_known_by_content_on_any_port() -> None:
    frames = [
        ethernet(ipv4(udp(SIP, 39999, 12345))),
        ethernet(ipv4(udp(b"SIP/2.0 200 OK\r\n\r\n"))),
        ethernet(ipv4(udp(b"\r\n\r\n" + SIP))),
        ethernet(ipv6(udp(SIP), *SIX), 0x86DD),
        ethernet(ipv4(udp(b"\r\n\r\n"))),  # a keepalive
        ethernet(ipv4(udp(b"GET / HTTP/1.1\r\n\r\n"))),
        ethernet(ipv4(udp(b"another protocol at the port of SIP", 5060, 5060))),
    ]
    decoder = Decoder()
    signalling = decoder.decode(block(frames)).signalling
    assert [each.payload for each in signalling] == [
        SIP, b"SIP/2.0 200 OK\r\n\r\n", b"\r\n\r\n" + SIP, SIP,
    ]  # fmt: skip
    first = signalling[0]
    assert (str(first.source), str(first.destination)) == ("10.0.0.1:39999", "10.0.0.2:12345")
    assert signalling[3].source == Endpoint(SIX[0], 4000)
    assert decoder.counters["sip"] == 4
    assert decoder.counters["not_rtp"] == 3


def test_what_takes_the_slow_path_is_told_by_row() -> None:
    frames = [
        ethernet(ipv4(udp(rtp()))),
        ethernet(ipv4(bytes(20), protocol=6)),
        ethernet(ipv4(udp(rtp()), fragment=0x2000)),
        ethernet(ipv4(udp(rtp()), fragment=0x00B9)),
        ethernet(ipv4(udp(rtp()), options=bytes(4))),
        ethernet(ipv4(udp(rtp()), fragment=0x4000)),  # don't fragment: plain
        ethernet(ipv4(bytes(30), protocol=47)),
        ethernet(ipv6(bytes(30), *SIX, following=44), 0x86DD),
        ethernet(ipv6(bytes(30), *SIX, following=0), 0x86DD),
        ethernet(bytes(30), 0x8864),  # PPPoE
        ethernet(ipv4(udp(b"\x08\0\0\0" + bytes(30), 1, 4789))),  # VXLAN
        ethernet(ipv4(udp(rtp(), 1, 4789))),  # no VXLAN
    ]
    decoded = decode(*frames)
    assert decoded.refused.rows.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert decoded.packets.frame.tolist() == [0, 5, 11]


def test_what_carries_no_call_is_counted_and_left() -> None:
    frames = [
        ethernet(bytes(46), 0x0806),
        bytes(12) + b"\0\x26" + bytes(38),  # spanning tree
        b"short",
        ethernet(ipv4(bytes(8), protocol=1)),
        ethernet(ipv6(bytes(8), *SIX, following=58), 0x86DD),
    ]
    decoder = Decoder()
    decoded = decoder.decode(block(frames))
    assert not decoded.refused.count
    assert decoder.counters["not_ip"] == 3
    assert decoder.counters["other_ip"] == 2


def test_a_link_type_we_do_not_know_is_refused_altogether() -> None:
    assert decode(b"abc", b"def", link_type=195).refused.rows.tolist() == [0, 1]


def test_merged_packets_are_noticed() -> None:
    decoder = Decoder()
    decoder.decode(block([ethernet(ipv4(udp(rtp(payload=bytes(1720)))))]))
    assert decoder.counters["oversized"] == 1


def test_order_of_arrival_survives_a_mixture() -> None:
    frames = [
        ethernet(ipv6(udp(rtp(number)), *SIX), 0x86DD)
        if number % 3
        else ethernet(ipv4(udp(rtp(number))), tags=[(0x8100, 7)] if number % 2 else [])
        for number in range(30)
    ]
    packets = decode(*frames).packets
    assert packets.sequence.tolist() == list(range(30))
    assert packets.frame.tolist() == list(range(30))
    assert (np.diff(packets.time_ns) > 0).all()


def test_what_the_slow_path_found_comes_back_as_if_it_had_been_plain() -> None:
    decoder = Decoder(seed=1)
    four = Endpoint(bytes([10, 0, 0, 1]), 4000), Endpoint(bytes([10, 0, 0, 2]), 5000)
    six = Endpoint(SIX[0], 4000), Endpoint(SIX[1], 5000)
    plain = decoder.decode(
        block([ethernet(ipv4(udp(rtp()))), ethernet(ipv6(udp(rtp()), *SIX), 0x86DD)])
    )
    admitted = decoder.admit(
        [
            Datagram(1, *four, rtp(payload=b"one"), "udp"),
            Datagram(2, *six, rtp(payload=b"two", csrcs=(5,)), "udp"),
            Datagram(3, *four, SIP, "udp"),
            Datagram(2, *four, SIP, "tcp"),
            Datagram(4, *four, b"", "udp"),
        ]
    )
    assert payloads(admitted) == [b"one", b"two"]
    assert admitted.packets.source_key.tolist() == plain.packets.source_key.tolist()
    assert admitted.packets.destination_key.tolist() == plain.packets.destination_key.tolist()
    assert [admitted.endpoints(row) for row in range(2)] == [four, six]
    assert [(each.time_ns, each.transport) for each in admitted.signalling] == [
        (2, "tcp"), (3, "udp"),
    ]  # fmt: skip


def test_nothing_to_admit_is_nothing() -> None:
    assert not len(Decoder().admit([]).packets.ssrc)


frames_of = st.lists(
    st.one_of(
        st.binary(max_size=120),
        st.binary(max_size=60).map(lambda data: ethernet(ipv4(udp(data)))),
        st.binary(max_size=60).map(lambda data: ethernet(ipv4(udp(b"\x90\x80" + data)))),
        st.binary(max_size=60).map(lambda data: ethernet(ipv6(udp(data), *SIX), 0x86DD)),
        st.binary(max_size=60).map(lambda data: ethernet(data, 0x8100)),
        st.binary(max_size=60).map(lambda data: ethernet(data)),
    ),
    max_size=12,
)


@settings(max_examples=400, deadline=None)
@given(frames=frames_of, link_type=st.sampled_from([*LINKS, 195]), gap=st.binary(max_size=3))
def test_arbitrary_frames_raise_nothing(frames: list[bytes], link_type: int, gap: bytes) -> None:
    given_block = block(frames, link_type, gap=gap)
    decoder = Decoder()
    decoded = decoder.decode(given_block)
    packets = decoded.packets
    end = packets.payload_start + packets.payload_length
    frame_end = given_block.start + given_block.length
    assert (packets.payload_length >= 0).all()
    heard = packets.payload_length > 0
    assert (end[heard] <= frame_end[packets.frame[heard]]).all()
    for row in range(len(packets.ssrc)):
        decoded.endpoints(row)


@settings(max_examples=200, deadline=None)
@given(payloads_=st.lists(st.binary(max_size=40), max_size=6))
def test_arbitrary_datagrams_raise_nothing(payloads_: list[bytes]) -> None:
    end = Endpoint(bytes(4), 1)
    Decoder().admit([Datagram(0, end, end, each, "udp") for each in payloads_])
