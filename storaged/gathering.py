"""Batches into a group: what is committed, and acknowledged, together.

Chunks are gathered by recording, so that a commit writes one run of frames a recording however many
batches they came in. Chunks that were stored before are recognised here. Pure: no clock, no file.
Source of the order of writing: FORMAT.md §8. Who writes a group: storaged.writer.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from spanvault import wire
from spanvault.chunk import CHUNK, FRAME, Media
from spanvault.messages import Batch, Call, Codec, Stream
from storaged import record
from storaged.sealing import LAST_MAX

_CHUNK = CHUNK.itemsize
_FRAME = FRAME.itemsize


class Piece(NamedTuple):
    """One chunk: which, and its three parts as they will lie in the frame."""

    stream: int
    start_ns: int
    header: memoryview
    frames: memoryview
    payload: memoryview

    @property
    def size(self) -> int:
        """Bytes as a packed chunk."""
        return len(self.header) + len(self.frames) + len(self.payload)


class Group:
    """What came since the last commit, from any number of captures."""

    def __init__(self) -> None:
        self.media: dict[bytes, list[Piece]] = {}
        self.calls: dict[bytes, Call] = {}
        self.origins: dict[Any, list[int]] = {}  # sequences to acknowledge, by sender
        self.bytes = 0
        self.chunks = 0

    def __bool__(self) -> bool:
        return bool(self.origins)

    def add(self, origin: Any, batch: Batch, media: Media) -> None:
        """Take a batch in. Raises ValueError, and takes nothing, if it can never be stored."""
        for call in batch.calls:
            record.check_call(call)
        if len(media.payload) + media.frames.nbytes > LAST_MAX - _CHUNK:
            raise ValueError(f"a batch of {len(media.payload)} bytes cannot become frames")
        for recording_id, piece in split(media):
            self.media.setdefault(recording_id, []).append(piece)
        for call in batch.calls:
            known = self.calls.get(call.id)
            if known is None or call.revision >= known.revision:
                self.calls[call.id] = call
        self.origins.setdefault(origin, []).append(batch.sequence)
        self.bytes += len(media.payload) + media.frames.nbytes + media.table.nbytes
        self.chunks += len(media.table)


def split(media: Media) -> Iterator[tuple[bytes, Piece]]:
    """Each chunk with its recording's id, as views into the batch. media has been checked."""
    table, frames = wire.byte_view(media.table), wire.byte_view(media.frames)
    frame_ends = np.cumsum(media.table["frames"], dtype=np.int64) * _FRAME
    byte_ends = np.cumsum(media.table["payload_bytes"], dtype=np.int64)
    rows = zip(
        media.table["stream"].tolist(),
        media.table["start_ns"].tolist(),
        frame_ends.tolist(),
        byte_ends.tolist(),
        strict=True,
    )
    at = frame = byte = 0
    for stream, start_ns, frame_end, byte_end in rows:
        header = table[at : at + _CHUNK]
        yield (
            bytes(header[:16]),
            Piece(stream, start_ns, header, frames[frame:frame_end], media.payload[byte:byte_end]),
        )
        at, frame, byte = at + _CHUNK, frame_end, byte_end


class Have:
    """Which chunks of one recording are stored: 8 bytes each."""

    def __init__(self, chunks: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: dict[int, array[int]] = {}
        for stream, start_ns in chunks:
            self.add(stream, start_ns)

    def add(self, stream: int, start_ns: int) -> bool:
        """Note a chunk. False if it was there already."""
        starts = self._starts.get(stream)
        if starts is None:
            self._starts[stream] = array("q", (start_ns,))
            return True
        if start_ns > starts[-1]:  # nearly always: chunks come in order
            starts.append(start_ns)
            return True
        at = bisect_left(starts, start_ns)
        if starts[at] == start_ns:
            return False
        starts.insert(at, start_ns)
        return True


def frames_of(pieces: Iterable[Piece], limit: int) -> Iterator[list[Piece]]:
    """Runs of chunks that each fit into one DATA frame of at most limit bytes."""
    run: list[Piece] = []
    size = 0
    for piece in pieces:
        if run and size + piece.size > limit:
            yield run
            run, size = [], 0
        run.append(piece)
        size += piece.size
    if run:
        yield run


def placeholder(recording_id: bytes, pieces: Iterable[Piece]) -> Call:
    """A call for media whose own record has not come (its capture died first).

    Its revision is -1, so that any real record replaces it.
    """
    streams: dict[int, Stream] = {}
    for piece in pieces:
        if piece.stream not in streams:
            ssrc = int(np.frombuffer(piece.header, CHUNK)["ssrc"][0])
            streams[piece.stream] = Stream(
                piece.stream, "unknown", "audio", ssrc, "", "", _codecs(piece),
                first_ns=piece.start_ns,
            )  # fmt: skip
        stream = streams[piece.stream]
        columns = np.frombuffer(piece.frames, FRAME)
        stream.packets += len(columns)
        for number, count in zip(
            *np.unique(columns["payload_type"], return_counts=True), strict=True
        ):
            stream.payload_types[int(number)] = stream.payload_types.get(int(number), 0) + int(
                count
            )
        stream.last_ns = max(stream.last_ns, int(columns["arrival_ns"].max(initial=0)))
    started_ns = min(stream.first_ns for stream in streams.values())
    return Call(
        recording_id, "", [], "", "", started_ns,
        outcome="unknown", flags=["record_missing"], streams=list(streams.values()), revision=-1,
    )  # fmt: skip


_STATIC = {0: Codec("PCMU", 8000), 8: Codec("PCMA", 8000), 9: Codec("G722", 8000)}


def _codecs(piece: Piece) -> dict[int, Codec]:
    """What RFC 3551 says of the payload types in a chunk, as nothing else is known."""
    heard = np.unique(np.frombuffer(piece.frames, FRAME)["payload_type"]).tolist()
    return {number: _STATIC[number] for number in heard if number in _STATIC}
