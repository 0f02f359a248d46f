"""Packets that repeat earlier ones: each sound once, at its own time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.audio.red import Piece, Recovery, parse
from spanvault.audio.render import Renderer
from spanvault.media.chunk import TRUNCATED
from spanvault.messages import Codec
from tests.support.chunks import PCMA, seconds, steady, stream
from tests.support.encoded import pack_red

WORDS = [bytes([0x20 + number]) * 160 for number in range(6)]
PACKETS = pack_red(WORDS, 8, 160)


def test_a_packet_is_its_copies_and_itself():
    two = pack_red(WORDS, 8, 160, depth=2)[5]
    assert parse(two) == [Piece(8, 320, WORDS[3]), Piece(8, 160, WORDS[4]), Piece(8, 0, WORDS[5])]


def test_copies_are_taken_only_where_the_packet_is_missing():
    recovery = Recovery()
    arrived = [(160 * number, PACKETS[number]) for number in (0, 1, 4)]
    heard = [[piece.payload for piece in pieces] for pieces in recovery.unwrap(arrived)]
    assert heard == [[WORDS[0]], [WORDS[1]], [WORDS[3], WORDS[4]]]
    assert recovery.recovered == 1


def test_timestamps_wrap():
    recovery = Recovery()
    arrived = [((1 << 32) - 160, PACKETS[0]), (0, PACKETS[1])]
    assert [len(pieces) for pieces in recovery.unwrap(arrived)] == [1, 1]


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x88", b"\x88\x00\x00\x05", b"\x88\x02\x80\xa0\x08short", b"\x88\0\0\0" * 40],
)
def test_lengths_that_do_not_fit_give_nothing(payload: bytes):
    with pytest.raises(ValueError, match="RED"):
        parse(payload)
    assert list(Recovery().unwrap([(0, payload)])) == [[]]


@given(st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.binary(max_size=60))))
def test_any_packets_are_survived(packets: list[tuple[int, bytes]]):
    assert len(list(Recovery().unwrap(packets))) == len(packets)


def red_stream():
    one = stream(0, codec=Codec("red", 8000, 1, "8/101"), payload_type=121)
    one.codecs |= {8: PCMA, 101: Codec("telephone-event", 8000)}
    return one


def sound(packets):
    renderer = Renderer([red_stream()], 8000)
    (block,) = renderer.render(seconds(packets))
    return block[:, 0], renderer


def test_lost_packets_are_heard_from_the_next_one():
    plain, _ = sound(steady(PACKETS, payload_type=121))
    packets = steady(PACKETS, payload_type=121)
    del packets[2], packets[3]
    lossy, renderer = sound(packets)
    assert (plain == lossy).all()
    assert not renderer.warnings


def test_digits_within_are_not_heard():
    event = bytes([0x80 | 101, 0, 0, 4, 8]) + b"\x05\x0a\x00\xa0" + WORDS[0]
    heard, renderer = sound(steady([event] * 3, payload_type=121))
    assert set(heard[:480].tolist()) == {int(heard[0])}
    assert not renderer.warnings


def test_a_codec_within_that_cannot_be_heard_is_named():
    one = red_stream()
    one.codecs[120] = Codec("EVS", 8000)
    packets = steady([PACKETS[0], bytes([120]) + b"evs", PACKETS[2]], payload_type=121)
    renderer = Renderer([one], 8000)
    (block,) = renderer.render(seconds(packets))
    assert block[:160].any()
    assert dict(renderer.warnings) == {"blocks of codec EVS in RED cannot be decoded: silence": 1}


def test_a_packet_that_was_cut_gives_neither_noise_nor_an_end():
    packets = steady(PACKETS, payload_type=121)
    packets[2] = packets[2]._replace(payload=PACKETS[2][:40], flags=TRUNCATED)
    heard, _ = sound(packets)
    assert heard[320:480].any()  # from the next one's copy
    assert len(heard) == 960
