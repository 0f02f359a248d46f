"""Is the right voice heard in the right channel at the right moment?

The method of the lab's own truth: the loudest three seconds of a channel are looked for in the WAV
that the phone played; how well they correlate, and where the WAV then begins.
"""

import wave
from typing import Any, Final, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from tests.conformance.recorded import SHARED
from tests.conformance.truth import Case, TrueStream

RATE: Final = 8000
WINDOW_S: Final = 3.0
SHARE: Final = 0.97  # of the truth's correlation
# The truth goes by the first packet of a stream, which may have waited; and it does not place
# again what a PBX shifted by less than a second.
OFFSET_S: Final = 0.06


class Match(NamedTuple):
    """How well a WAV was found, and at which second of the channel it begins."""

    correlation: float
    starts_at_s: float


def to_8000(samples: NDArray[np.int16], rate: int) -> NDArray[np.float64]:
    """One channel at the rate of the truth's method."""
    if rate == RATE:
        return samples.astype(np.float64)
    resampler = av.AudioResampler("s16", "mono", RATE)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None, :], "s16", "mono")
    frame.sample_rate = rate
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([one.to_ndarray()[0] for one in frames]).astype(np.float64)


def reference(name: str) -> NDArray[np.float64]:
    """A WAV that a phone played."""
    with wave.open(str(SHARED / "lab" / "audio" / name)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return samples.astype(np.float64)[:: file.getframerate() // RATE]


def match(channel: NDArray[np.float64], played: NDArray[np.float64]) -> Match:
    """Normalised cross-correlation of the channel's loudest window with the whole WAV."""
    count = min(round(WINDOW_S * RATE), len(channel))
    channel = channel - channel.mean()
    energy = np.cumsum(np.concatenate(([0.0], channel**2)))
    start = int(np.argmax(energy[count:] - energy[:-count]))
    part = channel[start : start + count]
    padded = np.concatenate([np.zeros(count), played, np.zeros(count)])
    size = 1 << (len(padded) + count).bit_length()
    product = np.fft.rfft(padded, size) * np.conj(np.fft.rfft(part, size))
    found = np.fft.irfft(product, size)[: len(padded) - count]
    energy = np.cumsum(np.concatenate(([0.0], padded**2)))
    windows = (energy[count:] - energy[:-count])[: len(found)]
    norm = np.sqrt(np.maximum(windows, 1e-9) * (part @ part))
    score = np.where(windows > windows.max() * 0.02, found / np.maximum(norm, 1e-9), 0)
    best = int(np.argmax(np.abs(score)))
    return Match(float(score[best]), (start - (best - count)) / RATE)


def faults(call: dict[str, Any], case: Case, rate: int, sound: NDArray[np.int16]) -> list[str]:
    """What is wrong with one call's export, by the lab's truth."""
    heard = [(one, _side(call, one)) for one in case.streams]
    ours = [(one, side) for one, side in heard if side is not None]
    if not ours:
        return []
    first_s = min(one.start_s for one, _ in ours)
    found = []
    for one, side in ours:
        if one.voice is not None:
            channel = to_8000(sound[:, side], rate)
            # Where many calls used one stream's ports again, only the first one's start is known.
            begins_s = one.start_s - first_s if case.one_stream_one_call else 0.0
            found += _of_voice(one, match(channel, reference(one.voice.wav)), begins_s)
    return found


def _of_voice(stream: TrueStream, got: Match, begins_s: float) -> list[str]:
    assert stream.voice is not None
    name = f"{stream.voice.wav} from {stream.source}"
    wanted = SHARE * abs(stream.voice.correlation)
    if abs(got.correlation) < wanted:
        return [f"{name}: correlates {got.correlation:.3f}, wanted {wanted:.3f}"]
    starts_at_s = begins_s + stream.voice.starts_at_s
    if abs(got.starts_at_s - starts_at_s) > OFFSET_S:
        return [f"{name}: begins at {got.starts_at_s:.3f} s, truth {starts_at_s:.3f} s"]
    return []


def _side(call: dict[str, Any], stream: TrueStream) -> int | None:
    """Which channel of the export should carry this stream, if it is this call's."""
    ends = (stream.source, stream.destination)
    for channel in call["channels"]:
        ours = (channel["source"], channel["destination"])
        if ours == ends and stream.ssrc in channel["ssrcs"]:
            return {"caller": 0, "callee": 1}.get(channel["party"])
    return None
