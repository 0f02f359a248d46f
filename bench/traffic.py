"""Generated RTP of many concurrent G.711 calls, as a capture file with known truth.

Impaired: 2 % reordered by 25 ms, 1 % lost, 0.5 % duplicated. 5 % of the streams carry a VLAN tag,
2 % are IPv6; SIP, ARP and TCP frames are strewn in. All of it may come through a tunnel.
Everything is arithmetic on whole arrays.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 50  # packets a second and stream
PAYLOAD = 160
EPOCH = 1_700_000_000
PORTION = 20_000  # packets built at once
NOISE_EVERY = 300


@dataclass(slots=True)
class Truth:
    """What every stream must have counted. All int64[streams]."""

    packets: NDArray[np.int64]  # unique
    lost: NDArray[np.int64]
    duplicates: NDArray[np.int64]
    frames: int  # in the file, with everything else that is in it

    @property
    def heard(self) -> int:
        """RTP packets in the file."""
        return int(self.packets.sum() + self.duplicates.sum())


@dataclass(slots=True)
class Schedule:
    """Which packet of which stream comes when; n packets in order of arrival."""

    stream: NDArray[np.int64]
    number: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    tagged: NDArray[np.bool_]  # by stream
    six: NDArray[np.bool_]

    def first(self, count: int) -> "Schedule":
        """So many packets from its beginning."""
        return Schedule(
            self.stream[:count], self.number[:count], self.time_ns[:count], self.tagged, self.six
        )


def schedule(calls: int, seconds: float, impaired: bool, seed: int = 1) -> Schedule:
    """Two streams a call, each with its own phase and 0.8 ms of jitter."""
    random = np.random.default_rng(seed)
    streams, count = 2 * calls, int(seconds * RATE)
    stream = np.repeat(np.arange(streams), count)
    number = np.tile(np.arange(count), streams)
    time = number / RATE + random.random(streams)[stream] / RATE
    time += np.abs(random.normal(0, 0.0008, len(time)))
    if impaired:
        kept = random.random(len(time)) >= 0.01
        # The ends stay: nobody can count what was lost before the first or behind the last.
        kept |= (number == 0) | (number == count - 1)
        stream, number, time = stream[kept], number[kept], time[kept]
        time[random.random(len(time)) < 0.02] += 0.025
        twice = random.random(len(time)) < 0.005
        stream = np.concatenate((stream, stream[twice]))
        number = np.concatenate((number, number[twice]))
        time = np.concatenate((time, time[twice] + 0.0003))
    order = np.argsort(time, kind="stable")
    return Schedule(
        stream[order], number[order], EPOCH * 10**9 + (time[order] * 1e6).astype(np.int64) * 1000,
        random.random(streams) < 0.05, random.random(streams) < 0.02,
    )  # fmt: skip


def truth(plan: Schedule) -> Truth:
    """Counted from the schedule, not by the engine."""
    streams = len(plan.tagged)
    unique = np.unique(plan.stream << 32 | plan.number)
    packets = np.bincount(unique >> 32, minlength=streams)
    heard = np.bincount(plan.stream, minlength=streams)
    lost = int(plan.number.max()) + 1 - packets
    return Truth(packets, lost, heard - packets, len(plan.stream))


def write(path: Path, plan: Schedule, tunnel: str = "") -> Truth:
    """Write a nanosecond pcap file; returns what is true of it. tunnel: of TUNNELS, or none."""
    noise = [udp(b"OPTIONS sip:a@b SIP/2.0\r\n\r\n"), _arp(), _tcp()]
    frames = 0
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
        for start in range(0, len(plan.stream), PORTION):
            part = slice(start, start + PORTION)
            table, present = records(plan, part)
            if tunnel:
                table, present = _within(TUNNELS[tunnel], table, present)
            for at in range(0, len(table), NOISE_EVERY):
                rows = slice(at, at + NOISE_EVERY)
                file.write(table[rows][present[rows]].tobytes())
                frame = noise[at // NOISE_EVERY % 3]
                seconds, fraction = divmod(int(plan.time_ns[start + at]), 10**9)
                file.write(struct.pack("<4I", seconds, fraction, len(frame), len(frame)) + frame)
                frames += 1
    known = truth(plan)
    known.frames += frames
    return known


def records(plan: Schedule, part: slice) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Capture records as rows of bytes, and which bytes of each row are there.

    Columns: 16 record header, 12 MACs, 4 VLAN tag, 2 EtherType, 40 IP (the last 20 of them for
    IPv4), 8 UDP, 12 RTP, payload.
    """
    stream, number, time_ns = plan.stream[part], plan.number[part], plan.time_ns[part]
    tagged, six = plan.tagged[stream], plan.six[stream]
    table = np.zeros((len(stream), 94 + PAYLOAD), np.uint8)
    present = np.ones(table.shape, np.bool_)
    present[~tagged, 28:32] = False
    present[~six, 34:54] = False
    length = present[:, 16:].sum(1)
    header = (time_ns // 10**9, time_ns % 10**9, length, length)
    for place, value in enumerate(header):
        table[:, 4 * place : 4 * place + 4] = value.astype("<u4").view(np.uint8).reshape(-1, 4)
    table[:, 28:32] = (0x81, 0x00, 0x00, 0x64)
    table[:, 32:34] = np.where(six[:, None], (0x86, 0xDD), (0x08, 0x00))
    source, destination, source_port, destination_port = endpoints(stream)
    size = 20 + PAYLOAD
    table[six, 34], table[six, 40] = 0x60, 17
    _put(table, six, 38, np.full(len(stream), size), 2)
    table[six, 42], table[six, 58] = 0xFD, 0xFD
    _put(table, six, 54, source, 4)
    _put(table, six, 70, destination, 4)
    four = ~six
    table[four, 54], table[four, 62], table[four, 63] = 0x45, 64, 17
    _put(table, four, 56, np.full(len(stream), 20 + size), 2)
    _put(table, four, 66, source, 4)
    _put(table, four, 70, destination, 4)
    every = np.ones(len(stream), np.bool_)
    for at, value, width in (
        (74, source_port, 2), (76, destination_port, 2), (78, np.full(len(stream), size), 2),
        (84, (number + stream * 7) & 0xFFFF, 2), (86, number * PAYLOAD, 4), (90, stream + 1, 4),
    ):  # fmt: skip
        _put(table, every, at, value, width)
    table[:, 82] = 0x80
    table[:, 83] = np.where(number == 0, 0x88, 0x08)
    table[:, 94:] = ((number + 13 * stream)[:, None] + np.arange(PAYLOAD)).astype(np.uint8)
    return table, present


def _within(
    outer: bytes, table: NDArray[np.uint8], present: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The same records with these headers before each frame; lengths put right."""
    count, size = len(table), len(outer)
    head = np.tile(np.frombuffer(outer, np.uint8), (count, 1))
    frame = present[:, 16:].sum(1)
    every = np.ones(count, np.bool_)
    _put(head, every, 16, frame + size - 14, 2)
    if outer[23] == 17:
        _put(head, every, 38, frame + size - 34, 2)
    table = np.concatenate((table[:, :16], head, table[:, 16:]), axis=1)
    captured = (frame + size).astype("<u4").view(np.uint8).reshape(-1, 4)
    table[:, 8:12] = table[:, 12:16] = captured
    there = np.ones((count, size), np.bool_)
    return table, np.concatenate((present[:, :16], there, present[:, 16:]), axis=1)


def endpoints(stream: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Phones at 10.1.x.y, and one gateway; the second stream of a call goes the other way."""
    call, back = stream // 2, stream % 2 == 1
    phone, gateway = (10 << 24 | 1 << 16) + call // 200, (10 << 24 | 2 << 16) + call % 8
    phone_port, gateway_port = 10_000 + 16 * (call % 200), 16_384 + 2 * (call // 8)
    return (
        np.where(back, gateway, phone), np.where(back, phone, gateway),
        np.where(back, gateway_port, phone_port), np.where(back, phone_port, gateway_port),
    )  # fmt: skip


def _put(
    table: NDArray[np.uint8], rows: NDArray[np.bool_], at: int, value: NDArray[np.int64], width: int
) -> None:
    """Write numbers of width bytes, most significant first, into a column."""
    raw = value[rows].astype(">u8").view(np.uint8).reshape(-1, 8)
    table[rows, at : at + width] = raw[:, 8 - width :]


def udp(payload: bytes) -> bytes:
    datagram = struct.pack("!4H", 5060, 5060, 8 + len(payload), 0) + payload
    return _ip(17, datagram)


def _tcp() -> bytes:
    return _ip(6, bytes(20))


def _ip(protocol: int, payload: bytes) -> bytes:
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0,
        bytes((10, 1, 0, 1)), bytes((10, 2, 0, 1)),
    )  # fmt: skip
    return bytes(12) + b"\x08\x00" + header + payload


def _arp() -> bytes:
    return bytes(12) + b"\x08\x06" + bytes(46)


# Headers of a mirror that comes over a network: what is before the mirrored frame.
TUNNELS = {
    "VXLAN": _ip(17, struct.pack("!4HII", 40_000, 4789, 0, 0, 0x0800_0000, 42 << 8)),
    "ERSPAN II": _ip(47, struct.pack("!HHIII", 0x1000, 0x88BE, 1, 0x1000_0001, 5)),
}
