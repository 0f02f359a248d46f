"""Codecs that are arithmetic: a sample is one byte, or two or three. Never a danger to decode.

Sources: ITU-T G.711, tables 1a and 2a; RFC 3551 §4.5.10 (L8), §4.5.11 (L16); RFC 3190 §4 (L24).
Codecs with a memory: foreign.py. Which codec is which: codecs.py.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from spanvault.messages import Codec

Samples = NDArray[np.int16]
SILENCE: Final[Samples] = np.zeros(0, np.int16)


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
OFFSET_BINARY: Final = ((np.arange(256) - 128) * 256).astype(np.int16)  # L8: silence is 128


class Table:
    """Every byte is one sample, found in a table; of several channels their mean."""

    def __init__(self, table: Samples, codec: Codec) -> None:
        self.rate = codec.clock_rate
        self._table, self._channels = table, max(1, codec.channels)

    def decode(self, payload: bytes) -> Samples:
        """One sample a byte and channel; the rest of a sample that was cut is left out."""
        whole = len(payload) // self._channels * self._channels
        return mixed(np.take(self._table, np.frombuffer(payload, np.uint8, whole)), self._channels)


class Linear:
    """Big-endian samples of 2 or 3 bytes, channels interleaved, mixed to one."""

    def __init__(self, codec: Codec, width: int) -> None:
        self.rate, self._channels, self._width = codec.clock_rate, max(1, codec.channels), width

    def decode(self, payload: bytes) -> Samples:
        """Raises ValueError where the bytes are no whole samples of every channel."""
        if len(payload) % (self._width * self._channels):
            raise ValueError(f"{len(payload)} bytes are no whole samples of {self._width}")
        columns = np.frombuffer(payload, np.uint8).reshape(-1, self._width)
        # The two high bytes of a sample are all that is heard.
        samples = np.ascontiguousarray(columns[:, :2]).view(">i2").reshape(-1)
        return mixed(samples.astype(np.int16), self._channels)


def mixed(samples: Samples, channels: int) -> Samples:
    """Interleaved channels as one: their mean."""
    if channels == 1:
        return samples
    mono: Samples = samples.reshape(-1, channels).mean(axis=1).astype(np.int16)
    return mono
