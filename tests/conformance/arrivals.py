"""What the lab's truth does not say: how long a stream's first packet had waited.

The truth counts a voice's seconds from the arrival of its first packet, which comes up to 34 ms
late (ARP, a sender that just woke up). tshark, which shares no code with us, says when all packets
came.
"""

import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Final

import numpy as np

from tests.conformance.truth import TrueStream

FIELDS: Final = (
    "frame.time_epoch", "ip.src", "ipv6.src", "ip.dst", "ipv6.dst", "udp.srcport", "udp.dstport",
    "rtp.ssrc", "rtp.timestamp",
)  # fmt: skip
RATES: Final = {"opus": 48000, "h264": 90000}  # of the lab's codecs; all others have 8000
PACKETS: Final = 50  # about a second tells

Name = tuple[str, str, str]


def waits(capture: Path, streams: list[TrueStream]) -> dict[Name, float]:
    """Seconds that each stream's first packet came later than those behind it let expect."""
    rates = {one.name: RATES.get(one.codec, 8000) for one in streams}
    lags: dict[Name, list[float]] = defaultdict(list)
    begins: dict[Name, tuple[float, int]] = {}
    for name, arrival_s, timestamp in packets(capture):
        if name not in rates or len(lags[name]) == PACKETS:
            continue
        first_s, first = begins.setdefault(name, (arrival_s, timestamp))
        ticks = (timestamp - first + (1 << 31)) % (1 << 32) - (1 << 31)
        lags[name].append(arrival_s - first_s - ticks / rates[name])
    # Not the least: a packet may also be sent early.
    return {name: -float(np.quantile(lag, 0.25)) for name, lag in lags.items()}


def packets(capture: Path) -> list[tuple[Name, float, int]]:
    """Stream, arrival and RTP timestamp of every RTP packet, as tshark reads the capture."""
    command = ["tshark", "-n", "-r", str(capture), "--enable-heuristic", "rtp_udp", "-Y", "rtp"]
    command += ["-T", "fields", "-E", "occurrence=l"]  # the innermost headers of a tunnel
    for field in FIELDS:
        command += ["-e", field]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for line in text.splitlines():
        time_s, source, source6, target, target6, port, target_port, ssrc, stamp = line.split("\t")
        if not ssrc:
            continue
        name = (f"{source or source6}:{port}", f"{target or target6}:{target_port}", ssrc)
        found.append((name, float(time_s), int(stamp)))
    return found
