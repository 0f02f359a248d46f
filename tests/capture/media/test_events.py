"""Digits leave in chunks of their own; the sound, and its counts, stay what they were."""

from itertools import count

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.media.engine import Media
from capture.media.events import EVENT, REDUNDANT, SOUND, UNSURE, kinds_of
from capture.model import Attach
from capture.recorder import Recorder
from spanvault.daemon.config import CaptureConfig
from spanvault.media import digits
from spanvault.media.chunk import EVENTS, Chunk
from spanvault.messages import Call, Codec
from tests.support.callgen import ANSWERED_NS, START_NS, Frame, around, phones, sdp, talk
from tests.support.conversation import A_TO_B, ALICE, BOB, Leg, Wire
from tests.support.digits import EVENT_TYPE, dial, event
from tests.support.frames import block
from tests.support.rtpstreams import Sent, endpoints, packets

CALLER, CALLEE = phones(3.0)
PCMA, DIGITS = Codec("PCMA", 8000), Codec("telephone-event", 8000)
DIALLED = sdp(CALLEE).replace("AVP 8", "AVP 8 101") + "a=rtpmap:101 telephone-event/8000\r\n"


def record(frames: list[Frame]) -> tuple[Call, list[Chunk]]:
    """The last record of a call, and all its chunks."""
    ids = count(1)
    recorder = Recorder(CaptureConfig(), lambda: next(ids).to_bytes(16), None)
    heard = []
    for at in range(0, len(frames), 40):
        part = frames[at : at + 40]
        taken = block([frame.data for frame in part])
        taken.time_ns[:] = [frame.time_ns for frame in part]
        heard.append(recorder.receive(taken))
    heard.append(recorder.finish())
    chunks = [one for each in heard for media in each.media for one in media.chunks()]
    return [call for each in heard for call in each.calls][-1], chunks


def call(body: str = DIALLED, lost: tuple[int, ...] = ()) -> list[Frame]:
    """The caller says something and presses 4, 7 and 4 again."""
    said = dial(
        talk(START_NS + ANSWERED_NS, CALLER, CALLEE), CALLER, CALLEE, {20: "4", 45: "7", 60: "4"}
    )
    said = [frame for place, frame in enumerate(said) if place not in lost]
    return around(said, START_NS, CALLER, CALLEE, "d@example", (body, body), 3.0)


def pressed(chunks: list[Chunk]) -> str:
    """The keys of all chunks of events."""
    heard = [
        digits.Heard(int(frame["timestamp"]), 0, bool(frame["flags"] & 1), bytes(payload))
        for one in chunks
        if int(one.header["stream"]) >= EVENTS
        for frame, payload in zip(one.frames, one.payloads(), strict=True)
    ]
    return "".join(one.name for one in digits.decode(heard, 8000))


def sound(chunks: list[Chunk]) -> list[Chunk]:
    return [one for one in chunks if int(one.header["stream"]) < EVENTS]


def test_digits_lie_beside_the_sound_and_count_with_it():
    made, chunks = record(call(lost=(10, 47, 100)))
    (stream,) = made.streams
    assert (stream.packets, stream.lost) == (147, 3)  # the sequence spans both
    assert stream.payload_types == {8: 124, EVENT_TYPE: 23}
    (beside,) = made.beside
    assert (beside.number, beside.media, beside.packets) == (EVENTS, "events", 23)
    assert {*np.concatenate([one.frames["payload_type"] for one in sound(chunks)])} == {8}
    assert pressed(chunks) == "474"
    assert sum(len(one.frames) for one in chunks) == stream.packets


def test_chunks_of_digits_count_themselves():
    _, chunks = record(call())
    apart = [one for one in chunks if int(one.header["stream"]) == EVENTS]
    assert int(apart[-1].header["packets"]) == sum(len(one.frames) for one in apart) == 24
    starts = [int(one.header["start_ns"]) for one in apart]
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("body", [sdp(CALLEE), sdp(CALLEE).replace("AVP 8", "AVP 8 96")])
def test_what_nobody_explains_and_looks_like_digits_is_kept_with_them(body):
    _, chunks = record(call(body))
    assert pressed(chunks) == "474"
    assert {*np.concatenate([one.frames["payload_type"] for one in sound(chunks)])} == {8}


def test_a_second_of_nothing_but_digits_has_no_empty_chunk_beside_it():
    frames = call()
    only = [f for f in frames if len(f.data) == 42 + 16 or b"SIP" in f.data]
    made, chunks = record(only)
    assert all(int(one.header["stream"]) == EVENTS for one in chunks)
    assert made.streams[0].packets == made.beside[0].packets == 24


def test_what_payload_types_may_carry():
    kinds = kinds_of(
        {8: PCMA, 97: DIGITS, 98: Codec("opus", 48000, 2), 99: Codec("tone", 8000)}, {98}
    )
    assert [kinds[n] for n in (0, 8, 13, 96, 97, 98, 99)] == [
        SOUND, SOUND, SOUND, UNSURE, EVENT, UNSURE, EVENT,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "secure", "kind"),
    [
        ("8/8", False, REDUNDANT),
        ("", False, REDUNDANT),
        ("8/97", False, REDUNDANT),
        ("8/97", True, EVENT),
        ("8/8", True, SOUND),
        ("", True, SOUND),
    ],
)
def test_red_that_may_carry_digits(parameters, secure, kind):
    codecs = {8: PCMA, 97: DIGITS, 121: Codec("red", 8000, 1, parameters)}
    assert kinds_of(codecs, secure=secure)[121] == kind


def red(*blocks: tuple[int, bytes]) -> bytes:
    """RFC 2198 §3."""
    heads = [
        bytes((0x80 | kind, 0)) + len(data).to_bytes(2) for kind, data in blocks[:-1]
    ] + [bytes((blocks[-1][0],))]  # fmt: skip
    return b"".join(heads) + b"".join(data for _, data in blocks)


def test_red_is_looked_into():
    media = Media(CaptureConfig())
    contents = [
        red((8, bytes(20)), (8, bytes(20))),
        red((8, bytes(20)), (97, event(5, 160))),
        red((97, event(5, 160)), (8, bytes(20))),
        red((97, event(5, 160))),
        red(*[(8, b"")] * 9, (8, b"")),  # nobody sends so many: not all are looked at
        b"",
        b"\x88",
    ]
    sent = [Sent(n, 0.02 * n, payload=data, payload_type=121) for n, data in enumerate(contents)]
    (stream,) = media.receive(packets(sent), endpoints)
    codecs = {8: PCMA, 97: DIGITS, 121: Codec("red", 8000, 1, "8/97")}
    media.attach(Attach(stream.row, bytes(16), 0, 8000, kinds_of(codecs)))
    sound_, apart = (one for part in media.flush() for one in part.chunks())
    assert [bytes(one) for one in apart.payloads()] == contents[1:5]
    assert [bytes(one) for one in sound_.payloads()] == [contents[0], *contents[5:]]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60), st.booleans()
)
def test_every_packet_leaves_once_in_its_order(sent, late):
    """Any mixture of five streams and their digits, against a list of each."""
    media = Media(CaptureConfig())
    numbers = [count(1) for _ in range(5)]
    heard = [
        Sent(next(numbers[who]), 0.02 * place, None, None, who, 97 if digit else 8)
        for place, (who, digit) in enumerate(sent)
    ]
    if late:
        heard = [*heard[1:], heard[0]._replace(at=0.02 * len(heard))]
    for stream in media.receive(packets(heard), endpoints):
        kinds = kinds_of({8: PCMA, 97: DIGITS})
        media.attach(Attach(stream.row, bytes(16), stream.ssrc, 8000, kinds))
    flushed = [one for part in media.flush() for one in part.chunks()]
    for one in flushed:
        who, digit = int(one.header["stream"]) % EVENTS, int(one.header["stream"]) >= EVENTS
        expected = [
            each for each in heard if each.ssrc == who and (each.payload_type == 97) == digit
        ]
        assert [bytes(p) for p in one.payloads()] == [
            each.content for each in sorted(expected, key=lambda each: each.sequence)
        ]  # fmt: skip
    assert sum(len(one.frames) for one in flushed) == len(heard)


def test_signalling_that_comes_late_says_what_digits_are(wire: Wire):
    """A re-offer that names a payload type for the first time is told to media."""
    leg = Leg(wire)
    leg.answer(ALICE, BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    (before,) = [one for one in wire.calls.commands() if isinstance(one, Attach)]
    leg.cseq += 1
    leg.request(
        "INVITE", "callee", BOB.replace(b"AVP 0", b"AVP 0 96\r\na=rtpmap:96 telephone-event/8000")
    )
    (after,) = [one for one in wire.calls.commands() if isinstance(one, Attach)]
    assert (before.kinds[96], after.kinds[96]) == (UNSURE, EVENT)
    assert after._replace(kinds=b"") == before._replace(kinds=b"")


@pytest.mark.parametrize("kind", ["application/dtmf-relay", "application/dtmf"])
def test_digits_of_sip_info_are_kept_nowhere(wire: Wire, kind):
    leg = Leg(wire)
    leg.answer(ALICE, BOB)
    leg.cseq += 1
    leg.request("INFO", "caller", b"Signal=8642\r\nDuration=160\r\n", f"Content-Type: {kind}")
    leg.reply(200, "INFO")
    wire.wait(1)
    assert b"8642" not in wire.calls.snapshot()
    assert b"8642" not in msgspec.msgpack.encode(wire.end())
