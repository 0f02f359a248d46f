"""Our table of RTP streams: each of a capture, claimed at once and counted; and its RTCP."""

from pathlib import Path

from capture.media.engine import Media
from capture.model import Attach, Datagram, NewStream, StreamTotals
from capture.packets.decode import Decoded, Decoder
from capture.packets.slowpath import SlowPath
from capture.sources.files import blocks
from spanvault.daemon.config import CaptureConfig
from spanvault.media import chunk


def check(parts: list[chunk.Media]) -> None:
    for part in parts:
        part.check()


class Table:
    """Every stream of a capture, all of them claimed at once."""

    def __init__(self, path: Path) -> None:
        self._decoder, self._media, self._slow = Decoder(), Media(CaptureConfig()), SlowPath()
        self._streams: list[NewStream] = []
        self.control: list[Datagram] = []
        self.frames = 0
        for block in blocks(path):
            decoded = self._decoder.decode(block)
            self._take(decoded)
            if (refused := decoded.refused).count:
                self._take(
                    self._decoder.admit(self._slow.receive(block, refused.rows, refused.inner))
                )
            self.frames += len(block.start)
            check(self._media.tick(int(block.time_ns.max())))
        check(self._media.flush())

    def totals(self) -> dict[tuple[str, str, int], StreamTotals]:
        """By source, destination and SSRC."""
        return {
            (str(each.source), str(each.destination), each.ssrc): self._media.totals(each.row)
            for each in self._streams
        }

    def _take(self, decoded: Decoded) -> None:
        self.control += decoded.control
        for stream in self._media.receive(decoded.packets, decoded.endpoints):
            self._streams.append(stream)
            recording = len(self._streams).to_bytes(16, "big")
            self._media.attach(Attach(stream.row, recording, 0))
