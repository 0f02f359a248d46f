"""Search rows of erased calls go: their day gets a new key, the old one is destroyed.

What is written down: FORMAT.md §12.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import lmdb
import pytest

from spanvault import messages as m
from storaged.erasing import beside
from storaged.erasing.converting import Converter
from storaged.erasing.daykeys import DayKeys
from storaged.faults import Fault
from storaged.format.walk import finish
from storaged.index import environment, erasures, labels, relabelling
from storaged.keys import pagefiles
from storaged.keys.keyring import Keyring
from storaged.pools.ledgerfile import Ledger
from storaged.pools.pool import Pool
from tests.storaged.requests.test_desk import Counter
from tests.support.vault import START, Parts, call_id, make_call

ONE, TWO = call_id(1), call_id(2)
CALLEE = make_call(1).callee
CALLS = 12


OTHERS = sorted(call_id(number) for number in range(CALLS) if number != 1)


class Crash(BaseException):
    """As if the process were killed."""


@pytest.fixture
def counter(parts: Parts) -> Iterator[Counter]:
    made = Counter(parts)
    made.parts.commit(calls=[make_call(number) for number in range(CALLS)])
    yield made
    made.access.close()


def erase(counter: Counter, *numbers: int) -> m.EraseReply:
    return counter.ask(m.Erase([call_id(number) for number in numbers], "asked for"))


def found(counter: Counter, **wanted: Any) -> list[bytes]:
    return sorted(call.id for call in counter.ask(m.Search(**wanted)).calls)


def day_key(counter: Counter, day: int = labels.day_of(START)) -> int:
    with counter.parts.index.reading() as view:
        return labels.key_ids(view, day, 0)[0]


def day_keys(counter: Counter) -> tuple[int, ...]:
    with counter.parts.index.reading() as view:
        return labels.key_ids(view, labels.day_of(START), 0)


def rows(counter: Counter) -> list[tuple[int, bytes]]:
    """Key id and call of every search row."""
    with counter.parts.index.reading() as view:
        return [(labels.parse_slot(bytes(key))[1], bytes(value)[8:])
                for key, value in view.cursor(b"label")]  # fmt: skip


def facts(counter: Counter, call: bytes) -> dict[str, Any]:
    return json.loads(counter.ask(m.Certify(call)).document)["certificate"]["search_rows"]


def again(counter: Counter) -> Counter:
    """After a crash and a restart."""
    counter.access.close()
    made = Counter(counter.parts.again())
    made.eraser.finish()
    return made


def is_gone(counter: Counter, key_id: int) -> bool:
    try:
        counter.parts.keyring.dek(key_id)
    except Fault as fault:
        return fault.code == "not_found"
    return False


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


def labelled(counter: Counter) -> dict[bytes, bytes]:
    with counter.parts.index.reading() as view:
        return {bytes(key): bytes(value) for key, value in view.cursor(b"label")}


def keys_of(labels_and_calls: dict[bytes, bytes]) -> set[int]:
    return {labels.parse_slot(key)[1] for key in labels_and_calls}


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


def test_given_up_in_the_midst_it_is_begun_anew(counter, monkeypatch):
    monkeypatch.setattr(relabelling, "ROWS", 5)
    erase(counter, 1)
    for steps in range(1, 12):
        under_way = counter.desk.converting()
        for _ in range(steps):
            next(under_way)
        under_way.close()
    counter.convert()
    assert found(counter, number=CALLEE) == OTHERS
    assert len(day_keys(counter)) == 1


def test_locked_in_the_midst_goes_on_when_it_is_open_again(counter, monkeypatch):
    monkeypatch.setattr(relabelling, "ROWS", 5)
    old = day_key(counter)
    erase(counter, 1)
    under_way = counter.desk.converting()
    for _ in range(6):
        next(under_way)
    (base,) = counter.parts.vaults
    ring, base._ring = base._ring, None
    before = labelled(counter)
    finish(under_way)
    assert len(labelled(counter)) - len(before) <= 5  # the step that was under way
    base._ring = ring
    counter.eraser.converter._not_before_ns = 0
    counter.convert()
    assert is_gone(counter, old)
    assert found(counter, number=CALLEE) == OTHERS
    assert len(day_keys(counter)) == 1


FAULTS: dict[str, tuple[Any, str, Exception]] = {
    "index": (relabelling, "_put", lmdb.DiskError("No space left on device")),
    "index, at the end": (relabelling, "_remove", lmdb.DiskError("No space left on device")),
    "ledger": (Ledger, "append", OSError(28, "No space left on device")),
    "ledger's sync": (Ledger, "sync", OSError(5, "Input/output error")),
    "another disk": (Pool, "check_place", OSError(116, "Stale file handle")),
    "keys": (pagefiles.files, "replace_all", OSError(30, "Read-only file system")),
    "keys, at the end": (pagefiles.files, "destroy", OSError(30, "Read-only file system")),
}


# Key files are replaced but once.
CASES = [*((what, 1) for what in FAULTS), *((what, 2) for what in FAULTS if what != "keys")]


@pytest.mark.parametrize(("what", "nth"), CASES)
def test_disk_that_fails_in_the_midst_is_told_and_it_is_gone_on_with(
    counter, monkeypatch, what, nth
):
    monkeypatch.setattr(relabelling, "ROWS", 5)
    old = day_key(counter)
    erase(counter, 1)
    owner, name, error = FAULTS[what]
    real, calls = getattr(owner, name), []

    def failing(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) >= nth:
            raise error
        return real(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing)
        counter.convert()
    converter = counter.eraser.converter
    assert str(error) in (converter.fault or "")
    assert facts(counter, ONE)["gone_at"] is None
    assert found(counter, number=CALLEE) == OTHERS
    left = labelled(counter)
    counter.parts.commit(calls=[make_call(20)])  # recording goes on
    converter._not_before_ns = 0
    counter.convert()
    assert (converter.fault, is_gone(counter, old)) == (None, True)
    assert facts(counter, ONE)["gone_at"] is not None
    assert found(counter, number=CALLEE) == sorted([*OTHERS, call_id(20)])
    now = labelled(counter)
    assert all(now.get(key, value) == value for key, value in left.items())
    assert {key_id for key_id, _ in rows(counter)} == set(day_keys(counter))


def test_call_that_changed_its_day_is_gone_from_both(counter):
    moved = make_call(1, revision=1, started_ns=START + labels.DAY_NS)
    counter.parts.commit(calls=[moved])
    keys = [day_key(counter), day_key(counter, labels.day_of(moved.started_ns))]
    assert erase(counter, 1).days == 2
    counter.convert()
    assert all(is_gone(counter, key_id) for key_id in keys)


def test_day_that_cannot_be_opened_is_told_and_keeps_no_other(counter):
    counter.parts.commit(calls=[make_call(50, started_ns=START + labels.DAY_NS)])
    erase(counter, 1, 50)
    bad, good = day_key(counter), day_key(counter, labels.day_of(START) + 1)
    ring, real = counter.parts.keyring, counter.parts.keyring.dek

    def dek(key_id: int) -> bytes:
        if key_id == bad:
            raise Fault("locked", "key page 0 does not authenticate")
        return real(key_id)

    ring.dek = dek  # type: ignore[method-assign]
    counter.convert()
    ring.dek = real  # type: ignore[method-assign]
    assert is_gone(counter, good)
    with counter.parts.index.reading() as view:
        told = counter.eraser.converter.fields(view)
    assert told["days_due"] == 1
    assert "does not authenticate" in told["state"]


def test_disk_that_fails_is_told_and_tried_again(counter, monkeypatch):
    erase(counter, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("storaged.keys.pagefiles.files.replace_all", full)
        counter.convert()
    converter = counter.eraser.converter
    assert "No space" in (converter.fault or "")
    counter.convert()  # not before a while
    assert facts(counter, ONE)["gone_at"] is None
    converter._not_before_ns = 0
    counter.convert()
    assert (converter.fault, bool(facts(counter, ONE)["gone_at"])) == (None, True)


def test_clock_that_is_set_back_keeps_it_no_longer_than_the_fault(counter, monkeypatch):
    erase(counter, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Keyring, "drop", failing)
        counter.convert()
    converter = counter.eraser.converter
    assert converter.fault
    year_ns, now_ns = 365 * labels.DAY_NS, converter._clock_ns
    converter._clock_ns = lambda: now_ns() - year_ns
    counter.convert()
    assert (converter.fault, bool(facts(counter, ONE)["gone_at"])) == (None, True)


def failing(*_: object, **__: object) -> None:
    raise OSError(5, "Input/output error")


def test_locked_pool_waits_for_its_key(counter):
    erase(counter, 1)
    (base,) = counter.parts.vaults
    ring, base._ring = base._ring, None
    counter.convert()
    with counter.parts.index.reading() as view:
        assert counter.eraser.converter.fields(view) == {
            "days_due": 1, "erasures": 1, "state": "waits for base to be unlocked",
        }  # fmt: skip
    base._ring = ring
    counter.convert()
    assert facts(counter, ONE)["gone_at"] is not None


NEXT_DAY = labels.day_of(START) + 1


def damage(counter: Counter) -> None:
    """A row of the first day is cut, as a bad page would have it."""
    with counter.parts.index.reading() as view:
        key = next(bytes(key) for key, _ in view.cursor(b"label"))
    counter.parts.index.write(lambda writing: writing.put(b"label", key, b"cut"))


def taken(counter: Counter) -> int:
    """A slot that is free now."""
    return counter.parts.vaults.base.take_key(counter.parts.index)


@pytest.mark.parametrize("error", [None, lmdb.CorruptedError, lmdb.PageNotFoundError])
def test_damaged_row_of_a_day_keeps_no_other_and_status_says_which_and_what_to_do(
    counter, monkeypatch, error
):
    counter.parts.commit(calls=[make_call(50, started_ns=START + labels.DAY_NS)])
    bad, good = day_key(counter), day_key(counter, NEXT_DAY)
    erase(counter, 1, 50)
    real = relabelling._rows_from

    def reads(view: Any, prefix: bytes, at: bytes, most: int) -> Any:
        if error and prefix == labels.slot(0, bad):
            raise error("MDB_CORRUPTED")
        return real(view, prefix, at, most)

    monkeypatch.setattr(relabelling, "_rows_from", reads)
    if error is None:
        damage(counter)
    converter, before = counter.eraser.converter, taken(counter)
    for _ in range(3):
        converter._not_before_ns = 0
        counter.convert()
    assert (is_gone(counter, bad), is_gone(counter, good)) == (False, True)
    with counter.parts.index.reading() as view:
        told = converter.fields(view)["state"]
    assert told.startswith("day 2023-11-14 of pool base: index: ")
    assert told.endswith("Stop storaged and run: spanvault reindex")
    assert taken(counter) == before + 3  # those of the good day


def test_row_that_cannot_be_read_has_nobody_told_that_its_day_is_gone(counter):
    counter.parts.commit(calls=[make_call(30, started_ns=START + labels.DAY_NS)])
    keys = [day_key(counter, labels.day_of(START) + after) for after in (0, 1)]
    erasure = erase(counter, 1, 30).erasure
    row = labels.slot(0, keys[1]) + erasure
    counter.parts.index.write(lambda writing: writing.put(b"due", row, b"flipped"))
    counter.convert()
    assert [is_gone(counter, key) for key in keys] == [True, False]
    assert facts(counter, ONE)["gone_at"] is None


def test_disk_that_fails_for_hours_uses_up_no_slots(counter, monkeypatch):
    erase(counter, 1)
    before, converter = taken(counter), counter.eraser.converter
    for name, step in (("_put", relabelling), ("append", Ledger), ("filled", DayKeys)):
        with monkeypatch.context() as patched:
            patched.setattr(step, name, failing)
            for _ in range(5):
                converter._not_before_ns = 0
                counter.convert()
                assert converter.fault
    converter._not_before_ns = 0
    counter.convert()
    assert (converter.fault, bool(facts(counter, ONE)["gone_at"])) == (None, True)
    assert taken(counter) == before + 3


def test_disk_that_is_nearly_full_is_left_to_recording_and_told(counter, monkeypatch):
    erase(counter, 1)
    before = labelled(counter), day_keys(counter)
    with monkeypatch.context() as patched:
        patched.setattr(environment, "SPARE_BYTES", 1 << 60)
        counter.convert()
    converter = counter.eraser.converter
    assert "MiB are needed beside what is recorded" in (converter.fault or "")
    assert (labelled(counter), day_keys(counter)) == before
    converter._not_before_ns = 0
    counter.convert()
    assert (converter.fault, bool(facts(counter, ONE)["gone_at"])) == (None, True)


def test_what_a_try_left_goes_before_the_next_needs_room(counter, monkeypatch):
    monkeypatch.setattr(relabelling, "ROWS", 5)
    erase(counter, 1)
    under_way = counter.desk.converting()
    while len({key_id for key_id, _ in rows(counter)}) == 1:
        next(under_way)
    under_way.close()
    left, seen = len(rows(counter)), []
    real = relabelling.Relabelling.writing

    def writing(*given: Any) -> Any:
        seen.append(len(rows(counter)))
        return real(*given)

    monkeypatch.setattr(relabelling.Relabelling, "writing", writing)
    counter.convert()
    assert seen[0] < left
    assert len({key_id for key_id, _ in rows(counter)}) == 1


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
