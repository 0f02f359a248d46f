"""SIP over TLS is told of by what connections show, on any port, and nothing else for it."""

import struct
from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.model import Datagram
from capture.packets.slowpath import SlowPath
from capture.packets.tls import Connections, offered
from capture.signalling.siptls import SipTls, named
from tests.support.conversation import endpoint
from tests.support.frames import block, ethernet, ipv4
from tests.support.tlshello import hello

PHONE, PBX = ("10.0.0.1", 40_000), ("10.0.0.9", 5071)
DATA = b"\x17\x03\x03\x00\x40" + bytes(64)


def segment(source: tuple[str, int], destination: tuple[str, int], payload: bytes, options=b""):
    header = struct.pack(
        "!HHIIBBHHH", source[1], destination[1], 1, 0, 5 << 4, 0x18, 500, 0, 0
    )  # fmt: skip
    packet = ipv4(header + payload, source[0], destination[0], protocol=6, options=options)
    return ethernet(packet)


def told(*frames: bytes, messages: Iterable[Datagram] = ()) -> SipTls:
    path, found = SlowPath(), SipTls()
    for frame in frames:
        assert path.receive(block([frame]), [0]) == []
        found.sighted(path.tls.sightings())
    for message in messages:
        found.heard(message)
    return found


def message(*lines: str, source: str = "10.0.0.1:5060", destination: str = "10.0.0.9:5060"):
    text = "\r\n".join(["INVITE sip:2@pbx.example SIP/2.0", *lines, "", ""]).encode()
    return Datagram(0, endpoint(source), endpoint(destination), text, "udp")


@pytest.mark.parametrize("options", [b"", b"\x01\x01\x01\x01"], ids=["at a glance", "in the loop"])
@pytest.mark.parametrize("name", ["sip", "sip/2"])
def test_a_client_that_offers_sip_is_told_of_on_any_port(name, options):
    found = told(
        segment(PHONE, PBX, hello(name), options), segment(PBX, PHONE, DATA, options),
        segment(PHONE, PBX, DATA, options),
    )  # fmt: skip
    assert (found.connections, found.between()) == (1, ["10.0.0.1 and 10.0.0.9:5071"])


@pytest.mark.parametrize("port", [443, 5061, 7443, 8089])
def test_a_websocket_over_tls_is_not_sip_over_tls(port):
    via = message("Via: SIP/2.0/WSS 10.0.0.9:7443", "Contact: <sip:x@10.0.0.9:8089;transport=wss>")
    found = told(segment(PHONE, ("10.0.0.9", port), hello("http/1.1")), messages=[via])
    assert (found.connections, found.told) == (0, "")


@pytest.mark.parametrize(
    "line",
    [
        "Via: SIP/2.0/TLS 10.0.0.9:5071;branch=z9hG4bK1",
        "v:SIP / 2.0 / tls 10.0.0.9:5071",
        "Via: SIP/2.0/TLS pbx.example:5071;received=10.0.0.9;branch=z9hG4bK1",
        "Via: SIP/2.0/TLS pbx.example:5071",
        "Contact: <sip:2@10.0.0.9:5071;ob;transport=TLS>",
        "Record-Route: <sips:10.0.0.9:5071;lr>",
    ],
)
def test_who_is_named_for_tls_speaks_sip(line):
    frames = segment(PHONE, PBX, hello()), segment(PBX, PHONE, DATA)
    assert told(*frames, messages=[message(line)]).between() == ["10.0.0.1 and 10.0.0.9:5071"]
    assert told(*frames, messages=[message("Via: SIP/2.0/TCP 10.0.0.9:5071")]).connections == 0


def test_a_connection_that_was_up_before_is_told_of_by_its_records():
    port = "10.0.0.9", 5061
    found = told(*[segment(port, PHONE, DATA)] * 3, segment(PHONE, port, DATA))
    assert (found.connections, found.between()) == (1, ["10.0.0.1 and 10.0.0.9:5061"])


def test_tls_where_udp_speaks_sip_is_sip():
    found = told(segment(PHONE, ("10.0.0.9", 5060), hello()), messages=[message("Via: x")])
    assert found.between() == ["10.0.0.1 and 10.0.0.9:5060"]


@pytest.mark.parametrize("name", ["sip", "h2"])
def test_a_hello_in_several_segments_is_read_to_its_end(name):
    whole = hello(name, padding=3000)
    parts = [whole[at : at + 1400] for at in range(0, len(whole), 1400)]
    found = told(*[segment(PHONE, ("10.0.0.9", 5061), part) for part in parts])
    assert found.connections == (name == "sip")


def test_a_flood_of_connections_stays_in_bounds():
    connections, found = Connections(), SipTls()
    for number in range(70_000):
        key = number.to_bytes(4, "big") + bytes(4) + b"\x9c\x40\x13\xc6"
        connections.receive(key, memoryview(hello()[: 60 if number % 2 else 5]))
        connections.receive(key, memoryview(DATA))
        if number % 500 == 0:
            found.sighted(connections.sightings())
    assert len(connections._told) <= 32_768
    assert (len(connections._partial), len(found._pairs)) < (257, 1_025)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_bytes_are_a_hello_or_none(noise, at):
    valid = hello("sip")
    for payload in (noise, valid[:at] + noise, valid[:at]):
        with suppress(EOFError, ValueError):
            offered(payload)
    Connections().receive(bytes(12), memoryview(noise))
    assert all(0 <= each.port < 65_536 for each in named(message("")._replace(payload=noise)))
