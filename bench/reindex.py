"""How long `spanvault reindex` takes: a store of so many sealed recordings, and half as many calls
without media.

Each recording has two streams of a second, so its object is one header, one frame and a trailer:
what is measured is what each costs besides its bytes, of which header and trailer alone are read.
Beside it, in the same run, how long merely opening and reading as many files takes. Prints a line.

    python bench/reindex.py [--recordings 100000] [--folder DIR]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from spanvault.daemon.config import StoragedConfig
from storaged.integrity.reindexing import reindex
from storaged.pools.layout import Store
from tests.support.vault import Parts, call_id, make_call

AT_ONCE = 1000


def fill(folder: Path, recordings: int) -> None:
    """Make the store."""
    parts = Parts(folder)
    Store(folder).write_format(parts.keyring.store_id)
    for start in range(0, recordings, AT_ONCE):
        numbers = range(start, start + AT_ONCE)
        chunks = [(call_id(number), stream, 0) for number in numbers for stream in (1, 2)]
        calls = [make_call(number) for number in numbers]
        lone = [make_call(recordings + number) for number in numbers if number % 2]
        parts.commit(chunks, [*calls, *lone])
    parts.close()


def read_all(folder: Path) -> float:
    """Seconds for opening and reading every object."""
    began_s = time.perf_counter()
    for path in folder.glob("pools/*/objects/*/*.svr"):
        path.read_bytes()
    return time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        folder = Path(place) / "store"
        fill(folder, asked.recordings)
        settings = StoragedConfig(store=folder, unlock_key=folder / "unlock.key")
        began_s, cpu_s = time.perf_counter(), time.process_time()
        report = reindex(settings, lambda *_: None, time.time_ns)
        seconds, cpu = time.perf_counter() - began_s, time.process_time() - cpu_s
        print(json.dumps({
            "recordings": report.recordings, "calls": report.calls, "faults": report.faults,
            "seconds": round(seconds, 1), "cpu_s": round(cpu, 1),
            "read_all_s": round(read_all(folder), 1),
            "us_a_call": round(1e6 * seconds / max(1, report.calls)),
        }))  # fmt: skip


if __name__ == "__main__":
    main()
