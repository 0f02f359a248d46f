"""Whatever happens to a store, each key that ever held a search row is named by its day, or gone.

So an erasure reaches all of them, also rows that a transaction wrote and did not commit: they lie
on in LMDB's free pages. FORMAT.md §12. What is done to the store are steps, as a crash, a failing
disk and `spanvault reindex` may come between them.
"""

import contextlib
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault import messages as m
from spanvault.daemon.config import StoragedConfig
from storaged.erasing.converting import Converter
from storaged.erasing.eraser import Eraser
from storaged.faults import Fault
from storaged.format.walk import finish
from storaged.index import erasures, labels, relabelling
from storaged.index.environment import Index
from storaged.index.search import search
from storaged.index.writing import Writing
from storaged.integrity.reindexing import reindex
from storaged.pools.layout import Store
from storaged.pools.ledgerfile import Ledger
from tests.support.vault import START, Parts, call_id, make_call

CALLS = range(1, 7)
numbers = st.sampled_from(CALLS)
ends = st.tuples(st.integers(1, 14), st.sampled_from(["crash", "disk", "behind"]))
STEPS = st.one_of(
    st.tuples(st.just("record"), numbers, st.integers(0, 2)),
    st.tuples(st.just("lost"), numbers, ends, st.booleans()),
    st.tuples(st.just("erase"), numbers),
    st.tuples(st.just("convert"), ends),
    st.just(("convert",)),
    st.just(("reindex",)),
    st.just(("restart",)),
)


class Crash(BaseException):
    """As if the process were killed."""


class Life:
    """A store, and which calls had rows under which keys, committed or not."""

    def __init__(self, folder: Path, patched: pytest.MonkeyPatch) -> None:
        self.held = defaultdict[int, set[bytes]](set)
        self.rows: dict[bytes, bytes] = {}
        self.ends: tuple[int, str] | None = None
        self.dead = False
        self.erased, self.calls = set[int](), dict[int, m.Call]()
        self._spy(patched)
        self.parts = Parts(folder)
        Store(folder).write_format(self.parts.keyring.store_id)
        Store(folder).refused.mkdir()
        self.parts.commit(calls=[self.made(1, 0), self.made(2, 0)])
        self.begin()

    def _spy(self, patched: pytest.MonkeyPatch) -> None:
        put, bulk, write = Writing.put, relabelling._put, Index.write

        def noted(writing: Writing, table: bytes, key: bytes, value: bytes) -> None:
            if table == b"label":
                self.held[labels.parse_slot(key)[1]].add(value[8:])
            put(writing, table, key, value)

        def noted_bulk(writing: Writing, rows: list[tuple[bytes, bytes]]) -> None:
            for key, value in rows:
                self.held[labels.parse_slot(key)[1]].add(value[8:])
            bulk(writing, rows)

        def ending(index: Index, change: Any) -> Any:
            left, how = self.ends or (0, "")
            self.ends = (left - 1, how) if left else None

            def change_and_end(writing: Writing) -> Any:
                result = change(writing)
                if left == 1 and how != "behind":  # its pages may be written, its end is not
                    self.dead = how == "crash"
                    raise Crash if self.dead else lmdb.DiskError("Input/output error")
                return result

            result = write(index, change_and_end)
            if left == 1:
                self.dead = True
                raise Crash
            return result

        cut_back = Ledger.cut_back
        # Who was killed cuts nothing back.
        patched.setattr(Ledger, "cut_back", lambda its: None if self.dead else cut_back(its))
        patched.setattr(Writing, "put", noted)
        patched.setattr(relabelling, "_put", noted_bulk)
        patched.setattr(Index, "write", ending)
        patched.setattr(relabelling, "ROWS", 3)

    def begin(self) -> None:
        parts = self.parts
        self.eraser = Eraser(
            Store(parts.folder), parts.index, parts.vaults, parts.writer.forget, time.time_ns
        )
        self.eraser.finish()

    def made(self, number: int, shift: int) -> m.Call:
        """A call, whose record moves it to another day with each second revision."""
        revision = self.calls[number].revision + 1 if number in self.calls else 0
        made = make_call(
            number,
            revision=revision,
            started_ns=START + (revision // 2 % 2) * labels.DAY_NS + shift,
        )
        self.calls[number] = made
        return made

    @contextlib.contextmanager
    def cut_short(self, ends: tuple[int, str]) -> Iterator[None]:
        """What happens is ended at a transaction, if it has so many."""
        self.ends = ends
        try:
            yield
        except Crash:
            self.ends = None
            self.restart()
        except lmdb.Error:
            pass
        finally:
            self.ends = None

    def restart(self) -> None:
        self.dead = False
        self.parts = self.parts.again()
        self.begin()

    def do(self, step: tuple[Any, ...]) -> None:
        match step:
            case "record", number, shift:
                self.parts.commit(calls=[self.made(number, shift)])
            case "lost", number, ends, again:
                self.lose(number, ends, again=again)
            case "erase", number:
                wanted = m.Erase([call_id(number)], "asked for")
                with contextlib.suppress(Fault):  # it never was
                    finish(self.eraser.erasing("test", wanted))
                    self.erased.add(number)
            case "convert", ends:
                with self.cut_short(ends):
                    self.convert()
            case ("convert",):
                self.convert()
            case ("restart",):
                self.restart()
            case ("reindex",):
                self.reindex()

    def lose(self, number: int, ends: tuple[int, str], *, again: bool) -> None:
        """A commit that is cut short; what it had comes again, or its capture is gone, too."""
        before, made = self.calls.get(number), self.made(number, 0)
        with self.cut_short(ends):
            self.parts.commit(calls=[made])
        if again:
            self.parts.commit(calls=[made])
        with self.parts.index.reading() as view:
            state = view.state(made.id)
        if state is None or state.revision != made.revision:
            self.calls.pop(number)
            self.calls |= {number: before} if before else {}

    def convert(self) -> Converter:
        converter = self.eraser.converter
        converter._not_before_ns = 0
        finish(converter.converting())
        return converter

    def reindex(self) -> None:
        folder = self.parts.folder
        self.parts.close()
        asked = StoragedConfig(store=folder, unlock_key=folder / "unlock.key")
        assert reindex(asked, lambda *_: None, time.time_ns).faults == 0
        self.parts.__init__(folder)  # type: ignore[misc]
        self.begin()

    def check(self) -> None:
        with self.parts.index.reading() as view:
            named = {one for each in labels.days(view) for one in each.key_ids}
            rows = {bytes(key): bytes(value) for key, value in view.cursor(b"label")}
            deks = {
                key_id for key, _ in view.cursor(b"state")
                for key_id in (view.state(bytes(key)).key_id, *view.former(bytes(key)))
            }  # fmt: skip
            pools = [labels.Labels(0, self.parts.keyring)]
            found, _ = search(view, m.Search(number=make_call(1).callee), pools, self._opened)
        assert {one.id for one in found} == {
            call_id(number) for number in self.calls if number not in self.erased
        }
        living = {key_id for key_id in self.held if self.lives(key_id)}
        assert living <= named
        assert not named & deks
        # No row is ever another call's: pages of before would show the two side by side.
        assert all(self.rows.setdefault(key, value) == value for key, value in rows.items())

    def _opened(self, view: Any, one: bytes) -> Any:
        return self.parts.writer._stored_call(view, one)

    def lives(self, key_id: int) -> bool:
        try:
            self.parts.keyring.dek(key_id)
        except Fault as fault:
            return fault.code != "not_found"
        return True

    def end(self) -> None:
        """Let all come to its end."""
        assert self.convert().fault is None
        assert self.convert().fault is None  # of erasures that came while their day was under way
        self.check()
        with self.parts.index.reading() as view:
            assert (erasures.due(view), erasures.spent(view)) == ({}, set())
        gone = {call_id(number) for number in self.erased}
        left = [key_id for key_id, ids in self.held.items() if ids & gone and self.lives(key_id)]
        assert left == []


def lived(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patched:
        life = Life(Path(place) / "store", patched)
        try:
            for step in steps:
                life.do(step)
                life.check()
            life.end()
        finally:
            life.parts.close()
            shutil.rmtree(place, ignore_errors=True)


@given(st.lists(STEPS, min_size=1, max_size=10))
@settings(max_examples=25, deadline=None)
def test_any_life_of_a_day(steps):
    lived(steps)


@pytest.mark.parametrize("behind", [("reindex",), ("record", 5, 0), ("erase", 2)])
@pytest.mark.parametrize("at", range(1, 12, 2))
def test_conversion_that_is_cut_short_anywhere_and_what_may_follow(at, behind):
    lived([("erase", 1), ("convert", (at, "behind")), behind, ("convert",), ("erase", 5),
           ("reindex",), ("convert",)])  # fmt: skip


def test_day_that_was_converted_and_an_index_made_anew():
    """What comes meanwhile has a key of its own: the other one holds all that was there."""
    lived([("erase", 1), ("convert", (3, "behind")), ("record", 3, 0), ("convert",), ("reindex",),
           ("erase", 2), ("convert",)])  # fmt: skip


def test_what_came_meanwhile_and_was_not_committed_goes_with_its_key():
    lived([("erase", 1), ("convert", (3, "disk")), ("lost", 3, (1, "crash"), False), ("convert",)])


@pytest.mark.parametrize("at", range(1, 8))
def test_rows_of_a_try_that_failed_are_no_others_place(at):
    """The next one leaves another call out: its rows have other numbers."""
    lived([*(("record", number, 0) for number in (3, 4, 5, 6)), ("erase", 1),
           ("convert", (at, "disk")), ("erase", 2), ("convert", (at, "disk")), ("erase", 3),
           ("convert",)])  # fmt: skip


@pytest.mark.parametrize("at", [1, 2])
def test_key_of_a_day_whose_first_commit_failed_is_no_other_s(at):
    lived([("record", 1, 0), ("lost", 1, (at, "disk"), False), ("record", 3, 0), ("record", 1, 0)])
