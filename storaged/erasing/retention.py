"""Calls go when their time is up: found in the index, and erased as by hand.

Once an hour, or less often where the index is long, the rows of old calls are looked through in
steps. Those that are due are erased in batches, each in the access log before it is begun, with a
certificate like any other. Calls with media in common go together, once the last of them may. What
cannot go (a locked pool, a damaged page of keys) is counted, told of, and tried again.
How long a call stays: storaged.erasing.terms. What an erasure is: storaged.erasing.eraser.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import lmdb

from spanvault.messages import Erase
from storaged.diskfaults import explain
from storaged.erasing.doomed import Doomed, look_at, sharing
from storaged.erasing.eraser import STORAGED, Eraser, day_keys
from storaged.erasing.terms import UNFINISHED_NS, ClockGuard, Terms
from storaged.faults import Fault
from storaged.format.walk import Steps
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import FINAL
from storaged.pools.vaults import Vaults

log = logging.getLogger(__name__)
RELIED_ON: Final = b"retention"  # counter of table meta: the time of day that was last relied upon
BATCH: Final = 500  # calls of one erasure: for its time no pool commits
_ROWS: Final = 1000  # of the index looked at in one step
_OPENED: Final = 50  # records opened in one step
_PAUSE_S: Final = 3600.0
_SHARE: Final = 200  # a round waits so many times what the last one took
_TOGETHER: Final = 64  # calls that go together at most; of more, none goes by itself


class _Due(NamedTuple):
    """A call that may go, the calls that must go along, and why."""

    ids: list[bytes]
    reason: str


class Retention:
    """Erases what is due. For the thread of requests."""

    def __init__(
        self, index: Index, vaults: Vaults, eraser: Eraser, clock_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
    ) -> None:  # fmt: skip
        self._index, self._vaults, self._eraser = index, vaults, eraser
        self._clock_ns, self._monotonic_ns = clock_ns, monotonic_ns
        known_ns = None
        with index.reading() as view, view.passing():
            known_ns = view.number(RELIED_ON) or None
        self._guard = ClockGuard(known_ns, monotonic_ns())
        self._next_ns = 0
        self._erased = 0
        self._staying: Counter[str] = Counter()
        self.fault: str | None = None  # one line, while something stays that should go

    @property
    def _terms(self) -> Mapping[str, Terms]:
        return self._eraser.terms

    def sweeping(self, begun: Callable[[Erase], None]) -> Steps[None]:
        """Look for what is due, and erase it, in steps; nothing if it is not time yet.

        begun: writes an erasure into the access log; what it raises keeps the calls.
        """
        began_ns = self._monotonic_ns()
        if began_ns < self._next_ns:
            return
        try:
            yield from self._round(begun)
        except (Fault, OSError, lmdb.Error) as error:
            self._tell(f"calls whose time is up stay for now: {explain(error)}")
        took_ns = self._monotonic_ns() - began_ns
        self._next_ns = self._monotonic_ns() + max(int(_PAUSE_S * 1e9), _SHARE * took_ns)

    def fields(self) -> dict[str, Any]:
        """What a StatusReply tells of it."""
        told: dict[str, Any] = {"erased": self._erased, "staying": dict(self._staying)}
        return told | ({"state": self.fault} if self.fault else {})

    def _round(self, begun: Callable[[Erase], None]) -> Steps[None]:
        now_ns = self._clock_ns()
        if wait_ns := self._guard.wait_ns(now_ns, self._monotonic_ns()):
            self._tell(
                f"the host's clock went ahead to {_day(now_ns)}: no call is erased by its age for "
                f"{wait_ns / 3.6e12:.0f} hours; if that is not the day, set the clock"
            )
            return
        self._index.write(lambda writing: writing.set_number(RELIED_ON, now_ns))
        self._staying = Counter()
        waiting: dict[str, list[bytes]] = {}
        seen: set[bytes] = set()
        for found in self._candidates(now_ns):
            yield
            for one in found:
                if one not in seen and (due := self._due(one, now_ns)):
                    seen.update(due.ids)
                    batch = waiting.setdefault(due.reason, [])
                    batch += due.ids
                    if len(batch) >= BATCH:
                        yield from self._erase(waiting.pop(due.reason), due.reason, begun)
        for reason, ids in waiting.items():
            yield from self._erase(ids, reason, begun)
        self._tell(_staying(self._staying))

    def _erase(self, ids: list[bytes], reason: str, begun: Callable[[Erase], None]) -> Steps[None]:
        wanted = Erase(ids, reason, unfinished=True)
        begun(wanted)
        reply = yield from self._eraser.erasing(STORAGED, wanted)
        self._erased += reply.erased

    def _candidates(self, now_ns: int) -> Iterator[list[bytes]]:
        """Ids of calls that may be due, some at a time, many times none.

        Those that are old enough for some pool's term, of the pools that have one; and those
        whose own record sets one.
        """
        keeps = {name: one.keep_ns for name, one in self._terms.items() if one.keep_ns is not None}
        if keeps:
            tiers = {self._vaults.named(name).tier for name in keeps if self._vaults.has(name)}
            for ids in self._ids(b"time", tables.time_key(now_ns - min(keeps.values()))):
                with self._index.reading() as view:
                    states = [(one, view.readable_state(one)) for one in ids]
                old = [one for one, state in states if state is not None and state.tier in tiers]
                for first in range(0, max(len(old), 1), _OPENED):
                    yield old[first : first + _OPENED]
        for ids in self._ids(b"expires", tables.time_key(now_ns)):
            for first in range(0, max(len(ids), 1), _OPENED):
                yield ids[first : first + _OPENED]

    def _ids(self, table: bytes, end: bytes) -> Iterator[list[bytes]]:
        """Ids at the end of a table's keys, up to a key, in pieces."""
        key: bytes | None = b"\0"
        while key is not None:
            found, key = self._piece(table, key, end)
            yield found

    def _piece(self, table: bytes, key: bytes, end: bytes) -> tuple[list[bytes], bytes | None]:
        found: list[bytes] = []
        with self._index.reading() as view:
            cursor = view.cursor(table)
            more = cursor.set_range(key)
            while more and len(found) < _ROWS:
                if (key := bytes(cursor.key())) >= end:
                    return found, None
                with view.passing():
                    if len(key) != tables.TIME_KEY_BYTES:
                        raise tables.damaged(table, f"a key of {len(key)} bytes")
                    found.append(key[-tables.ID_BYTES :])
                more = cursor.next()
        return found, key + b"\0" if more else None

    def _due(self, call_id: bytes, now_ns: int) -> _Due | None:
        """A call and all that has media in common with it, if all of them are due."""
        together, reason = [call_id], ""
        with self._index.reading() as view:
            for one in together:
                try:
                    doomed = look_at(view, self._vaults, one)
                    if why := self._reason(doomed, now_ns):
                        day_keys(view, doomed)  # one that cannot go must not keep its whole batch
                except Fault as fault:
                    if fault.code != "not_found":
                        self._staying[fault.error] += 1
                    return None
                if not why:
                    return None
                reason = reason or why
                together += sharing(view, self._vaults, doomed) - {*together}
                if len(together) > _TOGETHER:
                    self._staying[f"more than {_TOGETHER} calls have media in common"] += 1
                    return None
        return _Due(together, reason)

    def _reason(self, doomed: Doomed, now_ns: int) -> str:
        """Why a call may go now; empty: it may not."""
        call, pool = doomed.call, doomed.erased.pool
        if call is None:
            self._staying["its record is damaged"] += 1
            return ""
        terms = self._terms_of(pool)
        if not doomed.state.bits & FINAL:
            now_ns -= UNFINISHED_NS
        due_ns = terms.due_ns(call.started_ns, call.expires_ns)
        if due_ns is None or due_ns > now_ns:
            return ""
        by_pool = terms.due_ns(call.started_ns)
        if by_pool is not None and by_pool <= now_ns:
            assert terms.keep_ns is not None
            return f"keep_days of pool {pool} have passed"
        return "without signalling, kept for orphan_days"

    def _terms_of(self, pool: str) -> Terms:
        return self._terms.get(pool, Terms())

    def _tell(self, fault: str | None) -> None:
        if fault and fault != self.fault:
            log.error("Calls stay whose time is up", extra={"FAULT": fault})
        self.fault = fault


def _staying(counts: Mapping[str, int]) -> str | None:
    """One line of what stays, and why."""
    if not counts:
        return None
    number = sum(counts.values())
    return f"calls whose time is up stay ({number:,}): {max(counts, key=lambda why: counts[why])}"


def _day(time_ns: int) -> str:
    try:
        return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return "a day that no calendar has"
