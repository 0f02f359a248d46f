"""SIP over WebSocket: masked or not, in parts, between pings; taken up in the middle."""

import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.packet import Packet, Raw

from capture.packets.slowpath import SlowPath
from capture.packets.websocket import Messages, begins
from tests.support.frames import block

INVITE = b"INVITE sip:b@x SIP/2.0\r\nCall-ID: 1\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n"
OK = b"SIP/2.0 200 OK\r\nCall-ID: 1\r\nContent-Length: 0\r\n\r\n"
KEY = b"\x12\xfe\x00\x99"


def frame(text: bytes, opcode: int = 1, *, mask: bytes = b"", fin: bool = True) -> bytes:
    """RFC 6455 §5.2."""
    head = bytes([fin << 7 | opcode])
    flag = 0x80 if mask else 0
    if len(text) < 126:
        head += bytes([flag | len(text)])
    else:
        head += struct.pack("!BH", flag | 126, len(text))
    if mask:
        text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
    return head + mask + text


def taken(data: bytes) -> list[bytes]:
    return Messages().receive(data, lambda name: None)


@pytest.mark.parametrize("mask", [b"", KEY])
def test_frames(mask: bytes) -> None:
    long = INVITE + b"a=x\r\n" * 100
    assert taken(frame(INVITE, mask=mask) + frame(long, mask=mask)) == [INVITE, long]


def test_parts_with_a_ping_between_them() -> None:
    data = frame(INVITE[:20], fin=False) + frame(b"?", 9) + frame(INVITE[20:], 0) + frame(OK)
    assert taken(data) == [INVITE, OK]


def test_pings_alone_take_no_memory() -> None:
    connection = Messages()
    assert connection.receive(frame(b"?", 9) * 50, lambda name: None) == []
    assert len(connection) == 0


def test_compressed_frames_are_counted() -> None:
    counters: Counter[str] = Counter()
    packed = bytearray(frame(INVITE))
    packed[0] |= 0x40

    def count(name: str) -> None:
        counters[name] += 1

    assert Messages().receive(packed + frame(OK), count) == [OK]
    assert counters["websocket_compressed"] == 1


def segment(data: bytes, sequence: int, *, back: bool = False) -> Packet:
    ends = {"sport": 8088, "dport": 50_000} if back else {"sport": 50_000, "dport": 8088}
    hosts = ("10.0.0.2", "10.0.0.1") if back else ("10.0.0.1", "10.0.0.2")
    return IP(src=hosts[0], dst=hosts[1]) / TCP(**ends, seq=sequence, flags="A") / Raw(data)


def test_through_tcp_in_both_directions() -> None:
    upgrade = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
    sent = frame(INVITE, mask=KEY) + frame(b"", 10, mask=KEY) + frame(INVITE, mask=KEY)
    frames = [
        segment(upgrade, 1),
        segment(sent[:50], 1 + len(upgrade)),
        segment(frame(OK), 900, back=True),
        segment(sent[50:], 51 + len(upgrade)),
    ]
    found = SlowPath().receive(block(list(map(bytes, frames)), link_type=101), range(4))
    assert [(each.transport, each.payload) for each in found] == [
        ("ws", OK), ("ws", INVITE), ("ws", INVITE),
    ]  # fmt: skip


def test_a_connection_that_turns_to_nonsense_is_let_go() -> None:
    path = SlowPath()
    good = frame(INVITE, mask=KEY)
    frames = [segment(good, 0), segment(b"\xff" * 40, len(good)), segment(good, len(good) + 40)]
    found = path.receive(block(list(map(bytes, frames)), link_type=101), range(3))
    assert [each.payload for each in found] == [INVITE, INVITE]
    assert path.counters["frames_unreadable"] == 1


def test_other_traffic_is_none() -> None:
    assert begins(b"") is None
    assert begins(b"\x16\x03\x01") is None
    assert begins(frame(b"hello", mask=KEY)) == b"hello"


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_raise_only_value_error(noise: bytes, framed: bool) -> None:
    begins(noise)
    try:
        found = taken(frame(INVITE, mask=KEY) + noise if framed else noise)
    except ValueError:
        return
    assert not framed or found[0] == INVITE
