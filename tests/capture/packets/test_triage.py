"""Of the TCP on a mirrored port the loop gets SIP, all of it, and hardly anything else."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.packets.slowpath import SlowPath
from tests.capture.packets.test_websocket import frame as websocket
from tests.support.frames import block, ethernet, ipv4, ipv6

OK = b"SIP/2.0 200 OK\r\nCall-ID: 1\r\nContent-Length: 0\r\n\r\n"
INVITE = b"INVITE sip:b@x SIP/2.0\r\nCall-ID: 1\r\nContent-Length: 3000\r\n\r\n" + b"v=0\r\n" * 600
WEB = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x17\x03\x03\x05\xa0" + bytes(range(256)) * 5]
SIX = bytes(15) + b"\x01", bytes(15) + b"\x02"
ACK, SYN, PUSH = 0x10, 0x02, 0x18
RAW, ETHERNET = 101, 1


def tcp(payload: bytes, sequence: int = 1000, *, source: int = 40_000, flags: int = PUSH) -> bytes:
    """A segment to port 5999, with the 12 bytes of options that most have."""
    return (
        struct.pack(
            "!HHIIBBHHH", source, 5999, sequence & 0xFFFFFFFF, 0, 8 << 4, flags, 500, 0, 0
        )
        + b"\x01\x01\x08\x0a" + bytes(8) + payload
    )  # fmt: skip


def segment(*arguments, **words) -> bytes:
    return ethernet(ipv4(tcp(*arguments, **words), protocol=6))


def in_segments(message: bytes, size: int = 1448, **words) -> list[bytes]:
    parts = range(0, len(message), size)
    return [segment(message[at : at + size], 1000 + at, **words) for at in parts]


def heard(path: SlowPath, *blocks: list[bytes], link_type: int = ETHERNET) -> list[bytes]:
    return [
        found.payload
        for frames in blocks
        for found in path.receive(block(frames, link_type), range(len(frames)))
    ]


def test_the_web_is_passed_by_and_counted():
    path = SlowPath()
    frames = [segment(each, source=40_000 + n) for n, each in enumerate(WEB * 50)]
    frames += [segment(b"", flags=ACK)] * 100 + [segment(b"", flags=SYN)] * 10
    assert heard(path, frames) == []
    assert path.counters == {"tcp_without_sip": 210}


LINKS = {
    "Ethernet": (ETHERNET, lambda data: ethernet(ipv4(data, protocol=6))),
    "a VLAN": (ETHERNET, lambda data: ethernet(ipv4(data, protocol=6), tags=[(0x8100, 5)])),
    "two VLANs": (
        ETHERNET, lambda data: ethernet(ipv4(data, protocol=6), tags=[(0x88A8, 5), (0x8100, 9)])
    ),
    "IPv6": (ETHERNET, lambda data: ethernet(ipv6(data, *SIX, following=6), 0x86DD)),
    "no link header": (RAW, lambda data: ipv4(data, protocol=6)),
    "IPv6 without one": (RAW, lambda data: ipv6(data, *SIX, following=6)),
    "trailing bytes": (ETHERNET, lambda data: ethernet(ipv4(data, protocol=6)) + b"SIP/2.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_sip_on_any_port_and_the_web_beside_it(name):
    link_type, wrap = LINKS[name]
    path = SlowPath()
    frames = [wrap(tcp(each, source=7)) for each in (WEB[0], OK, WEB[1], b"")]
    frames[2:3] = [wrap(tcp(WEB[1], source=8))]
    assert heard(path, frames, link_type=link_type) == [OK]
    assert path.counters["tcp_without_sip"] == 2


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_message_in_several_segments_and_blocks(cut):
    parts = in_segments(INVITE)
    path = SlowPath()
    assert heard(path, parts[:cut], parts[cut:]) == [INVITE]
    assert path.counters["tcp_without_sip"] == 0


def test_a_connection_is_taken_up_in_the_middle_of_a_message():
    stream = (INVITE + OK) * 3
    frames = [segment(stream[at : at + 700], at) for at in range(700, len(stream), 700)]
    assert heard(SlowPath(), *[[each] for each in frames]) == [OK, INVITE, OK, INVITE, OK]


def test_a_new_connection_on_the_ports_of_a_known_one():
    again = [segment(b"", 77_000, flags=SYN), segment(OK, 77_001)]
    assert heard(SlowPath(), [segment(OK)], again) == [OK, OK]


def test_what_only_looks_like_sip_brings_nothing_else_of_its_connection_along():
    path = SlowPath()
    alike = [b"<p>RFC 3261 is SIP/2.0</p>", b"\x81\x05hello", b"\x82"]
    assert heard(path, [segment(each, at) for at, each in enumerate([*alike, *WEB])]) == []
    assert path.counters == {"tcp_without_sip": 5}


def test_connections_that_carry_sip_are_bounded_in_memory():
    path = SlowPath()
    begin = b"INVITE sip:b@x SIP/2.0\r\nX: "
    for number in range(600):  # each a message that never ends, and segments behind a hole
        frames = [segment(begin + bytes(60_000), source=number)]
        frames.append(segment(bytes(60_000), 500_000, source=number))
        heard(path, frames)
    assert path._tcp.held <= 32 << 20
    assert path.counters["tcp_streams_evicted"] > 0
    sizes = [
        len(each.framing) + sum(map(len, each.waiting.values()))
        for each in path._tcp._streams.values()
    ]
    assert path._tcp.held == sum(sizes)


MESSAGES = st.lists(
    st.sampled_from([OK, INVITE, WEB[0], WEB[1], websocket(OK, mask=b"abcd"), b"\r\n", b"x" * 99]),
    min_size=1, max_size=6,
)  # fmt: skip


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.integers(1, 40), st.randoms())
def test_nothing_is_missed_that_the_loop_would_have_found(
    streams: list[list[bytes]], size: int, chance: random.Random
):
    """Connections of any content, mixed and cut into blocks: as if each segment had been read."""
    queues = [in_segments(b"".join(one), 97, source=port) for port, one in enumerate(streams)]
    frames = []
    while any(queues):
        queue = chance.choice([one for one in queues if one])
        frames.append(queue.pop(0))
    parts = [frames[at : at + size] for at in range(0, len(frames), size)]
    # Behind IP options nothing is triaged.
    loop = [[_with_options(each) for each in part] for part in parts]
    assert heard(SlowPath(), *parts) == heard(SlowPath(), *loop)


def _with_options(frame: bytes) -> bytes:
    return ethernet(ipv4(frame[34:], protocol=6, options=b"\x01\x01\x01\x01"))
