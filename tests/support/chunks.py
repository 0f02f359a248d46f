"""Chunks as capture would have made them, from packets written down in a test."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from spanvault.media.chunk import CHUNK, FRAME, Chunk
from spanvault.messages import Codec, Stream

START_NS: Final = 1_795_000_000_000_000_000
PCMA: Final = Codec("PCMA", 8000)


class Packet(NamedTuple):
    """One RTP packet. at_ms: its arrival since START_NS."""

    at_ms: float
    sequence: int
    timestamp: int
    payload: bytes
    payload_type: int = 8
    flags: int = 0


def chunk(packets: Sequence[Packet], stream: int = 0) -> Chunk:
    """One chunk of them, by sequence number."""
    ordered = sorted(packets, key=lambda packet: packet.sequence)
    frames = np.zeros(len(ordered), FRAME)
    for row, packet in enumerate(ordered):
        frames[row] = (
            65536 + packet.sequence,
            packet.timestamp % (1 << 32),
            START_NS + round(packet.at_ms * 1e6),
            packet.payload_type,
            packet.flags,
            len(packet.payload),
        )
    payload = b"".join(packet.payload for packet in ordered)
    header = np.zeros((), CHUNK)
    header["stream"], header["frames"], header["payload_bytes"] = stream, len(frames), len(payload)
    header["start_ns"] = frames["arrival_ns"].min() if len(frames) else START_NS
    return Chunk(header[()], frames, memoryview(payload))


def seconds(packets: Sequence[Packet], stream: int = 0) -> Iterator[Chunk]:
    """Chunks of a second each, by arrival, as capture flushes them."""
    for second in sorted({int(packet.at_ms // 1000) for packet in packets}):
        yield chunk([p for p in packets if p.at_ms // 1000 == second], stream)


def steady(
    payloads: Sequence[bytes], at_ms: float = 0, sequence: int = 0, timestamp: int = 0,
    ptime_ms: int = 20, ticks: int = 160, payload_type: int = 8,
) -> list[Packet]:  # fmt: skip
    """Packets as a phone sends them: one every ptime_ms."""
    return [
        Packet(at_ms + n * ptime_ms, sequence + n, timestamp + n * ticks, payload, payload_type)
        for n, payload in enumerate(payloads)
    ]


def stream(
    number: int = 0,
    party: str = "caller",
    codec: Codec = PCMA,
    payload_type: int = 8,
    first_ms: float = 0,
) -> Stream:
    """A stream's record, with one payload type."""
    return Stream(
        number, party, "audio", 0x1234 + number, f"10.0.0.{number}:4000", "10.0.0.9:5000",  # type: ignore[arg-type]
        {payload_type: codec}, {payload_type: 1}, START_NS + round(first_ms * 1e6), packets=1,
    )  # fmt: skip
