"""What film.py and the process that writes a film (worker.py) tell each other.

Apart from worker.py, for that loads FFmpeg: a third of what starting any command took.
"""

import msgspec


class Track(msgspec.Struct, array_like=True):
    """A video track. key: its first key picture, which tells size and parameters.

    fourcc: what IVF calls the codec, where such pictures lie in IVF. ahead: ticks by which a
    picture may be sent before one that is shown earlier; 0 where they come in the order of time.
    """

    raw: str  # FFmpeg's format of such pictures on their own
    clock_rate: int
    key: bytes
    title: str
    fourcc: bytes
    ahead: int
    quarters: int = 0  # by which pictures are to be turned, clockwise
    flipped: bool = False


class Begin(msgspec.Struct, array_like=True, tag="begin"):
    """Write to a file descriptor. sound_rate: of stereo blocks, 0 if there is no sound."""

    file: int
    container: str
    sound_rate: int
    tracks: list[Track]


class Picture(msgspec.Struct, array_like=True, tag="picture"):
    """One picture of a track, in the order of decoding. ticks: when it is shown, by its clock."""

    track: int
    ticks: int
    key: bool
    data: bytes


class Block(msgspec.Struct, array_like=True, tag="block"):
    """The next samples: int16, left and right in turn."""

    samples: bytes


class End(msgspec.Struct, array_like=True, tag="end"):
    """Nothing follows; the file is finished."""


class Begun(msgspec.Struct, array_like=True):
    """usable: of each track, whether FFmpeg could make something of its key picture."""

    usable: list[bool]


class Written(msgspec.Struct, array_like=True):
    """pictures: of each track. error: why the file is not whole, empty if it is."""

    pictures: list[int]
    error: str
