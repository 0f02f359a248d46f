"""HEP: what a Homer agent heard elsewhere, with its own addresses and its own time.

It carries no IP packet but a datagram's payload; what comes out looks like one all the same.
Sources: the HEP/EEP specification of sipcapture.org (version 3: chunks), hep_hdr of OpenSIPS and
Kamailio (versions 1 and 2: fixed headers). Who asks: capture.packets.tunnels.
"""

import zlib
from struct import calcsize, pack, unpack_from
from typing import Final

from capture.packets.packet import Packet

MAGIC: Final = b"HEP3"
CHUNK_HEADER: Final = 6  # vendor, type, length with this header
# Types of the generic vendor, 0.
SOURCE, DESTINATION = (3, 5), (4, 6)  # IPv4, IPv6
SOURCE_PORT, DESTINATION_PORT, SECONDS, MICROSECONDS, PAYLOAD, COMPRESSED = 7, 8, 9, 10, 15, 16
MAX_PAYLOAD: Final = 65_507
UDP: Final = 17
# Length of the fixed header, by version and address family (AF_INET, Linux's AF_INET6).
FIXED: Final = {(1, 2): 16, (1, 10): 40, (2, 2): 28, (2, 10): 52}
SECOND: Final = 1_000_000_000


def begins(data: memoryview) -> bool:
    """Whether a datagram of these bytes can be HEP."""
    return bytes(data[:4]) == MAGIC or (len(data) > 2 and FIXED.get((data[0], data[2])) == data[1])


def packet(data: memoryview) -> Packet:
    """The datagram that HEP carries, as an IP packet with UDP. Raises ValueError if it is none."""
    return _chunked(data) if bytes(data[:4]) == MAGIC else _fixed(data)


def _chunked(data: memoryview) -> Packet:
    if len(data) < CHUNK_HEADER:
        raise ValueError("HEP header cut")
    chunks = _chunks(data[CHUNK_HEADER : unpack_from("!H", data, 4)[0]])
    source = next((chunks[kind] for kind in SOURCE if kind in chunks), None)
    destination = next((chunks[kind] for kind in DESTINATION if kind in chunks), None)
    if source is None or destination is None:
        raise ValueError("HEP without addresses")
    seconds = _number(chunks, SECONDS, "!I")
    return _datagram(
        bytes(source),
        bytes(destination),
        (_number(chunks, SOURCE_PORT, "!H"), _number(chunks, DESTINATION_PORT, "!H")),
        _payload(chunks),
        seconds * SECOND + _number(chunks, MICROSECONDS, "!I") * 1000,
    )


def _chunks(data: memoryview) -> dict[int, memoryview]:
    """The generic chunks by type; other vendors' are passed over."""
    found: dict[int, memoryview] = {}
    at = 0
    while at + CHUNK_HEADER <= len(data):
        vendor, kind, size = unpack_from("!HHH", data, at)
        if size < CHUNK_HEADER or at + size > len(data):
            raise ValueError(f"HEP chunk of {size} bytes")
        if vendor == 0:
            found[kind] = data[at + CHUNK_HEADER : at + size]
        at += size
    return found


def _number(chunks: dict[int, memoryview], kind: int, layout: str) -> int:
    chunk = chunks.get(kind)
    if chunk is None or len(chunk) != calcsize(layout):
        raise ValueError(f"HEP chunk {kind} missing or of a wrong length")
    number: int = unpack_from(layout, chunk)[0]
    return number


def _payload(chunks: dict[int, memoryview]) -> bytes:
    if PAYLOAD in chunks:
        return bytes(chunks[PAYLOAD])
    if COMPRESSED not in chunks:
        raise ValueError("HEP without payload")
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(chunks[COMPRESSED], MAX_PAYLOAD)
    except zlib.error as error:
        raise ValueError(f"HEP payload: {error}") from None


def _fixed(data: memoryview) -> Packet:
    size = FIXED.get((data[0], data[2])) if len(data) > 2 else None
    if size is None or len(data) < size:
        raise ValueError("HEP header cut")
    ports = unpack_from("!HH", data, 4)
    width = 4 if data[2] == 2 else 16
    time_ns = None
    if data[0] == 2:
        # In the byte order of the agent's machine, and that is little-endian in all we know of.
        seconds, microseconds = unpack_from("<II", data, 8 + 2 * width)
        time_ns = seconds * SECOND + microseconds * 1000
    source, destination = bytes(data[8 : 8 + width]), bytes(data[8 + width : 8 + 2 * width])
    return _datagram(source, destination, ports, bytes(data[size:]), time_ns)


def _datagram(
    source: bytes, destination: bytes, ports: tuple[int, int], payload: bytes, time_ns: int | None
) -> Packet:
    if {len(source), len(destination)} not in ({4}, {16}):
        raise ValueError("HEP address of a wrong length")
    header = pack("!HHHH", *ports, min(8 + len(payload), 0xFFFF), 0)
    return Packet(source, destination, UDP, memoryview(header + payload), time_ns=time_ns)
