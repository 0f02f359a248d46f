"""A call's video and sound to one file: a video track a party, the stereo sound beside them.

Pictures are as they were sent, only packed anew; they lie on the sound's time line, earlier by as
much as sender reports say that they come later than the sound (lipsync.py). What FFmpeg writes is
written in a process of its own (worker.py). Packets to pictures: units.py.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from spanvault.audio.sending import Ahead
from spanvault.audio.timeline import TimeLine
from spanvault.media.chunk import MARKER, TRUNCATED, Chunk
from spanvault.media.payloadtypes import meaning
from spanvault.messages import Codec, Stream
from spanvault.sandbox import Sandbox
from spanvault.video.lipsync import LipSync
from spanvault.video.orientation import Orientation
from spanvault.video.told import Begin, Begun, Block, End, Picture, Track, Written
from spanvault.video.units import KINDS, Assembler, Packet, Unit, muxable

MODULE: Final = "spanvault.video.worker"
ANSWER_S: Final = 120.0  # a slow disk may take its time
# What a file is called, to FFmpeg's name of the format and the codecs it takes (SDP's names).
FILMS: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "mp4": ("mp4", frozenset({"h264", "h265", "vp9"})),
    "mkv": ("matroska", frozenset({"h264", "h265", "vp8", "vp9"})),
}


@dataclass(slots=True)
class Source:
    """A video stream that can be shown, and where it goes."""

    stream: Stream
    codec: Codec
    assembler: Assembler
    ahead: Ahead
    orientation: Orientation | None  # where the stream tells of it
    key: Unit | None = None  # its first key picture
    track: int = -1
    earlier: int = 0  # ticks by which its pictures are shown before they came
    shown: int = -1  # ticks of the last one


class Film:
    """The video of one call. warnings: what could not be shown, and how often."""

    def __init__(self, streams: Sequence[Stream], encrypted: bool = False) -> None:
        self.warnings: Counter[str] = Counter()
        self._sources: dict[int, Source] = {}
        self._sandbox: Sandbox | None = None
        self._lips = LipSync(streams)
        for stream in streams:
            if stream.media == "video" and stream.packets:
                self._add(stream, encrypted)

    @property
    def codecs(self) -> set[str]:
        """The lower-case names of the codecs that can be shown."""
        return {source.codec.name.lower() for source in self._sources.values()}

    def survey(self, chunks: Iterable[Chunk]) -> None:
        """Look for each stream's first key picture: it tells what the track will be."""
        for chunk in chunks:
            self._lips.receive(chunk)
            source = self._sources.get(int(chunk.header["stream"]))
            if source is None:
                continue
            source.ahead.receive(chunk.frames[_ours(source, chunk)])
            if source.key is None:
                here = np.zeros(len(chunk.frames), np.int64)
                source.key = next(_units(source, chunk, here), None)
        for number, source in list(self._sources.items()):
            if source.key is None:
                named = f"packets of {source.codec.name} without a picture to begin with: not shown"
                self.warnings[named] += source.stream.packets
                del self._sources[number]

    @property
    def turned(self) -> bool:
        """Whether headers tell how a camera was held: then `look` must be shown them."""
        return any(source.orientation for source in self._sources.values())

    def look(self, chunks: Iterable[Chunk]) -> None:
        """All chunks as they were heard, headers and all, before the film is written."""
        for chunk in chunks:
            source = self._sources.get(int(chunk.header["stream"]))
            if source is not None and source.orientation is not None:
                source.orientation.receive(chunk)
        for source in self._sources.values():
            if source.orientation is not None and (others := source.orientation.otherwise):
                named = (
                    "pictures of a camera that was turned meanwhile: shown as it mostly was held"
                )
                self.warnings[named] += others

    def report(self, chunk: Chunk, datagrams: Sequence[bytes]) -> None:
        """A chunk of RTCP, and its datagrams in the clear: all before the film is written."""
        self._lips.report(chunk, datagrams)

    def write(
        self, blocks: Iterable[NDArray[np.int16]], rate: int, name: str, target: BinaryIO,
        *, heard: bool = True,
    ) -> float:  # fmt: skip
        """Write the file; give its seconds. blocks: int16[n, 2]. heard: they are to be in it.

        While blocks are drawn, `watch` must be fed. Raises OSError, SandboxDied.
        """
        samples = 0
        for source in self._sources.values():
            late_s = self._lips.late_s(source.stream.number)
            source.earlier = round(late_s * source.codec.clock_rate)
        self._sandbox = Sandbox(MODULE, files=(target.fileno(),), answer_s=ANSWER_S)
        try:
            sound_rate = rate if heard else 0
            self._begin(Begin(target.fileno(), FILMS[name][0], sound_rate, self._tracks()))
            for block in blocks:
                samples += len(block)
                if heard:
                    self._sandbox.tell(msgspec.msgpack.encode(Block(block.tobytes())))
            for source in self._sources.values():
                self._show(source, source.assembler.finish())
            answer = self._sandbox.ask(msgspec.msgpack.encode(End()))
        finally:
            self._sandbox.close()
            self._sandbox = None
        written = msgspec.msgpack.decode(answer, type=Written)
        if written.error:
            raise OSError(written.error)
        self._account()
        return samples / rate

    def watch(self, chunk: Chunk, line: TimeLine) -> None:
        """A chunk of video is due: its pictures are written."""
        source = self._sources.get(int(chunk.header["stream"]))
        if source is not None:
            rate = source.codec.clock_rate
            places = line.places(source.stream.number, rate, chunk.frames)
            self._show(source, _units(source, chunk, places))

    def _add(self, stream: Stream, encrypted: bool) -> None:
        heard = sorted(stream.payload_types.items(), key=lambda item: -item[1])
        codecs = [meaning(stream, number) for number, _ in heard]
        codec = next((codec for codec in codecs if codec is not None and muxable(codec)), None)
        if encrypted or codec is None:
            first = next((codec.name for codec in codecs if codec is not None), "unknown")
            why = "are encrypted" if encrypted else "cannot be shown"
            self.warnings[f"packets of video codec {first} {why}"] += stream.packets
        else:
            self._sources[stream.number] = Source(
                stream, codec, Assembler(codec), Ahead(),
                Orientation(stream.orientation) if stream.orientation else None,
            )  # fmt: skip

    def _tracks(self) -> list[Track]:
        """A track a party and codec; streams of one party at the same time get one each."""
        tracks: list[Track] = []
        last: list[Source] = []  # of each track
        order = sorted(
            self._sources.values(), key=lambda one: (one.stream.party, one.stream.first_ns)
        )
        for source in sorted(order, key=lambda one: one.stream.party != "caller"):
            source.track = next(
                (number for number, before in enumerate(last) if _follows(source, before)),
                len(tracks),
            )
            if source.track == len(tracks):
                kind, key = KINDS[source.codec.name.lower()], source.key
                assert key is not None
                tracks.append(
                    Track(
                        kind.raw,
                        source.codec.clock_rate,
                        key.data,
                        source.stream.party,
                        kind.fourcc,
                        0,
                        *(source.orientation.held if source.orientation else ()),
                    )
                )
                last.append(source)
            tracks[source.track].ahead = max(tracks[source.track].ahead, source.ahead.ticks)
            last[source.track] = source
            source.assembler = Assembler(source.codec)
        return tracks

    def _begin(self, begin: Begin) -> None:
        assert self._sandbox is not None
        answer = self._sandbox.ask(msgspec.msgpack.encode(begin))
        usable = msgspec.msgpack.decode(answer, type=Begun).usable
        for number, source in list(self._sources.items()):
            if not usable[source.track]:
                named = f"packets of {source.codec.name} that FFmpeg makes nothing of: not shown"
                self.warnings[named] += source.stream.packets
                del self._sources[number]

    def _show(self, source: Source, units: Iterable[Unit]) -> None:
        assert self._sandbox is not None
        for unit in units:
            if unit.ticks >= 0:
                # What follows may hang on a picture from before the beginning: it is shown there.
                early = unit.ticks - source.earlier < 0
                ticks = source.shown + 1 if early else unit.ticks - source.earlier
                source.shown = max(source.shown, ticks)
                told = Picture(source.track, ticks, unit.key, unit.data)
                self._sandbox.tell(msgspec.msgpack.encode(told))

    def _account(self) -> None:
        for source in self._sources.values():
            name = source.codec.name
            damaged, early = source.assembler.damaged, source.assembler.early
            self.warnings[f"pictures of {name} that lost packets: left out"] += damaged
            self.warnings[f"pictures of {name} before the first key picture: left out"] += early
        self.warnings = +self.warnings


def _follows(source: Source, before: Source) -> bool:
    """Whether a stream goes on where another of the same party ended."""
    return (
        source.stream.party == before.stream.party
        and source.codec.name.lower() == before.codec.name.lower()
        and source.codec.clock_rate == before.codec.clock_rate
        and source.stream.first_ns >= before.stream.last_ns
    )


def _ours(source: Source, chunk: Chunk) -> NDArray[np.bool_]:
    """Which packets of a chunk are of the codec that is shown."""
    numbers = set(chunk.frames["payload_type"].tolist())
    codecs = {number: meaning(source.stream, number) for number in numbers}
    name = source.codec.name.lower()
    ours = [number for number, one in codecs.items() if one and one.name.lower() == name]
    return np.isin(chunk.frames["payload_type"], ours)


def _units(source: Source, chunk: Chunk, places: NDArray[np.int64]) -> Iterator[Unit]:
    """The pictures that are whole by the end of a chunk."""
    frames = chunk.frames
    columns = zip(
        frames["sequence"].tolist(), frames["timestamp"].tolist(),
        (frames["flags"] & MARKER != 0).tolist(), (frames["flags"] & TRUNCATED != 0).tolist(),
        places.tolist(), chunk.payloads(), strict=True,
    )  # fmt: skip
    for ours, (sequence, timestamp, marker, cut, ticks, payload) in zip(
        _ours(source, chunk).tolist(), columns, strict=True
    ):
        # What else is in the stream (repair, say) still counts in its sequence.
        data = bytes(payload) if ours else b""
        yield from source.assembler.receive(Packet(sequence, timestamp, marker, cut, ticks, data))
