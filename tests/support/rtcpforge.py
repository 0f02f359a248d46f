"""RTCP packets as phones send them, forged field by field. Source: RFC 3550 §6.4, §6.5, §6.6."""

import struct
from collections.abc import Sequence
from typing import NamedTuple


class Block(NamedTuple):
    """What a receiver says of one sender."""

    ssrc: int
    fraction: int = 0
    lost: int = 0
    highest: int = 0
    jitter: int = 0
    last_sr: int = 0
    delay: int = 0

    def serialize(self) -> bytes:
        loss = self.fraction << 24 | self.lost & 0xFFFFFF
        return struct.pack(
            ">6I", self.ssrc, loss, self.highest, self.jitter, self.last_sr, self.delay
        )


def packet(kind: int, count: int, body: bytes, padding: int = 0) -> bytes:
    """Any RTCP packet. padding: bytes, whole words."""
    body += bytes(padding - 1) + bytes((padding,)) if padding else b""
    return struct.pack(">BBH", 0x80 | 0x20 * bool(padding) | count, kind, len(body) // 4) + body


def sender_report(
    ssrc: int, blocks: Sequence[Block] = (), ntp: int = 0, timestamp: int = 0, packets: int = 0
) -> bytes:
    body = struct.pack(">IQIII", ssrc, ntp, timestamp, packets, 160 * packets)
    return packet(200, len(blocks), body + b"".join(one.serialize() for one in blocks))


def receiver_report(ssrc: int, blocks: Sequence[Block] = ()) -> bytes:
    body = struct.pack(">I", ssrc) + b"".join(one.serialize() for one in blocks)
    return packet(201, len(blocks), body)


def description(*names: tuple[int, str]) -> bytes:
    """SDES with a CNAME for each SSRC."""
    body = b""
    for ssrc, name in names:
        chunk = struct.pack(">IBB", ssrc, 1, len(name)) + name.encode() + b"\0"
        body += chunk + bytes(-len(chunk) % 4)
    return packet(202, len(names), body)


def goodbye(*ssrcs: int, reason: str = "") -> bytes:
    said = bytes((len(reason),)) + reason.encode() if reason else b""
    body = struct.pack(f">{len(ssrcs)}I", *ssrcs) + said
    return packet(203, len(ssrcs), body + bytes(-len(body) % 4))
