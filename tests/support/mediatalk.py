"""A Media that is told things, and everything that it answers: packets in, chunks out."""

from collections.abc import Sequence

from capture.media.engine import Media
from capture.media.leaving import Leaving
from capture.model import Attach, Close, NewStream
from spanvault.daemon.config import CaptureConfig
from spanvault.media.chunk import Media as Chunks
from tests.support.frames import EPOCH, SECOND
from tests.support.rtpstreams import Sent, Truth, endpoints, packets

RECORDING = b"recording-number"


class Conversation:
    """A Media that is told things, and everything it answered."""

    def __init__(self, *, attach: bool = True, **settings_: float) -> None:
        self.media = Media(CaptureConfig(**settings_))  # type: ignore[arg-type]
        self.new: list[NewStream] = []
        self.chunks: list[Chunks] = []
        self._attach = attach

    def hear(self, sent: Sequence[Sent], dropped: int = 0) -> None:
        """One block of packets."""
        if dropped:
            self.media.lost(dropped, *between(sent[0].at, sent[-1].at))
        self.opened(self.media.receive(packets(sent), endpoints))

    def opened(self, new: list[NewStream]) -> None:
        self.new += new
        for stream in new if self._attach else []:
            self.attach(stream)

    def attach(self, stream: NewStream, recording: bytes = RECORDING, number: int = 0) -> None:
        self.media.attach(Attach(stream.row, recording, number))

    def close(self, stream: NewStream, at: float) -> None:
        self.opened(self.media.close([Close(stream.row, EPOCH + round(at * SECOND))]))

    def tick(self, at: float) -> list[int]:
        return self._took(self.media.tick(EPOCH + round(at * SECOND)))

    def flush(self) -> list[int]:
        """The sequence numbers that left."""
        return self._took(self.media.flush())

    def _took(self, leaving: Leaving) -> list[int]:
        parts = list(leaving)
        for part in parts:
            part.check()
        self.chunks += parts
        return [number for part in parts for number in numbers(part)]

    def frames(self) -> list[tuple[int, int, bytes]]:
        """Sequence number, timestamp and payload of every frame that left."""
        return [
            (int(frame["sequence"]) & 0xFFFF, int(frame["timestamp"]), bytes(payload))
            for each in self.chunks
            for chunk in each.chunks()
            for frame, payload in zip(chunk.frames, chunk.payloads(), strict=True)
        ]

    def counted(self, stream: int = 0) -> Truth:
        return Truth(*self.media.totals(self.new[stream].row)[:4])


def numbers(chunks: Chunks) -> list[int]:
    return [int(each) & 0xFFFF for each in chunks.frames["sequence"]]


def of_recording(parts: list[Chunks], recording: bytes) -> list[int]:
    return [
        int(number) & 0xFFFF
        for part in parts
        for chunk in part.chunks()
        if chunk.recording_id == recording
        for number in chunk.frames["sequence"]
    ]


def between(first: float, last: float) -> tuple[int, int]:
    return EPOCH + round(first * SECOND), EPOCH + round(last * SECOND)
