"""What a recorder makes of a capture file: its calls as plain values, and every byte of sound."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from capture.recorder import Heard, Recorder
from capture.sources import files
from spanvault.daemon.config import CaptureConfig
from spanvault.media import digits
from spanvault.media.chunk import EVENTS, MARKER, TRUNCATED, Chunk
from spanvault.messages import Call


class Sound(NamedTuple):
    """One stream of a call. payload: SHA-256 of all of it, in order."""

    party: str
    ssrc: int
    source: str
    destination: str
    codecs: tuple[str, ...]
    packets: int
    lost: int
    seconds: float
    payload: str


class Line(NamedTuple):
    """One call."""

    call_ids: tuple[str, ...]
    caller: str
    callee: str
    outcome: str
    end_reason: str | None
    flags: tuple[str, ...]
    seconds: float
    sounds: tuple[Sound, ...]


def _events(chunk: Chunk) -> Iterator[tuple[int, digits.Heard]]:
    for frame, payload in zip(chunk.frames, chunk.payloads(), strict=True):
        marker = bool(frame["flags"] & MARKER)
        heard = digits.Heard(
            int(frame["timestamp"]), int(frame["arrival_ns"]), marker, bytes(payload)
        )
        yield int(frame["sequence"]), heard


class Recording:
    """A capture from beginning to end. calls: the final record of each."""

    truncated = 0  # packets of which the snap length left only a part

    def __init__(self, path: Path) -> None:
        ids = count(1)
        self.recorder = Recorder(CaptureConfig(), lambda: next(ids).to_bytes(16))
        self._calls: dict[bytes, Call] = {}
        self._payloads: dict[tuple[bytes, int], list[tuple[int, bytes]]] = defaultdict(list)
        self._events: dict[tuple[bytes, int], list[tuple[int, digits.Heard]]] = defaultdict(list)
        for block in files.blocks(path):
            self._take(self.recorder.receive(block))
        self._take(self.recorder.finish())
        self.calls = list(self._calls.values())

    def lines(self) -> list[Line]:
        """The table of calls, oldest first."""
        return sorted(self._line(call) for call in self.calls)

    @property
    def duplicates(self) -> int:
        """Copies left out, in all streams."""
        return sum(stream.duplicates for call in self.calls for stream in call.streams)

    @property
    def late(self) -> int:
        """Packets that came behind a higher number, in all streams."""
        return sum(stream.late for call in self.calls for stream in call.streams)

    def payload(self, call: Call, number: int) -> bytes:
        """Everything heard of a stream, in the order of its sequence numbers."""
        return b"".join(data for _, data in sorted(self._payloads[call.id, number]))

    def keys(self, call: Call, number: int, clock_rate: int = 8000) -> list[digits.Event]:
        """The telephone events of a stream, in the order in which they began."""
        heard = sorted(self._events[call.id, number + EVENTS])
        return digits.decode([packet for _, packet in heard], clock_rate)

    def _take(self, heard: Heard) -> None:
        self._calls |= {call.id: call for call in heard.calls}
        for chunk in (each for media in heard.media for each in media.chunks()):
            at = 0
            self.truncated += int(np.count_nonzero(chunk.frames["flags"] & TRUNCATED))
            place = chunk.recording_id, int(chunk.header["stream"])
            mine = self._payloads[place]
            for frame in chunk.frames:
                size = int(frame["length"])
                mine.append((int(frame["sequence"]), bytes(chunk.payload[at : at + size])))
                at += size
            if place[1] >= EVENTS:
                self._events[place] += _events(chunk)

    def _line(self, call: Call) -> Line:
        sounds = []
        for stream in call.streams:
            content = hashlib.sha256(self.payload(call, stream.number)).hexdigest()
            codecs = tuple(
                stream.codecs[kind].name if kind in stream.codecs else str(kind)
                for kind in sorted(stream.payload_types)
            )
            sounds.append(
                Sound(
                    stream.party, stream.ssrc, stream.source, stream.destination, codecs,
                    stream.packets, stream.lost,
                    round((stream.last_ns - stream.first_ns) / 1e9, 2), content,
                )
            )  # fmt: skip
        return Line(
            tuple(call.call_ids), call.caller, call.callee, call.outcome, call.end_reason,
            tuple(sorted(call.flags)),
            round(((call.ended_ns or 0) - (call.answered_ns or call.started_ns)) / 1e9, 2),
            tuple(sorted(sounds)),
        )  # fmt: skip
