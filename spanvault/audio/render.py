"""Chunks to stereo sound: caller left, callee right, on one time line from the first media on.

Each stream is drawn on a lane of its own; lanes are mixed to blocks of a second and forgotten, so
ten hours cost no more memory than ten seconds. What was lost, held, muted, comfort noise, a digit
or undecodable is silence of the same length.
A stream of party `unknown` takes the side that no known party has: the first such sender left, the
next right, further ones left. Source of the order of things: audio/__init__.py.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from spanvault.audio.clock import Clock
from spanvault.audio.codecs import (
    SILENCE,
    STATIC,
    Decoder,
    Samples,
    Table,
    open_decoder,
    sound_rate,
)
from spanvault.callline import NOT_SOUND
from spanvault.chunk import TRUNCATED, Chunk
from spanvault.messages import Codec, Stream

Block = NDArray[np.int16]  # [n, 2]: caller, callee
LEFT, RIGHT = 0, 1
MARGIN_S: Final = 10  # a packet may come so late and still find its place
LEAP_S: Final = 4 * 3600  # a longer pause is a clock that was set, not a hold
FARTHEST_S: Final = LEAP_S + 3600  # ahead of what is mixed: no chunk's frames reach so far


def output_rate(streams: Sequence[Stream]) -> int:
    """8000 where all is narrowband, else 16000, else 48000: the least that loses nothing."""
    rates = [
        sound_rate(codec)
        for stream in streams
        if stream.media == "audio"
        for number in stream.payload_types
        if (codec := stream.codecs.get(number) or STATIC.get(number))
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


def _resampler(rate: int, output: int) -> Any:
    return av.AudioResampler("s16", "mono", output) if rate != output else None


class Renderer:
    """Fed with a call's chunks in time order, gives blocks of its sound.

    encrypted: the payloads are not what they seem; they are not rendered.
    warnings: what could not be heard as it was sent, and how often.
    unread: packets that were heard, by the call's record, and did not come in a chunk.
    """

    def __init__(self, streams: Sequence[Stream], rate: int, encrypted: bool = False) -> None:
        self.rate = rate
        self._encrypted = encrypted
        self.warnings: Counter[str] = Counter()
        self._streams = {stream.number: stream for stream in streams}
        self._sides = sides(streams)
        heard = [s for s in streams if s.media == "audio" and s.packets]
        self._origin_ns = min((s.first_ns for s in heard), default=0)
        self._last_ns = self._origin_ns
        self._begun = False
        self._done = 0  # blocks given
        # As long as packets came, even where they cannot be read any more.
        self._end_s = max((s.last_ns - self._origin_ns for s in heard), default=0) / 1e9
        self.unread = sum(s.packets for s in heard)
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._clocks: dict[tuple[int, int], Clock] = {}
        self._decoders: dict[tuple[int, int], Decoder | None] = {}

    def render(self, chunks: Iterable[Chunk]) -> Iterator[Block]:
        """All blocks; the last one ends where the sound ends."""
        for chunk in chunks:
            yield from self.receive(chunk)
        yield from self.finish()

    def receive(self, chunk: Chunk) -> Iterator[Block]:
        """Draw a chunk, and give the blocks that nothing can change any more."""
        stream = self._stream(int(chunk.header["stream"]))
        if stream.media != "audio" or not len(chunk.frames):
            return
        start_ns = int(chunk.header["start_ns"])
        self._follow_clock(start_ns)
        self.unread -= len(chunk.frames)
        yield from self._blocks((start_ns - self._origin_ns) // 1_000_000_000 - MARGIN_S)
        payloads = [bytes(payload) for payload in chunk.payloads()]
        for number in np.unique(chunk.frames["payload_type"]).tolist():
            rows = np.flatnonzero(chunk.frames["payload_type"] == number)
            self._draw(stream, number, chunk.frames[rows], [payloads[row] for row in rows.tolist()])

    def finish(self) -> Iterator[Block]:
        """The rest. Nothing may be received afterwards."""
        ends = [lane.end / lane.rate for lane in self._lanes.values()]
        end = round(max([self._end_s, *ends]) * self.rate)
        for block in self._blocks(-(-end // self.rate)):
            yield block[: end - (self._done - 1) * self.rate]

    def _stream(self, number: int) -> Stream:
        """A call that is still going on may have media its record does not name yet."""
        if number not in self._streams:
            self._streams[number] = Stream(number, "unknown", "audio", 0, "", "", {})
            self._sides |= sides([*self._streams.values()])
        return self._streams[number]

    def _follow_clock(self, start_ns: int) -> None:
        self._origin_ns = self._origin_ns or start_ns
        self._last_ns = self._last_ns or start_ns
        leap = start_ns - self._last_ns
        if leap > LEAP_S * 1_000_000_000:
            self._origin_ns += leap
            self.warnings["the capture's clock leapt; the pause is not kept"] += 1
        self._last_ns = start_ns

    def _draw(
        self, stream: Stream, number: int, frames: NDArray[np.void], payloads: list[bytes]
    ) -> None:
        codec = stream.codecs.get(number) or STATIC.get(number) or Codec("unknown", 8000)
        decoder = self._decoder(stream.number, number, codec)
        if decoder is None:
            # What cannot be heard counts as well: the call goes on as long as its packets do.
            last_ns = int(frames["arrival_ns"].max())
            self._end_s = max(self._end_s, (last_ns - self._origin_ns) / 1e9)
        if codec.name.lower() in NOT_SOUND:
            return
        if decoder is None:
            why = "are encrypted" if self._encrypted else "cannot be decoded"
            named = f"packets of codec {codec.name} (payload type {number}) {why}: silence"
            self.warnings[named] += len(frames)
            return
        lane = self._lane(stream.number, decoder.rate)
        places = self._places(stream.number, codec.clock_rate, frames)
        starts = places * decoder.rate // codec.clock_rate
        cut = (frames["flags"] & TRUNCATED).astype(bool) & (not isinstance(decoder, Table))
        for start, payload, torn in zip(starts.tolist(), payloads, cut.tolist(), strict=True):
            lane.place(start, self._decode(decoder, codec, b"" if torn else payload))

    def _decode(self, decoder: Decoder, codec: Codec, payload: bytes) -> Samples:
        try:
            return decoder.decode(payload) if payload else SILENCE
        except ValueError:
            self.warnings[f"packets are no {codec.name}, though they say so: silence"] += 1
            return SILENCE

    def _decoder(self, stream: int, number: int, codec: Codec) -> Decoder | None:
        key = (stream, number)
        if key not in self._decoders:
            self._decoders[key] = None if self._encrypted else open_decoder(codec)
        return self._decoders[key]

    def _lane(self, stream: int, rate: int) -> Lane:
        key = (stream, rate)
        if key not in self._lanes:
            self._lanes[key] = Lane(self._sides[stream], rate, self.rate, self._done)
        return self._lanes[key]

    def _places(self, stream: int, rate: int, frames: NDArray[np.void]) -> NDArray[np.int64]:
        """Ticks of the media clock since the call's first media, for each frame."""
        clock = self._clocks.setdefault((stream, rate), Clock(rate))
        since = frames["arrival_ns"] - self._origin_ns
        # In two steps, or an hour of nanoseconds times 48000 would not fit in 64 bits.
        seconds, rest = np.divmod(since, 1_000_000_000)
        arrival = seconds * rate + rest * rate // 1_000_000_000
        places = clock.place(frames["sequence"], frames["timestamp"], arrival)
        early = int(places[0])
        if early < 0 and len(self._clocks) == 1 and not self._begun:
            # The call's first packet came late: the time line begins where it should have come.
            self._origin_ns += early * 1_000_000_000 // rate
            clock.shift(-early)
            places -= early
        self._begun = True
        return places

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
