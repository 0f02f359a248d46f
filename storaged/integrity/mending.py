"""What is damaged (recordings, key pages, records) is asked back of replicas, and put in place.

What is damaged (storaged.index.damage) is told to each target with its feed until one brings it
back, or all have said why they cannot. A copy counts once its SHA-256 is the one that was sealed
and, in an open pool, every tag opens; then it replaces the damaged object by one rename. That one
is set aside, never reused: its blocks may be bad, and somebody may want to know what happened to
it. All that opens in it is in the copy too. WIRE.md §6, FORMAT.md §9. The other end:
replicator.returning.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from spanvault import messages as m
from spanvault.daemon.rules import POOLS
from storaged import files
from storaged.erasing import certifying
from storaged.faults import Fault
from storaged.format.walk import Steps
from storaged.index import damage, erasures
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.rows import OBJECT, SEALED, State
from storaged.index.view import View
from storaged.integrity import keymending, medium, recordmending
from storaged.integrity.keycheck import KeyCheck
from storaged.integrity.recordcheck import RecordCheck
from storaged.pools.vaults import Vault, Vaults
from storaged.recordings.examining import examining
from storaged.recordings.reading import Reader

log = logging.getLogger(__name__)
AT_ONCE: Final = 4  # asked back of a target with one page of the feed
LEASE_S: Final = 60.0  # one target brings it; another is asked when it has been silent so long
AGAIN_S: Final = 3600.0  # after all targets have said no
_ID: Final = 16
_LOOK_S: Final = 1.0  # between two looks at what is damaged
_SEEN_S: Final = 120.0  # a target that has not asked for so long is away
NO_REPLICA: Final = "no replica is set up: name a target in replicator.toml"
AWAY: Final = "it does not ask: is the replicator running, and the target there?"
CHANGED: Final = "the recording has changed or gone meanwhile"


class Case:
    """Something that is damaged, and whom it was asked back of."""

    def __init__(self, change: m.Change, fault: str) -> None:
        self.change, self.fault = change, fault
        self.told: dict[str, str] = {}  # by target: why it cannot bring it
        self.holder, self.until_s = "", 0.0  # who is bringing it
        self.again_s: float | None = None  # when all are asked anew

    def open_to(self, target: str, now_s: float) -> bool:
        """Whether this target may bring it now."""
        return target not in self.told and (self.holder in ("", target) or now_s >= self.until_s)


class Mender:
    """Knows what is asked back, and takes what comes. For the thread of requests.

    forget: makes the committer's thread know nothing of some recordings; all pools are held then.
    """

    def __init__(
        self, index: Index, vaults: Vaults, forget: Callable[[Sequence[bytes]], None],
        clock_ns: Callable[[], int], clock_s: Callable[[], float],
    ) -> None:  # fmt: skip
        self._index, self._vaults, self._forget = index, vaults, forget
        self._clock_ns, self._clock_s = clock_ns, clock_s
        self.reader = Reader(index, vaults)
        self._keys = KeyCheck(index, vaults, clock_ns)
        self.records = RecordCheck(index, vaults, clock_ns)
        self._cases: dict[bytes, Case] = {}
        self._seen: dict[str, float] = {}
        self._looked_s = -_LOOK_S
        self._mended, self._last = 0, ""

    # --- what is asked back ----------------------------------------------------------------------

    def wanted(self, target: str) -> list[m.Change]:
        """What a target that asks for the feed is asked back."""
        now_s = self._clock_s()
        self._seen[target] = now_s
        self._look(now_s)
        found = [case for case in self._cases.values() if case.open_to(target, now_s)][:AT_ONCE]
        for case in found:
            case.holder, case.until_s = target, now_s + LEASE_S
        return [case.change for case in found]

    def wants(self, target: str) -> bool:
        """Whether wanted() would give anything; nothing is promised by that."""
        now_s = self._clock_s()
        self._look(now_s)
        return any(
            case.open_to(target, now_s) and case.holder != target for case in self._cases.values()
        )

    def _look(self, now_s: float) -> None:
        """Take up what was found damaged since; forget what is whole or gone."""
        if now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        with self._index.reading() as view:
            found = dict(_damaged(view, self._vaults))
        for key in [key for key in self._cases if key not in found]:
            del self._cases[key]
        for key, (change, fault) in found.items():
            case = self._cases.get(key)
            if case is None or case.change != change:
                self._cases[key] = Case(change, fault)
            elif case.again_s is not None and now_s >= case.again_s:
                self._ask_anew(case)

    def _ask_anew(self, case: Case) -> None:
        case.told, case.holder, case.again_s = {}, "", None

    def asking(self, wanted: m.Mend) -> Steps[m.MendReply]:
        """How it stands with these recordings, or all. Raises Fault: there is no such recording."""
        if wanted.again:
            for one in wanted.ids:
                yield from self._checking_again(one)
            if not wanted.ids:  # they are few, and much hangs on each
                for _ in self._keys.checking():
                    yield
        self._looked_s = -_LOOK_S
        self._look(self._clock_s())
        ids = wanted.ids or list(self._cases)
        records = map(recordmending.key_of, wanted.ids)
        ids = [*ids, *(key for key in records if key in self._cases)]
        for key in ids if wanted.again else []:
            if (case := self._cases.get(key)) and case.again_s is not None:
                self._ask_anew(case)
        return m.MendReply([self._about(key) for key in ids])

    def _checking_again(self, recording_id: bytes) -> Steps[None]:
        if recording_id.startswith((keymending.PREFIX, recordmending.PREFIX)):
            return  # the checks of key files and of records come by themselves
        yield from self.records.checking_one(recording_id)
        with self._index.reading() as view:
            state = view.state(recording_id)
        if state is not None and not state.bits & OBJECT:
            return  # a record alone
        try:
            yield from self.checking(recording_id)
        except Fault as fault:
            if fault.code != "corrupt":  # that was noted
                raise

    def _about(self, key: bytes) -> m.Mending:
        case = self._cases.get(key)
        if case is None:
            return m.Mending(key, "whole")
        with self._index.reading() as view:
            targets = erasures.targets(view)
        if not targets:
            return m.Mending(key, "hopeless", case.fault, {"": NO_REPLICA})
        told = {name: case.told.get(name) or self._asked(name) for name in targets}
        hopeless = all(name in case.told or told[name] == AWAY for name in targets)
        return m.Mending(key, "hopeless" if hopeless else "asked", case.fault, told)

    def _asked(self, target: str) -> str:
        seen_s = self._seen.get(target)
        return "asked" if seen_s and self._clock_s() - seen_s < _SEEN_S else AWAY

    def checking(self, recording_id: bytes) -> Steps[m.VerifyReply]:
        """Verify a recording; a sealed one that is damaged is asked back. Raises Fault."""
        with self._index.reading() as view:
            state = view.state(recording_id)
            if state is None and len(recording_id) == _ID and view.erased(recording_id):
                raise certifying.explain(certifying.erasure_of(view, recording_id))
        try:
            reply = yield from self.reader.verifying(recording_id)
        except Fault as fault:
            if fault.code == "corrupt":
                self._note(recording_id, state, [fault.error])
            raise
        self._note(recording_id, state, reply.faults)
        return reply

    def _note(self, recording_id: bytes, state: State | None, faults: list[str]) -> None:
        if faults and state is not None and state.bits & SEALED:
            damage.note(self._index, recording_id, state, faults, self._clock_ns())

    def fields(self) -> dict[str, Any]:
        """What a StatusReply tells of it. Any thread."""
        cases = list(self._cases.values())
        hopeless = sum(case.again_s is not None for case in cases)
        asked = len(cases) - hopeless
        return {"mended": self._mended, "asked": asked, "hopeless": hopeless, "last": self._last}

    # --- what comes ------------------------------------------------------------------------------

    def taking(self, given: m.Return, bulk: bytes, begun: Callable[[], None]) -> Steps[None]:
        """A part of a copy, or why there is none. begun: writes down that a copy takes its place.

        Raises Fault: not asked for, damaged; OSError, lmdb.Error: it is asked for again.
        """
        case = self._cases.get(_key_of(given.change))
        if case is None or given.change != case.change:
            raise Fault("not_found", "nothing such is asked back", "It is whole again, or gone.")
        case.holder, case.until_s = given.target, self._clock_s() + LEASE_S
        if given.fault:
            self._refused(case, given.target, given.fault)
            return
        try:
            if given.change.kind == "keys":
                begun()
                keymending.put_back(self._index, self._vaults, given, bulk)
                self._whole(case, f"{given.change.name} from {given.target}")
            elif given.change.kind == "record":
                begun()
                recordmending.put_back(self._index, self._vaults, given, bulk)
                self._whole(case, f"record of {given.change.id.hex()} from {given.target}")
            else:
                yield from self._object(case, given, bulk, begun)
        except OSError as error:
            self._refused(case, given.target, f"the store's disk takes nothing ({error.strerror})")
            raise
        except Fault as fault:
            if not given.more:
                self._refused(case, given.target, fault.error)
            raise

    def _whole(self, case: Case, told: str) -> None:
        del self._cases[_key_of(case.change)]
        self._mended += 1
        self._last = told

    def _refused(self, case: Case, target: str, fault: str) -> None:
        """Another target is asked; if there is none, it is said."""
        case.told[target], case.holder = fault[:500], ""
        what = _named(case.change)
        log.warning(
            "A target cannot bring back what is damaged",
            extra={**what, "TARGET": target, "FAULT": fault},
        )
        with self._index.reading() as view:
            left = [name for name in erasures.targets(view) if name not in case.told]
        if not left:
            case.again_s = self._clock_s() + AGAIN_S
            log.error(
                "What is damaged cannot be repaired: no target has a sound copy",
                extra={**what, "FAULT": case.fault, "REMEDY": HOPELESS},
            )

    def _object(
        self, case: Case, given: m.Return, bulk: bytes, begun: Callable[[], None]
    ) -> Steps[None]:
        change = case.change
        state, vault = self._still_damaged(change)
        vault.pool.check_place()
        part = vault.pool.path(change.id).with_suffix(".part")
        there = part.stat().st_size if part.exists() else 0
        end = given.offset + len(bulk)
        if not 0 <= given.offset <= there or end > change.size:
            raise Fault("invalid", f"part at {given.offset}, {there} bytes are here", "In order.")
        part.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            files.write_at(part, given.offset, bulk)
        except OSError:
            part.unlink(missing_ok=True)  # the disk may be full: others need what it took
            raise
        if end == change.size:
            yield from self._replacing(case, given.target, state, vault, part, begun)

    def _still_damaged(self, change: m.Change) -> tuple[State, Vault]:
        """The row by which it is known, and its pool. Raises Fault if that has changed."""
        with self._index.reading() as view:
            state = view.state(change.id)
            known = damage.known(view, change.id)
        if state is None or not known or state.sha256.hex() != change.sha256:
            raise Fault("not_found", CHANGED)
        return state, self._vaults.of(state.tier)

    def _check_still(self, change: m.Change, state: State, part: Path) -> None:
        """Raise Fault, and let the copy go, if the recording has changed meanwhile."""
        try:
            if self._still_damaged(change)[0] != state:
                raise Fault("not_found", CHANGED)
        except Fault:
            part.unlink(missing_ok=True)
            raise

    def _replacing(
        self, case: Case, target: str, state: State, vault: Vault, part: Path,
        begun: Callable[[], None],
    ) -> Steps[None]:  # fmt: skip
        """Check the copy as it lies on the medium, and put it in the object's place."""
        recording_id = case.change.id
        find_key = None if vault.locked else vault.dek
        with medium.opened(part, part.stat().st_size) as data:
            reply = yield from examining(recording_id, state, data, find_key)
        if reply.faults:
            part.unlink()
            raise Fault("corrupt", f"its copy does not open: {reply.faults[0]}")
        with contextlib.ExitStack() as held:
            yield from self._vaults.holding(held)
            self._check_still(case.change, state, part)
            begun()
            self._forget([recording_id])
            vault.pool.replace(recording_id, part)
        self.reader.forget(recording_id)
        if case.told:  # those that had no sound copy get one
            self._index.write(lambda writing: writing.announce(tables.OBJECT_CHANGED, recording_id))
        damage.clear(self._index, recording_id)
        self._whole(case, f"{recording_id.hex()} from {target}")
        log.warning(
            "A damaged recording was repaired",
            extra={"RECORDING_ID": recording_id.hex(), "TARGET": target, "FAULT": case.fault},
        )


HOPELESS: Final = (
    "What still opens can be heard. Look for another copy (a backup of the store or of a target), "
    "put it in its place and run 'spanvault verify'; it is asked for again each hour."
)


def _key_of(change: m.Change) -> bytes:
    """What a case is known by: a recording's id, or what stands for a key file or a record."""
    if change.kind == "keys":
        return keymending.PREFIX + change.name.encode()
    return recordmending.key_of(change.id) if change.kind == "record" else change.id


def _named(change: m.Change) -> dict[str, str]:
    """The same for the journal."""
    is_key = change.kind == "keys"
    return {"KEY_FILE": change.name} if is_key else {"RECORDING_ID": change.id.hex()}


def _damaged(view: View, vaults: Vaults) -> Iterator[tuple[bytes, tuple[m.Change, str]]]:
    """What is known to be damaged, as targets are asked for it."""
    for key, value in view.cursor(b"damaged"):
        recording_id = bytes(key)
        state = view.readable_state(recording_id)
        with view.passing():
            tables.check_id(b"damaged", recording_id)
        if state is None or not state.bits & SEALED or not state.bits & OBJECT:
            continue
        change = m.Change(
            0, "object", recording_id, POOLS[state.tier], size=state.size, sha256=state.sha256.hex()
        )
        yield recording_id, (change, damage.found_in(view, b"damaged", value).faults[0])
    yield from keymending.wanted(view)
    yield from recordmending.wanted(view, vaults)
