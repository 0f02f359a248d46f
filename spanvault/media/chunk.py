"""The bytes of heard media: frames and one-second chunks, the same on the wire and at rest.

A chunk keeps what was heard, not an interpretation of it: the frames of one stream in order of
their extended sequence number, each with RTP timestamp, arrival time and payload type, and the
payloads untouched. Any codec is stored alike; sound is rendered on demand (spanvault.audio).
Bytes: WIRE.md, "Media". Sealing them: storaged/FORMAT.md.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

FRAME: Final = np.dtype(
    [
        ("sequence", "<u4"),  # extended: RFC 3550 §A.1, starts at 65536 + the first one heard
        ("timestamp", "<u4"),  # as in the RTP header, media clock
        ("arrival_ns", "<i8"),  # since 1970-01-01T00:00Z, the capture's clock
        ("payload_type", "u1"),
        ("flags", "u1"),  # MARKER | TRUNCATED | WHOLE
        ("length", "<u2"),  # bytes of payload
    ]
)
MARKER: Final = 1  # RTP marker bit
TRUNCATED: Final = 2  # the capture held fewer bytes than were on the wire
WHOLE: Final = 4  # the payload is the whole RTP packet, which has CSRCs, extension or padding

CHUNK: Final = np.dtype(
    [
        ("recording_id", "V16"),
        ("stream", "<u2"),  # number of the stream within its recording
        ("flags", "<u2"),  # CAPTURE_LOSS
        ("ssrc", "<u4"),
        ("frames", "<u4"),
        ("payload_bytes", "<u4"),
        ("start_ns", "<i8"),  # earliest arrival in the chunk
        ("packets", "<u4"),  # from here on: the stream's totals up to this chunk
        ("lost", "<u4"),
        ("duplicates", "<u4"),
        ("late", "<u4"),
        ("jitter", "<f4"),  # RFC 3550 §6.4.1, in units of the media clock
        ("reserved", "<u4"),
    ]
)
CAPTURE_LOSS: Final = 1  # the capture itself dropped packets while this chunk was heard
# Added to a stream's number: its telephone events, and its RTCP, are streams beside it.
CONTROL: Final = 0x4000
EVENTS: Final = 0x8000

assert FRAME.itemsize == 20
assert CHUNK.itemsize == 64


class Chunk(NamedTuple):
    """One stream's frames of about one second.

    header: CHUNK[()].  frames: FRAME[n].  payload: the n payloads, one after the other.
    """

    header: np.void
    frames: NDArray[np.void]
    payload: memoryview

    @property
    def recording_id(self) -> bytes:
        """16 bytes."""
        return bytes(self.header["recording_id"])

    def payloads(self) -> Iterator[memoryview]:
        """Each frame's payload, in the order of the frames."""
        start = 0
        for length in self.frames["length"].tolist():
            yield self.payload[start : start + length]
            start += length


class Media(NamedTuple):
    """The media of one batch, as three buffers that are sent without copying.

    table: CHUNK[c].  frames: FRAME[sum of table.frames].  payload: all payloads, in that order.
    """

    table: NDArray[np.void]
    frames: NDArray[np.void]
    payload: memoryview

    def chunks(self) -> Iterator[Chunk]:
        """The chunks one by one, as views. Raises ValueError if the three do not fit together."""
        self.check()
        frame = byte = 0
        for header in self.table:
            frames, length = int(header["frames"]), int(header["payload_bytes"])
            yield Chunk(
                header, self.frames[frame : frame + frames], self.payload[byte : byte + length]
            )
            frame += frames
            byte += length

    def check(self) -> None:
        """Raise ValueError unless the counts in the table describe the two other buffers."""
        frames = int(self.table["frames"].sum(dtype=np.int64))
        size = int(self.table["payload_bytes"].sum(dtype=np.int64))
        if frames != len(self.frames):
            raise ValueError(f"chunk table names {frames} frames, {len(self.frames)} are there")
        if size != len(self.payload):
            raise ValueError(f"chunk table names {size} payload bytes, {len(self.payload)} there")
        if len(self.table):
            ends = np.cumsum(self.table["frames"], dtype=np.int64)
            totals = np.concatenate(([0], np.cumsum(self.frames["length"], dtype=np.int64)))
            per_chunk = np.diff(np.concatenate(([0], totals[ends])))
            if not np.array_equal(per_chunk, self.table["payload_bytes"].astype(np.int64)):
                raise ValueError("a chunk's frames do not add up to its payload")


def with_payloads(chunk: Chunk, payloads: Sequence[bytes]) -> Chunk:
    """The same frames with other payloads, none of them a whole packet any more."""
    frames = chunk.frames.copy()
    frames["flags"] &= np.uint8(0xFF ^ WHOLE)
    frames["length"] = [len(payload) for payload in payloads]
    return Chunk(chunk.header, frames, memoryview(b"".join(payloads)))


NO_MEDIA: Final = Media(np.empty(0, CHUNK), np.empty(0, FRAME), memoryview(b""))


def pack(chunk: Chunk) -> bytes:
    """One chunk as contiguous bytes: header, frames, payload."""
    return chunk.header.tobytes() + chunk.frames.tobytes() + bytes(chunk.payload)


def unpack(data: bytes | memoryview) -> Iterator[Chunk]:
    """The chunks in a run of packed ones. Raises ValueError on a cut or contradictory one."""
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    at = 0
    while at < len(view):
        if len(view) - at < CHUNK.itemsize:
            raise ValueError(f"chunk header cut: {len(view) - at} bytes left at offset {at}")
        header = np.frombuffer(view, CHUNK, 1, at)[0]
        at += CHUNK.itemsize
        frames, size = int(header["frames"]), int(header["payload_bytes"])
        end = at + frames * FRAME.itemsize + size
        if end > len(view):
            raise ValueError(f"chunk cut: needs {end - at} bytes, {len(view) - at} are left")
        columns = np.frombuffer(view, FRAME, frames, at)
        if int(columns["length"].sum(dtype=np.int64)) != size:
            raise ValueError("a chunk's frames do not add up to its payload")
        yield Chunk(header, columns, view[end - size : end])
        at = end
