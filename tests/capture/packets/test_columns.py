"""Rows of bytes out of one buffer, also where they reach over its ends."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capture.packets.columns import AT_ONCE, gather, rows, scatter

DATA = bytes(range(1, 101))


def at(data: bytes, offset: int, width: int) -> bytes:
    """The bytes there, zeros where there are none."""
    return bytes(
        data[place] if 0 <= place < len(data) else 0 for place in range(offset, offset + width)
    )


@given(
    data=st.binary(max_size=40),
    offsets=st.lists(st.integers(-60, 100), max_size=8),
    width=st.integers(1, 50),
)
def test_a_row_is_what_lies_there_and_zeros_beyond_the_ends(
    data: bytes, offsets: list[int], width: int
) -> None:
    found = rows(np.frombuffer(data, np.uint8), np.array(offsets, np.int64), width)
    assert [bytes(each) for each in found] == [at(data, offset, width) for offset in offsets]


def test_gathered_rows_lie_one_behind_the_other() -> None:
    data = np.frombuffer(DATA, np.uint8)
    offsets = np.arange(3 * AT_ONCE + 7) * 7 % 90
    out = np.empty(10 * len(offsets), np.uint8)
    gather(data, offsets, 10, out)
    assert out.tobytes() == b"".join(at(DATA, offset, 10) for offset in offsets.tolist())


def test_scattered_rows_lie_where_they_belong() -> None:
    data = np.frombuffer(DATA, np.uint8)
    offsets = np.arange(2 * AT_ONCE + 3) % 97
    places = np.random.default_rng(1).permutation(len(offsets)) * 3
    out = np.zeros(3 * len(offsets), np.uint8)
    scatter(data, offsets, 3, out, places)
    for offset, place in zip(offsets.tolist(), places.tolist(), strict=True):
        assert bytes(out[place : place + 3]) == at(DATA, offset, 3)


def test_no_width_is_nothing_to_gather() -> None:
    gather(np.frombuffer(DATA, np.uint8), np.array([5]), 0, np.empty(0, np.uint8))
