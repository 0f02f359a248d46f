"""How fast the rolling check reads, one thread and no bound, beside `dd` and `sha256sum`.

Made: many calls of three minutes, and few of two hours. All programs read the same files off the
disk: dropped from memory before each, as the check itself drops what it reads. For bench/vault.
"""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from daemon import drop
from recordings import record

from storaged.integrity.scrub import Scrub
from tests.support.vault import Parts

CALLS: Final = {"3 minutes": (180, 160), "2 hours": (7200, 4)}  # seconds, calls
ENDLESS: Final = 1e12  # bytes a second


def scrub(parts: Parts) -> None:
    """A round of the check, without its rests."""
    one = Scrub(parts.index, parts.vaults, 1.0, ENDLESS, time.time_ns, time.monotonic)
    for _ in one.turning():  # the waits it gives are not taken
        if one._round is not None and one._round.ended_ns is not None:
            break
    with parts.index.reading() as view:
        assert not view.count(b"damaged")


def timed(work: Callable[[], Any], paths: list[Path]) -> tuple[float, float]:
    """Wall and CPU seconds of it, its children's too, with the files off the disk."""
    drop(paths)
    before, begun = _cpu_s(), time.perf_counter()
    work()
    return time.perf_counter() - begun, _cpu_s() - before


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(folder: Path) -> list[dict[str, Any]]:
    """A row for each length of calls and program; leaves nothing."""
    rows = []
    for name, (seconds, calls) in CALLS.items():
        parts = Parts(folder)
        # Making is not measured: thousands of commits are made without waiting for the disk.
        parts.pool.sync = lambda: None  # type: ignore[method-assign]
        record(parts, range(calls), seconds)
        paths = sorted(folder.glob("pools/*/objects/*/*.svr"))
        os.sync()
        size = sum(path.stat().st_size for path in paths)
        programs: dict[str, Callable[[], Any]] = {
            "dd": lambda paths=paths: [_run("dd", f"if={path}", "of=/dev/null", "bs=8M")
                         for path in paths],
            "sha256sum": lambda paths=paths: _run("sha256sum", *map(str, paths)),
            "scrub": lambda parts=parts: scrub(parts),
        }  # fmt: skip
        for program, work in programs.items():
            wall_s, cpu_s = timed(work, paths)
            rows.append({
                "calls of": name, "files": len(paths), "megabytes": round(size / 1e6),
                "program": program, "mb_per_s": round(size / 1e6 / wall_s),
                "mb_per_cpu_s": round(size / 1e6 / cpu_s),
            })  # fmt: skip
        parts.close()
        shutil.rmtree(folder)
    return rows


def _run(*command: str) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
