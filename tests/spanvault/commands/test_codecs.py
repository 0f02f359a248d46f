"""Every codec through the real path: signalled and sent, replayed, exported, and compared."""

from pathlib import Path

import pytest

from tests.support.callgen import (
    ANSWERED_NS,
    SECOND,
    START_NS,
    Dialogue,
    around,
    phones,
    rtp,
    udp_frame,
)
from tests.support.encoded import CASES
from tests.support.spoken import Heard, call, description, flow, record


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
