"""What those who hear a stream report of it, put together of their RTCP.

The round trip is what a listener in the middle can measure: from a sender report that passes by to
the report that answers it, less what the answerer says it waited. RTCP in the clear is read as it
is heard (capture.calls.control); what was encrypted by keys of SDP is opened when somebody asks
(`FarEnds`), by whoever may have the recording's keys.
Sources: RFC 3550 §6.4. The bytes: spanvault.media.rtcp. Opening: spanvault.media.srtcp.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from spanvault.media import rtcp
from spanvault.media.chunk import CONTROL, EVENTS, TRUNCATED, Chunk
from spanvault.messages import FarEnd, MediaKey, Stream

REMEMBERED: Final = 8  # sender reports that an answer may come to
LONGEST_NS: Final = 60_000_000_000  # a round trip; more is two clocks that met by chance


class Trips:
    """The last sender reports of one stream, and how long the answers to them took."""

    def __init__(self) -> None:
        self._sent_ns: dict[int, int] = {}  # by the middle of their NTP time

    def sent(self, report: rtcp.SenderReport, time_ns: int) -> None:
        """It passed by."""
        self._sent_ns[report.ntp >> 16 & 0xFFFFFFFF] = time_ns
        if len(self._sent_ns) > REMEMBERED:
            del self._sent_ns[next(iter(self._sent_ns))]

    def answered(self, report: rtcp.Report, time_ns: int) -> int | None:
        """From where we listen to the far end and back, ns; None where it cannot be told."""
        sent_ns = self._sent_ns.get(report.last_sr) if report.last_sr else None
        if sent_ns is None:
            return None
        trip_ns = time_ns - sent_ns - (report.delay * 1_000_000_000 >> 16)
        # A little below 0 is how coarsely the answerer counts, or how we stamp.
        return max(0, trip_ns) if -LONGEST_NS // 1000 < trip_ns < LONGEST_NS else None


def reports(packet: rtcp.Packet) -> tuple[rtcp.Report, ...]:
    """What a packet reports of streams that its sender hears."""
    return packet.reports if isinstance(packet, rtcp.SenderReport | rtcp.ReceiverReport) else ()


def note(far_end: FarEnd, report: rtcp.Report, trip_ns: int | None) -> None:
    """Add a report to what is known."""
    far_end.reports += 1
    far_end.lost = report.lost
    far_end.worst = max(far_end.worst, report.fraction / 256)
    far_end.jitter = max(far_end.jitter, float(report.jitter))
    if trip_ns is not None:
        far_end.round_trips += 1
        before = far_end.round_trip_ms or 0.0
        far_end.round_trip_ms = before + (trip_ns / 1e6 - before) / far_end.round_trips


class FarEnds:
    """A call's encrypted RTCP, opened and read into its streams.

    streams: far_end and bye_ns of them are filled in.  warnings: what could not be opened or read.
    """

    def __init__(self, streams: Sequence[Stream], keys: Sequence[MediaKey]) -> None:
        from spanvault.media.srtcp import Opener  # brings libsrtp, which a capture does not need

        self.warnings: Counter[str] = Counter()
        self._streams = {stream.number: stream for stream in streams}
        self._opener = Opener(keys)
        self._trips: dict[int, Trips] = {}

    def receive(self, chunks: Iterable[Chunk]) -> None:
        """Take in the chunks of RTCP among these; all of a call, in order of time."""
        for chunk in chunks:
            number = int(chunk.header["stream"])
            if CONTROL <= number < EVENTS and number - CONTROL in self._streams:
                self._chunk(self._streams[number - CONTROL], chunk)

    def _chunk(self, speaker: Stream, chunk: Chunk) -> None:
        for frame, payload in zip(chunk.frames, chunk.payloads(), strict=True):
            opened = self._opener.open(bytes(payload))
            if opened is None:
                self.warnings["RTCP datagrams open with no key that was heard"] += 1
                continue
            try:
                packets = rtcp.parse(opened, cut=bool(frame["flags"] & TRUNCATED))
            except ValueError:
                self.warnings["RTCP datagrams that cannot be read"] += 1
                continue
            for packet in packets:
                self._read(speaker, packet, int(frame["arrival_ns"]))

    def _read(self, speaker: Stream, packet: rtcp.Packet, time_ns: int) -> None:
        if isinstance(packet, rtcp.SenderReport) and packet.ssrc == speaker.ssrc:
            self._trips.setdefault(speaker.number, Trips()).sent(packet, time_ns)
        if isinstance(packet, rtcp.Goodbye) and speaker.ssrc in packet.ssrcs:
            speaker.bye_ns = time_ns
        for report in reports(packet):
            for stream in self._heard(speaker, report.ssrc):
                trips = self._trips.get(stream.number)
                stream.far_end = stream.far_end or FarEnd()
                note(stream.far_end, report, trips.answered(report, time_ns) if trips else None)

    def _heard(self, speaker: Stream, ssrc: int) -> list[Stream]:
        """The streams of an SSRC that come to whoever speaks."""
        return [
            stream
            for stream in self._streams.values()
            if stream.ssrc == ssrc and _host(stream.destination) == _host(speaker.source)
        ] or [
            stream  # NAT, or one host for media and another for what it hears
            for stream in self._streams.values()
            if stream.ssrc == ssrc and stream.party != speaker.party
        ]


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0]
