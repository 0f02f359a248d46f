"""A recorder of forged frames, and everything that it gave."""

from itertools import count, groupby
from pathlib import Path
from typing import Any

from capture.recorder import Heard, Recorder
from capture.sources import files
from spanvault.daemon.config import CaptureConfig
from spanvault.media.chunk import Chunk
from spanvault.messages import Call
from tests.support.callgen import SECOND, Frame, write_pcap
from tests.support.frames import block


class Run:
    """What one recorder gave, in order."""

    def __init__(self, first_id: int = 1, **settings: Any) -> None:
        ids = count(first_id)
        self.recorder = Recorder(CaptureConfig(**settings), lambda: next(ids).to_bytes(16))
        self.records: list[Call] = []
        self.chunks: list[Chunk] = []

    def take(self, heard: Heard) -> None:
        for media in heard.media:
            self.chunks += media.chunks()
        self.records += heard.calls

    def play(self, folder: Path, frames: list) -> "Run":
        path = folder / "play.pcap"
        write_pcap(path, frames)
        for part in files.blocks(path):
            self.take(self.recorder.receive(part))
        return self

    def end(self) -> "Run":
        self.take(self.recorder.finish())
        return self

    def calls(self) -> list[Call]:
        """The last revision of each."""
        return list({call.id: call for call in self.records}.values())

    def part(self, frames: list[Frame]) -> "Run":
        """Hear frames a second at a time, as from a port."""
        for _, group in groupby(frames, key=lambda frame: frame.time_ns // SECOND):
            part = list(group)
            times = [frame.time_ns for frame in part]
            self.take(self.recorder.receive(block([frame.data for frame in part], times=times)))
        return self

    def wait(self, seconds: int) -> "Run":
        """Let time pass without a frame."""
        for _ in range(seconds):
            self.take(self.recorder.tick(self.recorder.now_ns + SECOND))
        return self

    def heard(self, call: Call, number: int) -> bytes:
        mine = [
            c for c in self.chunks if c.recording_id == call.id and c.header["stream"] == number
        ]
        return b"".join(bytes(chunk.payload) for chunk in mine)
