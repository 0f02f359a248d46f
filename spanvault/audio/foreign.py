"""Codecs with a memory: FFmpeg's decoders through PyAV, fed one frame at a time.

They read what anybody may have sent, in C: this module is only run in a process of its own
(decoding.py), which may die. Which codec takes which decoder: codecs.py. FFmpeg is loaded when it
is used: a command that only lists calls does not wait a quarter of a second for it.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from spanvault.audio import amr
from spanvault.audio.bridging import AMR_NARROW, AMR_WIDE, Bridge
from spanvault.audio.framing import Split, every
from spanvault.audio.plain import SILENCE, Samples

if TYPE_CHECKING:
    import av

MAX_FRAMES: Final = 500  # of a packet; a byte may stand for 30 ms of silence


class Decoder(Protocol):
    """Samples of one stream. `rate` is the sound's, which need not be the RTP clock's."""

    rate: int

    def decode(self, payload: bytes) -> Samples:
        """int16[n], mono. Raises ValueError for a payload that is none of this codec."""


class Foreign:
    """An FFmpeg decoder.

    split: a payload to its frames.  silence: samples an empty frame stands for.
    skip: samples at the beginning of each frame that are not of it.
    any_rate: the frames tell their rate; their sound is brought to `rate`.
    bridge: over packets that were lost; without one, the next is decoded as if nothing were.
    """

    def __init__(
        self, name: str, rate: int, split: Split, silence: int = 0, skip: int = 0,
        any_rate: bool = False, bridge: Bridge | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        import av

        self.rate, self._split, self._skip = rate, split, skip
        self._bridge, self._before, self._packet_s = bridge, list[bytes](), 0.0
        self._silent = np.zeros(silence, np.int16)
        self._any_rate = any_rate
        self._resampler: av.AudioResampler | None = None
        self._heard_rate = rate
        context: Any = av.CodecContext.create(name, "r")
        context.sample_rate, context.layout = rate, "mono"
        context.thread_count = 1
        for key, value in settings.items():
            setattr(context, key, value)
        self._context = context

    def decode(self, payload: bytes) -> Samples:
        """Raises ValueError for frames the decoder refuses."""
        frames = list(islice(self._split(payload), MAX_FRAMES + 1))
        if len(frames) > MAX_FRAMES:
            raise ValueError(f"more than {MAX_FRAMES} frames in a packet")
        parts = [part for frame in frames for part in self._frame(frame)]
        sound = np.concatenate(parts) if parts else SILENCE
        self._before, self._packet_s = frames, len(sound) / self.rate
        return sound

    def miss(self, packets: int) -> None:
        """So many packets were lost here. Nothing is heard of them; what follows is clearer."""
        if self._bridge is not None and self._before:
            for frame in self._bridge.frames(self._before, self._packet_s, packets):
                with suppress(ValueError):
                    self._frame(frame)

    def _frame(self, frame: bytes) -> list[Samples]:
        import av

        if not frame:
            return [self._silent]
        try:
            sounds = self._context.decode(av.Packet(frame))
        except av.FFmpegError as error:
            raise ValueError(f"{self._context.name}: {error.strerror}") from None
        if self._any_rate:
            return [part for sound in sounds for part in self._resampled(sound)]
        if any(sound.sample_rate != self.rate for sound in sounds):
            raise ValueError(f"{self._context.name}: another rate than was signalled")
        return [to_mono(sound)[self._skip :] for sound in sounds]

    def _resampled(self, sound: "av.AudioFrame") -> list[Samples]:
        """One behind the other: what a resampler holds back comes with the next frame."""
        import av

        mono = to_mono(sound)
        if sound.sample_rate == self.rate:
            return [mono]
        if self._resampler is None or self._heard_rate != sound.sample_rate:
            self._resampler = av.AudioResampler("s16", "mono", self.rate)
            self._heard_rate = sound.sample_rate
        frame = av.AudioFrame.from_ndarray(mono[None, :], "s16", "mono")
        frame.sample_rate = sound.sample_rate
        return [part.to_ndarray()[0] for part in self._resampler.resample(frame)]


def to_mono(frame: "av.AudioFrame") -> Samples:
    """An FFmpeg frame of any sample format as int16[n]."""
    channels = frame.layout.nb_channels
    data = frame.to_ndarray()
    columns = data if frame.format.is_planar else data.reshape(-1, channels).T
    if columns.dtype == np.int16 and channels == 1:
        return np.ascontiguousarray(columns[0])
    mixed = columns.mean(axis=0, dtype=np.float64)
    if not np.issubdtype(columns.dtype, np.integer):
        mixed = mixed * 32768.0
    samples: Samples = np.clip(np.rint(mixed), -32768, 32767).astype(np.int16)
    return samples


class Amr(Foreign):
    """AMR or AMR-WB. What a sender leaves out in mid-word, the decoder bridges, as receivers do.

    Between words it hears comfort noise, which is silence here. Sources: RFC 4867 §4.3.2; 3GPP TS
    26.091, 26.191 (frames that are missing), 26.092, 26.192 (comfort noise).
    """

    def __init__(self, name: str, rate: int, split: Split, noise: int) -> None:
        """noise: the type of the frames that describe it."""
        bridge = AMR_WIDE if rate > 8000 else AMR_NARROW
        super().__init__(name, rate, split, bridge=bridge)
        self._noise, self._pause = noise, True

    def _frame(self, frame: bytes) -> list[Samples]:
        kind = amr.kind(frame)
        if kind not in amr.MISSING:
            self._pause = kind == self._noise
        sounds = super()._frame(frame)
        return [np.zeros_like(sound) for sound in sounds] if self._pause else sounds


class EitherPacking:
    """G.726, whose two packings are mixed up by phones that name one and send the other.

    Both are decoded; the one that was signalled (`first`) is heard, unless the other is smoother.
    RFC 3551 §4.5.4 packs from the low bits, the AAL2 names from the high ones.
    """

    SMOOTHER: Final = 0.97
    AT_ONCE: Final = 0.7  # and so much as long as both still find their way
    FINDING_S: Final = 0.25

    def __init__(self, first: Decoder, second: Decoder) -> None:
        self.rate = first.rate
        self._decoders = (first, second)
        self._steps = [0.0, 0.0]  # energy of the steps between samples …
        self._energy = [1.0, 1.0]  # … and of the samples: in noise it is twice that, speech glides
        self._heard = 0  # samples

    def decode(self, payload: bytes) -> Samples:
        """Raises ValueError as the decoders do."""
        (samples,) = self.decode_all([payload])
        if samples is None:
            raise ValueError("G726: not decoded")
        return samples

    def decode_all(self, payloads: Sequence[bytes]) -> list[Samples | None]:
        """Judged by all of them: the more is heard, the surer it is."""
        both = [decode_all(decoder, payloads) for decoder in self._decoders]
        for number, sounds in enumerate(both):
            wide = np.concatenate([SILENCE, *(s for s in sounds if s is not None)]).astype(float)
            self._steps[number] += float((np.diff(wide) ** 2).sum())
            self._energy[number] += float((wide**2).sum())
        self._heard += len(wide)
        first, second = (
            steps / energy for steps, energy in zip(self._steps, self._energy, strict=True)
        )
        sure = self._heard > self.FINDING_S * self.rate
        return both[second < (self.SMOOTHER if sure else self.AT_ONCE) * first]


def decode_all(
    decoder: Decoder, payloads: Sequence[bytes], missing: Sequence[int] = ()
) -> list[Samples | None]:
    """The sound of each payload, one behind the other; None for one that is none of this codec.

    missing: how many packets were lost before each, if any were. An empty payload is lost, too.
    """
    if isinstance(decoder, EitherPacking):
        return decoder.decode_all(payloads)
    sounds: list[Samples | None] = []
    for payload, before in zip(payloads, missing or repeat(0), strict=False):
        lost = before + (not payload)
        if lost and isinstance(decoder, Foreign):
            decoder.miss(lost)
        try:
            sounds.append(decoder.decode(payload) if payload else SILENCE)
        except ValueError:
            sounds.append(None)
    return sounds


# Bytes of an iLBC frame to the bit rate by which FFmpeg tells its modes apart. RFC 3952 §4.2.
ILBC: Final = {38: 15200, 50: 13333}


class EitherMode:
    """iLBC, frames of 20 ms (38 bytes) or 30 ms (50). What was signalled decides where both fit."""

    rate = 8000

    def __init__(self, first: int) -> None:
        """first: bytes of a frame in the mode that was signalled."""
        order = sorted(ILBC, key=lambda size: size != first)
        self._decoders = {
            size: Foreign("ilbc", self.rate, every(size), bit_rate=ILBC[size]) for size in order
        }

    def decode(self, payload: bytes) -> Samples:
        """Raises ValueError for a payload that is of neither mode."""
        for size, decoder in self._decoders.items():
            if len(payload) % size == 0:
                return decoder.decode(payload)
        raise ValueError(f"iLBC: {len(payload)} bytes are no frames")
