"""Chains of records, and where a mask is set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capture.sources.records import places, run


@given(st.lists(st.booleans(), max_size=200), st.sets(st.integers(0, 199)))
def test_places_are_those_of_flatnonzero(crowded: list[bool], sparse: set[int]) -> None:
    for flags in (crowded, [number in sparse for number in range(200)]):
        mask = np.zeros(len(flags) + -len(flags) % 64, np.bool_)
        mask[: len(flags)] = flags
        assert places(mask).tolist() == np.flatnonzero(mask).tolist()


def test_a_run_ends_where_a_length_points_to_nothing() -> None:
    candidates, lengths = np.array([0, 10, 25, 30]), np.array([10, 15, 9, 5])
    assert run(candidates, lengths).tolist() == [0, 10, 25]
    assert run(candidates[1:], lengths[1:]).tolist() == []
