"""Payload bytes to samples: one decoder a stream and payload type, because most have a memory.

G.711 and L16 are arithmetic; the others are FFmpeg's decoders through PyAV, fed one frame at a
time. What cannot be decoded gives no decoder, and so silence: noise is never rendered.
Source: RFC 3551 §4.5 (framing and packing), RFC 4867 (AMR, in amr.py), RFC 3952 (iLBC),
RFC 7587 (Opus), RFC 5574 (Speex). Where samples go on the time line: clock.py.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import av
import numpy as np
from numpy.typing import NDArray

from spanvault.audio import amr
from spanvault.messages import Codec

Samples = NDArray[np.int16]
SILENCE: Final[Samples] = np.zeros(0, np.int16)

# RFC 3551 §6: what a payload type means where the signalling was not heard.
STATIC: Final[dict[int, Codec]] = {
    0: Codec("PCMU", 8000),
    3: Codec("GSM", 8000),
    4: Codec("G723", 8000),
    8: Codec("PCMA", 8000),
    9: Codec("G722", 8000),
    10: Codec("L16", 44100, 2),
    11: Codec("L16", 44100),
    13: Codec("CN", 8000),
    18: Codec("G729", 8000),
}


class Decoder(Protocol):
    """Samples of one stream. `rate` is the sound's, which need not be the RTP clock's."""

    rate: int

    def decode(self, payload: bytes) -> Samples:
        """int16[n], mono. Raises ValueError for a payload that is none of this codec."""


class Table:
    """G.711: every byte is one sample. Source: ITU-T G.711, tables 1a and 2a."""

    def __init__(self, table: Samples, rate: int) -> None:
        self._table, self.rate = table, rate

    def decode(self, payload: bytes) -> Samples:
        """One sample a byte. Raises nothing."""
        return np.take(self._table, np.frombuffer(payload, np.uint8))


class Linear:
    """L16: big-endian samples, channels interleaved, mixed to one. Source: RFC 3551 §4.5.11."""

    def __init__(self, codec: Codec) -> None:
        self.rate, self._channels = codec.clock_rate, max(1, codec.channels)

    def decode(self, payload: bytes) -> Samples:
        """Raises ValueError where the bytes are no whole samples of every channel."""
        if len(payload) % (2 * self._channels):
            raise ValueError(f"L16: {len(payload)} bytes are no whole samples")
        frames = np.frombuffer(payload, ">i2").reshape(-1, self._channels)
        samples: Samples = frames.mean(axis=1).astype(np.int16)
        return samples


Split = Callable[[bytes], Iterator[bytes]]


class Foreign:
    """An FFmpeg decoder. split: a payload to its frames; an empty frame stands for silence."""

    def __init__(self, name: str, rate: int, split: Split, frame: int = 0, **settings: Any) -> None:
        self.rate, self._split, self._silent = rate, split, np.zeros(frame, np.int16)
        context: Any = av.CodecContext.create(name, "r")
        self._context = context
        context.sample_rate, context.layout = rate, "mono"
        for key, value in settings.items():
            setattr(context, key, value)

    def decode(self, payload: bytes) -> Samples:
        """Raises ValueError for frames the decoder refuses."""
        parts = [part for frame in self._split(payload) for part in self._frame(frame)]
        return np.concatenate(parts) if parts else SILENCE

    def _frame(self, frame: bytes) -> list[Samples]:
        if not frame:
            return [self._silent]
        try:
            return [to_mono(sound) for sound in self._context.decode(av.Packet(frame))]
        except av.FFmpegError as error:
            raise ValueError(f"{self._context.name}: {error.strerror}") from None


def to_mono(frame: av.AudioFrame) -> Samples:
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


def whole(payload: bytes) -> Iterator[bytes]:
    """The payload is one frame."""
    yield payload


def every(size: int) -> Split:
    """Frames of one size. A payload of another length is none of this codec."""

    def split(payload: bytes) -> Iterator[bytes]:
        if len(payload) % size:
            raise ValueError(f"{len(payload)} bytes are no frames of {size}")
        for start in range(0, len(payload), size):
            yield payload[start : start + size]

    return split


def g729_frames(payload: bytes) -> Iterator[bytes]:
    """Frames of 10 bytes; two bytes at the end are Annex B's comfort noise, heard as silence.

    Source: RFC 3551 §4.5.6.
    """
    if len(payload) % 10 not in (0, 2):
        raise ValueError(f"G729: {len(payload)} bytes are no frames of 10")
    for start in range(0, len(payload), 10):
        frame = payload[start : start + 10]
        yield frame if len(frame) == 10 else b""


G723_SIZES: Final = (24, 20, 4, 1)  # by the two low bits of a frame's first byte


def g723_frames(payload: bytes) -> Iterator[bytes]:
    """Frames of 24 or 20 bytes, and 4 or 1 of comfort noise. Source: RFC 3551 §4.5.3."""
    at = 0
    while at < len(payload):
        size = G723_SIZES[payload[at] & 3]
        yield payload[at : at + size] if size > 4 else b""
        at += size


def _mu_law() -> Samples:
    code = ~np.arange(256) & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84) << ((code & 0x70) >> 4)
    return np.where(code & 0x80, 0x84 - magnitude, magnitude - 0x84).astype(np.int16)


def _a_law() -> Samples:
    code = np.arange(256) ^ 0x55
    segment = (code & 0x70) >> 4
    magnitude = ((code & 0x0F) << 4) + np.where(segment, 0x108, 8)
    magnitude <<= np.maximum(segment - 1, 0)
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


MU_LAW: Final = _mu_law()
A_LAW: Final = _a_law()


def fmtp(codec: Codec, name: str, default: str = "") -> str:
    """A parameter of the codec's fmtp line."""
    pairs = (part.partition("=") for part in codec.parameters.split(";"))
    found = {key.strip().lower(): value.strip() for key, _, value in pairs}
    return found.get(name, default)


class EitherPacking:
    """G.726, whose two packings are mixed up by phones that name one and send the other.

    Both are decoded; the one that sounds less like noise is heard. RFC 3551 §4.5.4 packs from the
    low bits (`first`), the AAL2 names from the high ones.
    """

    def __init__(self, first: Decoder, second: Decoder) -> None:
        self.rate = first.rate
        self._decoders = (first, second)
        self._rough = [1.0, 1.0]  # sums of steps between samples: noise leaps, speech glides

    def decode(self, payload: bytes) -> Samples:
        """Raises ValueError as the decoders do."""
        heard = [decoder.decode(payload) for decoder in self._decoders]
        for number, samples in enumerate(heard):
            self._rough[number] += float(np.abs(np.diff(samples.astype(np.int32))).sum())
        return heard[0] if self._rough[0] <= self._rough[1] else heard[1]


def _g726(bits: int, names: tuple[str, str]) -> Callable[[Codec], Decoder]:
    options = {"bits_per_coded_sample": str(bits)}

    def make(codec: Codec) -> Decoder:
        first, second = (Foreign(name, codec.clock_rate, whole, options=options) for name in names)
        return EitherPacking(first, second)

    return make


def _ilbc(codec: Codec) -> Decoder:
    # FFmpeg tells the two modes apart by bit rate where there is no container. RFC 3952 §4.2.
    size, rate = (38, 15200) if fmtp(codec, "mode") == "20" else (50, 13333)
    return Foreign("ilbc", 8000, every(size), bit_rate=rate)


def _amr(wide: bool) -> Callable[[Codec], Decoder]:
    def make(codec: Codec) -> Decoder:
        aligned = fmtp(codec, "octet-align", "0") == "1"
        return Foreign(
            "amrwb" if wide else "amrnb",
            16000 if wide else 8000,
            lambda payload: amr.frames(payload, wide=wide, aligned=aligned),
            frame=320 if wide else 160,
        )

    return make


# Every codec that can be heard, by its lower-case name in SDP. A new one goes here.
DECODERS: Final[dict[str, Callable[[Codec], Decoder]]] = {
    "pcmu": lambda codec: Table(MU_LAW, codec.clock_rate),
    "pcma": lambda codec: Table(A_LAW, codec.clock_rate),
    "l16": Linear,
    "g722": lambda _: Foreign("g722", 16000, whole),  # the RTP clock says 8000: RFC 3551 §4.5.2
    "g723": lambda _: Foreign("g723_1", 8000, g723_frames, frame=240),
    "g729": lambda _: Foreign("g729", 8000, g729_frames, frame=80),
    "g729a": lambda _: Foreign("g729", 8000, g729_frames, frame=80),
    "gsm": lambda _: Foreign("gsm", 8000, every(33)),
    "ilbc": _ilbc,
    "speex": lambda codec: Foreign("speex", codec.clock_rate, whole),
    "opus": lambda _: Foreign("opus", 48000, whole),
    "amr": _amr(wide=False),
    "amr-wb": _amr(wide=True),
    **{f"g726-{bits * 8}": _g726(bits, ("g726le", "g726")) for bits in (2, 3, 4, 5)},
    **{f"aal2-g726-{bits * 8}": _g726(bits, ("g726", "g726le")) for bits in (2, 3, 4, 5)},
}
DECODABLE: Final = frozenset(DECODERS)


def open_decoder(codec: Codec) -> Decoder | None:
    """A fresh decoder, or None where this codec cannot be heard."""
    make = DECODERS.get(codec.name.lower())
    return make(codec) if make and codec.clock_rate > 0 else None


def sound_rate(codec: Codec) -> int:
    """Samples per second of the decoded sound; 0 where it cannot be decoded."""
    wide = {"g722": 16000, "opus": 48000, "amr": 8000, "amr-wb": 16000}
    name = codec.name.lower()
    return wide.get(name, codec.clock_rate) if name in DECODABLE else 0
