"""What nobody here can read is counted by its name, wherever it is met."""

from collections import Counter

import numpy as np
import pytest

from capture.packets import unread
from capture.packets.decode import Decoder
from capture.packets.slowpath import SlowPath
from capture.packets.unread import Told
from tests.support.frames import block, ethernet, ipv4, ipv6, udp

SIX = bytes(15) + b"\1", bytes(15) + b"\2"
VXLAN = b"\x08" + bytes(7)
SESSION = b"\x11\0\0\1\0\x40"  # of PPPoE
QUALITY = b"\x88\x01" + bytes(22)


def deep(headers: int) -> bytes:
    """An IP packet in so many others."""
    packet = ipv4(udp(b"SIP/2.0"))
    for _ in range(headers):
        packet = ipv4(packet, protocol=4)
    return ethernet(packet)


def counted(*frames: bytes, link_type: int = 1, each: int = 1) -> list[Told]:
    """What is said of such frames, by both ways through the decoder."""
    decoder, slow_path = Decoder(), SlowPath()
    heard = block(frames, link_type)
    heard.unread_each = each
    refused = decoder.decode(heard).refused
    assert slow_path.receive(heard, refused.rows, refused.inner) == []
    slow = {f"slow_{name}": count for name, count in slow_path.counters.items()}
    return unread.told({**decoder.counters, **slow})


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("EtherType 0x4305 (B.A.T.M.A.N.)", ethernet(bytes(60), 0x4305)),
        ("EtherType 0x88b7", ethernet(bytes(60), 0x88B7)),
        ("EtherType 0x88b7", ethernet(bytes(60), 0x88B7, tags=[(0x88A8, 1), (0x8100, 2)])),
        ("EtherType 0x88b7", ethernet(ipv4(udp(VXLAN + ethernet(bytes(60), 0x88B7), 1, 4789)))),
        ("IP protocol 132 (SCTP)", ethernet(ipv4(bytes(60), protocol=132))),
        ("IP protocol 132 (SCTP)", ethernet(ipv6(bytes(60), *SIX, following=132), 0x86DD)),
        ("IP protocol 132 (SCTP)", ethernet(ipv4(ipv4(bytes(60), protocol=132), protocol=4))),
        ("PPP protocol 0x003d (multilink)", ethernet(SESSION + b"\0\x3d" + bytes(62), 0x8864)),
        ("more than 16 headers around one packet", deep(17)),
        ("LLC service 0x06", ethernet(b"\x06\x06\x13" + bytes(60), 63)),
    ],
)  # fmt: skip
def test_frames_are_told_of_by_number_and_name(what: str, frame: bytes) -> None:
    assert counted(frame, frame, frame) == [Told(what, 3)]


@pytest.mark.parametrize(
    ("what", "link_type", "frame"),
    [
        ("link type 147 (USER0)", 147, bytes(60)),
        ("link type 147 (USER0)", 192, b"\0\0\x08\0\x93\0\0\0" + bytes(60)),
        ("Wi-Fi frames 2 (encrypted: WPA)", 105, b"\x08\x41" + bytes(60)),
        (
            "Wi-Fi frames 1 (several in one: A-MSDU)",
            105,
            QUALITY + b"\x80\0" + (bytes(12) + b"\0\x20" + bytes(32)) * 2,
        ),
    ],
)
def test_so_are_link_types(what: str, link_type: int, frame: bytes) -> None:
    assert counted(frame, link_type=link_type) == [Told(what, 1)]


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(bytes(46), 0x0806),
        ethernet(bytes(46), 0x88CC),
        ethernet(b"\x42\x42\x03" + bytes(35), 38),  # spanning tree
        ethernet(b"\xaa\xaa\x03\0\0\x0c\x20\0" + bytes(40), 48),  # CDP
        ethernet(ipv4(bytes(30), protocol=1)),
        ethernet(ipv4(bytes(30), protocol=89)),
        ethernet(ipv6(bytes(30), *SIX, following=58), 0x86DD),
        ethernet(ipv4(udp(VXLAN + ethernet(bytes(46), 0x0806), 1, 4789))),
        ethernet(SESSION + b"\xc0\x21" + bytes(62), 0x8864),  # LCP
        b"short",
    ],
)
def test_what_is_on_any_network_is_not_worth_a_name(frame: bytes) -> None:
    assert counted(frame) == []


def test_a_sampled_frame_stands_for_many() -> None:
    frames = [ethernet(bytes(60), 0x88B7), ethernet(ipv4(bytes(60), protocol=132))] * 2
    assert counted(*frames, each=64) == [
        Told("EtherType 0x88b7", 128), Told("IP protocol 132 (SCTP)", 128)
    ]  # fmt: skip


def test_what_is_sent_at_random_takes_no_more_names_than_fit() -> None:
    counters: Counter[str] = Counter()
    kinds = np.arange(0x9900, 0x9A00, dtype=np.uint16)
    unread.count_numbers(unread.ETHER_TYPE, kinds, counters, 1)
    assert len(counters) == unread.MAX_NAMES + 1
    assert unread.told(counters)[0] == Told("other kinds", 256 - unread.MAX_NAMES)
