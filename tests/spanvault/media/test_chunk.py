"""Media bytes: what was packed is unpacked, and anything else is a ValueError."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.media.chunk import CHUNK, FRAME, NO_MEDIA, Chunk, Media, pack, unpack
from tests.support.chunks import chunk, steady


def media(*chunks: Chunk) -> Media:
    table = np.array([one.header for one in chunks], CHUNK)
    return Media(
        table,
        np.concatenate([one.frames for one in chunks]),
        memoryview(b"".join(bytes(one.payload) for one in chunks)),
    )


ONE = chunk(steady([b"abc", b"", b"defgh"]))
TWO = chunk(steady([b"x" * 160] * 3), stream=1)


def test_a_batch_gives_its_chunks():
    given_back = list(media(ONE, TWO).chunks())
    assert [bytes(one.payload) for one in given_back] == [b"abcdefgh", b"x" * 480]
    assert [bytes(p) for p in given_back[0].payloads()] == [b"abc", b"", b"defgh"]
    assert list(NO_MEDIA.chunks()) == []


def test_what_was_packed_is_unpacked():
    one, two = unpack(pack(ONE) + pack(TWO))
    assert one.header.tobytes() == ONE.header.tobytes()
    assert two.frames.tobytes() == TWO.frames.tobytes()
    assert bytes(two.payload) == bytes(TWO.payload)


@pytest.mark.parametrize("cut", [1, 63, 64, 100, 64 + 3 * FRAME.itemsize, -1])
def test_a_cut_chunk_is_refused(cut: int):
    with pytest.raises(ValueError, match="cut"):
        list(unpack(pack(ONE)[:cut]))


@pytest.mark.parametrize("field", ["frames", "payload_bytes"])
def test_a_table_that_does_not_fit_is_refused(field: str):
    wrong = media(ONE, TWO)
    wrong.table[field][0] += 1
    with pytest.raises(ValueError, match="chunk table names"):
        wrong.check()


def test_counts_that_only_add_up_over_all_chunks_are_refused():
    wrong = media(ONE, TWO)
    wrong.table["payload_bytes"] += np.array([1, -1]).astype(np.uint32)
    with pytest.raises(ValueError, match="do not add up"):
        wrong.check()


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_value_error(data: bytes):
    try:
        for one in unpack(data):
            list(one.payloads())
    except ValueError:
        pass


@given(st.data())
def test_a_flipped_bit_raises_only_value_error(data: st.DataObject):
    packed = bytearray(pack(ONE) + pack(TWO))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        for one in unpack(bytes(packed)):
            list(one.payloads())
    except ValueError:
        pass
