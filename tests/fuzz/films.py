"""What FFmpeg's muxer is told, in its process: it may die of it, and the next one is started.

A film is told as spanvault.video.film tells it: tracks by a key picture each, pictures, sound, the
end. Key pictures are an encoder's, with bytes changed or cut, since made-up ones get nowhere.
"""

import atexit
import os
from functools import cache
from typing import Final

import msgspec

from spanvault.sandbox import Sandbox, SandboxDied
from spanvault.video.film import FILMS, MODULE
from spanvault.video.told import Begin, Begun, Block, End, Picture, Track, Written
from spanvault.video.units import KINDS, Kind
from tests.fuzz.choices import Choices
from tests.support import pictures

FILMS_A_PROCESS: Final = 32
CLOCK: Final = 90_000
ANSWER_S: Final = 60.0


class Muxer:
    """The process, with the files of its films; anew after some films, or when it died."""

    def __init__(self) -> None:
        self._files: list[int] = []
        self._process: Sandbox | None = None
        atexit.register(self.close)

    def begin(self) -> tuple[Sandbox, int]:
        """The process, and a file for the next film."""
        if self._process is None or not self._files:
            self.close()
            made = [os.memfd_create("film") for _ in range(FILMS_A_PROCESS)]
            self._process = Sandbox(MODULE, files=tuple(made), answer_s=ANSWER_S)
            self._files = made
        return self._process, self._files.pop()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
        for file in self._files:
            os.close(file)
        self._process, self._files = None, []


MUXER: Final = Muxer()


def write(data: bytes) -> None:
    """A film of up to three tracks."""
    choose = Choices(data)
    process, file = MUXER.begin()
    try:
        tracks = [_track(choose) for _ in range(choose.number(4))]
        sound_rate = choose.of((0, 8_000, 48_000, 11_025))
        begin = Begin(
            file, choose.of(sorted({row[0] for row in FILMS.values()})), sound_rate, tracks
        )
        answer = process.ask(msgspec.msgpack.encode(begin))
        assert len(msgspec.msgpack.decode(answer, type=Begun).usable) == len(tracks)
        ticks = 0
        while choose.left:
            if tracks and choose.number(4):
                at, key = choose.number(len(tracks)), bool(choose.number(2))
                ticks += choose.number(1 << 16) * choose.of((1, 0, 1, 1 << 12, 1 << 30))
                told: Picture | Block = Picture(at, ticks, key, _picture(choose))
            elif sound_rate:
                told = Block(bytes(4 * choose.number(2_000)))
            else:
                break
            process.tell(msgspec.msgpack.encode(told))
        answer = process.ask(msgspec.msgpack.encode(End()))
        assert len(msgspec.msgpack.decode(answer, type=Written).pictures) == len(tracks)
    except SandboxDied as death:
        MUXER.close()
        if "no answer" in str(death):
            raise TimeoutError(f"the muxer {death}") from death
    finally:
        os.close(file)


@cache
def _encoded() -> list[tuple[Kind, bytes]]:
    """Of each codec a key picture, then another."""
    return [
        (KINDS[name.lower()], picture)
        for name in pictures.ENCODERS
        for picture in pictures.encoded(name, 2)
    ]


def _track(choose: Choices) -> Track:
    kind, key = choose.of(_encoded())
    clock_rate = choose.of((CLOCK, 1_000, 1, 8_000))
    title = choose.of(("caller", "callee", "\0 é"))
    ahead = choose.of((0, 0, 3_000, 1 << 40))
    return Track(kind.raw, clock_rate, _damaged(key, choose), title, kind.fourcc, ahead)


def _picture(choose: Choices) -> bytes:
    if choose.number(8) == 7:
        return choose.bytes(200)
    return _damaged(choose.of(_encoded())[1], choose)


def _damaged(picture: bytes, choose: Choices) -> bytes:
    """With up to seven places changed; cut there, now and then."""
    made = bytearray(picture)
    for _ in range(choose.number(8)):
        at = choose.number(1 << 16) % (len(made) + 1)
        made[at : at + choose.number(4)] = choose.bytes(8)
        if choose.number(16) == 15:
            del made[at:]
    return bytes(made)


def told() -> list[bytes]:
    """Of each codec a whole film, in both containers, with sound and without."""
    return [
        bytes([1, codec, 0, 0, 0, sound, container]) + bytes([1, 0, 1, 12, 0, 0, 0, codec, 0]) * 6
        for codec in range(0, 2 * len(pictures.ENCODERS), 2)
        for sound in (0, 1)
        for container in (0, 1)
    ]
