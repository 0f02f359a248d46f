"""Is the right voice heard in the right channel at the right moment?

The method of the lab's own truth: the loudest three seconds of a channel are looked for in the WAV
that the phone played; how well they correlate, and where the WAV then begins. And so for every
second in which the truth clearly hears a voice.
"""

import wave
from typing import Any, Final, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from tests.conformance.arrivals import Name, waits
from tests.conformance.recorded import SHARED
from tests.conformance.truth import Case, TrueStream

RATE: Final = 8000
WINDOW_S: Final = 3.0
SHARE: Final = 0.97  # of the truth's correlation
OFFSET_S: Final = 0.010
SECOND_OFFSET_S: Final = 0.020  # the truth tells positions of seconds to 10 ms
NEAR_S: Final = 0.5  # of where it should be, each second is looked for


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
    """Where the channel's loudest window lies in the whole WAV."""
    count = min(round(WINDOW_S * RATE), len(channel))
    energy = np.cumsum(np.concatenate(([0.0], (channel - channel.mean()) ** 2)))
    start = int(np.argmax(energy[count:] - energy[:-count]))
    correlation, at = find(channel[start : start + count] - channel.mean(), played)
    return Match(correlation, (start - at) / RATE)


def find(part: NDArray[np.float64], played: NDArray[np.float64]) -> tuple[float, int]:
    """Normalised cross-correlation of a part with a WAV: the best, and at which sample of it."""
    count = len(part)
    padded = np.concatenate([np.zeros(count), played, np.zeros(count)])
    size = 1 << (len(padded) + count).bit_length()
    product = np.fft.rfft(padded, size) * np.conj(np.fft.rfft(part, size))
    found = np.fft.irfft(product, size)[: len(padded) - count]
    energy = np.cumsum(np.concatenate(([0.0], padded**2)))
    windows = (energy[count:] - energy[:-count])[: len(found)]
    norm = np.sqrt(np.maximum(windows, 1e-9) * (part @ part))
    score = np.where(windows > windows.max() * 0.02, found / np.maximum(norm, 1e-9), 0)
    best = int(np.argmax(np.abs(score)))
    return float(score[best]), best - count


class Beginnings:
    """When the WAVs of a case began, by the truth, all absolute.

    A PBX sends a voice on at once (0.3 ms), but counts timestamps anew when it goes over to another
    party; there the truth goes by the arrival of two packets that had both waited (in
    xfer_blind_pbx 57 ms). So what a PBX sends is held against the phone's own stream of that voice.
    """

    def __init__(self, case: Case) -> None:
        self.streams = case.streams
        waited = waits(case.capture, case.streams)
        self._starts: dict[Name, float] = {
            one.name: one.start_s - waited.get(one.name, 0.0) for one in case.streams
        }
        self._spoken = [
            (second.wav, self.start_s(one) + second.at_s - second.position_s)
            for one in case.streams
            if not one.relayed
            for second in one.seconds
        ]

    def start_s(self, stream: TrueStream) -> float:
        """When its first packet came, or would have if it had not waited."""
        return self._starts[stream.name]

    def wav_s(self, stream: TrueStream, wav: str, at_s: float) -> float:
        """When the WAV began that the truth hears begin `at_s` after the stream does."""
        heard_s = self.start_s(stream) + at_s
        spoken = [begins_s for name, begins_s in self._spoken if name == wav]
        nearest = min(spoken, key=lambda begins_s: abs(begins_s - heard_s), default=heard_s)
        return nearest if stream.relayed and abs(nearest - heard_s) < 0.1 else heard_s


def faults(
    call: dict[str, Any], begins: Beginnings, rate: int, sound: NDArray[np.int16]
) -> list[str]:
    """What is wrong with one call's export, by the lab's truth."""
    sides = [(one, _side(call, one)) for one in begins.streams]
    ours = [(one, side) for one, side in sides if side is not None]
    if not ours:
        return []
    first_s = min(begins.start_s(one) for one, _ in ours)
    found = []
    for one, side in ours:
        if one.voice is not None:
            channel = to_8000(sound[:, side], rate)
            found += _of_voice(one, channel, begins, first_s)
            found += _of_seconds(one, channel, begins, first_s)
    return found


def _of_voice(
    stream: TrueStream, channel: NDArray[np.float64], begins: Beginnings, first_s: float
) -> list[str]:
    assert stream.voice is not None
    voice = stream.voice
    got = match(channel, reference(voice.wav))
    name = f"{voice.wav} from {stream.source}"
    wanted = SHARE * abs(voice.correlation)
    if abs(got.correlation) < wanted:
        return [f"{name}: correlates {got.correlation:.3f}, wanted {wanted:.3f}"]
    starts_at_s = begins.wav_s(stream, voice.wav, voice.starts_at_s) - first_s
    if abs(got.starts_at_s - starts_at_s) > OFFSET_S:
        return [f"{name}: begins at {got.starts_at_s:.3f} s, truth {starts_at_s:.3f} s"]
    return []


def _of_seconds(
    stream: TrueStream, channel: NDArray[np.float64], begins: Beginnings, first_s: float
) -> list[str]:
    """Every second in which the truth is sure of the voice."""
    found = []
    for second in stream.seconds:
        at_s = begins.start_s(stream) + second.at_s - first_s
        begins_s = begins.wav_s(stream, second.wav, second.at_s - second.position_s) - first_s
        part = channel[round(max(0.0, at_s) * RATE) :][: round(second.lasts_s * RATE)]
        got = _look(part, reference(second.wav), at_s, at_s - begins_s)
        name = f"{second.wav} from {stream.source}, second {second.at_s:.0f}"
        if got.correlation < SHARE * second.correlation:
            found.append(f"{name}: correlates {got.correlation:.3f}, truth {second.correlation}")
        elif abs(got.starts_at_s - begins_s) > SECOND_OFFSET_S:
            found.append(f"{name}: by a WAV at {got.starts_at_s:.3f} s, truth {begins_s:.3f} s")
    return found


def _look(
    part: NDArray[np.float64], played: NDArray[np.float64], at_s: float, position_s: float
) -> Match:
    """Look for what a channel has from a time on, near a position of the WAV."""
    first = max(0, round((position_s - NEAR_S) * RATE))
    last = round((position_s + NEAR_S) * RATE) + len(part)
    correlation, where = find(part, played[first:last])
    return Match(correlation, at_s - (first + where) / RATE)


def _side(call: dict[str, Any], stream: TrueStream) -> int | None:
    """Which channel of the export should carry this stream, if it is this call's to be heard."""
    ends = (stream.source, stream.destination)
    for channel in call["channels"]:
        ours = (channel["source"], channel["destination"])
        if ours == ends and stream.ssrc in channel["ssrcs"] and channel["media"] == "audio":
            return {"caller": 0, "callee": 1}.get(channel["party"])
    return None
