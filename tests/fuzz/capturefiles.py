"""Capture files that fuzzing begins with: a short call in both formats, and what both may hold."""

import struct
from functools import cache
from typing import Any

from tests.support.callgen import SECOND, START_NS, Frame, answered, phones, udp_frame
from tests.support.frames import enhanced, interface, option, pcap, pcapng_block, rtp, section

MANY = 100  # blocks that follow each other, of which a reader of pcapng takes 64 at once


@cache
def call() -> list[Frame]:
    """Of 0.4 seconds."""
    return answered(START_NS, *phones(0.4), "fuzz@spanvault.example")


def captures() -> list[bytes]:
    """A short call in both formats; RTP whose header is more than its twelve bytes."""
    frames = call()
    more: dict[str, Any] = {"csrcs": (7,), "extension": bytes(4), "padding": b"\0\0\0\4"}
    ends = ("10.0.0.1", 4000), ("10.0.0.2", 4000)
    return [
        pcap(frames),
        pcap(frames, order=">", nano=False),
        section() + interface() + b"".join(enhanced(data, at // 1000) for at, data in frames),
        pcap([
            udp_frame(START_NS + n * SECOND // 50, *ends, rtp(n, 160 * n, **more))
            for n in range(60)
        ]),
        *odd(),
    ]  # fmt: skip


def odd() -> list[bytes]:
    """pcapng as others write it: options, several interfaces and sections, blocks of old."""
    return [_of_several_interfaces(), _of_old_blocks(), _of_many_packets()]


def _of_several_interfaces() -> bytes:
    """Nanoseconds, powers of two, an offset; names and statistics between the packets."""
    frames = call()[:12]
    units = [SECOND, 1 << 20, 10**6]
    clocks = (9, b"\x09"), (9, b"\x94"), (14, struct.pack(">q", 3600))
    said = section(">")
    for clock in clocks:
        options = option(2, b"eth0", ">") + option(*clock, ">") + option(0, b"", ">")
        said += interface(options=options, order=">")
    for at, (time_ns, data) in enumerate(frames):
        ticks = time_ns * units[at % 3] // SECOND
        said += enhanced(data, ticks, number=at % 3, order=">")
        said += pcapng_block(4 + at % 2, bytes(8), ">")
    return said


def _of_old_blocks() -> bytes:
    """Two sections; simple packets, of a snap length, and those of the obsolete block."""
    said = b""
    for order, snap in (("<", 0), (">", 90)):
        said += section(order) + interface(snap=snap, order=order)
        for time_ns, data in call()[:6]:
            kept, ticks = data[: snap or len(data)], time_ns // 1000
            said += pcapng_block(3, struct.pack(f"{order}I", len(data)) + kept, order)
            fields = (0, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
            said += pcapng_block(2, struct.pack(f"{order}HH4I", *fields) + data, order)
    return said


def _of_many_packets() -> bytes:
    """So many that they are taken at once, not one by one; in their midst another block.

    The first is of another link: behind it a run of blocks is looked for.
    """
    ends = ("10.0.0.1", 4000), ("10.0.0.2", 4000)
    frames = [udp_frame(START_NS + n * SECOND // 50, *ends, rtp(n, 160 * n)) for n in range(MANY)]
    blocks = [enhanced(data, time_ns // 1000) for time_ns, data in frames]
    blocks.insert(MANY - 30, pcapng_block(4, bytes(8)))
    raw = enhanced(frames[0][1][14:], START_NS // 1000, number=1)
    return section() + interface() + interface(101) + raw + b"".join(blocks)
