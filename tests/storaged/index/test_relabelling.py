"""A day's rows under another key: every chain whole, in its order, without the dead."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storaged.faults import Fault
from storaged.format.walk import finish
from storaged.index import labels, relabelling
from storaged.index.labels import Labels
from storaged.index.relabelling import Relabelling, removing
from storaged.index.rows import time_key
from storaged.index.writing import Writing
from tests.support.vault import START, Parts, call_id

NUMBERS = ["+491", "+492", "+493"]
CALLS = st.integers(0, 9)
ROWS = st.lists(st.tuples(CALLS, st.sampled_from(NUMBERS)), max_size=30, unique=True)


class Day:
    """Three keys of a pool, and the rows under them."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.old, self.older, self.new = (self.parts.writer._recordings.take_key(b"")
                                          for _ in range(3))  # fmt: skip
        self.pool = Labels(0, self.parts.keyring)

    def put(self, key_id: int, rows: list[tuple[int, str]]) -> None:
        def change(writing: Writing) -> None:
            for call, number in rows:
                chain = self.pool._chain(writing, key_id, self.pool.token(b"n", number))
                chain.append(writing, [time_key(START + call, call_id(call))])

        self.parts.index.write(change)

    def bring(self, dead: set[int]) -> None:
        decrypt = {one: labels.ciphers_of(self.parts.keyring.dek(one)).decrypt
                   for one in (self.older, self.old)}  # fmt: skip
        encrypt = labels.ciphers_of(self.parts.keyring.dek(self.new)).encrypt
        work = Relabelling(self.parts.index, 0, decrypt)
        finish(work.counting())
        finish(work.writing(self.new, encrypt, {call_id(call) for call in dead}))

    def chain(self, key_id: int, number: str) -> list[bytes]:
        with self.parts.index.reading() as view:
            values = self.pool._chain(view, key_id, self.pool.token(b"n", number)).values()
        return [value[8:] for value in values]

    def rows(self) -> dict[bytes, bytes]:
        with self.parts.index.reading() as view:
            return {bytes(key): bytes(value) for key, value in view.cursor(b"label")}

    def clear(self) -> None:
        for key_id in (self.older, self.old, self.new):
            finish(removing(self.parts.index, 0, key_id))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Parts]:
    made = Parts(tmp_path_factory.mktemp("labels") / "store")
    yield made
    made.close()


@pytest.fixture
def day(store) -> Iterator[Day]:
    made = Day(store)
    yield made
    made.clear()


@settings(max_examples=25, deadline=None)
@given(ROWS, ROWS, st.sets(CALLS, max_size=3), st.integers(1, 7), st.integers(5, 60))
def test_chains_of_two_keys_follow_each_other_under_a_third(store, first, then, dead, rows, most):
    """However few rows a transaction has, and however few at a time are in memory."""
    day = Day(store)
    day.put(day.older, first)
    day.put(day.old, then)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(relabelling, "ROWS", rows)
        patched.setattr(relabelling, "MOST", most)
        day.bring(dead)
        for number in NUMBERS:
            assert day.chain(day.new, number) == [
                call_id(call) for call, of in (*first, *then) if of == number and call not in dead
            ]
        for key_id in (day.older, day.old):
            finish(removing(day.parts.index, 0, key_id))
    left = sum(call not in dead for call, _ in (*first, *then))
    assert [labels.parse_slot(key)[1] for key in day.rows()] == [day.new] * left
    day.clear()


def test_neighbours_of_the_keys_in_the_table_stay_as_they_are(day):
    day.put(day.older, [(1, "+491")])
    day.put(day.old, [(2, "+491")])
    day.put(day.new, [(3, "+491"), (4, "+492")])
    before = day.rows()
    finish(removing(day.parts.index, 0, day.old))
    assert {key: value for key, value in before.items()
            if labels.parse_slot(key)[1] != day.old} == day.rows()  # fmt: skip


def test_chain_that_begins_at_the_end_of_the_numbers_goes_on_at_their_beginning_of_64_bits():
    """Sums carry from the low half into the high one."""
    token = (7 << 64) + (1 << 64) - 2
    blocks = b"".join((token + number).to_bytes(16, "big") for number in range(5))
    values = b"".join(time_key(number, call_id(number)) for number in range(5))
    made = relabelling.relabelled(
        [relabelling.Source(blocks, values)], {call_id(0)}, bytes(8), lambda given: given
    )
    assert [int.from_bytes(key[8:], "big") - token for (key, _) in next(made.parts(9))] == [
        0, 1, 2, 3,
    ]  # fmt: skip
    assert [value for _, value in next(made.parts(9))] == [
        time_key(number, call_id(number)) for number in range(1, 5)
    ]


def test_row_of_another_length_is_told_of(day):
    day.parts.index.write(
        lambda writing: writing.put(b"label", labels.slot(0, day.old) + bytes(16), b"short")
    )
    with pytest.raises(Fault, match="table label"):
        day.bring(set())
