"""What the lab's truth does not say: how long the packets had waited that it took as on time.

The truth lays a stream out by its RTP timestamps from the arrival of its first packet on. A first
packet comes up to 34 ms late (ARP, a sender that just woke up), and what a PBX held up once it may
send so much later for good. Where the timestamps leap by a second or more, the truth goes on by the
arrival of the two packets beside the leap, each of which may have waited. In xfer_blind_pbx it is
56 ms early so: the PBX's last ringing tone came 68 ms behind its timestamps (8 ms since the REFER,
60 since a packet that it sent so late), and the next party's first packet had waited 12 ms itself,
by those behind it. tshark, which shares no code with us, says when all packets came.
"""

import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

FIELDS: Final = (
    "frame.time_epoch", "ip.src", "ipv6.src", "ip.dst", "ipv6.dst", "udp.srcport", "udp.dstport",
    "rtp.ssrc", "rtp.timestamp",
)  # fmt: skip
RATES: Final = np.array([8000, 16000, 24000, 32000, 44100, 48000, 90000])
LEAP_S: Final = 1.0  # from here on the truth goes by arrival
PROMPT: Final = 0.25  # so many waited for nothing; not the least: one may also be sent early
FIRST: Final = 50  # packets: about a second tells whether the first one had waited

Name = tuple[str, str, str]


class Arrivals:
    """One stream as the truth lays it out, and as it came. In seconds since its first packet."""

    def __init__(self, arrival_s: list[float], timestamps: list[int]) -> None:
        self.begins_s = arrival_s[0]
        self.came_s = np.array(arrival_s) - arrival_s[0]
        ticks = np.diff(np.array(timestamps, np.uint32)).view(np.int32).astype(np.int64)
        waits = np.diff(self.came_s)
        steps = ticks / _rate(ticks, waits)
        steps = np.where(np.abs(steps - waits) < LEAP_S, steps, waits)
        self._laid_s = np.concatenate([[0.0], np.cumsum(steps)])
        self._late_s = self.came_s - self._laid_s

    def first_late_s(self) -> float:
        """How much later the sound came than the first packet let expect; never more than 0."""
        return min(0.0, _prompt(self._late_s[:FIRST]))

    def late_s(self, from_s: float, to_s: float) -> float:
        """How much later than the truth lays them out the packets came that it lays out there."""
        there = self._late_s[(self._laid_s >= from_s) & (self._laid_s < to_s)]
        return _prompt(there) if len(there) else self.first_late_s()

    def late_around_s(self, from_s: float, to_s: float) -> float:
        """The same of the packets that came between these times."""
        there = self._late_s[(self.came_s >= from_s) & (self.came_s < to_s)]
        return _prompt(there) if len(there) else self.first_late_s()


def _prompt(late_s: NDArray[np.float64]) -> float:
    return float(np.quantile(late_s, PROMPT))


def _rate(ticks: NDArray[np.int64], waits: NDArray[np.float64]) -> int:
    """The clock of a stream's timestamps, by how fast they go over a second or so."""
    count = min(FIRST, len(ticks))
    if not count:
        return int(RATES[0])
    gone = np.convolve(ticks, np.ones(count), "valid")
    took = np.convolve(waits, np.ones(count), "valid")
    going = (gone > 0) & (took > 0)
    speed = float(np.median(gone[going] / took[going])) if going.any() else float(RATES[0])
    return int(RATES[np.abs(np.log(RATES / speed)).argmin()])


def arrivals(capture: Path) -> dict[Name, Arrivals]:
    """All RTP streams of a capture, by source, destination and SSRC."""
    heard: dict[Name, tuple[list[float], list[int]]] = defaultdict(lambda: ([], []))
    for name, arrival_s, timestamp in packets(capture):
        heard[name][0].append(arrival_s)
        heard[name][1].append(timestamp)
    return {name: Arrivals(*columns) for name, columns in heard.items()}


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
