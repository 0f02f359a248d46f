"""Chunks to stereo sound: caller left, callee right, on one time line from the first media on.

Each stream is drawn on a lane of its own; lanes are mixed to blocks of a second and forgotten, so
ten hours cost no more memory than ten seconds. What was lost, held, muted, comfort noise, a digit
or undecodable is silence of the same length.
A stream of party `unknown` takes the side that no known party has: the first such sender left, the
next right, further ones left. Source of the order of things: audio/__init__.py.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from spanvault.audio.bridging import Missing
from spanvault.audio.codecs import is_foreign, refusal, sound_rate
from spanvault.audio.decoding import Decoding
from spanvault.audio.order import InTimeOrder
from spanvault.audio.plain import SILENCE, Samples
from spanvault.audio.red import Recovery
from spanvault.audio.relayed import Relayed
from spanvault.audio.tagged import Tagged
from spanvault.audio.timeline import LEAP_S, TimeLine
from spanvault.media.chunk import TRUNCATED, Chunk
from spanvault.media.inclear import within
from spanvault.media.payloadtypes import is_red, is_sound, meaning, primary
from spanvault.messages import Codec, Span, Stream

Block = NDArray[np.int16]  # [n, 2]: caller, callee
LEFT, RIGHT = 0, 1
MARGIN_S: Final = 10  # a packet may come so late and still find its place
FARTHEST_S: Final = LEAP_S + 3600  # ahead of what is mixed: no chunk's frames reach so far


def output_rate(streams: Sequence[Stream]) -> int:
    """8000 where all is narrowband, else 16000, else 48000: the least that loses nothing."""
    rates = [
        sound_rate(primary(codec, stream.codecs))
        for stream in streams
        if stream.media == "audio"
        for number in stream.payload_types
        if (codec := meaning(stream, number))
    ]
    widest = max(rates, default=0)
    return 8000 if widest <= 8000 else 16000 if widest <= 16000 else 48000


def sides(streams: Sequence[Stream]) -> dict[int, int]:
    """Stream number to LEFT or RIGHT."""
    known = {"caller": LEFT, "callee": RIGHT}
    found = {stream.number: known[stream.party] for stream in streams if stream.party in known}
    free = [side for side in (LEFT, RIGHT) if side not in found.values()]
    senders: dict[str, int] = {}
    for stream in sorted(streams, key=lambda stream: stream.first_ns):
        if stream.number not in found:
            side = free.pop(0) if stream.source not in senders and free else LEFT
            found[stream.number] = senders.setdefault(stream.source, side)
    return found


class Lane:
    """Samples of one stream at one rate that were placed but not yet mixed."""

    def __init__(self, side: int, rate: int, output: int, block: int) -> None:
        self.side, self.rate = side, rate
        self._output = output
        self._base = block * rate  # sample number of buffer[0]
        self.end = self._base  # behind the last sample placed
        self._buffer = np.zeros(2 * rate, np.int16)
        self._resampler = _resampler(rate, output) if rate != output else None
        self._resampled: Samples = SILENCE

    def place(self, position: int, samples: Samples) -> None:
        """Put samples at a sample number. What lies before the mixed part is gone.

        So is what lies impossibly far behind it: its time is false, and the silence up to it
        would not fit into memory.
        """
        samples = samples[max(0, self._base - position) :]
        start = max(0, position - self._base)
        if start > FARTHEST_S * self.rate:
            return
        stop = start + len(samples)
        if stop > len(self._buffer):
            grown = np.zeros(2 * stop, np.int16)
            grown[: len(self._buffer)] = self._buffer
            self._buffer = grown
        self._buffer[start:stop] = samples
        self.end = max(self.end, self._base + stop)

    def block(self) -> Samples:
        """The next second at the output rate."""
        if self._resampler is None:
            return self._take()
        import av

        while len(self._resampled) < self._output:
            frame = av.AudioFrame.from_ndarray(self._take()[None, :], "s16", "mono")
            frame.sample_rate = self.rate
            parts = [sound.to_ndarray()[0] for sound in self._resampler.resample(frame)]
            self._resampled = np.concatenate([self._resampled, *parts])
        block, self._resampled = np.split(self._resampled, [self._output])
        return block

    def _take(self) -> Samples:
        second = np.zeros(self.rate, np.int16)
        part = self._buffer[: self.rate]
        second[: len(part)] = part
        self._buffer = self._buffer[self.rate :]
        self._base += self.rate
        return second

    @property
    def empty(self) -> bool:
        """Nothing but silence is left; a second more than placed covers the resampler's delay."""
        return self._base >= self.end + (self.rate if self._resampler else 0)


def _silent(stream: Stream, number: int) -> bool:
    """Whether a payload type is known to be no sound in a stream."""
    codec = meaning(stream, number)
    return codec is not None and not is_sound(codec)


def unknown(number: int) -> Codec:
    """What a payload type means that nobody explained."""
    return Codec("unknown", 8000, parameters=str(number))


def _resampler(rate: int, output: int) -> Any:
    import av

    return av.AudioResampler("s16", "mono", output) if rate != output else None


class Renderer:
    """Fed with a call's chunks in time order, gives blocks of its sound.

    encrypted: the payloads are not what they seem, and not rendered, but for those of the spans
    in_clear.
    watch: is handed the chunks of video when they are due, and the time line to place them.
    unexplained: no SDP was heard: what looks like SRTP is not rendered either.
    unread: packets that were heard, by the call's record, and did not come in a chunk.
    """

    def __init__(
        self, streams: Sequence[Stream], rate: int, encrypted: bool = False,
        watch: Callable[[Chunk, TimeLine], None] | None = None, in_clear: Sequence[Span] = (),
        unexplained: bool = False,
    ) -> None:  # fmt: skip
        self.rate, self._watch = rate, watch
        self._tags: defaultdict[int, Tagged] | None = defaultdict(Tagged) if unexplained else None
        self._media = ("audio",) if watch is None else ("audio", "video")
        self._encrypted, self._in_clear = encrypted, in_clear
        self._streams = {stream.number: stream for stream in streams}
        self._sides = sides(streams)
        heard = [s for s in streams if s.media in self._media and s.packets]
        self._relayed = Relayed(heard)
        self._line = TimeLine(min((s.first_ns for s in heard), default=0))
        self._done = 0  # blocks given
        self._end_s = 0.0  # of what was drawn
        # As long as packets came, even where they cannot be read any more.
        self._recorded_end_ns = max((s.last_ns for s in heard), default=0)
        self.unread = sum(s.packets for s in heard)
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._recoveries: dict[int, Recovery] = {}
        self._missing: dict[int, Missing] = {}
        self._decoding = Decoding()

    def render(self, chunks: Iterable[Chunk]) -> Iterator[Block]:
        """All blocks; the last one ends where the sound ends."""
        try:
            if isinstance(chunks, InTimeOrder) and chunks.set_back:
                # First and last times of streams are then not what they say.
                self._line.origin_ns = self._recorded_end_ns = 0
            for chunk in chunks:
                yield from self.receive(chunk)
            yield from self.finish()
        finally:
            self._decoding.close()

    @property
    def warnings(self) -> Counter[str]:
        """What could not be heard as it was sent, and how often."""
        return self._decoding.warnings

    def receive(self, chunk: Chunk) -> Iterator[Block]:
        """Take a chunk in, and give the blocks that nothing can change any more."""
        if self._stream(chunk).media in self._media and len(chunk.frames):
            self.unread -= len(chunk.frames)
            yield from self._drawn(self._relayed.receive(chunk))

    def _drawn(self, chunks: Iterable[Chunk]) -> Iterator[Block]:
        for chunk in chunks:
            for ready in self._line.receive(chunk):
                yield from self._chunk(ready)

    def _chunk(self, chunk: Chunk) -> Iterator[Block]:
        """Draw a chunk, once what lies well before it is mixed."""
        stream = self._stream(chunk)
        yield from self._blocks(int(self._line.since_s(int(chunk.header["start_ns"]))) - MARGIN_S)
        if stream.media == "video":
            assert self._watch is not None
            self._watch(chunk, self._line)
            return
        payloads = [bytes(payload) for payload in chunk.payloads()]
        numbers = chunk.frames["payload_type"].tolist()
        # Payload types that mean the same share a decoder, and it must hear them in order.
        codecs = [meaning(stream, number) or unknown(number) for number in numbers]
        kinds = list(zip(codecs, self._sealed(chunk, codecs), strict=True))
        lost = self._missing.setdefault(stream.number, Missing()).before(chunk.frames["sequence"])
        for codec, sealed in dict.fromkeys(kinds):
            rows = [row for row, kind in enumerate(kinds) if kind == (codec, sealed)]
            ours, missing = [payloads[row] for row in rows], [lost[row] for row in rows]
            self._draw(stream, codec, chunk.frames[rows], ours, missing, sealed)

    def finish(self) -> Iterator[Block]:
        """The rest. Nothing may be received afterwards."""
        yield from self._drawn(self._relayed.finish())
        for ready in self._line.finish():
            yield from self._chunk(ready)
        if self._line.leaps:
            self.warnings["the capture's clock was set; the pause is not kept"] += self._line.leaps
        elif self._recorded_end_ns:
            self._end_s = max(self._end_s, self._line.since_s(self._recorded_end_ns))
        ends = [lane.end / lane.rate for lane in self._lanes.values()]
        end = round(max([self._end_s, *ends]) * self.rate)
        for block in self._blocks(-(-end // self.rate)):
            yield block[: end - (self._done - 1) * self.rate]

    def _stream(self, chunk: Chunk) -> Stream:
        """A call that is still going on may have media its record does not name yet."""
        number = int(chunk.header["stream"])
        if number not in self._streams:
            self._streams[number] = Stream(number, "unknown", "audio", 0, "", "", {})
            self._sides |= sides([*self._streams.values()])
        return self._streams[number]

    def _sealed(self, chunk: Chunk, codecs: list[Codec]) -> list[bool]:
        """Which packets are encrypted."""
        tags, number = self._tags, int(chunk.header["stream"])
        if tags is not None and tags[number].look(chunk.frames, codecs):
            return [True] * len(codecs)
        if not self._encrypted:
            return [False] * len(chunk.frames)
        sealed: list[bool] = (~within(self._in_clear, chunk.frames["arrival_ns"])).tolist()
        return sealed

    def _draw(
        self, stream: Stream, codec: Codec, frames: NDArray[np.void], payloads: list[bytes],
        missing: list[int], sealed: bool,
    ) -> None:  # fmt: skip
        """missing: how many packets were lost before each."""
        heard = primary(codec, stream.codecs)
        why = "are encrypted" if sealed else refusal(heard)
        if why:
            # What cannot be heard counts as well: the call goes on as long as its packets do.
            last_ns = int(frames["arrival_ns"].max())
            self._end_s = max(self._end_s, self._line.since_s(last_ns))
            if is_sound(heard):
                named = f"{heard.name} (payload type {frames['payload_type'][0]})"
                self.warnings[f"packets of codec {named} {why}: silence"] += len(frames)
            return
        places = self._line.places(stream.number, codec.clock_rate, frames)
        # Of most codecs, half a frame is none.
        whole = (frames["flags"] & TRUNCATED == 0) | (not is_foreign(heard) and not is_red(codec))
        payloads = [one if kept else b"" for one, kept in zip(payloads, whole, strict=True)]
        if is_red(codec):
            self._draw_red(stream, codec, frames["timestamp"].tolist(), places.tolist(), payloads)
        else:
            self._place(stream.number, codec, places.tolist(), payloads, missing)

    def _draw_red(
        self, stream: Stream, red: Codec, stamps: list[int], places: list[int],
        payloads: list[bytes],
    ) -> None:  # fmt: skip
        """Packets that repeat earlier ones: what is new in each, at its own place."""
        recovery = self._recoveries.setdefault(stream.number, Recovery(partial(_silent, stream)))
        unwrapped = recovery.unwrap(zip(stamps, payloads, strict=True))
        found = [
            (meaning(stream, piece.payload_type), place - piece.age, piece.payload)
            for place, pieces in zip(places, unwrapped, strict=True)
            for piece in pieces
        ]
        for codec in dict.fromkeys(codec for codec, _, _ in found if codec is not None):
            ours = [(place, payload) for one, place, payload in found if one == codec]
            why = refusal(codec)
            if not why:
                self._place(
                    stream.number,
                    msgspec.structs.replace(codec, clock_rate=red.clock_rate),
                    [place for place, _ in ours],
                    [payload for _, payload in ours],
                )
            else:
                self.warnings[f"blocks of codec {codec.name} in RED {why}: silence"] += len(ours)

    def _place(
        self, stream: int, codec: Codec, places: list[int], payloads: list[bytes],
        missing: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Decode payloads of one codec, and put them at these ticks of its clock."""
        rate = sound_rate(codec)
        lane = self._lane(stream, rate)
        sounds = self._decoding.decode(stream, codec, payloads, missing)
        for place, samples in zip(places, sounds, strict=True):
            lane.place(place * rate // codec.clock_rate, samples)

    def _lane(self, stream: int, rate: int) -> Lane:
        key = (stream, rate)
        if key not in self._lanes:
            self._lanes[key] = Lane(self._sides[stream], rate, self.rate, self._done)
        return self._lanes[key]

    def _blocks(self, until: int) -> Iterator[Block]:
        """Mix the lanes up to a block number."""
        while self._done < until:
            mixed = np.zeros((self.rate, 2), np.int32)
            for key, lane in list(self._lanes.items()):
                mixed[:, lane.side] += lane.block()
                if lane.empty:
                    self._end_s = max(self._end_s, lane.end / lane.rate)
                    del self._lanes[key]
            self._done += 1
            yield np.clip(mixed, -32768, 32767).astype(np.int16)
