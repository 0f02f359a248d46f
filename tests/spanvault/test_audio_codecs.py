"""Every codec gives sound of the right length, and G.711 exactly what FFmpeg gives."""

from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.audio import amr
from spanvault.audio.codecs import A_LAW, DECODERS, MU_LAW, STATIC, open_decoder, sound_rate
from spanvault.messages import Codec

TONE = (9000 * np.sin(2 * np.pi * 440 * np.arange(16000 * 2) / 16000)).astype(np.int16)


@pytest.mark.parametrize(("name", "table"), [("pcm_mulaw", MU_LAW), ("pcm_alaw", A_LAW)])
def test_tables_are_those_of_ffmpeg(name: str, table: Any):
    context: Any = av.CodecContext.create(name, "r")
    context.sample_rate, context.layout = 8000, "mono"
    (frame,) = context.decode(av.Packet(bytes(range(256))))
    assert table.tolist() == frame.to_ndarray()[0].tolist()


# name in SDP, RTP clock, FFmpeg's encoder, its rate, how many bytes it puts in a packet
ENCODED = [
    (Codec("PCMU", 8000), "pcm_mulaw", 8000, {}),
    (Codec("PCMA", 8000), "pcm_alaw", 8000, {}),
    (Codec("G722", 8000), "g722", 16000, {}),
    (Codec("G726-32", 8000), "g726le", 8000, {"code_size": "4"}),
    (Codec("G726-24", 8000), "g726le", 8000, {"code_size": "3"}),
    (Codec("AAL2-G726-32", 8000), "g726", 8000, {"code_size": "4"}),
    (Codec("G726-32", 8000), "g726", 8000, {"code_size": "4"}),  # as phones do, against RFC 3551
    (Codec("L16", 16000), "pcm_s16be", 16000, {}),
    (Codec("opus", 48000, 2), "libopus", 48000, {}),
]


@pytest.mark.parametrize(
    ("codec", "encoder", "rate", "options"), ENCODED, ids=lambda v: str(v)[:30]
)
def test_what_was_encoded_is_heard(codec: Codec, encoder: str, rate: int, options: dict[str, str]):
    decoder = open_decoder(codec)
    assert decoder is not None
    assert decoder.rate == sound_rate(codec)
    heard = np.concatenate([decoder.decode(bytes(p)) for p in encode(encoder, rate, options)])
    assert abs(len(heard) / decoder.rate - 2.0) < 0.05
    spectrum = np.abs(np.fft.rfft(heard[: 2 * decoder.rate].astype(float)))
    assert abs(np.argmax(spectrum) * decoder.rate / (2 * decoder.rate) - 440) < 2


def encode(name: str, rate: int, options: dict[str, str]) -> list[Any]:
    context: Any = av.CodecContext.create(name, "w")
    context.sample_rate, context.layout, context.format = rate, "mono", "s16"
    context.options = options
    tone = (9000 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.int16)
    packets = []
    for start in range(0, len(tone), rate // 50):
        frame = av.AudioFrame.from_ndarray(tone[None, start : start + rate // 50], "s16", "mono")
        frame.sample_rate, frame.pts = rate, start
        packets += context.encode(frame)
    return [*packets, *context.encode(None)]


def test_two_channels_of_l16_become_one():
    decoder = open_decoder(Codec("L16", 44100, 2))
    assert decoder is not None
    assert decoder.decode(np.array([100, 200, -8, 8], ">i2").tobytes()).tolist() == [150, 0]


def test_comfort_noise_at_the_end_of_g729_is_silence():
    decoder = open_decoder(Codec("G729", 8000))
    assert decoder is not None
    assert len(decoder.decode(bytes(20))) == 160
    assert decoder.decode(b"\x12\x34").tolist() == [0] * 80


@pytest.mark.parametrize("aligned", [True, False])
def test_amr_frames_in_both_packings(aligned: bool):
    speech = int("10" * 122, 2)  # 244 bits: 12.2 kbit/s, frame type 7
    contents = 0b0_0111_1 << 2 if aligned else 0b0_0111_1
    bits = 0xF0 << 8 | contents if aligned else 0xF << 6 | contents
    length = (16 if aligned else 10) + 244
    packed = (bits << 244 | speech) << (-length % 8)
    (frame,) = amr.frames(packed.to_bytes((length + 7) // 8, "big"), wide=False, aligned=aligned)
    assert frame == bytes([7 << 3 | 1 << 2]) + (speech << 4).to_bytes(31, "big")


def test_amr_without_speech_is_an_empty_frame():
    assert list(amr.frames(bytes([0xF0, 15 << 3 | 4]), wide=False, aligned=True)) == [b""]


def test_an_unknown_codec_has_no_decoder():
    assert open_decoder(Codec("LPC", 8000)) is None
    assert sound_rate(Codec("LPC", 8000)) == 0


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_every_decoder_opens(name: str):
    decoder = open_decoder(Codec(name, 8000))
    assert decoder is not None
    assert decoder.rate == sound_rate(Codec(name, 8000))


@pytest.mark.parametrize("name", sorted(DECODERS))
@given(payload=st.binary(max_size=200))
def test_arbitrary_payloads_raise_only_value_error(name: str, payload: bytes):
    decoder = open_decoder(Codec(name, 8000))
    assert decoder is not None
    try:
        samples = decoder.decode(payload)
    except ValueError:
        return
    assert samples.dtype == np.int16


def test_static_payload_types_are_those_of_rfc_3551():
    assert STATIC[8] == Codec("PCMA", 8000)
    assert STATIC[9].clock_rate == 8000
