"""One thread for work that waits for a disk, so that the loop that empties the ring never does.

Work is done in the order in which it was handed over. What follows from it is done by whoever hands
it over, when it asks for it: so nothing but the work itself has to bear another thread. Who may
hand over how much is for the caller to bound.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from spanvault.daemon.lifecycle import name_thread

T = TypeVar("T")
Then = Callable[[T | Exception], None]
NAME: Final = "spool"  # as top -H shows it


class _Work(NamedTuple):
    do: Callable[[], Any]
    then: Then[Any] | None


class Aside:
    """Begins with the first piece of work. For one caller's thread."""

    def __init__(self) -> None:
        self._waiting: deque[_Work] = deque()
        self._done: deque[tuple[Then[Any], Any]] = deque()
        self._changed = threading.Condition()
        self._busy = self._ended = False
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], T], then: Then[T] | None = None) -> None:
        """Have work done. then: gets its result, or what it raised, within settle() or wait()."""
        with self._changed:
            self._waiting.append(_Work(work, then))
            self._changed.notify_all()
        if self._thread is None:
            # Nobody waits at the end of the process for a disk that hangs.
            self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Do what follows from the work that is done."""
        while self._done:
            then, result = self._done.popleft()
            then(result)

    def wait(self) -> None:
        """Wait until all work is done, also what follows from it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._waiting and not self._busy)
            if not self._done:
                return
            self.settle()

    def close(self) -> None:
        """Let the thread end when it has done what was handed over."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        name_thread(NAME)
        while work := self._next():
            try:
                result = work.do()
            except Exception as error:  # the caller's, who gets it with the result
                result = error
            with self._changed:
                if work.then is not None:
                    self._done.append((work.then, result))
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> _Work | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._ended)
            if not self._waiting:
                return None
            self._busy = True
            return self._waiting.popleft()
