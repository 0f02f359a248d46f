"""One voice in every codec, as the payloads that a telephone would send.

Made with PyAV's encoders where it has one, else read from tests/data/codecs. Each case says how
alike the decoded sound must be to the voice: less for codecs that keep its sound, not its shape.
Sources of the packings: RFC 3551 §4.5, RFC 4867 §4, RFC 2198 §3; codecs' modules name the rest.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from spanvault.audio.amr import NARROW_BITS, NARROW_SID_BITS, WIDE_BITS, WIDE_SID_BITS
from spanvault.messages import Codec
from tests.support import folders
from tests.support.voices import alaw, voice

DATA: Final = folders.DATA / "codecs"
SECONDS: Final = 2.0
Sound = NDArray[np.int16]


def said() -> Sound:
    """The voice, at 8000 samples a second."""
    return voice(SECONDS, 120, 77)


class Spoken(NamedTuple):
    """The voice in one codec. ticks: of the RTP clock, a packet. least: likeness to the voice.

    A payload of None was lost, or never sent.
    """

    codec: Codec
    payloads: Sequence[bytes | None]
    ticks: int
    least: float = 0.95
    payload_type: int = 96
    inner: Codec | None = None  # of RED
    late_s: float = 0.02  # an encoder's look-ahead, at most


def at_rate(sound: Sound, rate: int, channels: int = 1) -> Sound:
    """The voice at another rate, in each of so many channels, interleaved."""
    resampler = av.AudioResampler("s16", "mono", rate)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound)[None, :], "s16", "mono")
    frame.sample_rate = 8000
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([one.to_ndarray()[0] for one in frames]).repeat(channels)


def heard_at_8000(sound: Sound, rate: int) -> Sound:
    """One channel of an export, to be compared with the voice."""
    resampler = av.AudioResampler("s16", "mono", 8000)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound)[None, :], "s16", "mono")
    frame.sample_rate = rate
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([one.to_ndarray()[0] for one in frames])


def encode(
    name: str, rate: int, packet_ms: int = 20, layout: str = "mono", sound: Sound | None = None,
    sample_format: str = "s16", **settings: Any,
) -> list[bytes]:  # fmt: skip
    """The voice by one of PyAV's encoders, a frame of it or packet_ms a piece."""
    context: Any = av.CodecContext.create(name, "w")
    context.sample_rate, context.layout, context.format = rate, layout, sample_format
    for key, value in settings.items():
        setattr(context, key, value)
    context.open()
    channels = 2 if layout == "stereo" else 1
    samples = at_rate(said() if sound is None else sound, rate, channels)
    step = (context.frame_size or rate * packet_ms // 1000) * channels
    packets: list[bytes] = []
    samples = np.pad(samples, (0, -len(samples) % step))
    for start in range(0, len(samples), step):
        part: Any = samples[None, start : start + step]
        if sample_format == "fltp":
            part = (part / 32768).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(part, sample_format, layout)
        frame.sample_rate, frame.pts = rate, start // channels
        packets += [bytes(packet) for packet in context.encode(frame)]
    return packets + [bytes(packet) for packet in context.encode(None)]


def stored(name: str) -> list[bytes]:
    """The frames of a file of tests/data/codecs."""
    data, at, frames = (DATA / f"{name}.frames").read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from(">H", data, at)
        frames.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return frames


def joined(frames: Sequence[bytes], count: int) -> list[bytes]:
    """So many frames a packet."""
    return [b"".join(frames[at : at + count]) for at in range(0, len(frames), count)]


def pack_amr(frames: Sequence[bytes], *, wide: bool, aligned: bool, crc: bool = False) -> bytes:
    """One payload of frames in storage form. Source: RFC 4867 §4.3, §4.4."""
    sizes = (*WIDE_BITS, WIDE_SID_BITS) if wide else (*NARROW_BITS, NARROW_SID_BITS)
    bits = "1111" + ("0000" if aligned else "")
    kinds = [frame[0] >> 3 & 15 for frame in frames]
    for place, kind in enumerate(kinds):
        bits += f"{int(place < len(kinds) - 1)}{kind:04b}1" + ("00" if aligned else "")
    bits += "".join(f"{0xA5:08b}" for kind in kinds if crc and kind < len(sizes))
    for frame, kind in zip(frames, kinds, strict=True):
        speech = "".join(f"{byte:08b}" for byte in frame[1:])
        speech = speech[: sizes[kind]] if kind < len(sizes) else ""
        bits += speech + ("0" * (-len(speech) % 8) if aligned else "")
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def pack_red(payloads: Sequence[bytes], number: int, ticks: int, depth: int = 1) -> list[bytes]:
    """Each payload behind copies of the ones before. Source: RFC 2198 §3."""
    packets = []
    for at, own in enumerate(payloads):
        copies = [(at - age, age) for age in range(depth, 0, -1) if at >= age]
        heads = b"".join(
            struct.pack(">I", 1 << 31 | number << 24 | age * ticks << 10 | len(payloads[place]))
            for place, age in copies
        )
        body = b"".join(payloads[place] for place, _ in copies)
        packets.append(heads + bytes([number]) + body + own)
    return packets


def _dvi4(rate: int) -> list[bytes]:
    """IMA ADPCM blocks of a WAV file, turned into DVI4. Source: RFC 3551 §4.5.1."""
    context: Any = av.CodecContext.create("adpcm_ima_wav", "w")
    context.sample_rate, context.layout, context.format = rate, "mono", "s16p"
    context.options = {"block_size": "256"}
    context.open()
    # A block of WAV tells its first sample in its head; that one is the packet's before in DVI4.
    samples, step, packets = np.pad(at_rate(said(), rate), (1, 0)), context.frame_size - 1, []
    for start in range(0, len(samples) - step, step):
        part = samples[None, start : start + step + 1]
        frame = av.AudioFrame.from_ndarray(part, "s16p", "mono")
        frame.sample_rate, frame.pts = rate, start
        packets += [bytes(packet) for packet in context.encode(frame)]
    blocks = []
    for packet in packets:
        predict, index = struct.unpack("<hB", packet[:3])
        nibbles = bytes((one & 15) << 4 | one >> 4 for one in packet[4:])
        blocks.append(struct.pack(">hBx", predict, index) + nibbles)
    return blocks


def _g729b() -> list[bytes | None]:
    """Two frames of 10 ms a packet; comfort noise ends a packet, silence sends none."""
    return [packet or None for packet in joined(stored("g729ab"), 2)]


def _lossy(payloads: Iterable[bytes], every: int) -> Iterator[bytes | None]:
    for number, payload in enumerate(payloads):
        yield None if number % every == every - 1 else payload


def _amr(wide: bool, aligned: bool, frames: int, crc: bool = False, dtx: bool = False) -> Spoken:
    rate, name = (16000, "AMR-WB") if wide else (8000, "AMR")
    speech = stored("amr-wb") if wide else encode(
        "libopencore_amrnb", 8000, bit_rate=12200, options={"dtx": str(int(dtx))}
    )  # fmt: skip
    payloads = [
        pack_amr(speech[at : at + frames], wide=wide, aligned=aligned, crc=crc)
        for at in range(0, len(speech), frames)
    ]
    said_so = "octet-align=1" + ("; crc=1" if crc else "") if aligned else "mode-set=0,2,4,7"
    return Spoken(Codec(name, rate, 1, said_so), payloads, frames * rate // 50, 0.85)


def _ilbc(frame_ms: int, frames: int) -> Spoken:
    """Phones offer the mode of 20 ms; without a word it is 30 ms. Source: RFC 3952 §5."""
    codec = Codec("iLBC", 8000, 1, "mode=20" if frame_ms == 20 else "")
    payloads = joined(stored(f"ilbc-{frame_ms}"), frames)
    return Spoken(codec, payloads, 8 * frame_ms * frames, 0.75)


def _g726(bits: int, name: str, encoder: str) -> Spoken:
    stream = b"".join(encode(encoder, 8000, options={"code_size": str(bits)}))
    payloads = [stream[at : at + 20 * bits] for at in range(0, len(stream), 20 * bits)]
    return Spoken(Codec(f"{name}-{8 * bits}", 8000), payloads, 160, 0.85 if bits == 2 else 0.95)


def _linear(rate: int, channels: int, number: int = 96) -> Spoken:
    step = rate // 100
    samples = at_rate(said(), rate, channels).astype(">i2")
    cut = len(samples) // (step * channels) * step * channels
    payloads = [part.tobytes() for part in samples[:cut].reshape(-1, step * channels)]
    return Spoken(Codec("L16", rate, channels), payloads, step, 0.99, number)


def _l8() -> Spoken:
    codes = ((said() >> 8) + 128).astype(np.uint8).tobytes()
    return Spoken(
        Codec("L8", 8000), joined([codes[at : at + 160] for at in range(0, 16000, 160)], 1), 160
    )


def _l24() -> Spoken:
    samples = np.zeros((16000, 3), np.uint8)
    samples[:, :2] = said().astype(">i2").view(np.uint8).reshape(-1, 2)
    return Spoken(Codec("L24", 8000), [part.tobytes() for part in samples.reshape(100, -1)], 160)


def _opus(layout: str, parameters: str = "", **options: str) -> Spoken:
    payloads = encode(
        "libopus", 48000, layout=layout, bit_rate=24000, options={"application": "voip", **options}
    )
    return Spoken(Codec("opus", 48000, 2, parameters), payloads, 960, 0.9)


def _red(depth: int, every: int) -> Spoken:
    codes = alaw(said())
    plain = [codes[at : at + 160] for at in range(0, len(codes), 160)]
    packets = list(_lossy(pack_red(plain, 8, 160, depth), every))
    inner = Codec("PCMA", 8000)
    return Spoken(Codec("red", 8000, 1, "8/8"), packets, 160, 0.99, 121, inner)


def _red_opus() -> Spoken:
    plain = encode("libopus", 48000, bit_rate=24000)
    packets = list(_lossy(pack_red(plain, 111, 960), 4))
    return Spoken(Codec("red", 48000, 2, "111/111"), packets, 960, 0.9, 63, Codec("opus", 48000, 2))


def _aac(latm: bool, units: int) -> Spoken:
    """AAC-LC at 16 kHz, 1024 samples a unit; the configuration is written by hand."""
    frames = encode("aac", 16000, sample_format="fltp", bit_rate=48000)
    config = 2 << 11 | 8 << 7 | 1 << 3  # object type AAC-LC, 16000 Hz, one channel
    if latm:
        lengths = [bytes([255] * (len(one) // 255) + [len(one) % 255]) for one in frames]
        payloads = [length + one for length, one in zip(lengths, frames, strict=True)]
        # StreamMuxConfig: same framing, one of each; then lengths of a byte, a full buffer.
        mux = ((1 << 13 << 16 | config) << 11 | 0xFF) << 2
        text = f"profile-level-id=15; object=2; cpresent=0; config={mux << 4:012x}"
        return Spoken(Codec("MP4A-LATM", 16000, 1, text), payloads, 1024, 0.9, late_s=0.07)
    payloads = []
    for at in range(0, len(frames), units):
        some = frames[at : at + units]
        heads = b"".join(struct.pack(">H", len(one) << 3) for one in some)
        payloads.append(struct.pack(">H", 16 * len(some)) + heads + b"".join(some))
    text = f"mode=AAC-hbr; config={config:04x}; sizelength=13; indexlength=3; indexdeltalength=3"
    return Spoken(Codec("mpeg4-generic", 16000, 1, text), payloads, 1024 * units, 0.9, late_s=0.07)


def _mpeg(encoder: str, rate: int) -> Spoken:
    """A frame a packet. Source: RFC 2250 §3.5."""
    planar = {"mp2": "s16", "libmp3lame": "s16p"}[encoder]
    frames = encode(encoder, rate, sample_format=planar, bit_rate=64_000)
    frames = [one for one in frames if one]
    return Spoken(Codec("MPA", 90000), [bytes(4) + one for one in frames],
                  1152 * 90000 // rate, 0.95, 14, late_s=0.07)  # fmt: skip


def _plain(name: str, encoder: str, number: int, rate: int = 8000, least: float = 0.98) -> Spoken:
    return Spoken(Codec(name, 8000), encode(encoder, rate), 160, least, number)


CASES: Final[dict[str, Callable[[], Spoken]]] = {
    "G.711 µ-law": lambda: _plain("PCMU", "pcm_mulaw", 0),
    "G.711 A-law": lambda: _plain("PCMA", "pcm_alaw", 8),
    "G.722": lambda: _plain("G722", "g722", 9, 16000),
    **{
        f"G.726 {8 * bits} kbit/s, {packing}": (
            lambda bits=bits, name=name, encoder=encoder: _g726(bits, name, encoder)
        )
        for bits in (2, 3, 4, 5)
        for packing, name, encoder in (
            ("RFC 3551", "G726", "g726le"), ("AAL2", "AAL2-G726", "g726"),
        )
    },
    # Phones name the one packing and send the other.
    "G.726 32 kbit/s, AAL2 under RFC 3551's name": lambda: _g726(4, "G726", "g726"),
    "G.723.1 6.3 kbit/s": lambda: Spoken(
        Codec("G723", 8000), encode("g723_1", 8000, bit_rate=6300), 240, 0.75, 4
    ),
    "G.729A": lambda: Spoken(Codec("G729", 8000), joined(stored("g729a"), 2), 160, 0.75, 18),
    "G.729A+B": lambda: Spoken(Codec("G729", 8000), _g729b(), 160, 0.75, 18),
    "GSM": lambda: Spoken(Codec("GSM", 8000), stored("gsm"), 160, 0.9, 3),
    "GSM, 40 ms": lambda: Spoken(Codec("GSM", 8000), joined(stored("gsm"), 2), 320, 0.9, 3),
    "iLBC 20 ms": lambda: _ilbc(20, 1),
    "iLBC 30 ms": lambda: _ilbc(30, 1),
    "iLBC 30 ms, 60 ms a packet": lambda: _ilbc(30, 2),
    "Speex 8 kHz": lambda: Spoken(Codec("speex", 8000), stored("speex-8000"), 160, 0.85),
    "Speex 16 kHz": lambda: Spoken(Codec("speex", 16000), stored("speex-16000"), 320, 0.85),
    "Speex 32 kHz": lambda: Spoken(Codec("speex", 32000), stored("speex-32000"), 640, 0.85),
    "Opus mono": lambda: _opus("mono"),
    "Opus stereo": lambda: _opus("stereo", "stereo=1; sprop-stereo=1"),
    "Opus FEC": lambda: _opus("mono", "useinbandfec=1", fec="1", packet_loss="20"),
    "Opus DTX": lambda: _opus("mono", "usedtx=1", dtx="1"),
    "Opus 60 ms": lambda: _opus("mono", frame_duration="60")._replace(ticks=2880),
    "AMR, bandwidth-efficient": lambda: _amr(False, False, 1),
    "AMR, octet-aligned": lambda: _amr(False, True, 1),
    "AMR, bandwidth-efficient, 3 frames": lambda: _amr(False, False, 3),
    "AMR, DTX": lambda: _amr(False, False, 1, dtx=True),
    "AMR, octet-aligned, CRC": lambda: _amr(False, True, 2, True),
    "AMR-WB, bandwidth-efficient": lambda: _amr(True, False, 1),
    "AMR-WB, octet-aligned, 4 frames": lambda: _amr(True, True, 4),
    "L16 8 kHz": lambda: _linear(8000, 1),
    "L16 16 kHz stereo": lambda: _linear(16000, 2),
    "L16 48 kHz": lambda: _linear(48000, 1),
    "L16 44.1 kHz stereo, type 10": lambda: _linear(44100, 2, 10),
    "L16 44.1 kHz, type 11": lambda: _linear(44100, 1, 11),
    "L8": _l8,
    "L24": _l24,
    "DVI4 8 kHz, type 5": lambda: Spoken(Codec("DVI4", 8000), _dvi4(8000), 504, 0.95, 5),
    "DVI4 16 kHz, type 6": lambda: Spoken(Codec("DVI4", 16000), _dvi4(16000), 504, 0.95, 6),
    "DVI4 22.05 kHz, type 17": lambda: Spoken(Codec("DVI4", 22050), _dvi4(22050), 504, 0.95, 17),
    "AAC, mpeg4-generic": lambda: _aac(False, 1),
    "AAC, mpeg4-generic, 2 units": lambda: _aac(False, 2),
    "AAC, MP4A-LATM": lambda: _aac(True, 1),
    "MPEG layer II, 48 kHz": lambda: _mpeg("mp2", 48000),
    "MPEG layer III, 32 kHz": lambda: _mpeg("libmp3lame", 32000),
    "MPEG layer III, 44.1 kHz": lambda: _mpeg("libmp3lame", 44100),
    "RED of A-law, a third lost": lambda: _red(1, 3),
    "RED of A-law, two copies": lambda: _red(2, 3),
    "RED of Opus, a fourth lost": _red_opus,
}  # fmt: skip
