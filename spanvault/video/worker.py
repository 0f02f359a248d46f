"""The process in which FFmpeg writes a film: pictures as they were sent, and the sound of a call.

The muxer reads parts of the pictures, which anybody may have sent. Started by film.py, which tells
it what to write into a file that it opened. Confinement: spanvault.sandbox.
"""

import io
import os
import struct
from collections import deque
from fractions import Fraction
from heapq import heappop, heappush
from typing import Any, Final

import av
import av.subtitles.stream  # PyAV would, when there are no files to be opened any more
import msgspec
import numpy as np

from spanvault import sandbox
from spanvault.audio.sending import DEPTH
from spanvault.video.told import Begin, Begun, Block, End, Picture, Track, Written

RAW_HEAD: Final = struct.Struct("<4sHH4sHHIIII")  # IVF, which VP8 and VP9 lie in
LAST_S: Final = 0.04  # how long a picture lasts that no other follows
SOUND_CODECS: Final = {"mp4": "aac", "matroska": "flac"}


class Line:
    """One video track of the file.

    Each picture is written when those that follow tell how long it is, and when it is decoded: the
    times of all in rising order, early enough that none is shown before.
    """

    def __init__(self, container: Any, track: Track) -> None:
        """Raises FFmpegError, ValueError where nothing can be made of the track's key picture."""
        with av.open(io.BytesIO(raw_file(track)), format=track.raw) as alone:
            (template,) = alone.streams.video
            if not template.codec_context.width:
                raise ValueError("no size")
            try_header(container.format.name, template)
            self._stream = container.add_stream_from_template(template)
        self._stream.time_base = self._base = Fraction(1, track.clock_rate)
        if track.quarters or track.flipped:
            self._stream.set_display_rotation(-90 * track.quarters, hflip=track.flipped)
        for name in ("title", "handler_name"):  # Matroska's, and MP4's
            self._stream.metadata[name] = track.title
        self._container = container
        self._ahead = track.ahead
        self._most = DEPTH if track.ahead else 1  # pictures that wait for others
        self._waiting: deque[Picture] = deque()
        self._times: list[int] = []  # a heap: at which pictures are shown, and none is decoded yet
        self._length = round(LAST_S * track.clock_rate)
        self._last = -track.ahead - 1
        self.written = 0

    def put(self, picture: Picture) -> None:
        """The next picture."""
        if self._waiting and not self._ahead:
            # Players want rising times.
            picture.ticks = max(picture.ticks, self._waiting[-1].ticks + 1)
        self._waiting.append(picture)
        heappush(self._times, picture.ticks)
        if len(self._waiting) > self._most:
            self._write()

    def finish(self) -> None:
        """No picture follows."""
        while self._waiting:
            self._write()

    def _write(self) -> None:
        picture, time = self._waiting.popleft(), heappop(self._times)
        if self._times:
            self._length = max(1, self._times[0] - time)
        packet: Any = av.Packet(picture.data)
        packet.stream, packet.time_base = self._stream, self._base
        self._last = packet.dts = max(time - self._ahead, self._last + 1)
        packet.pts = max(picture.ticks, packet.dts)
        packet.duration, packet.is_keyframe = self._length, picture.key
        try:
            self._container.mux(packet)
            self.written += 1
        except av.error.InvalidDataError:
            pass  # the muxer read what it could not take; the picture is left out


class Film:
    """The file, from its beginning to its end."""

    def __init__(self, begin: Begin) -> None:
        # Ours to close; what the muxer seeks and writes is Python's file.
        self._file = os.fdopen(begin.file, "wb")
        self._container: Any = av.open(self._file, "w", format=begin.container)
        self._samples = 0
        self._rate = begin.sound_rate
        self._sound: Any = None
        self.lines = [self._line(track) for track in begin.tracks]
        if begin.sound_rate:
            self._sound = self._container.add_stream(
                SOUND_CODECS[begin.container], rate=begin.sound_rate, layout="stereo"
            )
        if self._sound is not None or any(self.lines):
            self._container.start_encoding()

    def _line(self, track: Track) -> Line | None:
        try:
            return Line(self._container, track)
        except (av.FFmpegError, ValueError):
            return None

    def picture(self, picture: Picture) -> None:
        """Write a picture."""
        line = self.lines[picture.track]
        if line is not None:
            line.put(picture)

    def block(self, block: Block) -> None:
        """Write sound."""
        samples = np.frombuffer(block.samples, np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None, :], "s16", "stereo")
        frame.sample_rate, frame.pts = self._rate, self._samples
        self._samples += len(samples) // 2
        self._container.mux(self._sound.encode(frame))

    def finish(self) -> None:
        """The end of the file."""
        for line in self.lines:
            if line is not None:
                line.finish()
        if self._sound is not None:
            self._container.mux(self._sound.encode(None))
        self._container.close()
        self._file.close()


class Worker:
    """Messages in, a file written; an error on the way is told at the end."""

    def __init__(self) -> None:
        self._film: Film | None = None
        self._error = ""

    def answer(self, message: bytes) -> bytes | None:
        """One message; Begin and End are answered."""
        told = msgspec.msgpack.decode(message, type=Begin | Picture | Block | End)
        if isinstance(told, Begin):
            self._film, self._error = Film(told), ""
            usable = [line is not None for line in self._film.lines]
            return msgspec.msgpack.encode(Begun(usable))
        assert self._film is not None
        if not self._error:
            try:
                self._do(self._film, told)
            except (OSError, av.FFmpegError) as error:
                self._error = (error.strerror or str(error)).lower()
        if not isinstance(told, End):
            return None
        counts = [line.written if line else 0 for line in self._film.lines]
        return msgspec.msgpack.encode(Written(counts, self._error))

    def _do(self, film: Film, told: Picture | Block | End) -> None:
        if isinstance(told, Picture):
            film.picture(told)
        elif isinstance(told, Block):
            film.block(told)
        else:
            film.finish()


def try_header(container: str, template: Any) -> None:
    """Raise FFmpegError where a file of such a track alone cannot even begin.

    One whose header failed must not be written to any more: FFmpeg would crash.
    """
    with av.open(io.BytesIO(), "w", format=container) as trial:
        trial.add_stream_from_template(template)
        trial.start_encoding()


def raw_file(track: Track) -> bytes:
    """A key picture as a file of nothing else. IVF is a head and a length."""
    if track.raw != "ivf":
        return track.key
    rate = track.clock_rate
    head = RAW_HEAD.pack(b"DKIF", 0, RAW_HEAD.size, track.fourcc, 0, 0, rate, 1, 1, 0)
    return head + struct.pack("<IQ", len(track.key), 0) + track.key


def main() -> None:
    """What the process does."""
    sandbox.serve(Worker().answer)
