"""Opening what was recorded: a seek into a long recording, and the check of all of it.

Made: one recording of `--hours` in two streams of G.711, committed every 2 s as a running storaged
does, so of as many frames. Measured: `seek`, the time until a page from the middle is open, by a
reader that has not met the recording; `verify`, CPU for the check by hash and tag that `spanvault
verify` and a scrub make, beside SHA-256 alone over the same file in the same run: `against_sha256`
1.0 would be a check that costs nothing but its hash. The file lies in the page cache: what a disk
adds is its own. Taking media in and sealing it: bench/ingest.py. Erasing: bench/vault.py.
Prints a table and one JSON line.

    python bench/opening.py [--hours 2] [--folder DIR]
"""

import argparse
import hashlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from spanvault import messages as m
from storaged.gathering import Group
from storaged.reading import Reader
from tests.support.vault import START, Parts, call_id, make_call, make_media

RECORDING, COMMIT_S, BYTES = call_id(1), 2, 8000
TURNS = 5


def record(parts: Parts, seconds: int) -> None:
    """The recording, sealed."""
    for second in range(0, seconds, COMMIT_S):
        chunks = [(RECORDING, stream, second + n) for n in range(COMMIT_S) for stream in (0, 1)]
        last = second + COMMIT_S >= seconds
        group = Group()
        call = make_call(1, id=RECORDING, ended_ns=START + seconds * 10**9)
        group.add(b"", m.Batch("bench", second, [call] if last else []), make_media(chunks, BYTES))
        parts.writer.commit(group)


def timed(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Seconds of the median turn."""
    times = []
    for _ in range(TURNS):
        begun = clock()
        work()
        times.append(clock() - begun)
    return statistics.median(times)


def seek(parts: Parts, cursor: int) -> None:
    """A page from the middle, as for somebody who has just asked for this recording."""
    page = Reader(parts.index, parts.vaults).fetch(make_call(1, id=RECORDING), cursor)
    assert len(page.media.table)
    assert not page.damaged


def verify(parts: Parts) -> None:
    report = Reader(parts.index, parts.vaults).verify(RECORDING)
    assert report.sealed
    assert not report.faults


def measure(folder: Path, hours: float) -> dict[str, Any]:
    parts = Parts(folder)
    # No disk is measured: thousands of commits are made without waiting for one.
    parts.pool.sync = lambda: None  # type: ignore[method-assign]
    record(parts, round(hours * 3600))
    path = parts.pool.path(RECORDING)
    size = path.stat().st_size
    middle = parts_cursor(parts, size // 2)
    seek_s = timed(lambda: seek(parts, middle), time.perf_counter)
    verify_s = timed(lambda: verify(parts), time.process_time)
    hash_s = timed(lambda: hashlib.sha256(path.read_bytes()), time.process_time)
    parts.close()
    return {
        "hours": hours, "megabytes": round(size / 1e6), "seek_ms": round(1000 * seek_s, 1),
        "verify_mb_per_cpu_s": round(size / 1e6 / verify_s),
        "sha256_mb_per_cpu_s": round(size / 1e6 / hash_s),
        "against_sha256": round(verify_s / hash_s, 2),
    }  # fmt: skip


def parts_cursor(parts: Parts, beyond: int) -> int:
    """A cursor behind so many bytes, as the reader gives them."""
    reader, cursor = Reader(parts.index, parts.vaults), 0
    while cursor < beyond:
        found = reader.fetch(make_call(1, id=RECORDING), cursor).cursor
        assert found is not None
        cursor = found
    return cursor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sv-", dir=given.folder) as folder:
        row = measure(Path(folder) / "store", given.hours)
    for name, value in row.items():
        print(f"{name:>20} {value!s:>12}")
    print(json.dumps({"bench": "opening", "machine": platform.platform(), **row}))


if __name__ == "__main__":
    main()
