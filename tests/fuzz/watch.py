"""What a fuzzing process tells of itself: runs, its slowest input, its memory from start to end.

Memory is what lies in no file (RssAnon), once garbage is collected and the C library's free pages
are handed back: what is left is held by somebody. Beside it the number of Python's memory blocks.
"""

import ctypes
import gc
import signal
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

SAMPLE_S: Final = 0.4  # of CPU time, and …
SAMPLE_SHARE: Final = 1 / 64  # … of all that has passed: an hour has some hundred samples
COLLECT_S: Final = 0.1
TELL_S: Final = 1.0  # of the clock: a target whose work is done by another process takes no time
WARM: Final = 0.25  # of a run: caches fill, modules are loaded, and libFuzzer reads its corpus
FEWEST: Final = 8  # samples that tell whether something grows
HANGS_S: Final = 20.0  # of CPU time in one input, and it is ended
SLOWEST: Final = 12  # inputs to be timed again: some only met a collection, or a first use
MOST_GROWN_MB: Final = 24
MOST_BLOCKS: Final = 250_000  # twice what our own caches hold when they are full
_M_MMAP_THRESHOLD: Final = -3
_libc: Final = ctypes.CDLL(None)


class Sample(msgspec.Struct, array_like=True):
    """Memory after so many runs."""

    runs: int
    rss_mb: float
    blocks: int


class Notes(msgspec.Struct):
    """Of one process."""

    runs: int = 0
    slowest: list[tuple[float, bytes]] = []  # seconds and input, some of them, the slowest last
    samples: list[Sample] = []

    def settled(self) -> list[Sample]:
        """After a quarter, a half and three quarters of the runs, and at the end."""
        warm = [each for each in self.samples if each.runs >= WARM * self.runs]
        return (
            [warm[round(part * (len(warm) - 1))] for part in (0, 1 / 3, 2 / 3, 1)] if warm else []
        )

    def grown(self) -> str:
        """What grew beyond its bound once all was warm; "" if nothing did, or none can tell."""
        if len(self.samples) < FEWEST:
            return ""
        first, *_, last = self.settled()
        told = f"in {last.runs - first.runs} runs"
        if last.rss_mb - first.rss_mb > MOST_GROWN_MB:
            return f"memory grew from {first.rss_mb:.0f} to {last.rss_mb:.0f} MB {told}"
        if last.blocks - first.blocks > MOST_BLOCKS:
            return f"Python's blocks grew from {first.blocks} to {last.blocks} {told}"
        return ""


def keep_nothing() -> None:
    """Large buffers go back to the system as soon as they are free.

    glibc else takes them from a heap that it keeps: a recorder's zeroed tables, hardly any of which
    is ever touched, then cost 40 MB each, and 25 recorders lie about until garbage is collected.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 256 << 10)


def memory(runs: int) -> Sample:
    """What we hold now."""
    gc.collect()
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
    # Not RSS as a whole: that has an index's mapped file in it, and libraries.
    status = Path("/proc/self/status").read_text()
    anonymous = int(status.partition("RssAnon:")[2].split()[0])
    return Sample(runs, anonymous / 1000, sys.getallocatedblocks())


class Alarm:
    """Ends an input that does not end. It counts CPU time: paused, or starved by others, all hang.

    What catches it is rung again. A loop in C hears nothing: libFuzzer's alarm, of the clock, does.
    """

    def __init__(self, hangs_s: float = HANGS_S) -> None:
        self._hangs_s, self._begun_s = hangs_s, float("inf")
        signal.signal(signal.SIGVTALRM, self._rings)
        signal.setitimer(signal.ITIMER_VIRTUAL, hangs_s / 8, hangs_s / 8)

    def begin(self) -> float:
        """An input begins. Returns when, in CPU time."""
        self._begun_s = time.process_time()
        return self._begun_s

    def end(self) -> None:
        """It is over, or nothing runs any more."""
        self._begun_s = float("inf")

    def stop(self) -> None:
        """Ring no more."""
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _rings(self, *_: object) -> None:
        if (taken_s := time.process_time() - self._begun_s) > self._hangs_s:
            raise TimeoutError(f"hangs: {taken_s:.0f} s so far")


class Watch:
    """Counts runs, and writes notes to a file, since libFuzzer ends the process without a word."""

    def __init__(self, path: Path) -> None:
        self._path, self.notes = path, Notes()
        self._collected_s = self._sampled_s = time.process_time()
        self._told_s = time.monotonic()

    def ran(self, data: bytes, begun_s: float) -> float:
        """An input was run. Returns how long it took, in CPU time."""
        now_s, notes = time.process_time(), self.notes
        notes.runs += 1
        taken_s = now_s - begun_s
        if len(notes.slowest) < SLOWEST or taken_s > notes.slowest[0][0]:
            notes.slowest = sorted([*notes.slowest, (taken_s, data)])[-SLOWEST:]
        if now_s - self._sampled_s > max(SAMPLE_S, SAMPLE_SHARE * now_s):
            notes.samples.append(memory(notes.runs))
            self._tell()
            self._sampled_s = self._collected_s = time.process_time()
        elif now_s - self._collected_s > COLLECT_S:
            gc.collect()  # recorders are few objects with large buffers: too few to start it
            self._collected_s = now_s
        if time.monotonic() - self._told_s > TELL_S:
            self._tell()
        return taken_s

    def _tell(self) -> None:
        self._path.write_bytes(msgspec.msgpack.encode(self.notes))
        self._told_s = time.monotonic()


def read(path: Path) -> Notes:
    """What a process has written down; empty if it ended at once."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Notes) if path.exists() else Notes()
