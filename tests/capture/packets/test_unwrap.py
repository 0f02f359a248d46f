"""Tunnels peeled off a block at a time: whatever the loop over frames finds, and no loop."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.packets.decode import Decoder
from capture.packets.linktypes import OF_LINKS
from capture.packets.network import Network
from capture.packets.slowpath import SlowPath
from capture.packets.tunnels import DECAPSULATORS
from capture.packets.unwrap import CODES, STEPS
from tests.support.callgen import START_NS, Frame
from tests.support.frames import block, ethernet, ipv4, ipv6, rtp, udp
from tests.support.wrapping import WRAPPINGS

IN_A_LOOP = {
    "TZSP", "HEP2", "HEP3", "HEP3, compressed", "IPv4 options", "authentication header", "NSH",
    "VXLAN-GPE", "L2TP", "L2TP with length, sequence, offset", "L2TPv3",
    "L2TPv3 with cookie and sublayer", "CAPWAP", "CAPWAP of Wi-Fi", "CAPWAP of Wi-Fi, Cisco",
    "CAPWAP, cut up", "CAPWAP, cut up, last one first",
}  # fmt: skip
TUNNELS = [
    name for name, each in WRAPPINGS.items() if each.link_type == 1 and "fragments" not in name
]
SIX = (bytes.fromhex("fd" + "00" * 14 + "01"), bytes.fromhex("fd" + "00" * 14 + "02"))
OK = b"SIP/2.0 200 OK\r\nCall-ID: 1\r\nContent-Length: 0\r\n\r\n"
TCP = bytes.fromhex("13c413c4 00000001 00000000 50180400 00000000")
PACKETS = [
    ipv4(udp(rtp(payload=bytes(160)))),
    ipv4(udp(rtp(payload=b"sound" * 30, csrcs=(1, 2), extension=bytes(8), padding=b"\0\0\3"))),
    ipv4(udp(OK, 5060, 5060)),
    ipv4(TCP + OK, protocol=6),
    ipv4(TCP + b"GET / HTTP/1.1\r\n\r\n", protocol=6),
    ipv4(udp(rtp())[:20], fragment=0x2000),
    ipv4(udp(rtp()), options=b"\x94\x04\0\0"),
    ipv4(udp(rtp(), 1, 4789)),  # no VXLAN, for all its port
    ipv4(bytes(8), protocol=1),
    ipv6(udp(rtp(payload=bytes(80))), *SIX),
    ipv6(b"\x11\0" + bytes(6) + udp(rtp()), *SIX, following=0),
]


def dressed(packet: bytes, *names: str) -> list[bytes]:
    """A packet in its Ethernet frame in one wrapping in another."""
    frames = [Frame(START_NS, ethernet(packet, 0x86DD if packet[0] >> 4 == 6 else 0x0800))]
    for name in names:
        frames = [outer for frame in frames for outer in WRAPPINGS[name].wrap(frame)]
    return [frame.data for frame in frames]


def told(datagrams) -> list[tuple]:
    return sorted(each[1:6] for each in datagrams if each.payload)


def in_blocks(frames: list[bytes], link_type: int = 1) -> list[tuple]:
    """All datagrams: what is plain, and what the slow path makes of the rest."""
    taken = block(frames, link_type)
    network = Network(Counter())
    found, plain, refused = network.decode(taken)
    datagrams = []
    for row in np.flatnonzero(plain).tolist():
        payload = bytes(found.data[found.start[row] : found.limit[row]])
        missing = int(found.end[row] - found.limit[row])
        if payload:
            datagrams.append((*found.endpoints(row), payload, "udp", missing))
    slow = SlowPath(None).receive(taken, refused.rows, refused.inner)
    return sorted([*datagrams, *told(slow)])


def in_a_loop(frames: list[bytes], link_type: int = 1) -> list[tuple]:
    return told(SlowPath(None).receive(block(frames, link_type), range(len(frames))))


@pytest.mark.parametrize("name", [name for name in TUNNELS if name not in IN_A_LOOP])
def test_no_tunnel_takes_a_loop(name: str) -> None:
    decoder = Decoder()
    frames = [each for packet in PACKETS[:3] for each in dressed(packet, name)]
    decoded = decoder.decode(block(frames))
    extended = name == "extension headers"
    assert decoded.refused.count == (3 if extended else 0)
    assert (len(decoded.packets.ssrc), len(decoded.signalling)) == ((0, 0) if extended else (2, 1))


@pytest.mark.parametrize("name", TUNNELS)
@pytest.mark.parametrize("link_type", [0, 1, 101, 113, 276])
def test_each_tunnel_holds_what_the_loop_finds_in_it(name: str, link_type: int) -> None:
    frames = [each for packet in PACKETS for each in dressed(packet, name)]
    if link_type != 1:
        head = {0: b"\2\0\0\0", 101: b"", 113: bytes(14) + b"\x08\0", 276: b"\x08\0" + bytes(18)}
        frames = [head[link_type] + each[14:] for each in frames if each[12:14] == b"\x08\0"]
    assert in_blocks(frames, link_type) == in_a_loop(frames, link_type)


FRAMES = st.builds(
    lambda packet, names: dressed(packet, *names),
    st.sampled_from(PACKETS),
    st.lists(st.sampled_from(TUNNELS), max_size=4),
)


@given(st.lists(FRAMES, min_size=1, max_size=12), st.randoms())
def test_any_mix_of_tunnels_damaged_or_not(made: list[list[bytes]], chance: random.Random) -> None:
    frames = [bytearray(frame) for each in made for frame in each]
    for frame in frames:
        for _ in range(chance.choice([0, 0, 1, 2, 5])):
            frame[chance.randrange(min(len(frame), 120))] = chance.choice(
                [0, 1, 4, 6, 8, 17, 47, 0x45, 0x60, 0x80, 0xFF, chance.randrange(256)]
            )
        if chance.random() < 0.3:
            del frame[chance.randrange(len(frame)) :]
    damaged = [bytes(frame) for frame in frames]
    assert in_blocks(damaged) == in_a_loop(damaged)


@given(st.lists(st.binary(max_size=120), min_size=1, max_size=8), st.sampled_from(sorted(STEPS)))
def test_any_bytes_behind_any_header(tails: list[bytes], code: int) -> None:
    """Whatever lies there: offsets that lead out of the block are answered, not followed."""
    (kind,) = [kind for kind, number in CODES.items() if number == code]
    frames = []
    for tail in tails:
        head = {"vxlan": ipv4(udp(b"\x08" + tail, 1, 4789)), "gtp": ipv4(udp(tail, 1, 2152))}
        frames.append(ethernet(head.get(kind, ipv4(tail, protocol=47))))
        frames.append(bytes(12) + b"\x88\x47" + tail)
        frames.append(bytes(12) + b"\x88\x64" + tail)
    assert in_blocks(frames) == in_a_loop(frames)


def test_a_truncated_packet_in_a_tunnel_is_told_as_such() -> None:
    (frame,) = dressed(PACKETS[0], "ERSPAN II")
    decoded = Decoder().decode(block([frame[:-30]]))
    assert decoded.packets.truncated.tolist() == [True]
    assert decoded.packets.payload_length.tolist() == [130]


def test_a_full_frame_in_vxlan_is_not_taken_for_one_that_the_card_merged() -> None:
    decoder = Decoder()
    decoded = decoder.decode(block(dressed(ipv4(udp(rtp(payload=bytes(1460)))), "VXLAN")))
    assert decoder.counters["oversized"] == 0
    assert decoder.counters["tunnelled"] == len(decoded.packets.ssrc) == 1


def test_more_headers_than_anybody_nests_are_left_alone() -> None:
    (frame,) = dressed(PACKETS[0], *["IP in IP"] * 20)
    assert in_blocks([frame]) == in_a_loop([frame]) == []


def test_what_is_left_to_the_loop_is_no_tunnel_that_carries_much() -> None:
    (left,) = {id(step) for step in STEPS.values() if step is STEPS[CODES["hep"]]}
    in_a_loop = {kind for kind, code in CODES.items() if id(STEPS[code]) == left}
    only_links = {"sll", "sll2", "hdlc", "null", *OF_LINKS}
    rare = {"gpe", "nsh", "l2tp", "l2tp3", "capwap", "wifi", "typed", "llc", "macsec", "trill",
            "gue", "lisp"}  # fmt: skip
    assert in_a_loop == {"hep", "tzsp"} | only_links | rare
    assert set(CODES) == set(DECAPSULATORS)
