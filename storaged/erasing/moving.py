"""A call is moved up to a higher pool: sealed anew there, and the lower copy erased.

Way: the recording is opened frame by frame and kept as batches sealed to the upper pool's public
key, in its intake, not yet to be taken. One transaction then takes the call out of the lower pool
and begins the erasure of its copy there; from then on the batches count, and are made a recording
as all that waits in an intake is. So a crash leaves the call in one of the two, and nothing of it
in the clear. Then the lower copy's keys are destroyed (storaged.erasing.eraser). What else must
follow: an orphan whose call lies higher, a call whose first record came behind its media. FORMAT.md
§13.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import lmdb
import numpy as np

from spanvault import messages as m
from spanvault.daemon.rules import POOLS
from spanvault.media.chunk import CHUNK, FRAME, Chunk, Media
from storaged.erasing.doomed import Doomed, check_terms_kept, look_at
from storaged.erasing.eraser import MAX_REASON, STORAGED, Eraser
from storaged.faults import Fault
from storaged.format import record, walk
from storaged.format.ledger import PLACED, Entry, Place, Placed
from storaged.format.sealing import LAST
from storaged.format.walk import Steps
from storaged.index import erasures
from storaged.index.environment import Index
from storaged.index.rows import FINAL, OBJECT, SEALED, check_id, damaged
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.pools.vaults import Vault, Vaults

log = logging.getLogger(__name__)
MOST: Final = 500  # calls of one request
BATCH_BYTES: Final = 4 << 20  # of media, sealed together
_AGAIN_S: Final = 60  # between two tries to move what must follow
_REPAIRED_S: Final = 3600  # the same, where it is damaged


class _Plan(NamedTuple):
    """What is to be moved, and where to."""

    upper: Vault
    doomed: list[Doomed]  # its copies in lower pools
    already: list[bytes]


class Mover:
    """Moves calls up, one request at a time. For the thread of requests.

    forget: makes the committer's thread know nothing of some recordings; all pools are held then.
    """

    def __init__(
        self, index: Index, vaults: Vaults, eraser: Eraser,
        forget: Callable[[Sequence[bytes]], None], clock_ns: Callable[[], int],
    ) -> None:  # fmt: skip
        self._index, self._vaults, self._eraser = index, vaults, eraser
        self._forget, self._clock_ns = forget, clock_ns
        self._busy = False
        self._not_before_ns: dict[bytes, int] = {}  # of what must follow and could not

    def moving(self, who: str, wanted: m.Move) -> Steps[m.MoveReply]:
        """Move calls up, with the recordings that their streams lie in.

        Raises Fault, and does nothing, unless all of them can go; OSError, lmdb.Error if the disk
        fails: what was begun then is completed by the next start.
        """
        if self._busy:
            raise Fault("unavailable", "other calls are being moved", "Try again in a moment.")
        self._busy = True
        try:
            return (yield from self._moving(who, wanted))
        finally:
            self._busy = False

    def _moving(self, who: str, wanted: m.Move) -> Steps[m.MoveReply]:
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            self._eraser.finish()  # so that what waits in `moving` is of nobody
        plan, at_ns = self._look_at(wanted), self._clock_ns()
        if not plan.doomed:
            return m.MoveReply(b"", 0, plan.already)
        if who != STORAGED:  # what follows its call goes where the rules have that
            check_terms_kept(plan.doomed, plan.upper.name, self._eraser.terms, at_ns)
        erasure = m.Erasure(
            at_ns.to_bytes(8, "big") + os.urandom(8), at_ns, who, wanted.reason.strip(),
            [one.erased for one in plan.doomed], moved_to=plan.upper.name,
        )  # fmt: skip
        key = plan.upper.intake_key
        try:
            for one in plan.doomed:
                yield from self._sealing(plan.upper, erasure.id, one, key)
            with contextlib.ExitStack() as held:
                yield from self._vaults.holding(held)
                _check_opens(plan.upper, key)
                self._change_over(erasure, plan)
        finally:
            self._drop_what_came_to_nothing(plan.upper)
        log.info("Calls were moved up", extra={"POOL": plan.upper.name,
                                               "CALLS": len(plan.doomed)})  # fmt: skip
        with self._index.reading() as view:
            pending = erasures.targets(view)
        return m.MoveReply(erasure.id, len(plan.doomed), plan.already, pending)

    def clear(self) -> None:
        """At a start, behind Eraser.finish(): remove copies of moves that a crash cut off.

        They open with the upper pool's key: no later erasure of the call would reach them.
        """
        try:
            for vault in self._vaults:
                self._drop_what_came_to_nothing(vault)
        except OSError as error:  # recording must go on
            log.error("What a move left behind cannot be removed yet",
                      extra={"FAULT": str(error)})  # fmt: skip

    def _drop_what_came_to_nothing(self, upper: Vault) -> None:
        with self._index.reading() as view:
            begun = [one.id for one in erasures.unfinished(view)]
        upper.intake.drop_moving(begun)

    # --- what goes -------------------------------------------------------------------------------

    def _look_at(self, wanted: m.Move) -> _Plan:
        ids = _checked(wanted)
        upper = self._vaults.named(wanted.pool)
        if upper.locked:
            # What waits in an intake lies on one disk alone: the only copy must not.
            upper.require_open()
        doomed, already, seen = [], [], set(ids)
        with self._index.reading() as view:
            while ids:
                one = self._look_at_call(view, ids.pop(0), upper)
                if one is None:
                    continue
                if one.state.tier == upper.tier:
                    already.append(one.erased.id)
                    continue
                doomed.append(one)
                for other in self._beneath(view, one, upper):
                    if other not in seen:
                        seen.add(other)
                        ids.append(other)
        return _Plan(upper, doomed, already)

    def _look_at_call(self, view: View, call_id: bytes, upper: Vault) -> Doomed | None:
        """A call that can go up, or is there. Raises Fault."""
        one = look_at(view, self._vaults, call_id)
        text = call_id.hex()
        if one.state.tier > upper.tier:
            raise Fault(
                "invalid",
                f"call {text} lies in {POOLS[one.state.tier]}, above {upper.name}",
                "A call is moved up only: what was sealed for few is not opened to more.",
            )
        if one.state.tier < upper.tier and not one.state.bits & FINAL:
            raise Fault("invalid", f"call {text} has not ended", "Move it when it has.")
        if one.call is None:
            raise Fault("corrupt", f"the record of call {text} does not open", REPAIR)
        return one

    def _beneath(self, view: View, one: Doomed, upper: Vault) -> Iterator[bytes]:
        """The recordings of others that this call's streams lie in, where those are lower."""
        assert one.call is not None
        for other in sorted(record.recordings_of(one.call)):
            state = view.state(other)
            if state is not None and state.tier < upper.tier:
                yield other

    # --- the copy --------------------------------------------------------------------------------

    def _sealing(self, upper: Vault, move: bytes, one: Doomed, key: bytes) -> Steps[None]:
        """A call into the upper pool's intake: its media, then its record, sealed to a public key.

        Raises Fault, OSError.
        """
        assert one.call is not None
        if one.state.bits & OBJECT:
            for media in _media_of(self._vaults.of(one.state.tier), one):
                if media is not None:
                    upper.intake.put_moving(move, [], media, key)
                yield
        upper.intake.put_moving(move, [one.call], None, key)

    def _change_over(self, erasure: m.Erasure, plan: _Plan) -> None:
        """The transaction by which the calls are of the upper pool, and what follows from it."""
        erasure = self._eraser.planned(erasure, plan.doomed)
        self._forget([one.erased.id for one in plan.doomed])
        with self._eraser.noted(erasure, *_placed(plan)) as place:
            self._index.write(lambda writing: self._begin(writing, erasure, plan, place))
        plan.upper.intake.publish_moving(erasure.id)
        self._eraser.complete(erasure)
        self._vaults.hurry()

    def _begin(self, writing: Writing, erasure: m.Erasure, plan: _Plan, place: Place) -> None:
        """Raises Fault if one of the calls has changed."""
        for one in plan.doomed:
            if writing.state(one.erased.id) != one.state:
                raise Fault("unavailable", "a call has changed meanwhile", "Move it again.")
        self._eraser.begin(writing, erasure, plan.doomed, place)
        for one in plan.doomed:
            assert one.call is not None
            writing.put_placed(one.erased.id, plan.upper.tier, one.state.capture)
            for other in record.recordings_of(one.call):
                writing.put(b"shared", other, one.erased.id)

    # --- what must follow ------------------------------------------------------------------------

    def following(self, begun: Callable[[m.Move], None]) -> Steps[None]:
        """Move up what must follow and can. begun: writes it down before it is done."""
        now_ns = self._clock_ns()
        due = []
        with self._index.reading() as view:
            for key, value in _followers(view):
                if now_ns >= self._not_before_ns.get(key, 0) and self._can_follow(view, key, value):
                    due.append(m.Move([key], POOLS[value], FOLLOWS))
        for wanted in due:
            try:
                begun(wanted)
                yield from self.moving(STORAGED, wanted)
                self._not_before_ns.pop(wanted.ids[0], None)
            except (Fault, OSError, lmdb.Error) as error:
                self._put_off(wanted, error)

    def _put_off(self, wanted: m.Move, error: Exception) -> None:
        """It is tried again; seldom where somebody has to mend something first."""
        damaged = isinstance(error, Fault) and error.code == "corrupt"
        wait_s = _REPAIRED_S if damaged else _AGAIN_S
        self._not_before_ns[wanted.ids[0]] = self._clock_ns() + wait_s * 10**9
        log.warning(
            "A recording cannot follow its call into a higher pool yet",
            extra={
                "RECORDING_ID": wanted.ids[0].hex(),
                "POOL": wanted.pool,
                "FAULT": error.error if isinstance(error, Fault) else str(error),
            },
        )

    def _can_follow(self, view: View, recording_id: bytes, tier: int) -> bool:
        state = view.readable_state(recording_id)
        if state is None or not state.bits & FINAL:
            return False
        return not any(self._vaults.of(each).locked for each in (state.tier, tier))


FOLLOWS: Final = "it follows its call"
REPAIR: Final = "Repair it first: spanvault repair. Nothing was moved."


def _check_opens(upper: Vault, key: bytes) -> None:
    """Raise Fault if what was sealed for a pool would not open there any more."""
    if not upper.keyring.has_ingest_key(key):
        raise Fault("unavailable", f"pool {upper.name} got a new ingest key", "Move it again.")


def _followers(view: View) -> Iterator[tuple[bytes, int]]:
    """Recordings that must follow, and the tier of the pool that they must be moved up to."""
    for key, value in view.cursor(b"follow"):
        with view.passing():
            check_id(b"follow", key)
            if len(value) != 1 or value[0] >= len(POOLS):
                raise damaged(b"follow", f"{len(value)} bytes")
            yield bytes(key), value[0]


def _placed(plan: _Plan) -> list[Entry]:
    """Where the calls wait from now on, for base's ledger."""
    tier = plan.upper.tier
    return [
        Entry(
            PLACED, one.erased.id, Placed(tier, tuple(record.recordings_of(one.call))).serialize()
        )
        for one in plan.doomed
        if one.call is not None
    ]


def _checked(wanted: m.Move) -> list[bytes]:
    """The ids, each once. Raises Fault."""
    ids = list(dict.fromkeys(wanted.ids))
    if not ids or len(ids) > MOST or any(len(one) != 16 for one in ids):
        raise Fault("invalid", f"{len(ids)} ids of calls", f"Name 1 to {MOST}, 16 bytes each.")
    if wanted.pool not in POOLS[1:]:
        raise Fault("invalid", f"no call is moved to {wanted.pool[:20]!r}", "Up: core, sensitive.")
    if not wanted.reason.strip() or len(wanted.reason) > MAX_REASON:
        raise Fault("invalid", "a move needs its reason", "Give one; it should name nobody.")
    return ids


def _media_of(vault: Vault, one: Doomed) -> Iterator[Media | None]:
    """All chunks of a sealed object, some at a time; None between frames. Raises Fault, OSError.

    What does not open must not be lost unsaid with the lower copy.
    """
    recording_id, state = one.erased.id, one.state
    if not state.bits & SEALED:
        raise Fault("invalid", f"recording {recording_id.hex()} goes on", "Move it when it ended.")
    try:
        with vault.pool.reading(recording_id, state.size) as data:
            layout = walk.walk(data)
            if layout.faults or not layout.sealed:
                raise ValueError(layout.faults[0] if layout.faults else "its end is missing")
            opener, chunks, size = walk.Opener(data, layout, vault.dek), list[Chunk](), 0
            for place in layout.places:
                if place.flag == LAST:
                    continue
                chunks += walk.chunks_of(opener.open(place), recording_id)
                size += place.end - place.start
                if size >= BATCH_BYTES:
                    yield _together(chunks)
                    chunks, size = [], 0
                yield None
            if chunks:
                yield _together(chunks)
    except (ValueError, OSError) as error:
        raise Fault("corrupt", f"recording {recording_id.hex()}: {error}", REPAIR) from None


def _together(chunks: Sequence[Chunk]) -> Media:
    table = np.array([piece.header for piece in chunks], CHUNK)
    frames = np.concatenate([piece.frames for piece in chunks]).astype(FRAME, copy=False)
    return Media(table, frames, memoryview(b"".join(bytes(piece.payload) for piece in chunks)))
