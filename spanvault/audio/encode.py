"""Stereo blocks to a sound file or stream, by FFmpeg's encoders through PyAV.

Source of the blocks: render.py.
"""

from collections.abc import Iterable
from typing import Any, BinaryIO, Final, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray


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
    form = FORMATS[name]
    samples = 0
    with av.open(target, "w", format=form.container, options=form.options) as container:
        stream: Any = container.add_stream(form.codec, rate=rate, layout="stereo")
        container.start_encoding()  # a header even where nothing follows
        for block in blocks:
            container.mux(stream.encode(_frame(block, rate, samples)))
            samples += len(block)
        container.mux(stream.encode(None))
    return samples / rate


def _frame(block: NDArray[np.int16], rate: int, position: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), "s16", "stereo")
    frame.sample_rate, frame.pts = rate, position
    return frame
