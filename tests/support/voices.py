"""Two voices for the phones: made by formula, so that every run knows what must be heard.

A voice is a pulse train through two resonances, in syllables with pauses between: it looks like
speech to an eye and to a correlation, and no two seeds are alike. Also G.711 A-law and the pcap
file of RTP packets that SIPp plays. Source: ITU-T G.711; RFC 3551 §4.5.14 (PCMA is 8).
"""

import struct
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 8000
FRAME: Final = 160  # samples in 20 ms
PCMA: Final = 8


def voice(seconds: float, pitch_hz: float, seed: int) -> NDArray[np.int16]:
    """A mono signal at RATE: syllables of the given pitch. int16[seconds * RATE]."""
    random = np.random.default_rng(seed)
    sound = np.zeros(round(seconds * RATE))
    at = round(0.1 * RATE)
    while at < len(sound):
        length = round(random.uniform(0.12, 0.3) * RATE)
        syllable = _syllable(length, pitch_hz * random.uniform(0.85, 1.2), random)
        part = sound[at : at + length]
        part += syllable[: len(part)]
        at += length + round(random.choice([0.03, 0.05, 0.35], p=[0.5, 0.35, 0.15]) * RATE)
    return np.asarray(np.clip(sound, -1, 1) * 24000).astype(np.int16)


def _syllable(length: int, pitch_hz: float, random: np.random.Generator) -> NDArray[np.float64]:
    time = np.arange(length) / RATE
    sound = np.zeros(length)
    for formant, width, weight in ((random.uniform(300, 800), 120, 1.0),
                                   (random.uniform(900, 2300), 200, 0.5)):  # fmt: skip
        for harmonic in range(1, int(3400 / pitch_hz)):
            frequency = harmonic * pitch_hz
            gain = weight * np.exp(-(((frequency - formant) / width) ** 2))
            sound += gain * np.sin(2 * np.pi * frequency * time + random.uniform(0, 2 * np.pi))
    return sound / (np.abs(sound).max() or 1) * np.hanning(length) * random.uniform(0.4, 1.0)


def _alaw_values() -> NDArray[np.int32]:
    """What each of the 256 codes stands for, 16 bit. ITU-T G.711 table 1a."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 15
    size = np.where(
        exponent == 0, mantissa * 16 + 8, (mantissa * 16 + 264) << (exponent - 1) * (exponent > 0)
    )
    return np.where(code & 0x80, size, -size).astype(np.int32)


ALAW_VALUES: Final = _alaw_values()


def alaw(sound: NDArray[np.int16]) -> bytes:
    """Each sample's nearest code."""
    order = np.argsort(ALAW_VALUES)
    middles = (ALAW_VALUES[order][1:] + ALAW_VALUES[order][:-1]) / 2
    return bytes(order[np.searchsorted(middles, sound)].astype(np.uint8))


def heard(sound: NDArray[np.int16]) -> NDArray[np.int16]:
    """The sound after its way through A-law."""
    return ALAW_VALUES[np.frombuffer(alaw(sound), np.uint8)].astype(np.int16)


def payloads(sound: NDArray[np.int16]) -> list[bytes]:
    """The sound as A-law, 20 ms each; a rest is left out."""
    codes = alaw(sound)
    return [codes[at : at + FRAME] for at in range(0, len(codes) - FRAME + 1, FRAME)]


def write_rtp(path: Path, sound: NDArray[np.int16], ssrc: int) -> None:
    """The sound as RTP packets in a pcap file; SIPp fills in the addresses when it plays them."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, payload in enumerate(payloads(sound)):
            frame = _frame(number, payload, ssrc)
            seconds, microseconds = divmod(number * 20_000, 1_000_000)
            file.write(struct.pack("<IIII", seconds, microseconds, len(frame), len(frame)) + frame)


def _frame(number: int, payload: bytes, ssrc: int) -> bytes:
    """Ethernet, IPv4, UDP, RTP (RFC 3550 §5.1)."""
    marker = 0x80 if number == 0 else 0
    rtp = struct.pack(">BBHII", 0x80, PCMA | marker, number, number * FRAME, ssrc) + payload
    udp = struct.pack(">HHHH", 10000, 10000, 8 + len(rtp), 0) + rtp
    address = bytes([10, 77, 0, 1])
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + 2 * address
    return bytes(12) + b"\x08\x00" + ip + udp


def likeness(heard: NDArray[np.int16], said: NDArray[np.int16]) -> tuple[float, float]:
    """How alike two sounds are at their best offset: correlation (1 is equal), and seconds.

    The offset is how much later it was heard than said.
    """
    size = 1 << (len(heard) + len(said) - 1).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size))
    product = np.fft.irfft(spectrum, size)
    at = int(product.argmax())
    norm = float(np.linalg.norm(heard.astype(float)) * np.linalg.norm(said.astype(float)))
    offset = at if at <= size // 2 else at - size
    return (float(product[at]) / norm if norm else 0.0), offset / RATE
