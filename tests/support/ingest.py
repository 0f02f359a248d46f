"""A capture reduced to its wire: stores calls that a test made up, and waits for acknowledgement.

Every payload and number it makes can be told from all others, so that a test can look for them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from spanvault import wire
from spanvault.daemon.config import CaptureConfig, load
from spanvault.media.chunk import CHUNK, FRAME, NO_MEDIA, Media
from spanvault.messages import Acknowledge, Batch, Call, Codec, Stream
from spanvault.transport import connect, load_certificate

SECOND = 1_000_000_000
START_NS = 1_795_000_000 * SECOND
WORDS = b"these words were spoken by "
PACKETS = 50  # a second


def identity(number: int) -> bytes:
    """The id of a made-up call."""
    return hashlib.sha256(f"call {number}".encode()).digest()[:16]


def caller(number: int) -> str:
    """Its caller's number, which nothing else contains."""
    return f"493055501{number:05}"


def payload(number: int, second: int, size: int) -> bytes:
    """What was said in a second: words that can be searched for, then bytes of their own."""
    start = WORDS + caller(number).encode() + second.to_bytes(2, "big")
    noise = np.random.default_rng([number, second]).bytes(max(0, size - len(start)))
    return (start + noise)[:size]


def call(number: int, seconds: int, revision: int = 1, final: bool = True) -> Call:
    """A finished call of so many seconds, with one stream."""
    start_ns = START_NS + number * SECOND
    heard = Stream(
        0, "caller", "audio", number, "10.0.0.1:4000", "10.0.0.2:5000",
        {8: Codec("PCMA", 8000)}, {8: PACKETS * seconds}, start_ns, start_ns + seconds * SECOND,
        PACKETS * seconds,
    )  # fmt: skip
    return Call(
        identity(number), "test", [f"secret-call-{number}@example.org"], caller(number), "4989777",
        start_ns, start_ns, start_ns + seconds * SECOND, "answered", "bye",
        streams=[heard], revision=revision, final=final,
    )  # fmt: skip


def media(number: int, seconds: Sequence[int], size: int) -> Media:
    """The chunks of these seconds. size: bytes of payload a second."""
    table = np.zeros(len(seconds), CHUNK)
    frames = np.zeros(PACKETS * len(seconds), FRAME)
    for row, second in enumerate(seconds):
        start_ns = START_NS + (number + second) * SECOND
        table[row]["recording_id"] = np.void(identity(number))
        table[row]["ssrc"], table[row]["start_ns"] = number, start_ns
        table[row]["frames"], table[row]["payload_bytes"] = PACKETS, size
        heard = frames[PACKETS * row : PACKETS * (row + 1)]
        packet = np.arange(PACKETS)
        heard["sequence"] = 65536 + PACKETS * second + packet
        heard["timestamp"] = 160 * (PACKETS * second + packet)
        heard["arrival_ns"] = start_ns + packet * (SECOND // PACKETS)
        heard["payload_type"] = 8
        heard["length"] = size // PACKETS
        heard["length"][-1] = size - (PACKETS - 1) * (size // PACKETS)
    said = b"".join(payload(number, second, size) for second in seconds)
    return Media(table, frames, memoryview(said))


class Ingest:
    """One capture's connection to storaged's ingest socket."""

    def __init__(self, settings: Path) -> None:
        """settings: a capture.toml."""
        config = load(settings, CaptureConfig)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect(
            self._context,
            config.storaged,
            load_certificate(config.certificate),
            load_certificate(config.storaged_certificate),
        )
        self._sequence = 0

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def store(self, numbers: Sequence[int], seconds: int = 3, size: int = 8000) -> None:
        """Send these calls whole, and wait until storaged has them on disk."""
        for number in numbers:
            self.send([], media(number, range(seconds), size))
            self.send([call(number, seconds)])
        self.settle()

    def send(self, calls: list[Call], heard: Media = NO_MEDIA) -> None:
        """Send one batch."""
        self._sequence += 1
        batch = Batch("test", self._sequence, calls)
        self._socket.send_multipart(wire.encode_media(batch, heard))

    def settle(self, timeout_s: float = 60.0) -> None:
        """Wait until all that was sent is acknowledged. Raises TimeoutError."""
        for sequences in self._acknowledged(timeout_s):
            if self._sequence in sequences:
                return

    def _acknowledged(self, timeout_s: float) -> Iterator[list[int]]:
        while self._socket.poll(int(timeout_s * 1000)):
            answer: Any = wire.decode_from_ingest(self._socket.recv_multipart())[0]
            if isinstance(answer, Acknowledge):
                yield answer.sequences
        raise TimeoutError(f"storaged acknowledged nothing for {timeout_s:g} s")
