"""Search rows of erased calls go, whatever fails or is locked meanwhile, and what is told of it.

Without faults: test_converting.py. FORMAT.md §12.
"""

from collections.abc import Iterator
from typing import Any

import lmdb
import pytest

from storaged.erasing.daykeys import DayKeys
from storaged.faults import Fault
from storaged.format.walk import finish
from storaged.index import environment, labels, relabelling
from storaged.keys import pagefiles
from storaged.keys.keyring import Keyring
from storaged.pools.ledgerfile import Ledger
from storaged.pools.pool import Pool
from tests.storaged.requests.test_desk import Counter
from tests.support.converting import (
    CALLEE,
    CALLS,
    ONE,
    OTHERS,
    day_key,
    day_keys,
    erase,
    facts,
    found,
    is_gone,
    labelled,
    rows,
)
from tests.support.vault import START, Parts, call_id, make_call


@pytest.fixture
def counter(parts: Parts) -> Iterator[Counter]:
    made = Counter(parts)
    made.parts.commit(calls=[make_call(number) for number in range(CALLS)])
    yield made
    made.access.close()


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
