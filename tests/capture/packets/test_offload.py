"""Merged packets are taken apart where RTP says how, and only there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.packets import offload
from capture.packets.offload import segments
from tests.support.frames import rtp


def burst(sizes: list[int], first: int = 65_530) -> list[bytes]:
    return [
        rtp(first + number, 160 * number, payload=bytes([number & 0x7F]) * size)
        for number, size in enumerate(sizes)
    ]


@given(st.integers(2, 64), st.integers(9, 1400), st.integers(0, 1400), st.integers(0, 65_535))
def test_equal_sizes_and_a_shorter_last_one(count: int, size: int, last: int, first: int) -> None:
    packets = burst([size] * (count - 1) + [min(last, size)], first)
    assert segments(b"".join(packets)) == packets


def test_one_packet_stays_one() -> None:
    (packet,) = burst([1800])
    assert segments(packet) == [packet]


def test_its_own_ssrc_within_sound_does_not_cut_a_packet() -> None:
    packet = rtp(7, payload=b"s" * 200 + (0x1234).to_bytes(4, "big") + b"s" * 1500)
    assert segments(packet) == [packet]


def test_packets_of_which_one_is_missing_stay_together() -> None:
    """GRO merges what follows each other; numbers that do not are no merging."""
    packets = burst([160] * 12)
    del packets[5]
    whole = b"".join(packets)
    assert segments(whole) == [whole]


def test_of_what_is_full_of_its_own_ssrc_few_places_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried, recurs = [], offload._recurs
    monkeypatch.setattr(
        offload, "_recurs", lambda payload, stride: tried.append(stride) or recurs(payload, stride)
    )
    packet = rtp(0x807F, ssrc=0x80808080, payload=b"\x80" * 65_000)
    assert segments(packet) == [packet]
    assert min(tried) >= len(packet) / offload.MAX_SEGMENTS
    assert len(tried) <= offload.MAX_SEGMENT


def test_signalling_is_left_alone() -> None:
    message = b"INVITE sip:b@x SIP/2.0\r\n" * 90
    assert segments(message) == [message]


@given(st.binary(max_size=300))
def test_any_bytes_lose_nothing(noise: bytes) -> None:
    for data in (noise, b"\x80\x08" + noise, b"".join(burst([20] * 9)) + noise):
        assert b"".join(segments(data)) == data
