"""Stereo blocks to a sound file or stream, by FFmpeg's encoders through PyAV.

Source of the blocks: render.py.
"""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import av


class Format(NamedTuple):
    """Container and codec as FFmpeg names them, and the container's options."""

    container: str
    codec: str
    options: dict[str, str]


FORMATS: Final[dict[str, Format]] = {
    "wav": Format("wav", "pcm_s16le", {"rf64": "auto"}),  # beyond 4 GiB it becomes RF64
    "flac": Format("flac", "flac", {}),
    "mp3": Format("mp3", "libmp3lame", {}),
    "opus": Format("ogg", "libopus", {}),
}


def write(blocks: Iterable[NDArray[np.int16]], rate: int, name: str, target: BinaryIO) -> float:
    """Encode blocks of int16[n, 2] into target, which stays open; give the seconds written.

    A length in the header (WAV, FLAC) is only right where target can seek. Raises OSError.
    """
    import av

    form = FORMATS[name]
    samples = 0
    sink = _Target(target)
    with av.open(sink, "w", format=form.container, options=form.options) as container:
        stream: Any = container.add_stream(form.codec, rate=rate, layout="stereo")
        container.start_encoding()  # a header even where nothing follows
        for block in blocks:
            container.mux(stream.encode(_frame(block, rate, samples)))
            sink.check()
            samples += len(block)
        container.mux(stream.encode(None))
    sink.check()
    return samples / rate


class _Target:
    """Where the bytes go. A fault is kept for us: PyAV would raise the first, print the next."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._fault: OSError | None = None

    def write(self, data: bytes) -> int:
        return self._try(lambda: self._target.write(data), len(data))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._try(lambda: self._target.seek(offset, whence), offset)

    def check(self) -> None:
        """Raise the first fault there was."""
        if self._fault:
            raise self._fault

    def _try(self, act: Callable[[], int], otherwise: int) -> int:
        if self._fault:
            return otherwise
        try:
            return act()
        except OSError as fault:
            self._fault = fault
            return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _frame(block: NDArray[np.int16], rate: int, position: int) -> "av.AudioFrame":
    import av

    frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), "s16", "stereo")
    frame.sample_rate, frame.pts = rate, position
    return frame
