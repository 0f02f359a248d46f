"""Work that nobody waits for, taken step by step on a thread of its own, with rests between.

A transaction of the index is synced: while recording writes, that takes as long as the disk
pleases. A thread that has others to answer looks in now and then instead of waiting. What bounds
the cost is the rest after each step, measured by the CPU time that it took.
"""

import time
from collections.abc import Callable, Generator
from concurrent import futures
from functools import partial
from typing import Final

from spanvault.daemon.lifecycle import name_thread
from storaged.format.walk import Steps

Paced = Generator[float | None, None, None]  # steps; how many seconds each is to be followed by
REST: Final = 3.0  # parts of rest to one of work: a quarter of a core at most
NAME: Final = "converter"  # as top -H shows it
_LOOK_S: Final = 0.005  # waited for a step before others get their turn
_LATE_S: Final = 0.05  # between two looks while recording waits for the disk


class Beside:
    """One thread, which begins with the first step. late: whether work has to wait."""

    def __init__(self, late: Callable[[], bool]) -> None:
        self._late = late
        self._thread = futures.ThreadPoolExecutor(1, initializer=partial(name_thread, NAME))

    def taking(self, steps: Steps[None], check: Callable[[], None]) -> Paced:
        """Take all steps. Raises what they do.

        check: called before each, and at each look while it has to wait; what it raises ends it.
        A step under way is waited for whoever gives this up, so that nothing is written after.
        """
        more = True
        while more:
            check()
            while self._late():
                yield _LATE_S
                check()  # a pool that is to be locked does not wait for a disk
            step = self._thread.submit(_step, steps)
            try:
                while not futures.wait([step], _LOOK_S).done:
                    yield None
            finally:
                futures.wait([step])
            more, took_s = step.result()
            yield REST * took_s


def _step(steps: Steps[None]) -> tuple[bool, float]:
    """Whether there is more, and what it took of a core: a disk at work is no reason to rest."""
    begun_s = time.thread_time()
    more = next(steps, steps) is not steps
    return more, time.thread_time() - begun_s
