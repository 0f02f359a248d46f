"""What is written is what other programs read."""

import io
import wave

import av
import numpy as np
import pytest

from spanvault.audio.encode import FORMATS, write

TIME = np.arange(3 * 8000 + 321) / 8000
LEFT = (9000 * np.sin(2 * np.pi * 440 * TIME)).astype(np.int16)
STEREO = np.stack([LEFT, np.zeros_like(LEFT)], axis=1)


def blocks() -> list[np.ndarray]:
    return np.split(STEREO, range(8000, len(STEREO), 8000))


def test_wav_holds_every_sample():
    file = io.BytesIO()
    assert write(blocks(), 8000, "wav", file) == len(STEREO) / 8000
    file.seek(0)
    with wave.open(file) as read:
        assert (read.getframerate(), read.getnchannels(), read.getnframes()) == (
            8000,
            2,
            len(STEREO),
        )
        samples = np.frombuffer(read.readframes(read.getnframes()), np.int16).reshape(-1, 2)
    assert np.array_equal(samples, STEREO)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_every_format_keeps_sides_and_length(name: str, rate: int):
    file = io.BytesIO()
    write(blocks(), rate, name, file)
    file.seek(0)
    with av.open(file) as container:
        frames = list(container.decode(audio=0))
    sound = np.concatenate([to_stereo(frame) for frame in frames])
    assert abs(len(sound) / frames[0].sample_rate - len(STEREO) / rate) < 0.1
    assert np.abs(sound[:, 0]).mean() > 20 * np.abs(sound[:, 1]).mean() > -1


def to_stereo(frame: av.AudioFrame) -> np.ndarray:
    data = frame.to_ndarray()
    return (data.T if frame.format.is_planar else data.reshape(-1, 2)).astype(float)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_call_without_a_sample_is_still_a_file(name: str):
    file = io.BytesIO()
    assert write([], 8000, name, file) == 0
    assert file.getvalue()


def test_a_pipe_is_written_without_seeking():
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation("a pipe")

    pipe = Pipe()
    write(blocks(), 8000, "flac", pipe)
    with av.open(io.BytesIO(pipe.getvalue())) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == len(STEREO)
