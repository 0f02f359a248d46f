"""Frames and capture files, byte by byte, with nothing of ours in their making."""

import struct
from collections.abc import Iterable, Sequence

import numpy as np

from capture.model import Block

SECOND = 1_000_000_000
EPOCH = 1_700_000_000 * SECOND


def rtp(
    sequence: int = 1,
    timestamp: int = 160,
    ssrc: int = 0x1234,
    payload: bytes = b"sound",
    payload_type: int = 8,
    *,
    marker: bool = False,
    csrcs: Sequence[int] = (),
    extension: bytes | None = None,
    padding: bytes = b"",
) -> bytes:
    """An RTP packet, RFC 3550 §5.1. extension: whole words. padding: with its count at the end."""
    first = 0x80 | bool(padding) << 5 | (extension is not None) << 4 | len(csrcs)
    header = struct.pack(
        ">BBHII", first, marker << 7 | payload_type, sequence & 0xFFFF,
        timestamp & 0xFFFFFFFF, ssrc,
    )  # fmt: skip
    header += b"".join(struct.pack(">I", each) for each in csrcs)
    if extension is not None:
        header += struct.pack(">HH", 0xBEDE, len(extension) // 4) + extension
    return header + payload + padding


def udp(payload: bytes, source: int = 4000, destination: int = 5000) -> bytes:
    """A UDP datagram without checksum."""
    return struct.pack(">4H", source, destination, 8 + len(payload), 0) + payload


def ipv4(
    payload: bytes,
    source: str = "10.0.0.1",
    destination: str = "10.0.0.2",
    *,
    protocol: int = 17,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet. fragment: flags and offset as in the header."""
    length = 20 + len(options) + len(payload)
    return struct.pack(
        ">BBHHHBBH4s4s", 0x40 | (20 + len(options)) // 4, 0, length, 0, fragment, 64, protocol, 0,
        _four(source), _four(destination),
    ) + options + payload  # fmt: skip


def ipv6(payload: bytes, source: bytes, destination: bytes, *, following: int = 17) -> bytes:
    """An IPv6 packet between addresses of 16 bytes."""
    return (
        struct.pack(">IHBB", 6 << 28, len(payload), following, 64) + source + destination + payload
    )


def ethernet(
    packet: bytes, ether_type: int = 0x0800, tags: Iterable[tuple[int, int]] = ()
) -> bytes:
    """An Ethernet frame. tags: EtherType and VLAN, outermost first."""
    types = b"".join(struct.pack(">HH", kind, vlan) for kind, vlan in tags)
    return bytes(12) + types + struct.pack(">H", ether_type) + packet


def block(
    frames: Sequence[bytes],
    link_type: int = 1,
    *,
    times: Sequence[int] | None = None,
    original: Sequence[int] | None = None,
    gap: bytes = b"\xee" * 5,
) -> Block:
    """Frames as a source gives them, with something else between them."""
    data, starts = b"", []
    for frame in frames:
        data += gap
        starts.append(len(data))
        data += frame
    lengths = [len(frame) for frame in frames]
    times = times if times is not None else [EPOCH + 1000 * row for row in range(len(frames))]
    return Block(
        np.frombuffer(data, np.uint8),
        *(np.array(column, np.int64) for column in (starts, lengths, original or lengths, times)),
        link_type,
    )


def pcap(
    frames: Sequence[tuple[int, bytes]], *, order: str = "<", nano: bool = True, link_type: int = 1
) -> bytes:
    """A classic capture file of (time in ns, frame)."""
    magic, tick = (0xA1B23C4D, 1) if nano else (0xA1B2C3D4, 1000)
    header = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)
    return header + b"".join(
        struct.pack(f"{order}4I", time // SECOND, time % SECOND // tick, len(frame), len(frame))
        + frame
        for time, frame in frames
    )


def pcapng_block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block of pcapng with its length at both ends."""
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{order}I", 12 + len(body))
    return struct.pack(f"{order}I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    """A section header block."""
    return pcapng_block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(
    link_type: int = 1, *, options: bytes = b"", snap: int = 0, order: str = "<"
) -> bytes:
    """An interface description block."""
    return pcapng_block(1, struct.pack(f"{order}HHI", link_type, 0, snap) + options, order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    """An option of a pcapng block."""
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(frame: bytes, ticks: int, *, number: int = 0, order: str = "<") -> bytes:
    """An enhanced packet block."""
    fields = (number, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return pcapng_block(6, struct.pack(f"{order}5I", *fields) + frame, order)


def _four(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))
