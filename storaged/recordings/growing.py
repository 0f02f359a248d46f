"""The recordings that grow: what this process knows of each, and how it goes on with one it did not
write itself.

A recording that was begun before a restart, or was forgotten, goes on from its row in the index;
its object is read when there is time, or when it must be. What cannot be gone on with is set aside,
and recording goes on. FORMAT.md §9. Groups, and the order of writing: storaged.recordings.writer.
Reading an object: storaged.recordings.resuming, storaged.format.walk.
"""

import contextlib
import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from storaged.faults import Fault
from storaged.format import walk
from storaged.format.sealing import ObjectWriter
from storaged.index.environment import Index
from storaged.index.rows import SEALED, Reach, State
from storaged.index.view import View
from storaged.keys.keyring import Keyring
from storaged.pools.pool import Pool
from storaged.recordings import remains, resuming
from storaged.recordings.gathering import Have

log = logging.getLogger(__name__)
_REMEMBERED: Final = 20_000  # recordings kept in memory though nothing was added lately


class Recording:
    """One recording that grows.

    state: its row as it was last committed; None while there is none. read: whether its object was
    read, or written by this process from the beginning: else it cannot be sealed.
    """

    __slots__ = ("have", "key_id", "read", "sealed", "state", "turn", "writer")

    def __init__(
        self, key_id: int, state: State | None = None, writer: ObjectWriter | None = None
    ) -> None:
        self.key_id = key_id
        self.state = state
        self.writer = writer
        self.have = Have()
        self.read = True
        self.sealed = False
        self.turn = 0  # the last group that it had to do with


class Growing:
    """Finds recordings, and gives keys to new ones. For the writer's thread."""

    def __init__(
        self, index: Index, keyring: Keyring, pool: Pool, clock_ns: Callable[[], int]
    ) -> None:
        self._index, self._keyring, self._pool, self._clock_ns = index, keyring, pool, clock_ns
        self._known: dict[bytes, Recording] = {}
        self._rows: dict[bytes, tuple[State | None, Reach | int]] = {}
        self._unread: deque[bytes] = deque()  # recordings to be read when there is time
        self._turn = 0  # counts groups
        self._taken: dict[int, bytes] = {}  # slots that the group at hand took, and for what
        self._unused: dict[bytes, list[int]] = {}  # of groups that then came to nothing
        self.new_keys: list[str] = []  # key files made for the group at hand

    def __len__(self) -> int:
        """Recordings whose media is not sealed yet, as far as this process met them."""
        known = list(self._known.values())
        return sum(1 for one in known if one.writer is not None and not one.sealed)

    def known(self, recording_id: bytes) -> Recording | None:
        """A recording, if it need not be read."""
        return self._known.get(recording_id)

    def find(self, recording_id: bytes) -> Recording:
        """A recording that was looked up: read or begun, if need be. Raises OSError, Fault."""
        one = self._known.get(recording_id)
        if one is None:
            one = self._known[recording_id] = self._find(recording_id)
        one.turn = self._turn
        return one

    def look_up(self, recording_ids: Iterable[bytes]) -> set[bytes]:
        """Read the rows of those that are not known, in one transaction, for the group at hand.

        Gives those that were erased.
        """
        unknown = [one for one in recording_ids if one not in self._known]
        erased = set()
        if unknown:
            with self._index.reading() as view:
                for one in unknown:
                    self._rows[one] = self._row_of(view, one)
                    if view.erased(one):
                        erased.add(one)
        return erased

    def _row_of(self, view: View, recording_id: bytes) -> tuple[State | None, Reach | int]:
        """What the index knows of one; where it cannot be read, what record and object tell."""
        with view.passing():
            return view.state(recording_id), view.reach(recording_id)
        state = view.readable_state(recording_id)
        if state is None and view.get(b"state", recording_id) is not None:
            state = remains.state_of(view, self._keyring, self._pool, recording_id)
        return state, remains.reach_of(self._pool, recording_id)

    def read(self, recording_id: bytes) -> Recording:
        """A recording whose object must be known whole. Raises OSError, Fault."""
        one = self._known[recording_id]
        if not one.read:
            try:
                self._read(recording_id, one)
            except (ValueError, Fault, OSError) as error:
                assert one.writer is not None
                one = self._begun_anew(recording_id, one.state, error, one.writer.size)
                self._known[recording_id] = one
        return one

    def read_next(self) -> bool:
        """Read the object of one recording that was not; between groups. False if all are."""
        while self._unread:
            recording_id = self._unread.popleft()
            one = self._known.get(recording_id)
            if one is None or one.read:
                continue
            try:
                self._read(recording_id, one)
            except (ValueError, Fault, OSError) as error:  # dealt with when the recording ends
                log.warning(
                    "A recording that goes on cannot be read yet",
                    extra={"RECORDING_ID": recording_id.hex(), "FAULT": str(error)},
                )
            return True
        return False

    def state(self, recording_id: bytes) -> State | None:
        """The committed row of one that is known or was looked up."""
        one = self._known.get(recording_id)
        return one.state if one is not None else self._rows[recording_id][0]

    def forget(self, recording_id: bytes) -> None:
        """Know nothing of a recording any more: it is read anew if it goes on."""
        self._known.pop(recording_id, None)
        self._pool.forget(recording_id)

    def take_key(self, owner: bytes) -> int:
        """The id of a key that nobody else has had. owner: the call, or whatever it is for.

        What a transaction that failed wrote of a call may lie in free pages of the index: were its
        key another's now, it would open there when the call is long erased.
        """
        if unused := self._unused.get(owner):
            key_id = unused.pop()
        else:
            key_id, changed = self._keyring.take(
                lambda: self._index.reserved_keys(self._pool.tier),
                lambda number: self._index.reserve_keys(number, self._pool.tier),
            )
            self.new_keys += changed
        self._taken[key_id] = owner
        return key_id

    def named(self, key_ids: Iterable[int]) -> None:
        """These are in use for good, whatever becomes of the group at hand."""
        for key_id in key_ids:
            self._taken.pop(key_id, None)

    def committed(self) -> None:
        """The group at hand is durable, with its keys."""
        self._unused = {owner: left for owner, left in self._unused.items() if left}
        self.new_keys, self._taken, self._rows = [], {}, {}
        self._turn += 1
        if len(self._known) > _REMEMBERED:
            self._forget_idle()

    def undone(self, *, all_cut: bool) -> None:
        """The group at hand came to nothing. all_cut: no byte of it is left in any object."""
        if all_cut:  # nothing was sealed by these keys: hours of trying again use up no slots
            for key_id, owner in self._taken.items():
                self._unused.setdefault(owner, []).append(key_id)
        self._taken, self._rows = {}, {}

    def _forget_idle(self) -> None:
        """Bound memory: forget what was longest without news, with some to spare for a while."""
        oldest = sorted(self._known, key=lambda recording_id: self._known[recording_id].turn)
        for recording_id in oldest[: len(oldest) - _REMEMBERED * 9 // 10]:
            self.forget(recording_id)

    def _find(self, recording_id: bytes) -> Recording:
        state, reach = self._rows[recording_id]
        sealed = state is not None and bool(state.bits & SEALED)
        committed = reach.size if isinstance(reach, Reach) else reach
        if state is not None and sealed:
            committed = state.size
        try:
            if isinstance(reach, Reach) and not sealed:
                with contextlib.suppress(ValueError, Fault):  # told of when it is read whole
                    return self._go_on(recording_id, state, reach)
            return self._resume(recording_id, state, committed)
        except FileNotFoundError:
            if committed:  # a filesystem may lose a name, or the file was removed
                self._tell(
                    recording_id, [f"the object is missing, {committed:,} bytes of it count"]
                )
            return Recording(state.key_id if state else self.take_key(recording_id), state)
        except (ValueError, Fault, OSError) as error:
            return self._begun_anew(recording_id, state, error, committed)

    def _begun_anew(
        self, recording_id: bytes, state: State | None, error: Exception, committed: int
    ) -> Recording:
        """In place of one that cannot be gone on with. Raises the error if that may pass."""
        if isinstance(error, OSError) and error.errno not in (errno.EIO, errno.EISDIR):
            raise error
        # One object that is damaged, or whose key is, must not stop all others.
        self._set_aside(recording_id, error, committed)
        return Recording(self.take_key(recording_id), state)

    def _go_on(self, recording_id: bytes, state: State | None, reach: Reach) -> Recording:
        """Go on with an object that another process wrote, without having read it."""
        with self._pool.reading(recording_id) as data:
            size = len(data)
            found = resuming.go_on(data, recording_id, reach, self._keyring.dek)
        if found.end < size:
            self._pool.cut(recording_id, found.end)
        one = Recording(found.writer.key_id, state, found.writer)
        one.have, one.read = found.have, False
        self._unread.append(recording_id)
        return one

    def _read(self, recording_id: bytes, one: Recording) -> None:
        """Make up for it."""
        assert one.writer is not None
        with self._pool.reading(recording_id, one.writer.size) as data:
            faults = resuming.read(data, one.writer, one.have, self._keyring.dek)
        one.read = True
        self._tell(recording_id, faults)

    def _tell(self, recording_id: bytes, faults: Iterable[str]) -> None:
        for fault in faults:
            log.error("Damage in a recording that goes on",
                      extra={"RECORDING_ID": recording_id.hex(), "FAULT": fault})  # fmt: skip

    def _resume(self, recording_id: bytes, state: State | None, committed: int) -> Recording:
        """Go on with an object that another process wrote: read it whole."""
        with self._pool.reading(recording_id) as data:
            size = len(data)
            # Where less is left than was acknowledged, all of it may be torn: a frame that is not
            # whole would swallow what follows it.
            kept = committed if size >= committed else 0
            found = walk.resume(data, kept, self._keyring.dek)
        self._tell(recording_id, found.faults)
        if size < committed:
            self._tell(recording_id, [f"it was cut: {size:,} of {committed:,} bytes that count"])
        if found.end < size:
            self._pool.cut(recording_id, found.end)
        one = Recording(found.writer.key_id, state, found.writer)
        one.have = Have(found.have)
        # A LAST frame that the index does not know of was not acknowledged: another follows, also
        # behind a recording that was sealed before, went on, and was cut off while it ended anew.
        known = bool(state and state.bits & SEALED) and found.end == committed
        one.sealed = found.sealed and known
        return one

    def _set_aside(self, recording_id: bytes, error: Exception, committed: int) -> None:
        """Move what cannot be gone on with out of the way; if nothing in it counted, remove it."""
        if not committed:
            self._pool.cut(recording_id, 0)
            return
        log.error("A recording cannot be gone on with, it was set aside",
                  extra={"RECORDING_ID": recording_id.hex(), "FAULT": str(error)})  # fmt: skip
        self._pool.set_aside(recording_id)
