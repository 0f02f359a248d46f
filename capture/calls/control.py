"""RTCP of the streams that calls hold: kept with the recording, and read for what it tells.

Fed with datagrams, bounded for each stream. A datagram is kept as heard, beside the stream of
whoever sent it, or else of one that it reports on; of streams without a call it waits until one
claims them (capture.calls.unclaimed), and no stream is opened by RTCP. Encrypted RTCP is kept and
not read. The round trip is what a listener in the middle can measure: from a sender report that
passes by to the report that answers it, less what the answerer says it waited.
Sources: RFC 3550 §6.4, §11, RFC 3711 §3.4. The bytes: spanvault.media.rtcp. Which stream it is of:
capture.calls.attachment.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.calls.attachment import Attachments
from capture.calls.livecall import LiveCall
from capture.calls.rows import Row
from capture.calls.unclaimed import EARLY_NS, Unclaimed
from capture.model import Datagram
from spanvault.media import chunk, rtcp
from spanvault.media.farend import Trips, note, reports
from spanvault.messages import FarEnd

MOST: Final = 64  # datagrams of one stream between two flushes; feedback for video comes in swarms
COPY_NS: Final = 1_000_000_000  # the same bytes within so long are a copy, as of a mirror


class Kept:
    """What is kept of one stream's RTCP, and remembered to read the next."""

    def __init__(self) -> None:
        self.waiting: list[Datagram] = []
        self.packets = self.chunk_ns = self.first_ns = self.last_ns = 0
        self.last = b""
        self.trips = Trips()


class Control:
    """Reads RTCP for the call table. For one thread."""

    def __init__(self, attachments: Attachments, count: Callable[[str], None]) -> None:
        self._attachments, self._count = attachments, count
        self._kept: dict[int, Kept] = {}  # by row
        self._waiting: dict[int, Row] = {}
        self._unclaimed = Unclaimed(count)
        self._now_ns = 0

    def receive(self, datagram: Datagram) -> Iterable[LiveCall]:
        """Take a datagram in; the calls that it tells something of."""
        self._now_ns = datagram.time_ns
        row = self._speaker(datagram, _first_ssrc(datagram.payload))
        earlier = self._unclaimed.take(row) if row is not None and row.call is not None else []
        return self._hear([*earlier, datagram])

    def claimed(self) -> Iterable[LiveCall]:
        """Take in what came before its stream was claimed; the calls that it tells something of."""
        early = []
        for datagram in self._unclaimed.early():
            if abs(self._now_ns - datagram.time_ns) <= EARLY_NS:
                early.append(datagram)
            else:
                self._count("rtcp_unmatched")
        return self._hear([*self._unclaimed.claimed(), *early])

    def _hear(self, datagrams: list[Datagram]) -> Iterable[LiveCall]:
        told = (call for datagram in datagrams for call in self._take_in(datagram))
        return {call.id: call for call in told}.values()

    def _take_in(self, datagram: Datagram) -> Iterable[LiveCall]:
        row = self._speaker(datagram, _first_ssrc(datagram.payload))
        if row is not None and row.call is None:
            self._unclaimed.hold(row, datagram)  # it may be encrypted: not to be read yet
            return []
        if row is not None and row.call is not None and row.call.secure:
            self._count("rtcp_encrypted")
            return [row.call] if self._keep(row, datagram) else []
        try:
            packets = rtcp.parse(datagram.payload, cut=datagram.missing > 0)
        except ValueError:
            self._count("rtcp_unreadable")
            return []
        row = row or self._reported(datagram, packets)
        if row is None or row.call is None:
            self._unclaimed.hold(row, datagram)
            return []
        if not self._keep(row, datagram):
            return []
        self._count("rtcp_read")
        changed = {row.call.id: row.call}
        for packet in packets:
            changed |= {call.id: call for call in self._read(packet, datagram)}
        return changed.values()

    def media(self) -> chunk.Media:
        """What was kept since last asked, as chunks."""
        waiting, self._waiting = self._waiting, {}
        packed = [_chunk(row, self._kept[row.stream.row]) for row in waiting.values() if row.call]
        if not packed:
            return chunk.NO_MEDIA
        return chunk.Media(
            np.concatenate([table for table, _, _ in packed]),
            np.concatenate([frames for _, frames, _ in packed]),
            memoryview(b"".join(payload for _, _, payload in packed)),
        )

    def release(self, row: int) -> None:
        """The row is gone. What was kept of it must have left."""
        self._kept.pop(row, None)
        self._waiting.pop(row, None)
        self._unclaimed.release(row)

    # --- whose it is ------------------------------------------------------------------------

    def _speaker(self, datagram: Datagram, ssrc: int) -> Row | None:
        """The stream that a source sends from here to there."""
        return self._attachments.speaking(ssrc, datagram.source, datagram.destination)

    def _heard(self, datagram: Datagram, ssrc: int) -> Row | None:
        """The stream that the datagram's sender hears and reports on."""
        return self._attachments.speaking(ssrc, datagram.destination, datagram.source)

    def _reported(self, datagram: Datagram, packets: list[rtcp.Packet]) -> Row | None:
        """Of one who sends nothing: a stream that it hears."""
        told = (report for packet in packets for report in reports(packet))
        return next((row for one in told if (row := self._heard(datagram, one.ssrc))), None)

    # --- what becomes of it -----------------------------------------------------------------

    def _keep(self, row: Row, datagram: Datagram) -> bool:
        """Put it beside the stream. False if it is a copy, or one too many."""
        kept = self._kept.setdefault(row.stream.row, Kept())
        if datagram.payload == kept.last and abs(datagram.time_ns - kept.last_ns) < COPY_NS:
            self._count("rtcp_copies")
            return False
        if len(kept.waiting) >= MOST:
            self._count("rtcp_ignored")
            return False
        kept.waiting.append(datagram)
        kept.last = datagram.payload
        kept.packets += 1
        kept.first_ns, kept.last_ns = kept.first_ns or datagram.time_ns, datagram.time_ns
        self._waiting[row.stream.row] = row
        for call, index in self._listed(row):
            call.put_beside(
                call.streams[index], chunk.CONTROL, kept.packets, kept.first_ns, kept.last_ns
            )
        return True

    def _read(self, packet: rtcp.Packet, datagram: Datagram) -> Iterator[LiveCall]:
        """Note what one packet says; the calls it says it of."""
        if isinstance(packet, rtcp.SenderReport):
            self._sent(packet, datagram)
        for report in reports(packet):
            row = self._heard(datagram, report.ssrc)
            if row is not None:
                trip_ns = self._round_trip(row, report, datagram.time_ns)
                for call, index in self._listed(row):
                    stream = call.streams[index]
                    stream.far_end = stream.far_end or FarEnd()
                    note(stream.far_end, report, trip_ns)
                    yield call
        if isinstance(packet, rtcp.Goodbye):
            for ssrc in packet.ssrcs:
                row = self._speaker(datagram, ssrc)
                if row is not None:
                    row.bye_ns = datagram.time_ns
                    for call, index in self._listed(row):
                        call.streams[index].bye_ns = datagram.time_ns
                        yield call

    def _sent(self, report: rtcp.SenderReport, datagram: Datagram) -> None:
        row = self._speaker(datagram, report.ssrc)
        if row is not None:
            self._kept.setdefault(row.stream.row, Kept()).trips.sent(report, datagram.time_ns)

    def _round_trip(self, row: Row, report: rtcp.Report, time_ns: int) -> int | None:
        kept = self._kept.get(row.stream.row)
        return kept.trips.answered(report, time_ns) if kept else None

    def _listed(self, row: Row) -> Iterator[tuple[LiveCall, int]]:
        """The calls that have part in a stream, and where they list it."""
        if row.call is None:
            return
        number = row.stream.row
        for call in (row.call, *row.sharers):
            if number in call.rows:
                yield call, call.rows.index(number)


def _first_ssrc(payload: bytes) -> int:
    """Of SR, RR, SDES and BYE alike, in the clear even where the rest is not: RFC 3711 §3.4."""
    return int.from_bytes(payload[4:8], "big")


def _chunk(row: Row, kept: Kept) -> tuple[NDArray[np.void], NDArray[np.void], bytes]:
    """The datagrams that wait, as one chunk: table, frames, payload."""
    datagrams, kept.waiting = kept.waiting, []
    assert row.call is not None
    frames = np.zeros(len(datagrams), chunk.FRAME)
    before = kept.packets - len(datagrams)
    for at, datagram in enumerate(datagrams):
        flags = chunk.TRUNCATED if datagram.missing else 0
        frames[at] = (
            65536 + before + at, 0, datagram.time_ns + row.call.clock_ns,
            datagram.payload[1], flags, len(datagram.payload),
        )  # fmt: skip
    payload = b"".join(datagram.payload for datagram in datagrams)
    table = np.zeros(1, chunk.CHUNK)
    table["recording_id"], table["stream"] = np.void(row.call.id), row.number + chunk.CONTROL
    table["ssrc"], table["frames"] = row.stream.ssrc, len(frames)
    table["payload_bytes"] = len(payload)
    start_ns = max(int(frames["arrival_ns"].min()), kept.chunk_ns + 1)
    kept.chunk_ns = start_ns
    table["start_ns"], table["packets"] = start_ns, kept.packets
    return table, frames, payload
