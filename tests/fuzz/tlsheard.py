"""TLS among TCP segments, and SIP that names hosts for TLS: who speaks SIP over TLS with whom."""

from contextlib import suppress
from typing import Final

from capture.model import Datagram
from capture.packets import tls
from capture.signalling.siptls import SipTls
from tests.fuzz.choices import cut, joined
from tests.support.conversation import endpoint
from tests.support.tlshello import hello

PBX: Final = b"\x0a\0\0\x09"
KEYS: Final = [  # addresses and ports: of two connections, either direction
    key
    for client in (b"\x0a\0\0\x01", b"\x0a\0\0\x02")
    for key in (client + PBX + b"\x9c\x40\x13\xc5", PBX + client + b"\x13\xc5\x9c\x40")
]


def hear(data: bytes) -> None:
    """Parts, whose first byte says of which connection; of none it is a SIP message."""
    connections, table = tls.Connections(), SipTls()
    for part in cut(data):
        which, payload = (part or b"\xff")[0] % (len(KEYS) + 1), part[1:]
        if which < len(KEYS):
            connections.receive(KEYS[which], memoryview(payload))
        else:
            ends = endpoint("10.0.0.1:5060"), endpoint("10.0.0.9:5060")
            table.heard(Datagram(0, *ends, payload, "udp"))
        table.sighted(connections.sightings())
        with suppress(EOFError, ValueError):
            tls.offered(payload)
    assert len(table.between()) <= table.connections
    assert bool(table.told) == bool(table.connections)


def heard() -> list[bytes]:
    """Hellos, whole and in two segments, records in mid-connection, and who is named for TLS."""
    named, first = bytes([len(KEYS)]), hello("sip/2", "http/1.1", padding=9)
    message = (
        b"INVITE sips:b@10.0.0.9 SIP/2.0\r\nVia: SIP/2.0/TLS 10.0.0.9:5061;received=10.0.0.8\r\n"
        b"Contact: <sip:b@[::1]:5071;transport=tls>\r\n\r\n"
    )
    return [
        joined([b"\0" + first]),
        joined([b"\0" + first[:60], b"\0" + first[60:], b"\2" + hello()]),
        joined([b"\1\x17\x03\x03\0\x40" + bytes(64), named + message, b"\2" + hello("h2")]),
    ]
