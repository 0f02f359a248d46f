"""What a store must hold after any row of acts: each call as it was sent, and what became of it.

Pure but for what it is told. Acts: tests/support/interplayacts.py. What is asked of storaged, and
held against this: tests/support/interplaychecks.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

import msgspec

from spanvault import messages as m
from spanvault.media.chunk import EVENTS
from storaged.index.binding import APART, beside

POOLS: Final = ("base", "core", "sensitive")
Place = tuple[int, int]  # stream and second


@dataclass
class Told:
    """One call as its capture told of it, and what became of it."""

    id: bytes
    owner: str
    records: dict[int, m.Call] = field(default_factory=dict)  # by revision, as shown
    safe: int = -1  # the highest revision that was acknowledged; -1: only media, or nothing
    chunks: dict[Place, bytes] = field(default_factory=dict)  # sent
    kept: set[Place] = field(default_factory=set)  # of them, acknowledged
    pools: set[str] = field(default_factory=set)  # where it may lie: several while nobody knows
    loose: bool = False  # an index made anew does not know whose it is
    story: list[str] = field(default_factory=list)  # for whoever reads of a failure
    gone: bool | None = False  # erased; None: storaged died before it answered

    @property
    def name(self) -> str:
        """For people: what is kept apart has another end."""
        return self.id.hex()[-8:]

    @property
    def last(self) -> m.Call | None:
        """The last record that was sent of it."""
        return self.records[max(self.records)] if self.records else None

    @property
    def ended(self) -> bool:
        return any(call.final for number, call in self.records.items() if number <= self.safe)

    @property
    def settled(self) -> bool:
        """Whether all that was sent of it was acknowledged."""
        sent = max(self.records, default=-1)
        return bool(self.safe >= 0 or self.kept) and sent == self.safe and (
            self.kept == self.chunks.keys()
        )  # fmt: skip

    def holders(self) -> set[bytes]:
        """The recordings of others that its streams lie in."""
        call = self.last
        return {one.stored_in for one in call.streams if one.stored_in} if call else set()


class Model:
    """All calls that were told of, and what opens the pools."""

    def __init__(self) -> None:
        self.calls: dict[bytes, Told] = {}
        self.act = ""  # that goes on
        self.locked: set[str] = set()
        self.full: set[str] = set()  # pools, or `store`, whose disk takes nothing
        self.asked: dict[str, int] = {}  # kinds of requests that were answered
        self.unanswered: dict[str, int] = {}

    # --- what was sent ---------------------------------------------------------------------------

    def sent(
        self, capture: str, calls: Sequence[m.Call], chunks: dict[tuple[bytes, int, int], bytes]
    ) -> None:
        """A batch left a capture."""
        heard = {call.id for call in calls}
        for call in calls:
            told = self._told(capture, call.id)
            shown = msgspec.structs.replace(call, id=told.id, heard_by="")
            if told.id != call.id:
                shown.flags = sorted({*call.flags, APART})
            told.records[call.revision] = shown
            self.note(told, f"record {call.revision} to {call.callee}, final {call.final}")
            if not told.pools or told.pools == {"base"}:
                told.pools = told.pools | {pool_of(call)} if told.chunks else {pool_of(call)}
        for (recording, stream, second), data in chunks.items():
            told = self._told(capture, recording)
            told.chunks[stream, second] = data
            self.note(told, f"chunk {stream, second}")
            if told.safe < 0 and recording not in heard:  # its record may come behind it
                told.pools = told.pools | {"base"}

    def kept(
        self, capture: str, calls: Iterable[m.Call], chunks: Iterable[tuple[bytes, int, int]]
    ) -> None:
        """The same batch was acknowledged."""
        for call in calls:
            told = self._told(capture, call.id)
            told.safe = max(told.safe, call.revision)
            self.note(told, f"record {call.revision} kept")
        for recording, stream, second in chunks:
            self._told(capture, recording).kept.add((stream, second))

    def note(self, told: Told, what: str) -> None:
        """Something that became of a call."""
        told.story.append(f"act {self.act}: {what}")

    def _told(self, capture: str, call_id: bytes) -> Told:
        known = self.calls.get(call_id)
        if known is not None and known.owner != capture:
            call_id = beside(call_id, capture)
            known = self.calls.get(call_id)
        if known is None:
            known = self.calls[call_id] = Told(call_id, capture)
        return known

    # --- which calls -----------------------------------------------------------------------------

    def there(self) -> list[Told]:
        """Calls that nobody erased, and of which something was acknowledged."""
        return [one for one in self.calls.values() if one.gone is False and (
            one.safe >= 0 or one.kept)]  # fmt: skip

    def hearable(self) -> list[Told]:
        """Of them those that may be heard: their pool is open, and it is known."""
        return [one for one in self.there() if not one.pools & self.locked]

    def one(self, chance: Random, calls: Iterable[Told]) -> Told | None:
        found = list(calls)
        return chance.choice(found) if found else None

    def together(self, first: Told) -> list[Told]:
        """A call and all that has media in common with it: they can only go together."""
        found, todo = {first.id: first}, [first]
        while todo:
            told = todo.pop()
            others = [*told.holders(), *(
                one.id for one in self.calls.values() if told.id in one.holders())]  # fmt: skip
            for other in others:
                one = self.calls.get(other)
                if one is not None and one.gone is not True and other not in found:
                    found[other] = one
                    todo.append(one)
        return list(found.values())

    def beneath(self, first: Told) -> list[Told]:
        """A call and the recordings that its streams lie in."""
        found = {first.id: first}
        todo = [first]
        while todo:
            for other in todo.pop().holders():
                if (one := self.calls.get(other)) is not None and other not in found:
                    found[other] = one
                    todo.append(one)
        return list(found.values())

    # --- what must be heard ----------------------------------------------------------------------

    def sound(self, told: Told, *, digits: bool, kept: bool) -> dict[Place, bytes]:
        """What its recording must give. kept: what must be there; else: what may be."""
        found = _of(told, kept=kept)
        for stream in told.last.streams if told.last else ():
            holder = self.calls.get(stream.stored_in or b"")
            if holder is None or holder.gone is not False:
                continue
            for (number, second), data in _of(holder, kept=kept).items():
                if number == stream.stored_as:
                    found[stream.number, second] = data
        return {at: data for at, data in found.items() if (at[0] >= EVENTS) == digits}


def _of(told: Told, *, kept: bool) -> dict[Place, bytes]:
    return {at: data for at, data in told.chunks.items() if at in told.kept or not kept}


def pool_of(call: m.Call) -> str:
    """The pool that the rules of the store name."""
    return call.callee if call.callee in POOLS else "base"


def numbers(calls: Iterable[Told]) -> Iterator[str]:
    """All numbers that the last records name."""
    for told in calls:
        if told.last is not None:
            yield from (told.last.caller, told.last.callee)
