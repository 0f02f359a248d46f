"""The vault's figures: finding and erasing calls among millions, opening a long one, the scrub.

`erase`: a running storaged on an index of so many calls (what its rows are: bench/millions.py) is
asked as the command asks it, over CURVE, access log and syncs included. *cold*: the index was
dropped from memory before storaged started, and nobody asked for these calls before; *warm*: every
page of the index that is needed was just touched. What is erased has an object of 64 KiB. Beside
it what one key page written and synced alone costs on this disk, and the erasure against two of
those for each page it re-keys. `open` and `scrub`: bench/opening.py, bench/scrubbing.py.
Prints tables and one JSON line each.

With --folder the index stays there (20 GB with ten million) and is used again; without, it is made
in the folder for temporary files, and removed.

    python bench/vault.py [--recordings 1000000] [--folder DIR] [--only erase|open|scrub]
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent))

import millions
import opening
import scrubbing
from daemon import cpu_s, drop, running

from spanvault import messages as m
from storaged import files
from storaged.format.keypage import DEK_BYTES, SLOTS
from storaged.index import callrows
from storaged.index.environment import Index
from storaged.index.writing import Writing
from storaged.pools.pool import Pool
from tests.support.vault import Client, Rig

BATCH: Final = 1000
ONES: Final = 5  # erased one after the other
ASKED: Final = 200  # searches of a kind
MAP_BYTES: Final = 64 << 30
PATIENCE_S: Final = 300.0


def searches(calls: int, chance: random.Random) -> dict[str, list[m.Search]]:
    """What is looked for, by kind."""
    numbers = [chance.randrange(calls) for _ in range(ASKED)]
    found = [millions.call_of(number) for number in numbers]
    minute_ns = 60 * 10**9
    return {
        "Call-ID": [m.Search(call_id=call.call_ids[0]) for call in found],
        "number, its calls": [m.Search(number=call.caller) for call in found],
        "a line, a page of 100": [
            m.Search(number=millions.callee_of(number | 1), limit=100) for number in numbers
        ],
        "the hotline before a time, 100": [
            m.Search(number=millions.HOTLINE, until_ns=call.started_ns, limit=100)
            for call in found
        ],
        "a minute": [
            m.Search(since_ns=call.started_ns, until_ns=call.started_ns + minute_ns)
            for call in found
        ],
        "the newest 100": [m.Search(limit=100)] * ASKED,
    }  # fmt: skip


def search(client: Client, calls: int) -> Iterator[dict[str, Any]]:
    """Each kind twice: what is asked for the second time lies in memory."""
    for kind, asked in searches(calls, random.Random(time.time_ns())).items():
        for state in ("cold", "warm"):
            times, rows = [], 0
            for one in asked:
                begun = time.perf_counter()
                reply, _ = client.ask(one, timeout_s=PATIENCE_S)
                times.append(1000 * (time.perf_counter() - begun))
                rows += len(reply.calls)
            times.sort()
            yield {
                "search": kind, "index": state, "found": round(rows / len(asked), 1),
                "p50_ms": round(statistics.median(times), 1),
                "p99_ms": round(times[int(0.99 * len(times))], 1),
            }  # fmt: skip


def doomed(index: Index, calls: int) -> list[list[int]]:
    """Calls to erase that are still there, parted as they are erased: cold, then warm."""
    chance, found = random.Random(time.time_ns()), dict[int, None]()
    with index.reading() as view:
        while len(found) < 2 * (ONES + BATCH):
            number = chance.randrange(calls)
            if not view.erased(millions.call_of(number).id):
                found[number] = None
    numbers = list(found)
    sizes = [*[1] * ONES, BATCH] * 2
    return [[numbers.pop() for _ in range(size)] for size in sizes]


def touch(index: Index, numbers: list[int]) -> None:
    """Have all that an erasure changes in memory: it is changed, and not committed."""

    def change(writing: Writing) -> None:
        for call in map(millions.call_of, numbers):
            callrows.remove_call(writing, call.id, call)
        raise InterruptedError

    try:
        index.write(change)
    except InterruptedError:
        return


def one_page_s(folder: Path) -> float:
    """What writing and syncing a single page costs."""
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        files.replace(folder / "page", os.urandom(SLOTS * DEK_BYTES))
        times.append(time.perf_counter() - begun)
    (folder / "page").unlink()
    return statistics.median(times)


def until_rows_are_gone(rig: Rig, client: Client, begun: float) -> tuple[float, float]:
    """Since when no key opens search rows of what was erased: seconds, and CPU time of storaged."""
    assert rig.process is not None
    while client.ask(m.Status())[0].fields["erasing"]["days_due"]:
        time.sleep(0.02)
    return time.perf_counter() - begun, cpu_s(rig.process.pid)


def erase(rig: Rig, client: Client, numbers: list[int], page_s: float) -> dict[str, Any]:
    """Erase these calls in one batch."""
    assert rig.process is not None
    wanted = m.Erase([millions.call_of(number).id for number in numbers], "bench")
    before_s, begun = cpu_s(rig.process.pid), time.perf_counter()
    reply, _ = client.ask(wanted, timeout_s=PATIENCE_S)
    wall_s, erased_s = time.perf_counter() - begun, cpu_s(rig.process.pid)
    assert reply.erased == len(numbers), reply
    rows_s, rows_cpu_s = until_rows_are_gone(rig, client, begun)
    touched = len({number // SLOTS for number in numbers})
    return {
        "pages_rekeyed": touched, "wall_s": round(wall_s, 3),
        "cpu_s": round(erased_s - before_s, 2), "days": reply.days,
        "rows_gone_s": round(rows_s, 2), "rows_cpu_s": round(rows_cpu_s - erased_s, 2),
        "page_alone_ms": round(1000 * page_s, 2),
        "against_pages_alone": round(wall_s / page_s / (2 * touched), 2),
    }  # fmt: skip


def among_millions(folder: Path, calls: int) -> dict[str, list[dict[str, Any]]]:
    """Make the store if it is not there; search in it, erase from it."""
    store = folder / "store"
    if not store.exists():
        with running(folder):
            pass
    made = millions.make(store, folder / "unlock.key", calls)
    index = Index(store / "index", MAP_BYTES)
    parts = doomed(index, calls)
    pool = Pool("base", store / "pools" / "base", 0, 8)
    for number in sorted(number for part in parts for number in part):
        pool.append(millions.call_of(number).id, os.urandom(millions.OBJECT_BYTES))
    pool.sync()
    pool.close()
    index.close()
    drop([store / "index" / "data.mdb", *(store / "keys").iterdir()])
    page_s = one_page_s(folder)
    begun = time.perf_counter()
    with running(folder) as rig:
        about = {
            "recordings": calls, "made_s": round(made.seconds),
            "index_gb": round((store / "index" / "data.mdb").stat().st_size / 1e9, 1),
            "key_pages": -(-calls // SLOTS), "start_s": round(time.perf_counter() - begun, 2),
        }  # fmt: skip
        client = rig.client("operator")
        found = list(search(client, calls))
        index = Index(store / "index", MAP_BYTES)
        erased = []
        for turn, numbers in enumerate(parts):
            state = "cold" if turn < len(parts) / 2 else "warm"
            if state == "warm":
                touch(index, numbers)
            row = {"erased": len(numbers), "index": state}
            erased.append(row | erase(rig, client, numbers, page_s))
        index.close()
    return {"vault": [about], "vault search": found, "vault erase": erased}


MEASURES: Final[dict[str, Callable[[Path, int], dict[str, list[dict[str, Any]]]]]] = {
    "erase": among_millions,
    "open": lambda folder, _: {"vault open": opening.measure(folder / "opening")},
    "scrub": lambda folder, _: {"vault scrub": scrubbing.measure(folder / "scrubbing")},
}


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """A table and its JSON line."""
    wide = [max(len(str(row[column])) for row in [*rows, {column: column}]) for column in rows[0]]
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print(
            "  ".join(
                f"{value!s:>{width}}" for value, width in zip(row.values(), wide, strict=True)
            )
        )
    print(json.dumps({"bench": name, "machine": platform.platform(), "rows": rows}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=MEASURES)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sv-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in [given.only] if given.only else MEASURES:
            for title, rows in MEASURES[name](folder, given.recordings).items():
                show(title, rows)


if __name__ == "__main__":
    main()
