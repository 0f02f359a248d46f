"""What one target needs next, and how far it has got: the replicator's core.

Fed with the feed's replies and with what became of each step; answers with the next step. Rules:
- The position moves only past changes that are verified at the target, or set aside by name.
- Of several changes to one file in a page only the last is copied: the store has no older bytes.
- The bundle goes first (it says what the target should hold), then keys, then recordings: so no
  file is ever there that no bundle can vouch for, and a restore can name what is missing.
- Erasures come last: the new root key must be there before the old ones go.
- Each page leaves a small bundle; from time to time they are merged, or a restore after years
  would have to open millions of files.
- What the store asks back goes before all copying: somebody may be waiting to hear it.
- What the store itself cannot give (a damaged recording) is set aside, shown, and tried again
  later; the rest goes on. What the target cannot take stops only this target, with back-off.

No clock, socket or file. Carrying steps out: replicator.follower; keeping marks: replicator.state.
"""

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from spanvault.messages import Change, FeedReply

SECOND: Final = 1_000_000_000
STORE_RETRY_NS: Final = 1 * SECOND
IDLE_NS: Final = SECOND // 5  # between two empty pages, should the store not wait as asked
CLAIM_NS: Final = 30 * SECOND  # an idle target is looked at so often: is it still there?
HEAD_NS: Final = 5 * SECOND  # while a target is away, the store is asked so often how far it is
MERGE_AT: Final = 256  # bundles written since they were last merged
BACK_OFF: Final = 32  # the longest wait for a target, in units of retry_s
ASIDE_MAX: Final = 1000  # more than that, and it is the store's disk, not some recordings
ASIDE: Final = 30  # what was set aside is tried again after so many retry_s

BROKEN: Final = "Look at the store's disk: 'spanvault verify --all' tells what it still reads."


class Aside(msgspec.Struct, frozen=True):
    """A recording that could not be copied, though store and target are there."""

    change: Change
    reason: str


class Mark(msgspec.Struct, frozen=True):
    """How far a target got; what must survive a restart."""

    store_id: str = ""
    position: int = 0
    claimed: bool = False  # the target has been this store's: from now on it must not be empty
    aside: tuple[Aside, ...] = ()


class AskFeed(NamedTuple):
    """Ask the store for what is behind this position."""

    position: int


class AskHead(NamedTuple):
    """Ask the store only how far it is: what lies behind this position is not wanted yet."""

    position: int


class Claim(NamedTuple):
    """See that the target is there and this store's; `first`: it may be new."""

    store_id: str
    first: bool


class CopyKeys(NamedTuple):
    """Copy a file of sealed keys."""

    change: Change


class CopyBundle(NamedTuple):
    """Copy the account of a page of changes, with its records."""

    changes: list[Change]


class CopyObject(NamedTuple):
    """Copy a sealed recording and give its receipt."""

    change: Change


class EraseCopies(NamedTuple):
    """Follow an erasure: away with what the target has of it, and a receipt."""

    change: Change


class BringBack(NamedTuple):
    """Bring back to the store what is damaged there."""

    change: Change


class Merge(NamedTuple):
    """Make few large bundles out of many small ones."""


class Wait(NamedTuple):
    """Nothing to do before this time."""

    until_ns: int


Copy = CopyKeys | CopyBundle | CopyObject | EraseCopies
Step = AskFeed | AskHead | BringBack | Claim | Copy | Merge | Wait


class Fault(NamedTuple):
    """Why a target stands still, and what to do about it."""

    text: str
    hint: str
    since_ns: int


class Lag(NamedTuple):
    """Changes that are not at the target yet, and since when the oldest of them is known of.

    changes: None before the store has said how far it is. Changes that the store has meanwhile
    replaced by later ones are counted too: it is an upper bound.
    """

    changes: int | None
    oldest_ns: int | None


class Plan:
    """The way of one target along the feed. Times are ns since 1970 of one clock."""

    def __init__(self, mark: Mark, retry_ns: int) -> None:
        self.mark = mark
        self.fault: Fault | None = None
        self._retry_ns = retry_ns
        self._failures = 0  # of the target, in a row
        self._not_before_ns = 0
        self._claim_due_ns = 0
        self._aside_due_ns = 0
        self._page: dict[int, int] = {}  # position → when it was first seen, of what is open
        self._page_end = mark.position
        self._steps: deque[Copy] = deque()
        self._wanted: deque[BringBack] = deque()
        self._head: int | None = None
        self._head_due_ns = 0
        self._bundles = 0  # written since they were last merged

    def next(self, now_ns: int) -> Step:
        """What to do now. The same step is given until its outcome has been told."""
        if now_ns < self._not_before_ns:
            return self._pause(now_ns)
        if self.mark.store_id and now_ns >= self._claim_due_ns:
            return Claim(self.mark.store_id, first=not self.mark.claimed)
        if self._wanted:
            return self._wanted[0]
        if self._steps:
            return self._steps[0]
        return Merge() if self._bundles >= MERGE_AT else AskFeed(self.mark.position)

    def fed(self, reply: FeedReply, now_ns: int) -> None:
        """The store answered. Raises ValueError if this is no continuation for this target."""
        self._check(reply)
        self.asked_back(reply.wanted)
        self._head = max(reply.head, reply.position)
        self._store_answered()
        if not self.mark.store_id:
            self.mark = msgspec.structs.replace(self.mark, store_id=reply.store_id)
        if 0 < reply.head < self.mark.position:
            # The store was put back to an earlier state. Copying again what is there is harmless.
            self._move_to(0)
            return
        self._page = {c.position: now_ns for c in reply.changes}
        self._page_end = reply.position
        self._steps.extend(_steps(reply.changes))
        if not reply.changes:
            self._move_to(reply.position)
            self._not_before_ns = now_ns + IDLE_NS
            self._retry_aside(now_ns)

    def asked_back(self, wanted: list[Change]) -> None:
        """The store wants these of the target, now: what it wanted before no longer counts."""
        self._wanted = deque(map(BringBack, wanted))

    def brought_back(self, step: BringBack) -> None:
        """It was tried. If it came to nothing the store asks again."""
        if self._wanted and self._wanted[0] is step:
            self._wanted.popleft()

    def head_is(self, head: int | None, now_ns: int) -> None:
        """The store said how far it is, or (None) did not answer."""
        self._head_due_ns = now_ns + HEAD_NS
        if head is not None:
            self._head = max(self._head or 0, head)

    def merged(self) -> None:
        """The bundles are few again."""
        self._bundles = 0

    def claimed(self, now_ns: int) -> None:
        """The target is there and this store's."""
        if not self._steps:  # else the fault stays until a copy succeeds: it may be full
            self._target_works()
        self._claim_due_ns = now_ns + CLAIM_NS
        self.mark = msgspec.structs.replace(self.mark, claimed=True)

    def copied(self, step: Copy) -> None:
        """The step was carried out and its checksum read back."""
        self._target_works()
        self._store_answered()
        if isinstance(step, CopyObject | EraseCopies):
            self._set_aside(step.change.id, None)
        self._bundles += isinstance(step, CopyBundle)
        self._done(step)

    def refused(self, step: Copy, reason: str, now_ns: int) -> None:
        """The store cannot give these bytes: go on without them, and keep that in mind."""
        if len(self.mark.aside) >= ASIDE_MAX:
            self.store_failed(f"{ASIDE_MAX} recordings are set aside. {reason}", BROKEN, now_ns)
            return
        self._store_answered()
        if isinstance(step, CopyObject):
            self._set_aside(step.change.id, Aside(step.change, reason))
        self._done(step)

    def put_off(self, step: EraseCopies, reason: str) -> None:
        """The target has not got the new root key yet: at the end of the feed it has."""
        self._set_aside(step.change.id, Aside(step.change, reason))
        self._aside_due_ns = 0
        self._done(step)

    def erased(self, recording_ids: Iterable[bytes]) -> None:
        """These are gone from the store: they are not tried again."""
        for recording_id in recording_ids:
            self._set_aside(recording_id, None)

    def store_failed(self, text: str, hint: str, now_ns: int) -> None:
        """The store is away or does not serve us. The step stays."""
        self.fault = _fault(self.fault, text, hint, now_ns)
        self._not_before_ns = now_ns + STORE_RETRY_NS

    def target_failed(self, text: str, hint: str, now_ns: int) -> None:
        """The target is away, full or foreign. The step stays; the target is looked at first."""
        self.fault = _fault(self.fault, text, hint, now_ns)
        self._not_before_ns = now_ns + self._retry_ns * min(1 << self._failures, BACK_OFF)
        self._failures = min(self._failures + 1, BACK_OFF)
        self._claim_due_ns = 0

    def lag(self) -> Lag:
        """How far behind the store's newest known change the target is."""
        if self._head is None:
            return Lag(None, None)
        unread = max(0, self._head - self._page_end)
        return Lag(len(self._page) + unread, min(self._page.values(), default=None))

    def _pause(self, now_ns: int) -> Step:
        """Wait; meanwhile the lag of a target that is away must not look smaller than it is."""
        if not self._failures or self._head is None:
            return Wait(self._not_before_ns)
        if now_ns >= self._head_due_ns:
            return AskHead(self._page_end)
        return Wait(min(self._not_before_ns, self._head_due_ns))

    def _check(self, reply: FeedReply) -> None:
        known = self.mark.store_id
        if known and reply.store_id != known:
            raise ValueError(
                f"storaged now serves store {reply.store_id}, this target is {known}'s"
            )
        positions = [self.mark.position, *(change.position for change in reply.changes)]
        rising = all(a < b for a, b in pairwise(positions))
        if not rising or (reply.changes and reply.position < positions[-1]):
            raise ValueError("the feed's positions do not rise")

    def _done(self, step: Copy) -> None:
        """Forget the step, and move the position up to the first change that is still open."""
        if self._steps and self._steps[0] is step:
            self._steps.popleft()
        open_positions = {c.position for s in self._steps for c in _changes(s)}
        self._page = {p: ns for p, ns in self._page.items() if p in open_positions}
        if self._page:
            self._move_to(max(self.mark.position, min(self._page) - 1))
        else:
            self._move_to(self._page_end)

    def _move_to(self, position: int) -> None:
        if position != self.mark.position:
            self.mark = msgspec.structs.replace(self.mark, position=position)
        if not self._page:
            self._page_end = position

    def _set_aside(self, recording_id: bytes, aside: Aside | None) -> None:
        kept = tuple(a for a in self.mark.aside if a.change.id != recording_id)
        kept += (aside,) if aside else ()
        if kept != self.mark.aside:
            self.mark = msgspec.structs.replace(self.mark, aside=kept)

    def _retry_aside(self, now_ns: int) -> None:
        if self.mark.aside and now_ns >= self._aside_due_ns:
            self._aside_due_ns = now_ns + ASIDE * self._retry_ns
            self._steps.extend(
                EraseCopies(aside.change) if aside.change.kind == "erase"
                else CopyObject(aside.change) for aside in self.mark.aside
            )  # fmt: skip

    def _store_answered(self) -> None:
        if self.fault and not self._failures:
            self.fault = None

    def _target_works(self) -> None:
        self._failures = 0
        self.fault = None


def _steps(changes: list[Change]) -> list[Copy]:
    """A page's steps, in the order that the module's docstring gives reasons for."""
    if not changes:
        return []
    latest = {(change.kind, change.id, change.name): change for change in changes}
    keys = [CopyKeys(change) for change in latest.values() if change.kind == "keys"]
    objects = [CopyObject(change) for change in latest.values() if change.kind == "object"]
    erased = [EraseCopies(change) for change in changes if change.kind == "erase"]
    return [CopyBundle(changes), *keys, *objects, *erased]


def _changes(step: Copy) -> list[Change]:
    return step.changes if isinstance(step, CopyBundle) else [step.change]


def _fault(known: Fault | None, text: str, hint: str, now_ns: int) -> Fault:
    """The fault as it is now; it goes on since the first time it was seen."""
    return Fault(text, hint, known.since_ns if known and known.text == text else now_ns)
