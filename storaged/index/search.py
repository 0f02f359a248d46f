"""Which calls a search means, newest first, a page at a time.

The narrowest table is walked backwards (a token's calls, day by day, or all calls by time);
outcome, length and time are decided on the row; only what is left is opened. FORMAT.md §7.
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final

from spanvault.messages import Call, Search
from storaged.faults import Fault
from storaged.format import record
from storaged.index import labels
from storaged.index.labels import DAY_NS, Labels
from storaged.index.rows import TimeRow, parse_time_row, time_key
from storaged.index.view import View

MAX_LIMIT: Final = 1000
MAX_ROWS: Final = 200_000  # rows looked at for one page
STEP_ROWS: Final = 2000  # of these, before others get their turn; some 5 ms
_OPENED: Final = 20  # rows that opening one record counts for
_DAY: Final = 2  # rows that asking a day for a token counts for
_END: Final = b"\xff" * 24

OpenCall = Callable[[View, bytes], Call | None]


def search(
    view: View, wanted: Search, pools: Sequence[Labels], open_call: OpenCall,
    most_rows: int | None = None,
) -> tuple[list[Call], bytes | None]:  # fmt: skip
    """A page of calls and the cursor to go on from (None: that was all).

    A page may be short, even empty, though more follows: looking goes on with the cursor.
    pools: those that are open. most_rows: to be looked at, else MAX_ROWS.
    Raises Fault for an impossible limit or cursor.
    """
    if not 1 <= wanted.limit <= MAX_LIMIT:
        raise Fault("invalid", f"limit {wanted.limit}", f"Ask for 1 to {MAX_LIMIT} calls a page.")
    if wanted.cursor is not None and len(wanted.cursor) != 24:
        raise Fault("invalid", "the cursor is none of ours", "Begin the search again.")
    calls: list[Call] = []
    looked_at, most = 0, MAX_ROWS if most_rows is None else most_rows
    for row in _rows(view, wanted, pools):
        if isinstance(row, bytes):  # all from there on was looked at
            looked_at += _DAY
            if looked_at >= most:
                return calls, row
            continue
        if looked_at >= most:
            return calls, _before(row.key)
        looked_at += 1
        if not _row_fits(row, wanted):
            continue
        looked_at += _OPENED
        call = open_call(view, row.id)
        if call is not None and _call_fits(call, wanted):
            calls.append(call)
            if len(calls) == wanted.limit:
                return calls, row.key
    return calls, None


def _rows(view: View, wanted: Search, pools: Sequence[Labels]) -> Iterator[TimeRow | bytes]:
    """Candidates, newest first, from below the cursor down to `since`.

    Between them the keys down to which there are none left.
    """
    stop = _key(wanted.since_ns) if wanted.since_ns is not None else bytes(24)
    below = _key(wanted.until_ns) if wanted.until_ns is not None else _END
    if wanted.cursor is not None:
        below = min(below, wanted.cursor)
    if wanted.call_id is not None:
        kind, text = record.CALL_ID, wanted.call_id
    elif wanted.number is not None:
        kind, text = record.NUMBER, wanted.number
    else:
        yield from _by_time(view, below, stop)
        return
    # Each pool has tokens of its own: who opens one learns nothing of another's numbers.
    tokens = {each.tier: (each, each.token(kind, text)) for each in pools}
    if below <= stop:
        return
    newest = (int.from_bytes(below, "big") - 1).to_bytes(24, "big")
    found = labels.days(view, labels.day_in(newest), labels.day_in(stop))
    for day, its in groupby(found, lambda one: one.day):
        yield from _of_day(view, tokens, list(its), below, stop)
        yield _key(day * DAY_NS)


def _of_day(
    view: View, tokens: dict[int, tuple[Labels, bytes]], its: Sequence[labels.Days],
    below: bytes, stop: bytes,
) -> Iterator[TimeRow]:  # fmt: skip
    """A token's calls on a day, of all pools."""
    found = []
    for one in its:
        if one.tier in tokens:
            pool, token = tokens[one.tier]
            keys = pool.find(view, token, one.key_ids)
            found.append(reversed(keys[bisect_left(keys, stop) : bisect_left(keys, below)]))
    # A call that moved up has its rows in two pools for a while.
    for key, _ in groupby(heapq.merge(*found, reverse=True)):
        if row := view.time_row(key):  # else it was erased
            yield row


def _by_time(view: View, below: bytes, stop: bytes) -> Iterator[TimeRow]:
    cursor = view.cursor(b"time")
    more = cursor.prev() if cursor.set_range(below) else cursor.last()
    while more and cursor.key() >= stop:
        with view.passing():
            yield parse_time_row(cursor.key(), cursor.value())
        more = cursor.prev()


def _row_fits(row: TimeRow, wanted: Search) -> bool:
    if wanted.id_prefix is not None and not row.id.hex().startswith(wanted.id_prefix):
        return False
    if wanted.outcome is not None and row.outcome != wanted.outcome:
        return False
    if wanted.longer_s is None and wanted.shorter_s is None:
        return True
    seconds = row.duration_ms / 1000
    return row.duration_ms != record.NOT_ENDED and (
        (wanted.longer_s is None or seconds > wanted.longer_s)
        and (wanted.shorter_s is None or seconds < wanted.shorter_s)
    )


def _call_fits(call: Call, wanted: Search) -> bool:
    """Tokens are short; the record itself decides."""
    if wanted.number is not None and wanted.number not in (call.caller, call.callee):
        return False
    return wanted.call_id is None or wanted.call_id in call.call_ids


def _key(time_ns: int) -> bytes:
    """A time key's lower bound, whatever number came over the wire."""
    return time_key(max(-(1 << 63), min(time_ns, (1 << 63) - 1)))


def _before(key: bytes) -> bytes:
    """The cursor that makes the next page begin with this row."""
    return (int.from_bytes(key, "big") + 1).to_bytes(24, "big") if key != _END else key
