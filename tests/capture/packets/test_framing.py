"""SIP out of a stream of bytes: however it is cut, and whoever tries to make it costly."""

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.packets.framing import MAX_MESSAGE, Framing, Plain
from capture.packets.websocket import Messages

START = b"INVITE sip:b@x SIP/2.0\r\n"
OK = b"SIP/2.0 200 OK\r\nCall-ID: 1\r\nContent-Length: 0\r\n\r\n"
INVITE = START + b"Call-ID: 1\r\nl: 4\r\n\r\nv=0\n"
LONG_HEAD = START + b"a: b\r\n" * 9_000 + b"l: 65000\r\n\r\n"


def receive(framing: Framing, *segments: bytes) -> tuple[list[bytes], Counter[str]]:
    counters: Counter[str] = Counter()

    def count(name: str) -> None:
        counters[name] += 1

    return [each for data in segments for each in framing.receive(data, count)], counters


@given(
    st.lists(
        st.sampled_from([OK, INVITE, START, b"\r\n", b"junk ", b"SIP/2.0 ", b"\n\n", b"l: x"])
    ),
    st.integers(1, 40),
)
def test_messages_are_the_same_however_the_stream_is_cut(parts: list[bytes], size: int) -> None:
    stream = b"".join(parts)
    segments = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert receive(Plain(), *segments) == receive(Plain(), stream)


def test_lines_may_end_in_bare_line_feeds() -> None:
    bare = [each.replace(b"\r\n", b"\n") for each in (OK, INVITE, OK)]
    assert receive(Plain(), b"".join(bare))[0] == bare


def test_behind_a_message_that_is_too_long_the_next_one_is_found() -> None:
    endless = START + b"a: b\r\n" * (MAX_MESSAGE // 6 + 1)
    found, counters = receive(Plain(), endless, OK)
    assert found == [OK]
    assert counters == {"tcp_messages_oversized": 1}


def test_junk_is_not_kept() -> None:
    framing = Plain()
    assert receive(framing, *[b"x" * 1400] * 100, OK)[0] == [OK]
    receive(framing, b"y" * 9000)
    assert len(framing) < 5000


def test_what_is_cleared_is_given_and_forgotten() -> None:
    framing = Plain()
    assert receive(framing, START + b"Call-ID: 1")[0] == []
    assert framing.clear() == START + b"Call-ID: 1"
    assert len(framing) == 0
    assert receive(framing, OK)[0] == [OK]


@pytest.mark.parametrize(
    ("framing", "segments"),
    {
        "start lines without headers": (Plain, [b"A a SIP/2.0\r\n" * 110] * 300),
        "headers without an end": (Plain, [START, *[b"a: b\r\n"] * 40_000]),
        "start lines that are none": (Plain, [START + b"\r\n", *[b"A b SIP/2.0"] * 2_000]),
        "a body that drips": (Plain, [LONG_HEAD, *[b"x"] * 5000]),
        "WebSocket frames of nothing": (Messages, [b"\x01\x00", *[b"\0\0" * 700] * 100]),
        "WebSocket frames of a byte": (Messages, [b"\x01\x00", *[b"\0\1x" * 20] * 2000]),
    }.values(),
)  # fmt: skip
def test_the_work_grows_with_the_bytes_and_not_with_the_pieces(
    framing: type[Plain | Messages], segments: list[bytes]
) -> None:
    begun = time.process_time()
    receive(framing(), *segments)
    assert time.process_time() - begun < 1  # searched again with each piece: 5 to 20
