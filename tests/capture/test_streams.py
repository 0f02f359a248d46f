"""Fingerprints in, slots out, however they collide, come and go."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from capture.streams import DISCARDED, UNATTACHED, Index, StreamTable

# A few homes only, so that keys stand in each other's way: the place is given by the upper bits.
keys = st.integers(0, 40).map(lambda number: (number % 5) << 60 | number << 20)


def uint64(values: list[int]) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.lists(keys, min_size=1, max_size=12, unique=True), keys), max_size=30
    )
)
def test_the_index_is_a_dictionary(steps: list[list[int] | int]) -> None:
    """A list is inserted at once, a single key removed."""
    index, truth, slot = Index(seed=1), dict[int, int](), 0
    for step in steps:
        if isinstance(step, list):
            slots = np.arange(slot, slot + len(step))
            index.insert(uint64(step), slots)
            truth |= zip(step, slots.tolist(), strict=True)
            slot += len(step)
        elif step in truth:
            index.remove(step, truth.pop(step))
        asked = [(number % 5) << 60 | number << 20 for number in range(41)]
        assert index.find(uint64(asked)).tolist() == [truth.get(key, -1) for key in asked]


def test_a_crowded_index_grows_and_forgets_nothing() -> None:
    index = Index(seed=1)
    fingerprints = np.random.default_rng(1).integers(0, 1 << 64, 30_000, np.uint64)
    for part in np.array_split(np.arange(30_000), 7):
        index.insert(fingerprints[part], part)
    assert np.array_equal(index.find(fingerprints), np.arange(30_000))
    assert (index.find(fingerprints + np.uint64(1)) < 0).all()


def test_removing_leaves_what_points_elsewhere_meanwhile() -> None:
    index = Index(seed=1)
    index.insert(uint64([7]), np.array([1]))
    index.insert(uint64([7]), np.array([2]))
    index.remove(7, 1)
    assert index.find(uint64([7])).tolist() == [2]


def open_streams(table: StreamTable, fingerprints: list[int]) -> list[int]:
    count = len(fingerprints)
    return table.open(
        uint64(fingerprints), np.arange(count, dtype=np.uint32),
        np.arange(count, dtype=np.uint8), np.full(count, 5),
    ).tolist()  # fmt: skip


def test_many_streams_open_at_once_each_with_its_clock() -> None:
    table = StreamTable(capacity=4, seed=1)
    slots = open_streams(table, list(range(1, 101)))
    assert len(set(slots)) == 100
    assert (table.state[slots] == UNATTACHED).all()
    assert table.clock[slots[0]] == 8000
    assert table.clock[slots[34]] == 90000
    assert table.index.find(uint64(list(range(1, 101)))).tolist() == slots


def test_a_slot_used_again_begins_blank_under_another_number() -> None:
    table = StreamTable(capacity=1, seed=1)
    (slot,) = open_streams(table, [7])
    before = int(table.rows(np.array([slot]))[0])
    table.packets[slot], table.window[slot] = 9, 9
    table.leave(slot, DISCARDED)
    table.recycle(slot)
    assert open_streams(table, [8]) == [slot]
    assert table.slot(before) is None
    assert table.totals(slot).packets == 0
    assert not table.window[slot].any()
