"""Fingerprints in, slots out, however they collide, come and go."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from capture.media.streams import DISCARDED, UNATTACHED, Index, StreamTable

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


def count(table: StreamTable, *runs: tuple[int, int, int]) -> None:
    """Runs of slot, payload type and packets leave in one flush."""
    slot, kind, packets = (np.array(column) for column in zip(*runs, strict=True))
    np.add.at(table.packets, slot, packets)
    table.count_types(slot, kind, packets.astype(np.uint32))


def test_packets_are_counted_by_payload_type_whatever_a_stream_began_with() -> None:
    table = StreamTable(seed=1)
    zero, one, two, three = open_streams(table, [7, 8, 9, 10])  # each begins with its own number
    count(table, (zero, 0, 50), (one, 101, 3), (one, 1, 40), (one, 101, 4), (two, 127, 9))
    count(table, (zero, 0, 50), (one, 13, 1))
    types = [table.totals(slot).payload_types for slot in (zero, one, two, three)]
    assert types == [{0: 100}, {1: 40, 13: 1, 101: 7}, {127: 9}, {}]
    at, kind, packets = table.types_of(np.array([two, one, zero]))
    assert list(zip(at.tolist(), kind.tolist(), packets.tolist(), strict=True)) == [
        (0, 127, 9), (1, 1, 40), (1, 13, 1), (1, 101, 7), (2, 0, 100),
    ]  # fmt: skip


def test_counts_of_a_stream_that_left_are_nobodys_else() -> None:
    table = StreamTable(seed=1)
    for turn in range(100):
        slots = open_streams(table, [2 * turn + 1, 2 * turn + 2])
        assert all(table.totals(slot).payload_types == {} for slot in slots)
        count(table, *((slot, 96 + turn % 8, 5) for slot in slots))
        assert table.totals(slots[1]).payload_types == {96 + turn % 8: 5}
        for slot in slots:
            table.leave(slot, DISCARDED)
            table.recycle(slot)
    assert len(table._other_types) <= 4


def test_what_streams_have_heard_stays_as_the_table_grows(monkeypatch) -> None:
    monkeypatch.setattr("capture.media.streams.RESERVED", 8)
    table = StreamTable(capacity=4, seed=1)
    (slot,) = open_streams(table, [7])
    table.window[slot], table.packets[slot] = 9, 5
    open_streams(table, list(range(100, 140)))
    assert (table.window[slot] == 9).all()
    assert table.packets[slot] == 5
    assert table.capacity == len(table.window) == len(table.packets) == 64
