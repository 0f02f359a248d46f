"""The thread that commits groups, so that batches are taken in while a disk syncs.

A disk that is full, read-only or failing stops acknowledgements and nothing else: the group is kept
and tried again until it goes. What a commit is: storaged.recordings.writer.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import lmdb

from spanvault.daemon.lifecycle import name_thread
from storaged.diskfaults import explain
from storaged.faults import Fault
from storaged.recordings.gathering import Group
from storaged.recordings.sorting import Sorter
from storaged.recordings.writer import Counts, Writer

log = logging.getLogger(__name__)
RETRY_S: Final = 1.0
IDLE_S: Final = 1.0  # between two looks whether there is idle work
LEISURE: Final = 5  # parts of rest to one of reading what was begun before a restart


class Committed(NamedTuple):
    """A group that is on disk: it may be acknowledged."""

    group: Group
    counts: Counts


class Committer:
    """Commits one group at a time. submit() only when it is idle.

    idle: work to do while there is no group, some at a time; tells whether more is left.
    """

    def __init__(self, writer: Writer | Sorter, idle: Callable[[], bool] = lambda: False) -> None:
        self._writer, self._idle = writer, idle
        self._group: Group | None = None
        self._submitted_s = 0.0
        self._changed = threading.Condition()
        self._stopping = self._hurried = False
        self.done: deque[Committed] = deque()
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable: look at done
        self.fault: str | None = None  # one line for the operator, while commits fail
        self.broken: BaseException | None = None  # a fault of ours: the daemon must end
        self.committed_s: float | None = None  # monotonic time of the last commit
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether a group may be submitted."""
        return self._group is None and self.broken is None

    @property
    def under_way_s(self) -> float:
        """How long the group at hand has been waiting for its commit; 0 if there is none."""
        return time.monotonic() - self._submitted_s if self._group is not None else 0.0

    def submit(self, group: Group) -> None:
        """Commit this group; it must not be changed any more."""
        with self._changed:
            assert self._group is None
            self._group, self._submitted_s = group, time.monotonic()
            self._changed.notify_all()

    def hurry(self) -> None:
        """There is idle work: do not rest until the next look for it. Any thread."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def close(self, patience_s: float) -> bool:
        """Finish the group at hand and end. False if it could not be committed in time."""
        with self._changed:
            finished = self._changed.wait_for(
                lambda: self._group is None or self.broken is not None, patience_s
            )
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(patience_s)
        return finished and self.broken is None

    def _run(self) -> None:
        name_thread("committer")
        try:
            while group := self._next():
                if counts := self._commit(group):
                    self.done.append(Committed(group, counts))
                    with self._changed:
                        self._group = None
                        self._changed.notify_all()
                    os.eventfd_write(self.wake_fd, 1)
        except BaseException as error:  # handed to the main thread, which ends the daemon with it
            self.broken = error
            os.eventfd_write(self.wake_fd, 1)

    def _next(self) -> Group | None:
        """The next group. Meanwhile there is idle work, and objects are read, at leisure."""
        pause_s = 0.0
        while not self._wanted(pause_s):
            try:
                pause_s = 0.0 if self._idle() else self._read_next()
            except lmdb.PanicError:
                raise
            except (OSError, lmdb.Error, Fault) as error:
                pause_s = IDLE_S
                self._fail(error)
        return None if self._stopping else self._group

    def _wanted(self, patience_s: float) -> bool:
        """Whether there is a group, or an end; waits for it, or until it is hurried."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._group is not None or self._stopping or self._hurried, patience_s
            )
            self._hurried = False
            return self._group is not None or self._stopping

    def _read_next(self) -> float:
        """Read one recording that goes on from before a restart. Gives the seconds to rest."""
        began_s = time.monotonic()
        more = self._writer.read_next()
        return min(IDLE_S, LEISURE * (time.monotonic() - began_s)) if more else IDLE_S

    def _commit(self, group: Group) -> Counts | None:
        """Try until it is done; None if the daemon ends before."""
        while not self._stopping:
            try:
                counts = self._writer.commit(group)
            except lmdb.PanicError:
                raise  # the environment must be opened anew: by a restart
            except (OSError, lmdb.Error, Fault) as error:
                self._fail(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, RETRY_S)
                continue
            if self.fault is not None:
                log.info("The store takes writes again")
            self.fault, self.committed_s = None, time.monotonic()
            return counts
        return None

    def _fail(self, error: Exception) -> None:
        text = explain(error)
        if text != self.fault:
            log.error("The store takes no writes, captures keep what they hear",
                      extra={"FAULT": text})  # fmt: skip
        self.fault = text
