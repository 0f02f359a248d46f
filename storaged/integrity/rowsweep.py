"""Rows of the index that belong to no call, or are another's, at the end of each round.

Of `time`, `expires`, `shared`, `feed` and `fed` each row is held against what it is of, and goes if
that says otherwise: a call that is found twice, or that would be erased too soon. Day by day search
rows are looked at as well (storaged.integrity.labelcheck). Of locked pools nobody can tell. That a
call has all its rows: storaged.integrity.rowcheck. Where it is stands in the round: a restart goes
on there. When it runs: storaged.integrity.scrub.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Final

from storaged.faults import Fault
from storaged.index import callrows, labels
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import POSITION
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.integrity.labelcheck import LabelCheck
from storaged.integrity.rowcheck import COST, RowCheck, announce_anew, is_told
from storaged.pools.vaults import Vaults

log = logging.getLogger(__name__)
ROWS: Final = 200  # looked at in one view
_TABLES: Final = (b"time", b"expires", b"shared", b"feed", b"fed")
_DAYS: Final = len(_TABLES)  # the stage behind them
_ID: Final = 16
_CHEAP: Final = 128  # bytes that a row counts as whose call is not opened
Row = tuple[bytes, bytes]


class RowSweep:
    """Looks at all rows of some tables. For one thread.

    check: of calls.  removed: rows since the start, by table.
    """

    def __init__(
        self, index: Index, vaults: Vaults, check: RowCheck, clock_ns: Callable[[], int]
    ) -> None:
        self._index, self._vaults, self._check = index, vaults, check
        self.labels = LabelCheck(index, vaults, clock_ns)
        self.removed: dict[str, int] = {}

    def sweeping(self, after: bytes) -> Iterator[tuple[int, bytes]]:
        """Look at all rows behind a place; gives what it cost, in bytes read, and the place.

        Raises OSError, lmdb.Error.
        """
        stage, at = (after[0], after[1:]) if after else (0, b"")
        for number in range(stage, len(_TABLES)):
            for cost, behind in self._table(_TABLES[number], at):
                yield cost, bytes((number,)) + behind
            at = b""
            if _TABLES[number] == b"feed":
                self._keep_counting()
        yield from self._days(at)
        self.labels.forget()

    def _table(self, table: bytes, after: bytes) -> Iterator[tuple[int, bytes]]:
        at: bytes | None = after
        while at is not None:
            with self._index.reading() as view:
                rows, at = _rows_behind(view, table, at)
                stray = [row for row in rows if self._is_stray(view, table, row)]
            cheap = table in (b"feed", b"fed")
            yield (_CHEAP if cheap else COST) * len(rows), at or b""
            if stray:
                done = self._index.write(partial(self._remove, table=table, rows=stray))
                self._note(table, done)

    def _days(self, after: bytes) -> Iterator[tuple[int, bytes]]:
        """Search rows, by the days on which calls began."""
        at = after
        while True:
            with self._index.reading() as view:
                cursor = view.cursor(b"time")
                day = labels.day_in(bytes(cursor.key())) if cursor.set_range(at or b"\0") else None
            if day is None:
                break
            behind_ns = (day + 1) * labels.DAY_NS
            at = tables.time_key(behind_ns) if behind_ns < 1 << 63 else b"\xff" * 24
            for cost in self.labels.checking(day):
                yield cost, bytes((_DAYS,)) + after
            after = at
            yield 0, bytes((_DAYS,)) + at
        for cost in chain(self.labels.strays(), self.labels.orphans()):
            yield cost, bytes((_DAYS,)) + at

    def _is_stray(self, view: View, table: bytes, row: Row) -> bool:
        """Whether a row is of nothing that there is, or of something that says otherwise."""
        key, value = row
        if table == b"feed":
            return len(key) != POSITION.size or view.get(b"fed", value) != key
        if table == b"fed":
            return view.get(b"feed", value) != key
        call_id = value if table == b"shared" else key[-_ID:]
        if table == b"shared" and self._waits(view, call_id):
            return False
        if view.get(b"state", call_id) is None:
            return not self._lost_its_row(view, call_id)
        call = self._check.call(view, call_id)
        return call is not None and not any(
            each[:2] == (table, key) and (table != b"shared" or each[2] == value)
            for each in callrows.rows_of(call)
        )

    def _lost_its_row(self, view: View, call_id: bytes) -> bool:
        """Whether there is a record all the same: then its other rows are right, and it is told."""
        if view.get(b"record", call_id) is None:
            return False
        with view.passing():
            raise tables.damaged(b"state", f"there is none of call {call_id.hex()}, and a record")
        return True

    def _waits(self, view: View, call_id: bytes) -> bool:
        """Whether more of a call may wait in an intake: what is there says which it is in."""
        if view.placed(call_id) is not None:
            return True
        try:
            state = view.state(call_id)
            return state is not None and bool(len(self._vaults.of(state.tier).intake))
        except Fault:
            return True

    def _remove(self, writing: Writing, table: bytes, rows: list[Row]) -> int:
        """Remove what still is stray; what the feed has of something that is there is told anew."""
        done = 0
        for key, value in rows:
            if not self._is_stray(writing, table, (key, value)):
                continue
            writing.delete(table, key, value if table in tables.MULTIPLE else b"")
            what = value if table == b"feed" else key
            told = table in (b"feed", b"fed")
            if told and not is_told(writing, what) and self._is(writing, what):
                announce_anew(writing, what[:1], what[1:])
            done += 1
        return done

    def _is(self, view: View, what: bytes) -> bool:
        """Whether there is a thing that the feed may have, by its key in `fed`."""
        kind, name = what[:1], what[1:]
        if kind in (tables.OBJECT_CHANGED, tables.RECORD_CHANGED):
            return view.get(b"state", name) is not None
        if kind == tables.ERASED:
            return view.get(b"erasure", name) is not None and view.get(b"unfinished", name) is None
        if kind == tables.KEYS_CHANGED:
            return any(name.decode(errors="replace") in one.key_files() for one in self._vaults)
        return kind == tables.LOG_HEAD and view.get(b"meta", name) is not None

    def _keep_counting(self) -> None:
        """The last position that was given is none below one that the feed has."""
        with self._index.reading() as view:
            if _last_of_feed(view) <= view.number(b"position"):
                return
        if last := self._index.write(_count_on):
            log.warning("The feed's last position was lost", extra={"POSITION": last})

    def _note(self, table: bytes, done: int) -> None:
        name = table.decode()
        if done:
            self.removed[name] = self.removed.get(name, 0) + done
            log.warning("Rows of the index that belong to nothing were removed",
                        extra={"TABLE": name, "ROWS": done})  # fmt: skip


def _last_of_feed(view: View) -> int:
    cursor = view.cursor(b"feed")
    return int.from_bytes(cursor.key(), "big") if cursor.last() else 0


def _count_on(writing: Writing) -> int:
    """Set the last position to that of the feed; 0 if it is not behind it any more."""
    last = _last_of_feed(writing)
    if last <= writing.number(b"position"):
        return 0
    writing.set_number(b"position", last)
    return last


def _rows_behind(view: View, table: bytes, after: bytes) -> tuple[list[Row], bytes | None]:
    """Some rows behind a key, with all values of the last; and its key, None: there are no more."""
    cursor, rows = view.cursor(table), list[Row]()
    more = cursor.set_range(after + b"\0") if after else cursor.first()
    while more:
        key = bytes(cursor.key())
        if len(rows) >= ROWS and key != rows[-1][0]:
            return rows, rows[-1][0]
        rows.append((key, bytes(cursor.value())))
        more = cursor.next()
    return rows, None
