"""Session descriptions: which media, where, in which codecs."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.signalling.sdp import Media, parse
from spanvault.messages import Codec


def only(*lines: str) -> Media:
    """The one medium of a description."""
    [media] = parse("\r\n".join(["v=0", *lines, ""]).encode()).media
    return media


def test_one_audio_line():
    audio = only(
        "o=- 7 8 IN IP4 192.0.2.1", "c=IN IP4 192.0.2.1", "m=audio 4000 RTP/AVP 0 97 101",
        "a=rtpmap:97 opus/48000/2", "a=fmtp:97 useinbandfec=1",
        "a=rtpmap:101 telephone-event/8000", "a=ptime:20", "a=rtcp:4001", "a=rtcp-mux",
    )  # fmt: skip
    assert (audio.kind, audio.port, audio.protocol) == ("audio", 4000, "RTP/AVP")
    assert audio.address == bytes([192, 0, 2, 1])
    assert audio.codecs == {
        0: Codec("PCMU", 8000),
        97: Codec("opus", 48000, 2, "useinbandfec=1"),
        101: Codec("telephone-event", 8000),
    }
    assert (audio.ptime, audio.rtcp_port, audio.rtcp_mux) == (20, 4001, True)
    assert (audio.direction, audio.held, audio.accepted) == ("sendrecv", False, True)


def test_a_line_of_its_own_beats_the_session():
    lines = ("c=IN IP4 192.0.2.1", "a=sendonly", "m=audio 4000 RTP/AVP 0")
    assert only(*lines).address == bytes([192, 0, 2, 1])
    assert only(*lines).direction == "sendonly"
    assert only(*lines, "c=IN IP4 192.0.2.9", "a=recvonly").address == bytes([192, 0, 2, 9])
    assert only(*lines, "c=IN IP4 192.0.2.9", "a=recvonly").direction == "recvonly"


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        ("IN IP6 fd00::1", bytes.fromhex("fd" + 29 * "0" + "1")),
        ("IN IP6 [fd00::1]", bytes.fromhex("fd" + 29 * "0" + "1")),
        ("IN IP6 ::ffff:192.0.2.1", bytes([192, 0, 2, 1])),
        ("IN IP4 224.2.1.1/127", bytes([224, 2, 1, 1])),
        ("IN IP4 media.example", None),
        ("IN IP4", None),
        ("nonsense", None),
    ],
)
def test_addresses(connection, address):
    assert only(f"c={connection}", "m=audio 4000 RTP/AVP 0").address == address


@pytest.mark.parametrize("line", ["a=sendonly", "a=inactive", "c=IN IP4 0.0.0.0", "c=IN IP6 ::"])
def test_hold(line):
    assert only("m=audio 4000 RTP/AVP 0", line).held


def test_a_refused_line_keeps_its_place():
    media = parse(b"v=0\nm=audio 0 RTP/AVP 0\nm=broken\nm=video 4002 RTP/AVP 34\n").media
    assert [(line.kind, line.accepted) for line in media] == [
        ("audio", False), ("", False), ("video", True),
    ]  # fmt: skip
    assert media[2].codecs == {34: Codec("H263", 90000)}


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:abc", "crypto"),
        ("a=fingerprint:sha-256 AB:CD", "fingerprint"),
        ("a=zrtp-hash:1.10 fe30", "zrtp"),
    ],
)
def test_protection(line, flag):
    assert getattr(only("m=audio 4000 RTP/SAVP 0", line), flag)


def test_t38_is_no_rtp():
    fax = only("m=image 4000 udptl t38", "a=T38FaxVersion:0")
    assert not fax.rtp
    assert fax.codecs == {}


@pytest.mark.parametrize(
    "line",
    [
        "a=rtpmap:97", "a=rtpmap:200 X/8000", "a=rtpmap:x y/z", "a=fmtp:x", "a=ptime:x",
        "a=rtcp:99999", "a=", "c=", "garbage", "m", "a=rtpmap:97 X/0x10",
    ],
)  # fmt: skip
def test_a_line_that_makes_no_sense_spoils_only_itself(line):
    assert only("c=IN IP4 192.0.2.1", "m=audio 4000 RTP/AVP 0", line).codecs[0].name == "PCMU"


@pytest.mark.parametrize("body", [b"", b"hello", b"\xff\xfe", b"<xml/>", b"v=0" * 30_000])
def test_what_is_no_description(body):
    with pytest.raises(ValueError, match="description"):
        parse(body)


@given(st.binary(max_size=300))
def test_any_bytes_raise_only_value_error(data):
    with contextlib.suppress(ValueError):
        parse(data)


@given(st.lists(st.sampled_from("vocma").flatmap(lambda k: st.text().map(lambda t: f"{k}={t}"))))
def test_any_lines_raise_only_value_error(lines):
    with contextlib.suppress(ValueError):
        parse("\n".join(lines).encode("utf-8", "replace"))
