"""How much later a party's picture comes than the sound of the same moment, by its sender reports.

A camera's picture takes longer to encode and to send than speech, so what arrives together was not
seen and heard together. A sender report names a moment of the sender's clock and the timestamp that
a stream had then: with reports of both streams of one sender, the moments of their packets can be
compared. Only a difference is used, so the sender's clock need not be right; clocks of two parties
are never compared (docs/decisions/0019).
Source: RFC 3550 §5.1, §6.4.1. Where pictures go by arrival: spanvault.audio.timeline.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spanvault.audio.sending import Sending
from spanvault.media import rtcp
from spanvault.media.chunk import CONTROL, Chunk
from spanvault.media.payloadtypes import meaning
from spanvault.messages import Stream

AROUND_NS: Final = 2_000_000_000  # packets so near to a report are looked at
QUICK: Final = 20  # percent of them are taken to have waited for nothing
MOST_S: Final = 1.5  # a greater difference is two clocks, not one encoder
STEADY_S: Final = 0.1  # reports that contradict each other by more mean nothing
NTP_SECOND: Final = 1 << 32


class Report(NamedTuple):
    """A sender report. ntp_s: of the sender's clock, seconds."""

    timestamp: int
    ntp_s: float
    heard_ns: int


class LipSync:
    """Fed with a call's chunks; then tells by how much each stream of video comes late."""

    def __init__(self, streams: Iterable[Stream]) -> None:
        self._streams = {stream.number: stream for stream in streams}
        self._rates = {number: _rate(stream) for number, stream in self._streams.items()}
        self._packets: dict[int, list[tuple[NDArray[np.uint32], NDArray[np.int64]]]] = {}
        self._reports: dict[int, list[Report]] = {}

    def receive(self, chunk: Chunk) -> None:
        """A chunk of sound or video: of packets of one timestamp the first counts."""
        timestamp, first = np.unique(chunk.frames["timestamp"], return_index=True)
        heard = self._packets.setdefault(int(chunk.header["stream"]), [])
        heard.append((timestamp, chunk.frames["arrival_ns"][first]))

    def report(self, chunk: Chunk, datagrams: Sequence[bytes]) -> None:
        """A chunk of RTCP in the clear, and what its datagrams are. Others' reports are left."""
        stream = self._streams.get(int(chunk.header["stream"]) - CONTROL)
        if stream is None:
            return
        for datagram, heard_ns in zip(datagrams, chunk.frames["arrival_ns"].tolist(), strict=True):
            for packet in _packets(datagram):
                if isinstance(packet, rtcp.SenderReport) and packet.ssrc == stream.ssrc:
                    told = Report(packet.timestamp, packet.ntp / NTP_SECOND, heard_ns)
                    if packet.ntp:  # 0: it has no clock, §6.4.1
                        self._reports.setdefault(stream.number, []).append(told)

    def late_s(self, video: int) -> float:
        """Seconds by which a stream of video comes later than its party's sound; 0 if unknown."""
        stream = self._streams[video]
        found = [
            self._later(video, other.number)
            for other in self._streams.values()
            if other.media == "audio"
            and other.party == stream.party
            and min(other.last_ns, stream.last_ns) > max(other.first_ns, stream.first_ns)
        ]
        return next((late_s for late_s in found if late_s is not None), 0.0)

    def _later(self, video: int, sound: int) -> float | None:
        pictures, voices = self._lags(video), self._lags(sound)
        if not pictures or not voices:
            return None
        # Each report against the nearest of the other stream: between them clocks may drift.
        late = [
            lag_s - min(voices, key=lambda one: abs(one[0] - heard_ns))[1]
            for heard_ns, lag_s in pictures
        ]
        middle = float(np.median(late))
        steady = float(np.median(np.abs(np.array(late) - middle))) <= STEADY_S
        return middle if steady and abs(middle) <= MOST_S else None

    def _lags(self, number: int) -> list[tuple[int, float]]:
        """When each report was heard, and how long packets about it took, by the sender's clock."""
        heard = self._packets.get(number, [])
        reports, rate = self._reports.get(number, []), self._rates[number]
        if not heard or not reports or not rate:
            return []
        timestamp = np.concatenate([stamps for stamps, _ in heard])
        arrival = np.concatenate([arrivals for _, arrivals in heard])
        order = np.argsort(arrival, kind="stable")
        timestamp, arrival = timestamp[order], arrival[order]
        if self._streams[number].media == "video":
            # As they are placed: by when a decoder takes them.
            timestamp = Sending().taken(timestamp, len(timestamp))
        found = []
        for report in reports:
            near = [report.heard_ns - AROUND_NS, report.heard_ns + AROUND_NS]
            first, last = np.searchsorted(arrival, near).tolist()
            if first < last:
                ticks = (timestamp[first:last] - np.uint32(report.timestamp)).view(np.int32)
                lag_s = arrival[first:last] / 1e9 - (report.ntp_s + ticks / rate)
                found.append((report.heard_ns, float(np.percentile(lag_s, QUICK))))
        return found


def _packets(datagram: bytes) -> list[rtcp.Packet]:
    try:
        return rtcp.parse(datagram)
    except ValueError:
        return []  # encrypted, or somebody's fault: the capture counted it


def _rate(stream: Stream) -> int:
    """Of the media clock that most of its packets go by."""
    for number, _ in sorted(stream.payload_types.items(), key=lambda one: -one[1]):
        codec = meaning(stream, number)
        if codec is not None:
            return codec.clock_rate
    return 0
