"""Search rows of erased calls go: their day gets a new key, the old one is destroyed.

What is written down: FORMAT.md §12.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from storaged.erasing import beside
from storaged.erasing.converting import Converter
from storaged.erasing.daykeys import DayKeys
from storaged.format.walk import finish
from storaged.index import erasures, labels, relabelling
from storaged.keys.keyring import Keyring
from tests.storaged.requests.test_desk import Counter
from tests.support.converting import (
    CALLEE,
    CALLS,
    ONE,
    OTHERS,
    TWO,
    again,
    day_key,
    day_keys,
    erase,
    facts,
    found,
    is_gone,
    keys_of,
    labelled,
    rows,
)
from tests.support.vault import START, Parts, call_id, make_call


class Crash(BaseException):
    """As if the process were killed."""


@pytest.fixture
def counter(parts: Parts) -> Iterator[Counter]:
    made = Counter(parts)
    made.parts.commit(calls=[make_call(number) for number in range(CALLS)])
    yield made
    made.access.close()


def test_certificate_says_when_no_key_opens_the_rows_any_more(counter):
    old = day_key(counter)
    assert erase(counter, 1).days == 1
    assert facts(counter, ONE)["gone_at"] is None
    assert not is_gone(counter, old)
    counter.convert()
    told = facts(counter, ONE)
    assert told["gone_at"] is not None
    assert [(key["key"], key["generation_after"]) for key in told["keys"]] == [(old, 2)]
    assert is_gone(counter, old)


def test_neighbours_are_found_before_and_after_and_the_erased_call_never(counter):
    others = sorted(call_id(number) for number in range(CALLS) if number != 1)
    erase(counter, 1)
    for _ in range(2):
        assert found(counter, number=CALLEE) == others
        assert found(counter, number=make_call(1).caller) == []
        counter.convert()
    new = day_key(counter)
    assert {key_id for key_id, _ in rows(counter)} == {new}
    assert ONE not in {call for _, call in rows(counter)}


def test_in_the_midst_everything_is_found_and_new_calls_too(counter, monkeypatch):
    monkeypatch.setattr(relabelling, "ROWS", 5)
    erase(counter, 1)
    old, there = day_key(counter), {call_id(number) for number in range(CALLS) if number != 1}
    for number, _ in enumerate(counter.desk.converting(), CALLS):
        counter.parts.commit(calls=[make_call(number)])
        there.add(call_id(number))
        assert found(counter, number=CALLEE) == sorted(there)
    assert len(there) > CALLS + 3
    assert {key_id for key_id, _ in rows(counter)} == set(day_keys(counter))
    assert (len(day_keys(counter)), old in day_keys(counter)) == (2, False)
    erase(counter, 2)
    counter.convert()
    assert len(day_keys(counter)) == 1  # both at once
    assert found(counter, number=CALLEE) == sorted(there - {TWO})


def test_erased_while_its_day_is_under_way_waits_for_another_key(counter, monkeypatch):
    monkeypatch.setattr(relabelling, "ROWS", 5)
    erase(counter, 1)
    first = day_key(counter)
    under_way = counter.desk.converting()
    while len(day_keys(counter)) == 1:
        next(under_way)
    assert erase(counter, 2).days == 3  # of what comes, of what is written, of before
    finish(under_way)
    assert (facts(counter, ONE)["gone_at"] is None, is_gone(counter, first)) == (False, True)
    second = day_key(counter)  # that the rows lie under now
    assert (facts(counter, TWO)["gone_at"] is None, is_gone(counter, second)) == (True, False)
    counter.convert()
    assert facts(counter, TWO)["gone_at"] is not None
    assert is_gone(counter, second)
    assert not {ONE, TWO} & {call for _, call in rows(counter)}


def test_erased_between_the_rows_and_their_key_waits_for_that_key_too(counter, monkeypatch):
    first, real = day_key(counter), Converter._destroying

    def erased_before(self: Converter, ready: Any) -> Any:
        assert erase(counter, 2).days == 3  # of what came, which was nothing, of before, and now
        return real(self, ready)

    erase(counter, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Converter, "_destroying", erased_before)
        counter.convert()
    second = day_key(counter)
    assert {key["key"] for key in facts(counter, TWO)["keys"]} > {first, second}
    assert (is_gone(counter, first), is_gone(counter, second)) == (True, False)
    assert facts(counter, TWO)["gone_at"] is None
    counter.convert()
    assert is_gone(counter, second)
    assert facts(counter, TWO)["gone_at"] is not None


def test_batch_over_many_days_takes_few_roots_and_one_erasure_says_when(counter, monkeypatch):
    days = range(2, 40)
    calls = [make_call(100 + day, started_ns=START + day * labels.DAY_NS) for day in days]
    counter.parts.commit(calls=calls)
    epoch = counter.parts.keyring.epoch
    assert erase(counter, *(100 + day for day in days)).days == len(days)
    counter.convert()
    assert counter.parts.keyring.epoch == epoch + 2
    assert facts(counter, calls[0].id)["gone_at"]
    assert found(counter) == sorted(call_id(number) for number in range(CALLS))


STEPS = {
    "begin": DayKeys, "_put": relabelling, "filled": DayKeys, "_remove": relabelling,
    "_destroy": Converter, "drop": Keyring, "rows_gone": erasures,
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_crash_at_any_step_is_gone_on_with_after_the_restart(counter, monkeypatch, step):
    monkeypatch.setattr(relabelling, "ROWS", 5)
    old = day_key(counter)
    erase(counter, 1)
    real, calls = getattr(STEPS[step], step), []

    def crash(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) > (2 if step in ("_put", "_remove") else 0):
            raise Crash
        return real(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(STEPS[step], step, crash)
        with pytest.raises(Crash):
            counter.convert()
    left = labelled(counter)
    counter = again(counter)
    assert facts(counter, ONE)["gone_at"] is None
    assert found(counter, number=CALLEE) == OTHERS
    counter.convert()
    assert facts(counter, ONE)["gone_at"] is not None
    assert is_gone(counter, old)
    assert found(counter, number=CALLEE) == OTHERS
    assert {key_id for key_id, _ in rows(counter)} == set(day_keys(counter))
    assert len(day_keys(counter)) == 1
    # What a crash left is no row's place again: pages of before would show it with two calls.
    now = labelled(counter)
    assert all(now.get(key, value) == value for key, value in left.items())
    assert all(is_gone(counter, key_id) for key_id in keys_of(left) - set(day_keys(counter)))
    with counter.parts.index.reading() as view:
        assert (erasures.due(view), erasures.spent(view)) == ({}, set())


def test_many_erasures_of_a_day_are_one_conversion(counter, monkeypatch):
    begun, real = [], DayKeys.begin
    monkeypatch.setattr(DayKeys, "begin", lambda *given: begun.append(given) or real(*given))
    for number in range(1, 6):
        erase(counter, number)
    counter.convert()
    assert len(begun) == 1
    assert all(facts(counter, call_id(number))["gone_at"] for number in range(1, 6))


def test_rests_are_three_times_the_work(counter, monkeypatch):
    """However often it is asked for: recording and listening keep their share of the machine."""
    took = iter(float(at) for at in range(1000))
    monkeypatch.setattr(beside.time, "thread_time", lambda: next(took))  # a second each step
    erase(counter, 1)
    rests = [rest_s for rest_s in counter.desk.converting() if rest_s]
    assert rests == [beside.REST] * len(rests)
    assert len(rests) > 3
    assert beside.REST >= 3


def test_waits_while_recording_waits_for_the_disk(counter):
    erase(counter, 1)
    late = [False]
    counter.eraser.converter.late = lambda: late[0]
    under_way = counter.desk.converting()
    next(under_way)
    late[0] = True
    before = labelled(counter)
    # It looks in again after a while, not at once: it would keep a processor busy.
    assert all(next(under_way) for _ in range(20))
    assert labelled(counter) == before
    late[0] = False
    finish(under_way)
    assert facts(counter, ONE)["gone_at"] is not None


def test_pool_that_is_locked_is_not_waited_with_until_the_disk_is_quick_again(counter):
    erase(counter, 1)
    converter = counter.eraser.converter
    late = [False]
    converter.late = lambda: late[0]
    under_way = counter.desk.converting()
    next(under_way)
    late[0] = True
    assert next(under_way)
    (base,) = counter.parts.vaults
    ring, base._ring = base._ring, None
    assert len(list(islice(under_way, 5))) < 5
    base._ring, late[0], converter._not_before_ns = ring, False, 0
    counter.convert()
    assert facts(counter, ONE)["gone_at"] is not None


def test_call_that_changed_its_day_is_gone_from_both(counter):
    moved = make_call(1, revision=1, started_ns=START + labels.DAY_NS)
    counter.parts.commit(calls=[moved])
    keys = [day_key(counter), day_key(counter, labels.day_of(moved.started_ns))]
    assert erase(counter, 1).days == 2
    counter.convert()
    assert all(is_gone(counter, key_id) for key_id in keys)


def test_second_erasure_of_the_same_days_costs_those_alone_that_were_begun(counter, monkeypatch):
    days = range(2, 14)
    counter.parts.commit(calls=[
        make_call(number + day, started_ns=START + day * labels.DAY_NS)
        for number in (100, 200) for day in days
    ])  # fmt: skip
    begun, real = [], DayKeys.begin
    monkeypatch.setattr(DayKeys, "begin", lambda *given: begun.append(given) or real(*given))
    erase(counter, *(100 + day for day in days))
    under_way = counter.desk.converting()
    while len(begun) < 3:
        next(under_way)
    erase(counter, *(200 + day for day in days))
    finish(under_way)
    counter.convert()
    assert len(begun) == len(days) + 3
    assert all(facts(counter, call_id(number + 2))["gone_at"] for number in (100, 200))
    left = {call for _, call in rows(counter)}
    assert not left & {call_id(number + day) for number in (100, 200) for day in days}


def test_clock_set_back_a_day_between_two_conversions(counter):
    erase(counter, 1)
    counter.convert()
    converter, keys = counter.eraser.converter, day_keys(counter)
    now_ns = converter._clock_ns
    converter._clock_ns = converter._keys._clock_ns = lambda: now_ns() - labels.DAY_NS
    erase(counter, 2)
    counter.convert()
    assert facts(counter, TWO)["gone_at"] is not None
    assert all(is_gone(counter, key_id) for key_id in keys)
    counter = again(counter)
    assert found(counter, number=CALLEE) == [one for one in OTHERS if one != TWO]
