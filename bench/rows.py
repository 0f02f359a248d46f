"""What the rolling check of the index's rows costs a call: times, terms, state, feed, search rows.

A store of calls without media on days of 10,000, in one run with what merely opening as many
records takes (storaged.integrity.recordcheck). Prints a line.

    python bench/rows.py [--calls 30000] [--folder DIR]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from storaged.integrity.recordcheck import RecordCheck
from storaged.integrity.rowcheck import RowCheck
from storaged.integrity.rowsweep import RowSweep
from tests.support.vault import START, Parts, make_call

AT_ONCE, DAY, DAY_NS = 1000, 10_000, 86_400 * 10**9
LAST = b"\xff" * 16


def fill(parts: Parts, calls: int) -> None:
    """Make the store: half of all calls are to one number."""
    for first in range(0, calls, AT_ONCE):
        parts.commit([], [
            make_call(number, started_ns=START + number // DAY * DAY_NS + number,
                      callee="+493012345678" if number % 2 else f"+4940{number:07d}")
            for number in range(first, first + AT_ONCE)
        ])  # fmt: skip


def us_a_call(work: Iterable[object], calls: int) -> float:
    """Microseconds of CPU."""
    began_s = time.process_time()
    for _ in work:
        pass
    return round((time.process_time() - began_s) / calls * 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=30_000)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        parts = Parts(Path(place) / "store")
        fill(parts, asked.calls)
        rows = RowCheck(parts.index, parts.vaults, time.time_ns)
        sweep = RowSweep(parts.index, parts.vaults, rows, time.time_ns)
        records = RecordCheck(parts.index, parts.vaults, time.time_ns)
        print(json.dumps({
            "calls": asked.calls,
            "records_us": us_a_call(records.checking(bytes(16), LAST), asked.calls),
            "rows_us": us_a_call(rows.checking(bytes(16), LAST), asked.calls),
            "sweep_us": us_a_call(sweep.sweeping(b""), asked.calls),
            "mended": sum(rows.mended.values()) + sum(sweep.removed.values()) + sweep.labels.mended,
        }))  # fmt: skip
        parts.close()


if __name__ == "__main__":
    main()
