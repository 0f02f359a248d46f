"""What the lab's truth does not say: how long packets had waited, and what never came.

The truth lays a stream out by its RTP timestamps from the arrival of its first packet on. A first
packet comes up to 34 ms late (ARP, a sender that just woke up), and what a PBX held up once it may
send so much later for good. Where the timestamps leap by a second or more, the truth goes on by the
arrival of the two packets beside the leap, each of which may have waited. In xfer_blind_pbx it is
56 ms early so: the PBX's last ringing tone came 68 ms behind its timestamps (8 ms since the REFER,
60 since a packet that it sent so late), and the next party's first packet had waited 12 ms itself,
by those behind it. A PBX that is held up may also leave a sequence number out: no packet of that
number was ever on the wire, and the truth counts only those that were.
tshark, which shares no code with us, says which packets came when.
"""

import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tests.conformance.truth import Case, Channel, TrueCall

FIELDS: Final = (
    "frame.time_epoch", "ip.src", "ipv6.src", "ip.dst", "ipv6.dst", "udp.srcport", "udp.dstport",
    "rtp.ssrc", "rtp.timestamp", "rtp.seq",
)  # fmt: skip
RATES: Final = np.array([8000, 16000, 24000, 32000, 44100, 48000, 90000])
LEAP_S: Final = 1.0  # from here on the truth goes by arrival
PROMPT: Final = 0.25  # so many waited for nothing; not the least: one may also be sent early
MAX_DROPOUT: Final = 3000  # numbers; a longer leap is a sender that began anew: RFC 3550 A.1
FIRST: Final = 50  # packets: about a second tells whether the first one had waited

Name = tuple[str, str, str]


class Arrivals:
    """One stream as the truth lays it out, and as it came. In seconds since its first packet."""

    def __init__(self, arrival_s: list[float], timestamps: list[int], sequence: list[int]) -> None:
        self.lost = missing(sequence)
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
    heard: dict[Name, tuple[list[float], list[int], list[int]]]
    heard = defaultdict(lambda: ([], [], []))
    for name, arrival_s, timestamp, number in packets(capture):
        heard[name][0].append(arrival_s)
        heard[name][1].append(timestamp)
        heard[name][2].append(number)
    return {name: Arrivals(*columns) for name, columns in heard.items()}


def with_losses(case: Case, came: dict[Name, Arrivals]) -> Case:
    """A case of the lab whose channels miss what the wire shows to be missing."""

    def channel(one: Channel) -> Channel:
        heard = came.get((one.source, one.destination, one.ssrc))
        return replace(one, lost=heard.lost) if heard else one

    def call(one: TrueCall) -> TrueCall:
        return replace(one, channels=one.channels and [channel(each) for each in one.channels])

    return replace(case, calls=[call(one) for one in case.calls])


def missing(sequence: list[int]) -> int:
    """How many numbers never came among those that did, in the order in which they came.

    Late ones and copies are none.
    """
    runs: list[set[int]] = [set()]
    highest = sequence[0]
    for number in sequence:
        extended = highest + (number - highest + 0x8000 & 0xFFFF) - 0x8000
        if abs(extended - highest) >= MAX_DROPOUT:
            runs.append(set())
            highest = extended = number
        runs[-1].add(extended)
        highest = max(highest, extended)
    return sum(max(run) - min(run) + 1 - len(run) for run in runs)


def packets(capture: Path) -> list[tuple[Name, float, int, int]]:
    """Stream, arrival, RTP timestamp and number of every RTP packet, as tshark reads them."""
    command = ["tshark", "-n", "-r", str(capture), "--enable-heuristic", "rtp_udp", "-Y", "rtp"]
    command += ["-T", "fields", "-E", "occurrence=l"]  # the innermost headers of a tunnel
    for field in FIELDS:
        command += ["-e", field]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for line in text.splitlines():
        time_s, source, source6, target, target6, *rest = line.split("\t")
        port, target_port, ssrc, stamp, number = rest
        if not ssrc:
            continue
        name = (f"{source or source6}:{port}", f"{target or target6}:{target_port}", ssrc)
        found.append((name, float(time_s), int(stamp), int(number)))
    return found
