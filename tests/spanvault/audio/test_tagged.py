"""RTP that nobody explained and that is SRTP is silence; RTP that is what it seems is heard."""

import os

import numpy as np
import pytest

from spanvault.audio.render import Renderer
from spanvault.messages import Codec
from tests.support.chunks import Packet, seconds, steady, stream

PCMU, G722, G729 = Codec("PCMU", 8000), Codec("G722", 8000), Codec("G729", 8000)


def is_silent(packets: list[Packet], codec: Codec, number: int) -> bool:
    renderer = Renderer([stream(codec=codec, payload_type=number)], 8000, unexplained=True)
    blocks = list(renderer.render(seconds(packets)))
    told = any("are encrypted" in warning for warning in renderer.warnings)
    assert told is not np.concatenate(blocks).any()
    return told


@pytest.mark.parametrize("tag", [4, 10, 14, 16])  # of 32 bits, of 80, with an MKI, of GCM
@pytest.mark.parametrize(
    ("codec", "number", "size"), [(PCMU, 0, 160), (G722, 9, 160), (G729, 18, 20)]
)
def test_every_packet_longer_than_its_time_by_a_tag(
    codec: Codec, number: int, size: int, tag: int
) -> None:
    sealed = [os.urandom(size + tag) for _ in range(100)]
    assert is_silent(steady(sealed, payload_type=number), codec, number)


@pytest.mark.parametrize("ptime_ms", [10, 20, 40, 60])
def test_plain_sound_is_heard_at_any_packet_length(ptime_ms: int) -> None:
    ticks = 8 * ptime_ms
    plain = [os.urandom(ticks) for _ in range(60)]
    packets = steady(plain, ptime_ms=ptime_ms, ticks=ticks, payload_type=0)
    assert not is_silent(packets, PCMU, 0)


def test_loss_pauses_and_another_packet_length_in_its_midst_are_no_tag() -> None:
    packets = steady([os.urandom(160)] * 50, payload_type=0)
    longer = steady([os.urandom(240)] * 40, 1500, 50, 20_000, 30, 240, payload_type=0)
    assert not is_silent([*packets[:20:3], *packets[20:], *longer], PCMU, 0)


def test_what_signalling_explained_is_not_doubted() -> None:
    renderer = Renderer([stream(codec=PCMU, payload_type=0)], 8000)
    odd = steady([os.urandom(170)] * 50, payload_type=0)
    assert np.concatenate(list(renderer.render(seconds(odd)))).any()
