"""What of a call can be stored, and what a refusal says. FORMAT.md §6."""

from typing import Any

import pytest

from spanvault import messages as m
from storaged.format import record
from tests.support.vault import START, make_call

LONG = "7" * (record.MAX_TEXT + 1)


def stream(**changes: Any) -> m.Stream:
    fields: dict[str, Any] = {
        "number": 1, "party": "caller", "media": "audio", "ssrc": 1, "source": "10.0.0.1:4000",
        "destination": "10.0.0.2:4000", "codecs": {8: m.Codec("PCMA", 8000)},
        "payload_types": {8: 50}, "first_ns": START, "last_ns": START,
    }  # fmt: skip
    return m.Stream(**{**fields, **changes})


def test_call_as_a_capture_sends_it_is_taken():
    record.check_call(make_call(1, streams=[stream()]))
    record.check_call(make_call(1, caller="7" * record.MAX_TEXT, streams=[stream()] * 1024))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"id": b"short"}, "a call's id has 16 bytes, not 5"),
        ({"started_ns": 1 << 63}, "a call's time .ns. is not in"),
        ({"ended_ns": -(1 << 63) - 1}, "a call's time .ns. is not in"),
        ({"revision": -1}, "a call's revision is not in 0 … 2147483647"),
        ({"caller": LONG}, "a call's text of 8193 characters, at most 8192 are stored"),
        ({"call_ids": ["a", LONG]}, "text of 8193"),
        ({"capture": LONG}, "text of 8193"),
        ({"end_reason": LONG}, "text of 8193"),
        ({"flags": [LONG]}, "text of 8193"),
        ({"related": [m.Related("fork", LONG)]}, "text of 8193"),
        (
            {"keys": [m.MediaKey("AES_CM_128", bytes(257))]},
            "a key's length is not in 0 … 256",
        ),
        ({"keys": [m.MediaKey(LONG, bytes(30))]}, "a key's text of 8193"),
        ({"keys": [m.MediaKey("x", bytes(30), -1)]}, "a key's mki is not"),
        ({"call_ids": [f"{n:08000}" for n in range(600)]}, "call record of 48.* bytes, at most"),
    ],
)
def test_call_that_cannot_be_stored_is_refused(changes, error):
    with pytest.raises(ValueError, match=error) as refusal:
        record.check_call(make_call(1, **changes))
    assert "777" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"number": 1 << 16}, "a stream number is not in 0 … 65535"),
        ({"stored_in": b"x"}, "stored_in"),
        ({"stored_as": -1}, "a stream number is not"),
        ({"ssrc": 1 << 32}, "SSRC"),
        ({"first_ns": 1 << 63}, "a stream's time .ns. is not in -9223372036854775808"),
        ({"last_ns": -(1 << 64)}, "a stream's time"),
        ({"packets": -1}, "a stream's count is"),
        ({"jitter": float("nan")}, "jitter"),
        ({"codecs": {256: m.Codec("PCMA", 8000)}}, "a stream's payload type is not in 0 … 255"),
        ({"codecs": {8: m.Codec("PCMA", -1)}}, "clock rate or channels is not"),
        ({"codecs": {8: m.Codec(LONG, 8000)}}, "a codec's text of 8193"),
        ({"payload_types": {8: 1 << 64}}, "stream's count"),
        ({"source": LONG}, "a stream's text of 8193"),
    ],
)
def test_stream_that_cannot_be_stored_is_refused(changes, error):
    with pytest.raises(ValueError, match=error):
        record.check_call(make_call(1, streams=[stream(), stream(**changes)]))


def test_refusal_never_says_what_was_sent():
    number = 49_301_234_567
    for changes in ({"number": number}, {"ssrc": number}, {"codecs": {number: m.Codec("x", 1)}}):
        with pytest.raises(ValueError, match="is not in") as refusal:
            record.check_call(make_call(1, streams=[stream(**changes)]))
        assert str(number) not in str(refusal.value)
