"""Bundles that overlap, and what the files at the target are measured against."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.inventory import Inventory, in_order
from replicator.layout import Positions
from spanvault.messages import Change


def record(position: int) -> Change:
    return Change(position, "record", id=bytes(16), data=bytes([position]))


def ordered(spans: list[tuple[int, int]]) -> list[int]:
    bundles = sorted((Positions(*span), f"{span[0]}-{span[1]}") for span in spans)
    load = {
        name: [record(p) for p in range(where.first, where.last + 1)] for where, name in bundles
    }
    return [change.position for change in in_order(bundles, load.__getitem__)]


def test_bundles_follow_one_another() -> None:
    assert ordered([(1, 3), (4, 5)]) == [1, 2, 3, 4, 5]


def test_an_overlap_left_by_a_kill_gives_each_change_once() -> None:
    assert ordered([(1, 3), (2, 6), (2, 2), (7, 7)]) == [1, 2, 3, 4, 5, 6, 7]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=12))
def test_any_overlap_gives_rising_positions(spans: list[tuple[int, int]]) -> None:
    spans = [(first, first + more) for first, more in spans]
    expected = sorted({p for first, last in spans for p in range(first, last + 1)})
    assert ordered(spans) == expected


def test_a_damaged_bundle_loses_only_itself() -> None:
    bundles = [(Positions(1, 1), "a"), (Positions(2, 2), "b"), (Positions(3, 3), "c")]
    load = {"a": [record(1)], "b": [], "c": [record(3)]}
    assert [c.position for c in in_order(bundles, load.__getitem__)] == [1, 3]


def test_a_recording_is_measured_against_the_versions_of_its_size() -> None:
    inventory = Inventory()
    for position, size in ((1, 10), (2, 20), (3, 20)):
        inventory.add(Change(position, "object", id=b"r" * 16, size=size, sha256=str(position)))
    assert [v.position for v in inventory.present(b"r" * 16, 20)] == [2, 3]
    assert [v.position for v in inventory.present(b"r" * 16, 10)] == [1]
    with pytest.raises(ValueError, match="damaged: 15 bytes instead of 20"):
        inventory.present(b"r" * 16, 15)
    with pytest.raises(ValueError, match="no sound bundle"):
        inventory.present(b"s" * 16, 15)
