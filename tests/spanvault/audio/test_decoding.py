"""The decoders' process may die: a second of one stream is silence, and everything else goes on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from spanvault.audio.decoding import MAX_DEATHS, Decoding
from spanvault.audio.render import Renderer
from spanvault.audio.worker import Payloads, Sounds, Worker
from spanvault.messages import Codec
from tests.support.chunks import seconds, steady, stream
from tests.support.encoded import stored

GSM, PCMA = Codec("GSM", 8000), Codec("PCMA", 8000)
SPEECH = stored("gsm")


@pytest.fixture
def decoding() -> Iterator[Decoding]:
    made = Decoding(answer_s=5.0)
    yield made
    made.close()


def pid(decoding: Decoding) -> int:
    assert decoding._sandbox is not None
    return decoding._sandbox.process.pid


def samples(decoding: Decoding, payloads: list[bytes], stream: int = 0) -> int:
    return sum(map(len, decoding.decode(stream, GSM, payloads)))


def test_arithmetic_needs_no_process(decoding: Decoding):
    (sound,) = decoding.decode(0, PCMA, [b"\x2a" * 160])
    assert len(sound) == 160
    assert decoding._sandbox is None


def test_the_process_gives_what_the_decoder_gives(decoding: Decoding):
    far = decoding.decode(3, GSM, SPEECH[:10]) + decoding.decode(3, GSM, SPEECH[10:20])
    asked = msgspec.msgpack.encode(Payloads(0, GSM, SPEECH[:20]))
    near = msgspec.msgpack.decode(Worker().answer(asked), type=Sounds)
    assert np.concatenate(far).tobytes() == near.samples
    assert np.concatenate(far).any()


def test_a_packet_that_is_none_is_counted_and_the_others_are_heard(decoding: Decoding):
    assert samples(decoding, [SPEECH[0], b"no GSM", SPEECH[1]]) == 320
    assert dict(decoding.warnings) == {"packets are no GSM, though they say so: silence": 1}


def test_streams_do_not_share_a_decoder(decoding: Decoding):
    first = decoding.decode(0, GSM, SPEECH[40:50])
    decoding.decode(1, GSM, SPEECH[:10])
    alone = Decoding()
    assert np.array_equal(
        np.concatenate(first + decoding.decode(0, GSM, SPEECH[50:60])),
        np.concatenate(alone.decode(0, GSM, SPEECH[40:60])),
    )
    alone.close()


def test_a_crash_is_silence_and_then_it_goes_on(decoding: Decoding):
    samples(decoding, SPEECH[:10])
    os.kill(pid(decoding), signal.SIGSEGV)
    assert samples(decoding, SPEECH[10:20]) == 0
    assert dict(decoding.warnings) == {
        "packets of codec GSM: their decoder was ended by SIGSEGV: silence": 10
    }
    assert samples(decoding, SPEECH[20:30]) == 1600
    assert samples(decoding, SPEECH[:10], stream=1) == 1600


def test_one_that_never_ends_is_ended():
    decoding = Decoding()
    try:
        samples(decoding, SPEECH[:1])
        assert decoding._sandbox is not None
        decoding._sandbox._ours.settimeout(0.3)
        os.kill(pid(decoding), signal.SIGSTOP)
        assert samples(decoding, SPEECH[1:2]) == 0
        assert "gave no answer in" in next(iter(decoding.warnings))
        assert samples(decoding, SPEECH[2:3]) == 160
    finally:
        decoding.close()


def test_a_stream_that_kills_its_decoder_again_and_again_is_given_up(decoding: Decoding):
    for _ in range(MAX_DEATHS):
        samples(decoding, SPEECH[:1], stream=1)  # the other one, to have a process
        os.kill(pid(decoding), signal.SIGKILL)
        samples(decoding, SPEECH[:1])
    assert samples(decoding, SPEECH[:1]) == 0
    assert f"died {MAX_DEATHS} times" in list(decoding.warnings)[-1]
    assert samples(decoding, SPEECH[:1], stream=1) == 160


def test_the_other_side_is_heard_whatever_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spanvault.audio.decoding.MODULE", "spanvault.no_such_module")
    streams = [stream(0, codec=GSM, payload_type=3), stream(1, "callee")]
    chunks = [
        *seconds(steady(SPEECH[:50], payload_type=3)), *seconds(steady([b"\x2a" * 160] * 50), 1),
    ]  # fmt: skip
    renderer = Renderer(streams, 8000)
    (block,) = renderer.render(chunks)
    assert not block[:, 0].any()
    assert block[:, 1].all()
    assert dict(renderer.warnings) == {
        "packets of codec GSM: their decoder ended with status 1: silence": 50
    }


def test_nothing_is_left_running(decoding: Decoding):
    samples(decoding, SPEECH[:1])
    gone = Path(f"/proc/{pid(decoding)}")
    decoding.close()
    assert not gone.exists()
