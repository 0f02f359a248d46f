"""Is the right voice heard in the right channel at the right moment?

The method of the lab's own truth: the loudest three seconds of a channel are looked for in the WAV
that the phone played; how well they correlate, and where the WAV then begins. And so for every
second in which the truth clearly hears a voice.
"""

import wave
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from tests.conformance.arrivals import Arrivals, Name
from tests.conformance.truth import Case, TrueStream
from tests.support.folders import SHARED

RATE: Final = 8000
WINDOW_S: Final = 3.0
SHARE: Final = 0.97  # of the truth's correlation
# A sender's clock may have drifted by 8 ms before the export follows (spanvault.audio.clock); it
# knows more of what comes than a second's packets tell: 2 ms.
OFFSET_S: Final = 0.010
SECOND_OFFSET_S: Final = 0.020  # and the truth tells positions of seconds to 10 ms
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


def match(channel: NDArray[np.float64], played: NDArray[np.float64]) -> tuple[Match, float]:
    """Where the channel's loudest window lies in the whole WAV; at which second the window is."""
    count = min(round(WINDOW_S * RATE), len(channel))
    energy = np.cumsum(np.concatenate(([0.0], (channel - channel.mean()) ** 2)))
    start = int(np.argmax(energy[count:] - energy[:-count]))
    correlation, at = find(channel[start : start + count] - channel.mean(), played)
    return Match(correlation, (start - at) / RATE), start / RATE


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


class Found(NamedTuple):
    """A voice, or a second of it, looked for in an export. Times are seconds of the export."""

    name: str
    correlation: float
    wanted: float  # at least
    begins_s: float  # where the WAV begins, as exported
    truth_s: float  # by the truth
    late_s: float  # how much later its packets came than the truth lays them out: arrivals.py
    tolerance_s: float
    loop_s: float = 0.0  # the WAV was played again and again, and is so long

    @property
    def off_s(self) -> float:
        """How far from where the packets say it is."""
        off_s = self.begins_s - self.truth_s - self.late_s
        return off_s - round(off_s / self.loop_s) * self.loop_s if self.loop_s else off_s

    @property
    def fault(self) -> str:
        """What is wrong with it; "" if nothing is."""
        if self.correlation < self.wanted:
            return f"{self.name}: correlates {self.correlation:.3f}, wanted {self.wanted:.3f}"
        if abs(self.off_s) > self.tolerance_s:
            return (
                f"{self.name}: begins at {self.begins_s:.3f} s, truth {self.truth_s:.3f} s "
                f"and {self.late_s:.3f} s late"
            )
        return ""


def listen(
    call: dict[str, Any],
    case: Case,
    came: dict[Name, Arrivals],
    rate: int,
    sound: NDArray[np.int16],
) -> Iterator[Found]:
    """All that the truth hears in one call, in the call's export. came: of the case's capture.

    Of a stream that carried several voices, one after the other or mixed, its seconds tell.
    """
    sides = [(one, _side(call, one)) for one in case.streams]
    ours = [(one, side) for one, side in sides if side is not None]
    first_s = min(
        (came[one.name].begins_s + came[one.name].first_late_s() for one, _ in ours), default=0.0
    )
    for one, side in ours:
        if one.voice is not None:
            channel = to_8000(sound[:, side], rate)
            begins_s = max(0.0, came[one.name].begins_s - first_s)
            if {second.wav for second in one.seconds} <= {one.voice.wav}:
                yield _voice(one, channel, came[one.name], begins_s)
            yield from _seconds(one, channel, came[one.name], begins_s)


def _voice(
    stream: TrueStream, channel: NDArray[np.float64], came: Arrivals, stream_s: float
) -> Found:
    """The loudest three seconds. stream_s: when the stream's first packet came."""
    assert stream.voice is not None
    voice, played = stream.voice, reference(stream.voice.wav)
    here = channel[max(0, round(stream_s * RATE)) : round((stream_s + came.came_s[-1]) * RATE)]
    got, at_s = match(here, played)  # another stream may have gone before it, or follow
    return Found(
        f"{voice.wav} from {stream.source}",
        abs(got.correlation),
        SHARE * abs(voice.correlation),
        stream_s + got.starts_at_s,
        stream_s + voice.starts_at_s,
        came.late_around_s(at_s, at_s + WINDOW_S),
        OFFSET_S,
        len(played) / RATE if stream.looped else 0.0,
    )


def _seconds(
    stream: TrueStream, channel: NDArray[np.float64], came: Arrivals, stream_s: float
) -> Iterator[Found]:
    """Every second in which the truth is sure of the voice."""
    for second in stream.seconds:
        late_s = came.late_s(second.at_s, second.at_s + second.lasts_s)
        at_s = stream_s + second.at_s + late_s
        part = channel[round(max(0.0, at_s) * RATE) :][: round(second.lasts_s * RATE)]
        got = _look(part, reference(second.wav), at_s, second.position_s)
        yield Found(
            f"{second.wav} from {stream.source}, second {second.at_s:.0f}",
            got.correlation,
            SHARE * second.correlation,
            got.starts_at_s,
            stream_s + second.at_s - second.position_s,
            late_s,
            SECOND_OFFSET_S,
        )


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
