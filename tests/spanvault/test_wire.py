"""Frames to messages and back. Whatever comes over a socket raises only ValueError."""

import contextlib
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault import messages, wire
from spanvault.media.chunk import CHUNK, FRAME, NO_MEDIA
from spanvault.messages import (
    Acknowledge,
    Batch,
    Call,
    Codec,
    Failure,
    Fetch,
    FetchReply,
    Search,
    SearchReply,
    Stream,
)
from tests.spanvault.media.test_chunk import ONE, TWO, media

CALL = Call(
    b"\x01" * 16, "c", ["a@b"], "100", "200", 5,
    streams=[Stream(0, "caller", "audio", 1, "a", "b", {8: Codec("PCMA", 8000)}, {8: 3})],
)  # fmt: skip
SPECIFICATION = Path(wire.__file__).with_name("WIRE.md").read_text(encoding="utf-8")
DECODERS = [
    wire.decode_request,
    wire.decode_reply,
    wire.decode_to_ingest,
    wire.decode_from_ingest,
]


def as_bytes(frames: list[Any]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def test_a_batch_and_its_media():
    frames = as_bytes(wire.encode_media(Batch("c", 7, [CALL]), media(ONE, TWO)))
    batch, bulk = wire.decode_to_ingest(frames)
    assert batch == Batch("c", 7, [CALL])
    assert [bytes(c.payload) for c in wire.decode_media(bulk).chunks()] == [
        bytes(ONE.payload), bytes(TWO.payload),
    ]  # fmt: skip


def test_no_media_are_three_empty_frames():
    _, bulk = wire.decode_reply(as_bytes(wire.encode_media(FetchReply(None), NO_MEDIA)))
    assert len(wire.decode_media(bulk).table) == 0


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (wire.decode_request, Search(number="100", cursor=b"x")),
        (wire.decode_request, Fetch(b"\x01" * 16, 1 << 50)),
        (wire.decode_reply, SearchReply([CALL], None)),
        (wire.decode_reply, Failure("not_found", "no such call")),
        (wire.decode_from_ingest, Acknowledge([1, 2])),
    ],
)
def test_messages_come_back_as_they_were(decode: Any, message: Any):
    assert decode(as_bytes(wire.encode(message, b"bulk"))) == (message, [b"bulk"])


def test_another_protocol_is_refused_by_name():
    with pytest.raises(ValueError, match=r"SPANVAULT/9.*this end speaks"):
        wire.decode_request([b"SPANVAULT/9", b"\x80"])


@pytest.mark.parametrize(
    "frames",
    [
        [b"+49301234567", b"\x80"],
        [b"SPANVAULT/+49301234567", b"\x80"],
        [wire.PROTOCOL, msgspec.msgpack.encode({"kind": "+49301234567"})],
        [wire.PROTOCOL, msgspec.msgpack.encode({"kind": "search", "outcome": "+49301234567"})],
        [wire.PROTOCOL, msgspec.msgpack.encode({"kind": "search", "limit": "+49301234567"})],
    ],
)
def test_a_fault_never_says_what_a_peer_sent(frames: list[bytes]):
    with pytest.raises(ValueError, match=r"protocol unknown|message: ") as fault:
        wire.decode_request(frames)
    assert "4930" not in str(fault.value)


def test_a_message_for_another_socket_is_refused():
    with pytest.raises(ValueError, match="acknowledge"):
        wire.decode_request(wire.encode(Acknowledge([1])))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_frames(count: int):
    with pytest.raises(ValueError, match="at least 2 frames"):
        wire.decode_request([wire.PROTOCOL] * count)


@pytest.mark.parametrize("decode", DECODERS)
@given(frames=st.lists(st.binary(max_size=80), max_size=5), spoken=st.booleans())
def test_arbitrary_frames_raise_only_value_error(decode: Any, frames: list[bytes], spoken: bool):
    with contextlib.suppress(ValueError):
        decode([wire.PROTOCOL, *frames] if spoken else frames)


@given(st.binary(max_size=3 * CHUNK.itemsize), st.binary(max_size=5 * FRAME.itemsize), st.binary())
def test_arbitrary_media_raise_only_value_error(table: bytes, frames: bytes, payload: bytes):
    try:
        for one in wire.decode_media([table, frames, payload]).chunks():
            list(one.payloads())
    except ValueError:
        pass


@given(st.data())
def test_a_flipped_bit_in_a_batch_raises_only_value_error(data: st.DataObject):
    frames = [bytearray(f) for f in as_bytes(wire.encode_media(Batch("c", 7, [CALL]), media(ONE)))]
    frame = data.draw(st.sampled_from([f for f in frames if f]))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        _, bulk = wire.decode_to_ingest(as_bytes(frames))
        wire.decode_media(bulk)
    except ValueError:
        pass


def every_message() -> list[Any]:
    unions = (messages.Request, messages.Reply, messages.ToIngest, messages.FromIngest)
    return sorted({one for union in unions for one in get_args(union)}, key=str)


@pytest.mark.parametrize("message", every_message(), ids=lambda one: one.__name__)
def test_the_specification_names_every_message_and_its_keys(message: Any) -> None:
    words = set(re.findall(r"`(\w+)`", SPECIFICATION))
    assert message.__name__.lower() in words
    assert set(message.__struct_fields__) - words == set()


@pytest.mark.parametrize("part", [Call, Stream, Codec, messages.Related, messages.Change])
def test_the_specification_names_every_key_within_a_message(part: Any) -> None:
    assert set(part.__struct_fields__) - set(re.findall(r"`(\w+)`", SPECIFICATION)) == set()
