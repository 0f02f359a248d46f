"""Let a daemon keep the memory that it will need again a second later, and keep it to itself.

glibc gives a freed buffer of some size straight back to the system, and each thread has a heap of
its own that shrinks as soon as it can. A daemon that moves a megabyte every 10 ms then spends more
on page faults, each of which zeroes a page, than on the bytes.
Source: mallopt(3), prctl(2), core(5); decision by measurement: bench/ingest.py.
"""

import ctypes
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_LARGEST_THRESHOLD: Final = 32 << 20  # of M_MMAP_THRESHOLD; glibc refuses more


def keep_freed(most_bytes: int) -> bool:
    """Keep up to so many freed bytes for later, in one heap that all threads share.

    Call it before any thread is started. False where the C library has no mallopt(3) (musl): then
    nothing is changed, and nothing is lost but speed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {
        _M_ARENA_MAX: 1,  # heaps of single threads are given back whole, whatever the threshold
        _M_MMAP_THRESHOLD: _LARGEST_THRESHOLD,
        _M_TRIM_THRESHOLD: most_bytes,
        _M_TOP_PAD: 1 << 20,
    }
    taken = [mallopt(name, value) for name, value in wanted.items()]
    return 0 not in taken


def keep_private() -> None:
    """Have no core dump made of this process, and no other of its user read its memory.

    Keys, numbers and sound lie in it. The limit alone is not enough: a dump that goes to a program
    (kernel.core_pattern) heeds it only if that program does. What is executed from here on has the
    limit alone. /proc/PID/{fd,environ,io} are root's from now on, and this process's own.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


@contextmanager
def loading() -> Iterator[None]:
    """While modules are loaded, look for no cyclic garbage; and never in what they made.

    All of it stays, and there is a lot of it: a fifth of an import's time went into looking.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_rarely() -> None:
    """Look for cyclic garbage rarely, and never in what the start has made.

    References that count down to 0 free nearly everything here; the search goes through all that
    is alive, thousands of calls. Call it when everything is set up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
