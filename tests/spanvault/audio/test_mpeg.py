"""MPEG audio: frames out of payloads, whole or in fragments."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.audio.mpeg import Frames, length
from tests.support.encoded import encode

FRAME = bytes.fromhex("fffd8404") + bytes(380)  # layer II, 128 kbit/s at 48 kHz


def payload(data: bytes, offset: int = 0) -> bytes:
    return struct.pack(">HH", 0, offset) + data


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("fffd8404", 384),  # MPEG-1, layer II, 128 kbit/s, 48 kHz
        ("fffb9000", 417),  # layer III, 128 kbit/s, 44.1 kHz
        ("fffb9200", 418),  # … with a byte of padding
        ("ffff8400", 128 * 12 // 48 * 4 * 2),  # layer I, 256 kbit/s
        ("fff38400", 192),  # MPEG-2, layer III, 64 kbit/s, 24 kHz
        ("ffe38800", 576),  # MPEG-2.5, 64 kbit/s, 8 kHz
    ],
)
def test_a_header_tells_its_frames_length(header: str, size: int):
    assert length(bytes.fromhex(header)) == size


def test_lengths_are_those_of_encoders():
    for name, kind in (("mp2", "s16"), ("libmp3lame", "s16p")):
        for rate in (16000, 24000, 44100, 48000):
            frames = [f for f in encode(name, rate, sample_format=kind, bit_rate=64_000) if f]
            assert [length(frame[:4]) for frame in frames] == [len(frame) for frame in frames]


def test_several_frames_a_packet():
    assert list(Frames().split(payload(FRAME * 3))) == [FRAME] * 3


def test_a_frame_in_fragments_comes_with_its_last_one():
    frames = Frames()
    assert list(frames.split(payload(FRAME[:200]))) == []
    assert list(frames.split(payload(FRAME[200:300], 200))) == []
    assert list(frames.split(payload(FRAME[300:], 300))) == [FRAME]
    assert list(frames.split(payload(FRAME))) == [FRAME]


def test_a_lost_fragment_costs_its_frame_and_no_more():
    frames = Frames()
    assert list(frames.split(payload(FRAME[:100]))) == []
    with pytest.raises(ValueError, match="without what is before it"):
        list(frames.split(payload(FRAME[200:], 200)))
    assert list(frames.split(payload(FRAME))) == [FRAME]


@pytest.mark.parametrize(
    "header", ["00000000", "ffed8404", "fff98404", "fffd0404", "fffdf404", "fffd8c04"]
)
def test_what_is_no_frame_is_refused(header: str):
    with pytest.raises(ValueError, match="MPA"):
        list(Frames().split(payload(bytes.fromhex(header))))


@given(st.lists(st.binary(max_size=60)))
def test_any_bytes_raise_only_value_error(payloads: list[bytes]):
    frames = Frames()
    for one in payloads:
        try:
            list(frames.split(one))
        except ValueError:
            continue
