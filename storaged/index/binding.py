"""Whose a call is: the capture's whose key was the first to send of it. No other can touch it.

A capture host that was taken over must not change, end or add to what another one records, nor
what it recorded itself long ago. Yet nothing that comes is thrown away: what a capture sends under
the id of a call that is not its own, or was closed, becomes a call of its own beside it, flagged
`kept_apart`. Identity: the CURVE key's name alone (WIRE.md §2). FORMAT.md §8.1. Who asks:
storaged.ingest, and storaged.recordings.sorting for spooled batches that waited for base.
"""

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec
import numpy as np

from spanvault.media.chunk import Media
from spanvault.messages import Batch, Call, Stream
from storaged.index.environment import Index
from storaged.index.rows import FINAL, State, day_of
from storaged.index.view import View

log = logging.getLogger(__name__)
APART: Final = "kept_apart"  # a flag of calls: docs/calls.md
_REMEMBERED: Final = 100_000  # calls whose capture is known without looking
_ID: Final = 16


class Bound(NamedTuple):
    """A batch whose calls are its capture's own.

    captures: of its calls, and of recordings that were not met before, the number of the capture.
    """

    batch: Batch
    media: Media
    captures: dict[bytes, int]


class Binding:
    """Binds calls to captures. Any thread.

    closed_days: how long after a call's last word its capture may still send of it.
    """

    def __init__(self, index: Index, closed_days: float, clock_ns: Callable[[], int]) -> None:
        self._index, self._closed_days, self._clock_ns = index, closed_days, clock_ns
        self._numbers: dict[str, int] = {}
        self._own: dict[bytes, int] = {}  # by id of a call: the capture that it is bound to
        self._elsewhere: dict[tuple[bytes, int], bytes] = {}  # where a capture's part of it goes
        self._day = 0
        self._lock = threading.Lock()
        self.apart: Counter[str] = Counter()  # calls kept apart since the start, by capture

    def bind(self, capture: str, batch: Batch, media: Media) -> Bound:
        """A batch of a capture, as it may be stored. Raises lmdb.Error, OSError.

        Whatever is not its own in it bears another id afterwards.
        """
        with self._lock:
            number = self._number(capture)
            self._forget_old()
            touched = _touched(batch, media)
            strange = [one for one in touched if self._own.get(one) != number]
            moved = self._settle(capture, number, strange) if strange else {}
        for call in batch.calls:
            call.heard_by = capture
        if moved:
            batch, media = _renamed(batch, moved), _readdressed(media, moved)
        new = [*(call.id for call in batch.calls), *(moved.get(one, one) for one in strange)]
        return Bound(batch, media, dict.fromkeys(new, number))

    def meet(self, capture: str) -> None:
        """Note that there is such a capture. Raises lmdb.Error, OSError."""
        with self._lock:
            self._number(capture)

    def _number(self, capture: str) -> int:
        if capture not in self._numbers:
            with self._index.reading() as view:
                number = view.capture(capture)
            if not number:
                number = self._index.write(lambda writing: writing.take_capture(capture))
            self._numbers[capture] = number
        return self._numbers[capture]

    def _forget_old(self) -> None:
        """What was closed meanwhile must be looked up again; and memory is bounded."""
        day = day_of(self._clock_ns())
        if day != self._day or len(self._own) + len(self._elsewhere) > _REMEMBERED:
            self._day = day
            self._own.clear()
            self._elsewhere.clear()

    def _settle(self, capture: str, number: int, strange: list[bytes]) -> dict[bytes, bytes]:
        """Bind what is free. Gives the new ids of what is not this capture's."""
        moved = {}
        with self._index.reading() as view:
            for one in strange:
                if len(one) != _ID:
                    continue  # the batch is refused for it
                to = self._elsewhere.get((one, number)) or self._find(view, capture, number, one)
                if to != one:
                    moved[one] = to
        return moved

    def _find(self, view: View, capture: str, number: int, asked: bytes) -> bytes:
        """The id under which a capture's part of a call is kept."""
        if view.erased(asked):
            # Bound to nobody: what another sends of it must not make its own capture's a new call.
            apart = beside(asked, capture)
            return apart if _owner(view, apart) == number else asked
        to = asked
        while not self._may(view, number, to):
            to = beside(to, capture)
        self._own[to] = number
        if to != asked:
            self._elsewhere[asked, number] = to
            self.apart[capture] += 1
            log.warning(
                "A call is not the capture's own, what it sends of it is kept apart",
                extra={"CAPTURE": capture, "RECORDING_ID": asked.hex(), "APART": to.hex()},
            )
        return to

    def _may(self, view: View, number: int, call_id: bytes) -> bool:
        """Whether a capture may send of a call."""
        if self._own.get(call_id, number) != number:
            return False
        state = view.readable_state(call_id)
        return _owner(view, call_id) in (0, number) and not (
            state is not None and self._closed(state)
        )

    def _closed(self, state: State) -> bool:
        """Whether a call had its last word too long ago. 0: nobody knows when."""
        since_days = self._day - state.closed
        return bool(state.bits & FINAL and state.closed) and since_days > self._closed_days


def _owner(view: View, call_id: bytes) -> int:
    """The number of the capture that a call is bound to; 0: none."""
    state = view.readable_state(call_id)
    return state.capture if state is not None else view.placed_by(call_id)


def _touched(batch: Batch, media: Media) -> set[bytes]:
    """The ids of all calls and recordings that a batch names."""
    touched: set[bytes] = set(media.table["recording_id"].tolist())
    for call in batch.calls:
        touched.add(call.id)
        touched |= {one.stored_in for one in (*call.streams, *call.beside) if one.stored_in}
    return touched


def beside(call_id: bytes, capture: str) -> bytes:
    """Another id for what a capture sends of a call: the same each time, and of the same time."""
    made = hashlib.sha256(b"spanvault kept apart/1" + call_id + capture.encode()).digest()
    return call_id[:6] + made[: _ID - 6]


def _renamed(batch: Batch, moved: Mapping[bytes, bytes]) -> Batch:
    calls = [_renamed_call(call, moved) for call in batch.calls]
    return msgspec.structs.replace(batch, calls=calls)


def _renamed_call(call: Call, moved: Mapping[bytes, bytes]) -> Call:
    streams, beside = (
        [_stored(one, moved) for one in each] for each in (call.streams, call.beside)
    )
    flags = sorted({*call.flags, APART}) if call.id in moved else call.flags
    return msgspec.structs.replace(
        call, id=moved.get(call.id, call.id), streams=streams, beside=beside, flags=flags
    )


def _stored(stream: Stream, moved: Mapping[bytes, bytes]) -> Stream:
    if stream.stored_in is None or stream.stored_in not in moved:
        return stream
    return msgspec.structs.replace(stream, stored_in=moved[stream.stored_in])


def _readdressed(media: Media, moved: Mapping[bytes, bytes]) -> Media:
    table = media.table.copy()
    for row in table:
        if to := moved.get(bytes(row["recording_id"])):
            row["recording_id"] = np.void(to)
    return media._replace(table=table)
