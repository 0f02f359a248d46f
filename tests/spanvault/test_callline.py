"""The document of a call: the same keys in replay, calls and show."""

import pytest

from spanvault.callline import call_line, iso_utc, main_codec
from spanvault.messages import Call, Codec, Related, Stream

PCMA, EVENT, CN = Codec("PCMA", 8000), Codec("telephone-event", 8000), Codec("CN", 8000)
KEYS = {
    "id", "recording_id", "call_ids", "caller", "callee", "started_at", "answered_at", "ended_at",
    "outcome", "end_reason", "flags", "related", "siprec", "channels", "expires_at",
}  # fmt: skip
CHANNEL_KEYS = {
    "party", "lost_fork", "media", "codec", "clock_rate", "ssrcs", "source", "destination",
    "packets", "lost", "duplicates", "events", "seconds", "decodable", "far_end", "bye_at",
}  # fmt: skip


def audible(codec: Codec | None) -> bool:
    return codec == PCMA


def deaf(_: Codec | None) -> bool:
    return False


def call(*streams: Stream) -> Call:
    return Call(
        bytes(range(16)), "c", ["a@b", "c@d"], "100", "200", 1_795_000_000_000_001_999,
        related=[Related("b2bua", "e@f")], streams=list(streams),
    )  # fmt: skip


def stream(number: int = 0, **changes: object) -> Stream:
    fields = {
        "party": "caller", "media": "audio", "ssrc": 0xAB, "source": "10.0.0.1:4000",
        "destination": "[2001:db8::1]:6000", "codecs": {8: PCMA}, "payload_types": {8: 50},
        "first_ns": 1_000_000_000, "last_ns": 3_500_000_000, "packets": 50, "lost": 2,
        "duplicates": 1,
    } | changes  # fmt: skip
    return Stream(number, **fields)  # type: ignore[arg-type]


def test_a_call_without_media():
    line = call_line(call(stream(packets=0)), audible)
    assert set(line) == KEYS
    assert line["recording_id"] is None
    assert line["channels"] == []
    assert line["started_at"] == "2026-11-18T11:06:40.000001Z"
    assert line["answered_at"] is None
    assert line["related"] == [{"kind": "b2bua", "call_id": "e@f"}]


def test_a_channel():
    (channel,) = call_line(call(stream()), audible)["channels"]
    assert set(channel) == CHANNEL_KEYS
    assert channel["ssrcs"] == ["0x000000ab"]
    assert channel["destination"] == "[2001:db8::1]:6000"
    assert (channel["seconds"], channel["decodable"]) == (2.5, True)
    assert channel["bye_at"] is None


def test_a_channel_ends_with_the_last_bye_of_its_streams():
    ended = [stream(number, bye_ns=(4 + number) * 1_000_000_000) for number in range(2)]
    (channel,) = call_line(call(*ended, stream(2)), audible)["channels"]
    assert channel["bye_at"] == "1970-01-01T00:00:05.000000Z"


def test_streams_that_differ_only_in_ssrc_are_one_channel():
    later = stream(1, ssrc=0xCD, first_ns=4_000_000_000, last_ns=6_000_000_000)
    (channel,) = call_line(call(stream(), later), deaf)["channels"]
    assert channel["ssrcs"] == ["0x000000ab", "0x000000cd"]
    assert (channel["packets"], channel["lost"], channel["seconds"]) == (100, 4, 5.0)
    assert channel["decodable"] is False


def test_another_codec_or_address_is_another_channel():
    other = stream(1, codecs={0: Codec("PCMU", 8000)}, payload_types={0: 9})
    moved = stream(2, source="10.0.0.2:4000")
    assert len(call_line(call(stream(), other, moved), deaf)["channels"]) == 3


def test_the_codec_is_that_of_the_sound():
    mixed = stream(codecs={8: PCMA, 101: EVENT, 13: CN}, payload_types={101: 90, 13: 80, 8: 70})
    assert main_codec(mixed) == PCMA
    assert main_codec(stream(codecs={101: EVENT}, payload_types={101: 3})) == EVENT
    assert main_codec(stream(codecs={})) is None


@pytest.mark.parametrize(
    ("flags", "decodable"),
    [
        (["srtp_dtls"], False),
        (["zrtp"], False),
        (["srtp_sdes"], True),
        (["srtp_no_key", "srtp_sdes"], False),
    ],
)
def test_encrypted_media_is_decodable_where_its_key_was_heard(flags, decodable):
    protected = call(stream())
    protected.flags = flags
    assert call_line(protected, audible)["channels"][0]["decodable"] is decodable


def test_times_are_utc_with_microseconds():
    assert iso_utc(0) == "1970-01-01T00:00:00.000000Z"
    assert iso_utc(-1) == "1969-12-31T23:59:59.999999Z"
    assert iso_utc(None) is None
