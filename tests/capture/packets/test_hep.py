"""HEP gives back the datagram that an agent heard, or says what is wrong with it."""

import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.packets.decode import Decoder
from capture.packets.hep import begins, packet
from capture.packets.slowpath import SlowPath
from tests.support.callgen import SECOND, START_NS, udp_frame
from tests.support.frames import block
from tests.support.wrapping import WRAPPINGS

SIP = b"BYE sip:b@x SIP/2.0\r\nCall-ID: 1\r\n\r\n"
HEARD = udp_frame(START_NS, ("10.0.0.1", 5060), ("10.0.0.2", 5070), SIP)
KINDS = ["HEP2", "HEP3", "HEP3, compressed"]


def hep(name: str) -> bytes:
    (frame,) = WRAPPINGS[name].wrap(HEARD)
    return frame.data[42:]


@pytest.mark.parametrize("name", KINDS)
def test_addresses_time_and_payload_are_those_heard_by_the_agent(name: str) -> None:
    found = packet(memoryview(hep(name)))
    assert (found.source, found.destination) == (b"\x0a\0\0\x01", b"\x0a\0\0\x02")
    assert struct.unpack_from("!HH", found.payload) == (5060, 5070)
    assert bytes(found.payload[8:]) == SIP
    assert found.time_ns == START_NS


def test_version_1_knows_no_time() -> None:
    head = b"\x01\x10\x02\x11" + struct.pack("!HH", 5060, 5070) + bytes(8)
    assert packet(memoryview(head + SIP)).time_ns is None


def test_an_agent_whose_clock_is_wrong_is_not_believed() -> None:
    (frame,) = WRAPPINGS["HEP3"].wrap(HEARD)
    path = SlowPath()
    late = START_NS + 60 * SECOND
    (found,) = path.receive(block([frame.data], times=[late]), [0])
    assert found.time_ns == late
    assert path.counters["forwarders_clock_off"] == 1


@pytest.mark.parametrize("name", ["HEP3", "HEP3, compressed"])
@pytest.mark.parametrize("around", [None, "VXLAN", "QinQ", "IPv4 options"])
def test_version_3_is_known_by_its_first_bytes_on_any_port(name: str, around: str | None) -> None:
    frame = udp_frame(START_NS, ("10.9.0.1", 40_000), ("10.9.0.2", 9999), hep(name))
    frames = WRAPPINGS[around].wrap(frame) if around else [frame]
    decoder = Decoder()
    refused = decoder.decode(block([each.data for each in frames], times=[START_NS])).refused
    (found,) = SlowPath().receive(
        block([each.data for each in frames], times=[START_NS]), refused.rows, refused.inner
    )
    assert (str(found.source), found.payload) == ("10.0.0.1:5060", SIP)


def test_a_payload_that_unpacks_to_more_than_a_datagram_is_cut() -> None:
    chunks = hep("HEP3")[6:]
    bomb = zlib.compress(bytes(50 << 20))
    body = chunks[: chunks.index(SIP) - 6] + struct.pack(">HHH", 0, 16, 6 + len(bomb)) + bomb
    found = packet(memoryview(b"HEP3" + struct.pack(">H", 6 + len(body)) + body))
    assert len(found.payload) == 8 + 65_507


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda data: data[:4], "HEP header cut"),
        (lambda data: data[:30], "HEP without addresses"),
        (lambda data: data.replace(b"\0\7\0\x08", b"\0\7\0\x05"), "HEP chunk of 5 bytes"),
        (lambda data: data.replace(b"\0\0\0\7\0\x08", b"\0\1\0\7\0\x08"), "HEP chunk 7 missing"),
        (lambda data: data.replace(b"\0\0\0\x0f", b"\0\0\0\x0e"), "HEP without payload"),
        (lambda data: data.replace(b"\0\0\0\x0f", b"\0\0\0\x10"), "HEP payload"),
    ],
)
def test_what_is_wrong_is_said(change, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        packet(memoryview(change(hep("HEP3"))))


def test_what_begins_otherwise_is_no_hep() -> None:
    assert not begins(memoryview(b""))
    assert not begins(memoryview(b"\x02\x1d\x02\x11" + bytes(60)))
    assert all(begins(memoryview(hep(name))) for name in KINDS)


@given(
    st.sampled_from([b"", b"HEP3", *map(hep, KINDS)]), st.binary(max_size=80), st.integers(0, 200)
)
def test_any_bytes_raise_only_value_error(head: bytes, noise: bytes, at: int) -> None:
    data = head[:at] + noise + head[at + len(noise) :]
    with suppress(ValueError):
        packet(memoryview(data))
