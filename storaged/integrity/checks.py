"""What an operator asks to have checked: key files, call records, ledgers, which recordings.

Checks as the rolling one does, without its pace. Key files: storaged.integrity.keycheck. Records:
storaged.integrity.recordcheck. One recording: storaged.integrity.mending. Protocol: WIRE.md §6.
"""

from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Final, TypeVar

from spanvault.messages import Check, CheckReply
from storaged.faults import Fault
from storaged.format.walk import Steps
from storaged.index import damage
from storaged.index.environment import Index
from storaged.index.rows import OBJECT
from storaged.integrity.keycheck import KeyCheck
from storaged.integrity.ledgercheck import LedgerCheck
from storaged.integrity.ledgermending import LedgerMending
from storaged.integrity.recordcheck import MOST, RecordCheck
from storaged.pools.vaults import Vaults

PAGE: Final = 20_000  # records of one answer; about a second
MENDED: Final = 64 << 20  # bytes read to make a ledger whole, of one answer
MENDING: Final = b"\xff"  # the cursor behind all files of ledgers
NAMED: Final = 2000  # rows looked at for one answer that names recordings
_ID: Final = 16
R = TypeVar("R")
_LAST: Final = b"\xff" * _ID


class Checks:
    """Answers Check. For the thread of requests."""

    def __init__(self, index: Index, vaults: Vaults, clock_ns: Callable[[], int]) -> None:
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self._record_check = RecordCheck(index, vaults, clock_ns)
        self._mending = LedgerMending(index, vaults, clock_ns)
        self._mending_on: Iterator[int] | None = None

    def answering(self, request: Check) -> Steps[CheckReply]:
        """Check in steps of some milliseconds. Raises Fault, OSError, lmdb.Error."""
        if request.what == "keys":
            return (yield from self._keys())
        if request.what == "ledgers":
            return (yield from self._ledgers(request.cursor))
        if len(request.cursor) not in (0, _ID):
            raise Fault("invalid", "the cursor is none of ours", "Begin without one.")
        if request.what == "recordings":
            return self._recordings(request.cursor)
        return (yield from self._records(request.cursor))

    def _keys(self) -> Steps[CheckReply]:
        check = KeyCheck(self._index, self._vaults, self._clock_ns)
        for _ in check.checking():
            yield
        with self._index.reading() as view:
            faults = {name: found.faults[0] for name, found in damage.files(view, damage.KEYS)}
        return CheckReply(len(check.checked), faults, check.mended, check.unchecked)

    def _records(self, after: bytes) -> Steps[CheckReply]:
        """Check some; behind the last all that is noted is looked for, and told of, together."""
        found = yield from _in_steps(self._record_check.checking(after, _LAST, PAGE))
        mended = [one.hex() for one in found.mended]
        if found.at is not None:
            return CheckReply(found.checked, {}, mended, self._vaults.locked, found.at)
        mended += [one.hex() for one in (yield from _in_steps(self._record_check.searching()))]
        with self._index.reading() as view:
            known = islice(damage.files(view, damage.RECORDS), MOST)
            faults = {name: each.faults[0] for name, each in known}
        return CheckReply(found.checked, faults, mended, self._vaults.locked)

    def _ledgers(self, after: bytes) -> Steps[CheckReply]:
        """Check the next file; behind the last some of what makes damaged ones whole."""
        if after != MENDING:
            check = LedgerCheck(self._index, self._vaults, self._clock_ns)
            names = check.names()
            behind = [name for name in names if name.encode() > after]
            if behind:
                for _ in check.checking(behind[0]):
                    yield
                return CheckReply(1, cursor=behind[0].encode())
            check.forget(names)
            self._mending = LedgerMending(self._index, self._vaults, self._clock_ns)
            self._mending_on = None
        if self._mending_on is None:
            self._mending_on = self._mending.mending()
        taken = 0
        for size in self._mending_on:
            yield
            if (taken := taken + size) >= MENDED:
                return CheckReply(0, cursor=MENDING)
        self._mending_on = None
        with self._index.reading() as view:
            faults = {name: found.faults[0] for name, found in damage.files(view, damage.LEDGERS)}
        return CheckReply(0, faults, self._mending.mended, self._vaults.locked)

    def _recordings(self, after: bytes) -> CheckReply:
        """Which there are: a damaged call record, or one that names no stream, hides none."""
        locked = {self._vaults.named(name).tier for name in self._vaults.locked}
        found, at = list[bytes](), None
        with self._index.reading() as view:
            for at in islice(calls := view.calls(after), NAMED):
                state = view.readable_state(at)
                if state is not None and state.bits & OBJECT and state.tier not in locked:
                    found.append(at)
            more = next(calls, None) is not None
        return CheckReply(
            0, unchecked=self._vaults.locked, cursor=at if more else None, recordings=found
        )


def _in_steps(steps: Generator[int, None, R]) -> Steps[R]:
    """What gives bytes read, as steps of an answer."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: R = done.value
            return found
        yield
