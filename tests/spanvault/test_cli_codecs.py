"""Every codec through the real path: signalled and sent, replayed, exported, and compared."""

import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from spanvault.messages import Codec
from spanvault.payloadtypes import STATIC
from tests.conformance.recorded import spanvault
from tests.support.callgen import (
    ANSWERED_NS,
    SECOND,
    START_NS,
    Dialogue,
    Frame,
    Phone,
    around,
    phones,
    rtp,
    udp_frame,
    write_pcap,
)
from tests.support.encoded import CASES, SECONDS, Spoken, heard_at_8000, said
from tests.support.voices import likeness


def description(phone: Phone, *codecs: tuple[int, Codec]) -> str:
    """An SDP body of these payload types."""
    numbers = " ".join(str(number) for number, _ in codecs)
    lines = [
        "v=0", f"o=- 1 1 IN IP4 {phone.address}", "s=-", f"c=IN IP4 {phone.address}", "t=0 0",
        f"m=audio {phone.rtp_port} RTP/AVP {numbers}",
    ]  # fmt: skip
    for number, codec in codecs:
        if number not in STATIC:
            name = f"{codec.name}/{codec.clock_rate}"
            channels = f"/{codec.channels}" if codec.channels > 1 else ""
            lines.append(f"a=rtpmap:{number} {name}{channels}")
        if codec.parameters:
            lines.append(f"a=fmtp:{number} {codec.parameters}")
    return "\r\n".join([*lines, ""])


def flow(start_ns: int, speaker: Phone, listener: Phone, spoken: Spoken) -> Iterator[Frame]:
    """RTP of what is spoken. The first packet's place is known even where later ones are lost."""
    for number, payload in enumerate(spoken.payloads):
        if payload is not None:
            ticks = number * spoken.ticks
            packet = rtp(number, 7_000 + ticks, speaker.ssrc, payload, spoken.payload_type)
            time_ns = start_ns + round(ticks / spoken.codec.clock_rate * SECOND)
            ends = (speaker.address, speaker.rtp_port), (listener.address, listener.rtp_port)
            yield udp_frame(time_ns, *ends, packet)


def meanings(spoken: Spoken) -> list[tuple[int, Codec]]:
    found = [(spoken.payload_type, spoken.codec)]
    if spoken.inner is not None:
        found.append((int(spoken.codec.parameters.partition("/")[0]), spoken.inner))
    return found


def call(number: int, name: str, by_caller: Spoken, by_callee: Spoken) -> list[Frame]:
    """A call of which each side describes what it receives."""
    caller, callee = phones(0.1, number)
    start_ns = START_NS + 10 * number * SECOND
    media = [
        *flow(start_ns + ANSWERED_NS, caller, callee, by_caller),
        *flow(start_ns + ANSWERED_NS, callee, caller, by_callee),
    ]
    bodies = description(caller, *meanings(by_callee)), description(callee, *meanings(by_caller))
    return around(media, start_ns, caller, callee, f"{number}@codecs", bodies, SECONDS + 0.2)


class Heard(NamedTuple):
    """A call's line, and its sound: rate, int16[n, 2]."""

    line: dict[str, Any]
    rate: int
    sound: NDArray[np.int16]

    def like(self, side: int) -> float:
        """How alike one side is to the voice."""
        return likeness(heard_at_8000(self.sound[:, side], self.rate), said())[0]


def record(folder: Path, calls: list[list[Frame]]) -> list[Heard]:
    """Replay the calls into a store and export all of them."""
    capture, store, sounds = folder / "calls.pcap", folder / "store", folder / "sounds"
    write_pcap(capture, [frame for frames in calls for frame in frames])
    done = spanvault("replay", capture, "--store", store, "--json", home=folder)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    sounds.mkdir()
    ids = [line["id"] for line in lines]
    done = spanvault("export", *ids, "-o", sounds, "--store", store, home=folder)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return [_heard(line, sounds) for line in lines]


def _heard(line: dict[str, Any], sounds: Path) -> Heard:
    (path,) = sounds.glob(f"{line['id']}*") if sounds.is_dir() else [sounds]
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return Heard(line, file.getframerate(), samples.reshape(-1, 2))


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Heard]:
    """Each codec's call: the caller speaks it, the callee answers in A-law."""
    plain = CASES["G.711 A-law"]()
    calls = [call(n, name, CASES[name](), plain) for n, name in enumerate(CASES)]
    return dict(zip(CASES, record(tmp_path_factory.mktemp("codecs"), calls), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_call_is_heard_on_both_sides(heard: dict[str, Heard], name: str):
    spoken, one = CASES[name](), heard[name]
    caller = next(channel for channel in one.line["channels"] if channel["party"] == "caller")
    assert caller["codec"] == (spoken.inner or spoken.codec).name
    assert caller["decodable"]
    assert one.like(0) >= spoken.least
    assert one.like(1) >= 0.98
    assert one.line["flags"] == []


def test_each_side_has_its_own_numbers_for_one_codec(tmp_path: Path):
    opus = CASES["Opus mono"]()
    calls = [call(0, "asymmetric", opus._replace(payload_type=111), opus._replace(payload_type=96))]
    (one,) = record(tmp_path, calls)
    assert min(one.like(0), one.like(1)) >= opus.least
    assert {channel["codec"] for channel in one.line["channels"]} == {"opus"}


def test_a_number_that_means_another_codec_after_a_reinvite(tmp_path: Path):
    caller, callee = phones(0.1, 0)
    before, after = CASES["Speex 8 kHz"](), CASES["GSM"]()
    spoken = [one._replace(payload_type=97) for one in (before, after)]
    begins_ns, again_ns = START_NS + ANSWERED_NS, START_NS + ANSWERED_NS + 3 * SECOND
    words = Dialogue(caller, callee, "0@codecs")
    bodies = [description(phone, (97, one.codec)) for one in spoken for phone in (caller, callee)]
    later = [
        udp_frame(
            begins_ns + 3 * SECOND + 20_000_000 * number,
            (caller.address, caller.rtp_port),
            (callee.address, callee.rtp_port),
            rtp(1000 + number, 31_000 + 160 * number, caller.ssrc, payload, 97),
        )
        for number, payload in enumerate(after.payloads)
        if payload is not None
    ]
    frames = [
        *flow(begins_ns, caller, callee, spoken[0]),
        words.request(again_ns - 300_000_000, "INVITE", 2, bodies[2]),
        words.response(again_ns - 200_000_000, "200 OK", "2 INVITE", bodies[3]),
        words.request(again_ns - 190_000_000, "ACK", 2),
        *later,
    ]
    ends = (bodies[0], bodies[1])
    (one,) = record(tmp_path, [around(frames, START_NS, caller, callee, "0@codecs", ends, 5.2)])
    assert {channel["codec"] for channel in one.line["channels"]} == {"speex", "GSM"}
    assert one.line["flags"] == ["codec_changed", "one_way"]
    for spoke, begins_s in ((before, 0), (after, 3)):
        part = one.sound[begins_s * one.rate : (begins_s * one.rate + 2 * one.rate)]
        assert one._replace(sound=part).like(0) >= spoke.least


def test_one_number_may_mean_another_codec_on_each_side(tmp_path: Path):
    gsm, ilbc = CASES["GSM"](), CASES["Speex 8 kHz"]()
    (one,) = record(tmp_path, [call(0, "crossed", gsm._replace(payload_type=97),
                                    ilbc._replace(payload_type=97))])  # fmt: skip
    assert one.like(0) >= gsm.least
    assert one.like(1) >= ilbc.least
