"""Batches into a group: what is committed, and acknowledged, together.

A group keeps its batches as they came, as three buffers each; only when it is committed are the
chunks of all of them sorted by recording, as numpy columns, so that a commit writes one run of
frames a recording however many batches they came in. No Python object lives as long as a chunk:
that cost more than the ciphers. Pure: no clock, no file.
Source of the order of writing: FORMAT.md §8. Who writes a group: storaged.recordings.writer.
"""

import copy
import re
from array import array
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from spanvault import wire
from spanvault.media import chunk
from spanvault.media.chunk import CHUNK, CONTROL, FRAME, Media
from spanvault.messages import Batch, Call, Codec, Sealed, Stream
from storaged.format import record
from storaged.format.sealing import DATA, EVENTS, LAST_MAX

BATCH_MAX: Final = 32 << 20
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
_CHUNK: Final = CHUNK.itemsize
_FRAME: Final = FRAME.itemsize
_WORDS: Final = _CHUNK // 8  # a row of the chunk table as u64; the first two are the recording id


class Group:
    """What came since the last commit, from any number of captures."""

    def __init__(self) -> None:
        self.batches: list[Media] = []
        self.calls: dict[bytes, Call] = {}
        self.captures: dict[bytes, int] = {}  # which each call and recording is bound to
        self.sealed: list[tuple[str, str, bytes]] = []  # of captures' spools, while base is locked
        self.origins: dict[Any, list[int]] = {}  # sequences to acknowledge, by sender
        self.bytes = 0

    @classmethod
    def of(cls, calls: Iterable[Call], captures: dict[bytes, int]) -> "Group":
        """These calls alone, of a group that was taken in."""
        part = cls()
        part.calls = {call.id: call for call in calls}
        part.captures = captures
        return part

    def __bool__(self) -> bool:
        return bool(self.origins)

    def add(
        self, origin: Any, batch: Batch, media: Media, captures: Mapping[bytes, int] | None = None
    ) -> None:
        """Take a batch in. Raises ValueError, and takes nothing, if it can never be stored.

        captures: to which its calls are bound (storaged.index.binding).
        """
        for call in batch.calls:
            record.check_call(call)
        size = len(media.payload) + media.frames.nbytes
        if size > LAST_MAX - _CHUNK:
            raise ValueError(f"a batch of {size} bytes cannot become frames")
        if len(media.table):
            self.batches.append(media)
        for call in batch.calls:
            known = self.calls.get(call.id)
            if known is None or call.revision >= known.revision:
                self.calls[call.id] = call
        self.captures.update(captures or {})
        self.origins.setdefault(origin, []).append(batch.sequence)
        self.bytes += size + media.table.nbytes

    def add_sealed(self, origin: Any, sealed: Sealed, bulk: Sequence[bytes], capture: str) -> None:
        """Take a spooled batch of a capture in that nobody here can open now. Raises ValueError."""
        if len(bulk) != 1:
            raise ValueError(f"a sealed batch takes 1 frame, {len(bulk)} came")
        if not _KEY_ID.fullmatch(sealed.key_id):  # it becomes part of a file's name
            raise ValueError("a sealed batch names no key")
        self.sealed.append((sealed.key_id, capture, bytes(bulk[0])))
        self.origins.setdefault(origin, []).append(sealed.sequence)
        self.bytes += len(bulk[0])

    def without(self, recording_ids: Container[bytes]) -> "Group":
        """This group, less what it has of these calls' records."""
        rest = copy.copy(self)
        rest.calls = {one: self.calls[one] for one in self.calls if one not in recording_ids}
        return rest


class Gathered:
    """The chunks of a group, those of a recording side by side, in the order in which they came.

    rows: recording id → its chunks, as indices into streams, starts_ns and sizes (bytes of the
    packed chunk). The batches must have been checked (Media.check).
    """

    def __init__(self, batches: Sequence[Media]) -> None:
        words = _table(batches)
        order = np.lexsort((words[:, 1], words[:, 0]))  # stable: keeps the order of arrival
        table: NDArray[np.void] = words[order].view(CHUNK).reshape(-1)
        self._heads = wire.byte_view(table)
        self._bulk = [(wire.byte_view(media.frames), media.payload) for media in batches]
        batch, frames, payload = _places(batches)
        self._batch: list[int] = batch[order].tolist()
        self._frames_at: list[int] = frames[order].tolist()
        self._payload_at: list[int] = payload[order].tolist()
        frame_bytes = table["frames"].astype(np.int64) * _FRAME
        self._frame_bytes: list[int] = frame_bytes.tolist()
        self._payload_bytes: list[int] = table["payload_bytes"].tolist()
        self.streams: list[int] = table["stream"].tolist()
        self.starts_ns: list[int] = table["start_ns"].tolist()
        self.sizes: list[int] = (frame_bytes + table["payload_bytes"] + _CHUNK).tolist()
        self.rows = _rows(table)

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return sum(map(len, self.rows.values()))

    def only(self, recording_ids: Iterable[bytes]) -> "Gathered":
        """The chunks of these recordings alone; nothing is copied."""
        part = copy.copy(self)
        part.rows = {one: self.rows[one] for one in recording_ids if one in self.rows}
        return part

    def batches(self) -> Iterator[Media]:
        """The chunks as batches, each of at most about BATCH_MAX bytes."""
        rows = [row for each in self.rows.values() for row in each]
        for run in self.runs(rows, BATCH_MAX):
            parts = self.parts(run)
            table, frames, packets = (b"".join(parts[at::3]) for at in range(3))
            yield Media(
                np.frombuffer(table, CHUNK), np.frombuffer(frames, FRAME), memoryview(packets)
            )

    def without(self, recording_ids: Container[bytes]) -> "Gathered":
        """These chunks, less those of these recordings."""
        rest = copy.copy(self)
        rest.rows = {one: self.rows[one] for one in self.rows if one not in recording_ids}
        return rest

    def parts(self, rows: Sequence[int]) -> list[memoryview]:
        """Header, frames and payload of each of these chunks: as they lie side by side at rest."""
        found: list[memoryview] = []
        for row in rows:
            frames, payload = self._bulk[self._batch[row]]
            frame, byte = self._frames_at[row], self._payload_at[row]
            found += (
                self._heads[row * _CHUNK : (row + 1) * _CHUNK],
                frames[frame : frame + self._frame_bytes[row]],
                payload[byte : byte + self._payload_bytes[row]],
            )
        return found

    def by_key(self, rows: Sequence[int]) -> list[tuple[int, Sequence[int]]]:
        """The frame flag and the rows of what is sealed under each key: sound, then digits."""
        streams = self.streams
        events = [row for row in rows if streams[row] >= chunk.EVENTS]
        if not events:
            return [(DATA, rows)]
        sound = [row for row in rows if streams[row] < chunk.EVENTS]
        return [(DATA, sound), (EVENTS, events)]

    def runs(self, rows: Sequence[int], limit: int) -> Iterator[Sequence[int]]:
        """These chunks, cut into runs that each fit into one DATA frame of at most limit bytes."""
        begun = size = 0
        for at, row in enumerate(rows):
            if at > begun and size + self.sizes[row] > limit:
                yield rows[begun:at]
                begun, size = at, 0
            size += self.sizes[row]
        if begun < len(rows):
            yield rows[begun:]


def _table(batches: Sequence[Media]) -> NDArray[np.uint64]:
    """All chunk tables, a row of 64-bit words a chunk: such rows are sorted and moved whole."""
    joined = b"".join(wire.byte_view(media.table) for media in batches)
    return np.frombuffer(joined, np.uint64).reshape(-1, _WORDS)


def _places(
    batches: Sequence[Media],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each chunk its batch, and where its frames and its payload begin there, in bytes."""
    batch: list[NDArray[np.int64]] = []
    frames: list[NDArray[np.int64]] = []
    payload: list[NDArray[np.int64]] = []
    for number, media in enumerate(batches):
        batch.append(np.full(len(media.table), number))
        for starts, field, width in ((frames, "frames", _FRAME), (payload, "payload_bytes", 1)):
            sizes = media.table[field].astype(np.int64) * width
            starts.append(np.cumsum(sizes) - sizes)
    return _joined(batch), _joined(frames), _joined(payload)


def _joined(columns: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(columns) if columns else np.zeros(0, np.int64)


def _rows(table: NDArray[np.void]) -> dict[bytes, range]:
    """Where each recording's chunks are in a sorted table."""
    words = table.view(np.uint64).reshape(-1, _WORDS)[:, :2]
    begins = np.flatnonzero(np.any(words[1:] != words[:-1], axis=1)) + 1
    bounds = [0, *begins.tolist(), len(table)] if len(table) else []
    ids = np.ascontiguousarray(words[bounds[:-1]]).tobytes() if bounds else b""
    return {
        ids[16 * number : 16 * number + 16]: range(start, bounds[number + 1])
        for number, start in enumerate(bounds[:-1])
    }


class Have:
    """Which chunks of one recording are stored: 8 bytes each.

    Of a recording that was not read, those from the latest chunk of each stream on; see knows().
    """

    __slots__ = ("_starts",)

    def __init__(self, chunks: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: dict[int, array[int]] = {}
        for stream, start_ns in chunks:
            self.add(stream, start_ns)

    def knows(self, stream: int, start_ns: int) -> bool:
        """Whether add() can tell, though not all that is stored was noted: it is new enough."""
        starts = self._starts.get(stream)
        return starts is None or start_ns >= starts[0]

    def latest(self) -> list[tuple[int, int]]:
        """The latest chunk start of each stream."""
        return [(stream, starts[-1]) for stream, starts in self._starts.items()]

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


def placeholder(recording_id: bytes, chunks: Gathered) -> Call:
    """A call for media whose own record has not come (its capture died first).

    Its revision is -1, so that any real record replaces it.
    """
    streams: dict[int, Stream] = {}
    for row in chunks.rows[recording_id]:
        if chunks.streams[row] >= CONTROL:
            continue  # what lies beside a stream
        header, frames, _ = chunks.parts((row,))
        columns = np.frombuffer(frames, FRAME)
        number = chunks.streams[row]
        if number not in streams:
            ssrc = int(np.frombuffer(header, CHUNK)["ssrc"][0])
            streams[number] = Stream(
                number, "unknown", "audio", ssrc, "", "", _codecs(columns),
                first_ns=chunks.starts_ns[row],
            )  # fmt: skip
        _count(streams[number], columns)
    started_ns = min(chunks.starts_ns[row] for row in chunks.rows[recording_id])
    return Call(
        recording_id, "", [], "", "", started_ns,
        outcome="unknown", flags=["record_missing"], streams=list(streams.values()), revision=-1,
    )  # fmt: skip


def _count(stream: Stream, frames: NDArray[np.void]) -> None:
    """Add a chunk's frames to what its stream's record says."""
    stream.packets += len(frames)
    heard = np.unique(frames["payload_type"], return_counts=True)
    for number, count in zip(*(column.tolist() for column in heard), strict=True):
        stream.payload_types[number] = stream.payload_types.get(number, 0) + count
    stream.last_ns = max(stream.last_ns, int(frames["arrival_ns"].max(initial=0)))


_STATIC: Final = {0: Codec("PCMU", 8000), 8: Codec("PCMA", 8000), 9: Codec("G722", 8000)}


def _codecs(frames: NDArray[np.void]) -> dict[int, Codec]:
    """What RFC 3551 says of the payload types in a chunk, as nothing else is known."""
    heard = np.unique(frames["payload_type"]).tolist()
    return {number: _STATIC[number] for number in heard if number in _STATIC}
