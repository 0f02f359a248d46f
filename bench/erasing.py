"""Finding and erasing calls among millions: for bench/vault.

A running storaged on an index of so many calls (what its rows are: bench/millions.py) is asked as
the command asks it, over CURVE, access log and syncs included. *cold*: the index was dropped from
memory before storaged started, and nobody asked for these calls before; *warm*: every page of the
index that is needed was just touched. What is erased has an object of 64 KiB. Beside it what one
key page written and synced alone costs on this disk, and the erasure against two of those for each
page it re-keys.

An erasure is answered when no key opens recordings and records any more. Its search rows follow
(storaged.erasing.converting): waited for after each single one, and after the last batch for a
bounded time, in which somebody searches on. A batch is asked for while the days of the one before
are under way, too: `days_due`.
"""

import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import millions
from daemon import cpu_s, drop, running, written_mb

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
PARTS: Final = [
    *[(1, "cold")] * ONES, *[(1, "warm")] * ONES, (BATCH, "cold"), (BATCH, "warm"),
]  # fmt: skip
ASKED: Final = 200  # searches of a kind
MAP_BYTES: Final = 64 << 30
PATIENCE_S: Final = 300.0
_LOOK_S: Final = 0.1  # between searches meanwhile


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
    """Calls to erase that are still there, as PARTS says."""
    chance, found = random.Random(time.time_ns()), dict[int, None]()
    with index.reading() as view:
        while len(found) < 2 * (ONES + BATCH):
            number = chance.randrange(calls)
            if not view.erased(millions.call_of(number).id):
                found[number] = None
    numbers = list(found)
    return [[numbers.pop() for _ in range(size)] for size, _ in PARTS]


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


def due(client: Client) -> int:
    """Keys of days whose rows are still to go."""
    return int(client.ask(m.Status())[0].fields["erasing"]["days_due"])


def erase(rig: Rig, client: Client, numbers: list[int], page_s: float) -> dict[str, Any]:
    """Erase these calls in one batch: until it is answered."""
    assert rig.process is not None
    wanted = m.Erase([millions.call_of(number).id for number in numbers], "bench")
    waiting, before_s, begun = due(client), cpu_s(rig.process.pid), time.perf_counter()
    reply, _ = client.ask(wanted, timeout_s=PATIENCE_S)
    wall_s, erased_s = time.perf_counter() - begun, cpu_s(rig.process.pid)
    assert reply.erased == len(numbers), reply
    touched = len({number // SLOTS for number in numbers})
    return {
        "days_due": waiting, "pages_rekeyed": touched, "wall_s": round(wall_s, 3),
        "cpu_s": round(erased_s - before_s, 2),
        "page_alone_ms": round(1000 * page_s, 2),
        "against_pages_alone": round(wall_s / page_s / (2 * touched), 2),
    }  # fmt: skip


def follow(rig: Rig, client: Client, most_s: float, chance: random.Random) -> dict[str, Any]:
    """Search until no key opens rows of what was erased, or the time is up."""
    assert rig.process is not None
    pid, days, times = rig.process.pid, due(client), [0.0]
    before_s, before_mb, begun = cpu_s(pid), written_mb(pid), time.perf_counter()
    left = days
    while left and time.perf_counter() - begun < most_s:
        call = millions.call_of(chance.randrange(1_000))
        asked = time.perf_counter()
        client.ask(m.Search(call_id=call.call_ids[0]), timeout_s=PATIENCE_S)
        times.append(1000 * (time.perf_counter() - asked))
        time.sleep(_LOOK_S)
        left = due(client)
    wall_s, used_s = time.perf_counter() - begun, cpu_s(pid) - before_s
    times.sort()
    return {
        "days": days, "days_left": left, "wall_s": round(wall_s, 1), "cpu_s": round(used_s, 1),
        "cpu_s_a_day": round(used_s / max(1, days - left), 2), "cores": round(used_s / wall_s, 2),
        "written_mb": round(written_mb(pid) - before_mb),
        "search_p50_ms": round(statistics.median(times), 1),
        "search_p99_ms": round(times[int(0.99 * len(times))], 1),
        "search_most_ms": round(times[-1], 1),
    }  # fmt: skip


def measure(folder: Path, calls: int, rows_s: float) -> dict[str, list[dict[str, Any]]]:
    """Make the store if it is not there; search in it, erase from it.

    rows_s: how long at most search rows are waited for after a batch.
    """
    store = folder / "store"
    made, parts, followed = prepare(folder, calls, rows_s)
    page_s, begun = one_page_s(folder), time.perf_counter()
    with running(folder) as rig:
        about = {
            "recordings": calls, "made_s": round(made.seconds),
            "index_gb": round((store / "index" / "data.mdb").stat().st_size / 1e9, 1),
            "key_pages": -(-calls // SLOTS), "start_s": round(time.perf_counter() - begun, 2),
        }  # fmt: skip
        client, chance = rig.client("operator"), random.Random(time.time_ns())
        found = list(search(client, calls))
        index = Index(store / "index", MAP_BYTES)
        erased = []
        for (size, state), numbers in zip(PARTS, parts, strict=True):
            if state == "warm":
                touch(index, numbers)
            erased.append({"erased": size, "index": state} | erase(rig, client, numbers, page_s))
            if size == 1 or numbers is parts[-1]:
                behind = follow(rig, client, PATIENCE_S if size == 1 else rows_s, chance)
                followed.append({"behind": str(size)} | behind)
        index.close()
    return {
        "vault": [about], "vault search": found, "vault erase": erased, "vault rows": followed,
    }  # fmt: skip


def prepare(
    folder: Path, calls: int, rows_s: float
) -> tuple[millions.Made, list[list[int]], list[dict[str, Any]]]:
    """The store at rest and out of memory; what is to be erased, which has objects.

    And what followed of what a run before did not wait for.
    """
    store = folder / "store"
    if not store.exists():
        with running(folder):
            pass
    made = millions.make(store, folder / "unlock.key", calls)
    with running(folder) as rig:
        behind = follow(rig, rig.client("operator"), rows_s, random.Random(0))
    index = Index(store / "index", MAP_BYTES)
    parts = doomed(index, calls)
    index.close()
    pool = Pool("base", store / "pools" / "base", 0, 8)
    for number in sorted(number for part in parts for number in part):
        pool.append(millions.call_of(number).id, os.urandom(millions.OBJECT_BYTES))
    pool.sync()
    pool.close()
    drop([store / "index" / "data.mdb", *(store / "keys").iterdir()])
    return made, parts, [{"behind": "before"} | behind] if behind["days"] else []
