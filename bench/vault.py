"""How long an erasure takes in a store of 10 M recordings: one call, and 1,000 in one batch.

Made: all key pages of so many recordings (4,096 DEKs a page), each sealed under a key of its own,
a root that names them all, and an index with a share of the calls (`--rows`, spread over all pages:
an LMDB of 10 M rows is one or two levels deeper). What is erased has an object of 64 KiB. Measured
is the erasure as storaged does it, all syncs included; beside it, in the same run, what one page
written and synced alone costs on this disk, and the erasure against two of those for each page.
Prints a table and one JSON line.

    python bench/vault.py [--recordings 10000000] [--rows 100000] [--folder DIR]
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from spanvault import keyfile
from spanvault import messages as m
from storaged import files, keypage, keyring, record
from storaged.erasing import Eraser
from storaged.index import FINAL, OBJECT, SEALED, State, Writing
from storaged.keypage import DEK_BYTES, PAGE_KEY, SLOTS, Name
from storaged.layout import Store
from tests.support.vault import Parts, call_id, make_call

OBJECT_BYTES = 64 << 10
AT_ONCE = 5000  # rows a transaction


def make_pages(folder: Path, recordings: int) -> int:
    """The store's keys, as if so many recordings had been made. Gives the number of pages."""
    private = keyfile.load(folder / "unlock.key")
    root = keypage.open_root((folder / "keys" / "root").read_bytes(), private)
    pages = -(-recordings // SLOTS)
    secrets = dict(root.secrets)
    for page in range(pages):
        key = secrets[Name(PAGE_KEY, page)] = os.urandom(32)
        deks = os.urandom(SLOTS * DEK_BYTES)
        data = keypage.seal_page(page, 0, 0, root.store_id, deks, key, os.urandom(12))
        (folder / "keys" / keyring.page_name(page, 0)).write_bytes(data)
    nonces = [os.urandom(12) for _ in secrets]
    data = keypage.serialize_root(
        root.store_id, 1, 0, os.urandom(32), root.recipients, secrets, nonces
    )
    files.replace(folder / "keys" / "root", data)
    return pages


def make_calls(parts: Parts, numbers: range, key_ids: list[int]) -> None:
    """Calls of the index, each under its key."""
    index_key = parts.keyring.index_key

    def put(writing: Writing) -> None:
        for number, key_id in zip(numbers, key_ids, strict=True):
            call = make_call(number)
            sealed = record.seal_call(call, key_id, parts.keyring.dek(key_id), os.urandom(12))
            writing.put_record(call, sealed, None, index_key)
            bits = FINAL | OBJECT | SEALED
            writing.put_state(call.id, State(key_id, OBJECT_BYTES, bytes(32), 0, 0, bits))

    parts.index.write(put)


def one_page_s(folder: Path) -> float:
    """What writing and syncing a single page costs."""
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        files.replace(folder / "page", os.urandom(SLOTS * DEK_BYTES))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def erase(parts: Parts, numbers: list[int]) -> tuple[float, float]:
    """Erase these calls. Gives wall and CPU time."""
    for number in numbers:
        parts.pool.append(call_id(number), os.urandom(OBJECT_BYTES))
        parts.pool.forget(call_id(number))
    parts.pool.sync()
    store = Store(parts.folder)
    eraser = Eraser(store, parts.index, parts.vaults, parts.writer.forget, time.time_ns)
    wanted = m.Erase([call_id(number) for number in numbers], "bench")
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in eraser.erasing("operator/bench", wanted):
        pass
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def measure(folder: Path, recordings: int, rows: int) -> list[dict[str, Any]]:
    Parts(folder).close()
    pages = make_pages(folder, recordings)
    Store(folder).refused.mkdir()
    parts = Parts(folder, 8 << 30)
    chance = random.Random(1)
    key_ids = sorted(chance.sample(range(recordings), rows))  # page by page, as they are made
    for at in range(0, rows, AT_ONCE):
        make_calls(parts, range(at, min(at + AT_ONCE, rows)), key_ids[at : at + AT_ONCE])
    doomed = chance.sample(range(rows), 1003)
    page_s = one_page_s(folder)
    found = []
    for name, numbers in (
        *((f"one ({turn})", [doomed[turn]]) for turn in range(3)),
        ("1,000", doomed[3:]),
    ):
        wall_s, cpu_s = erase(parts, numbers)
        touched = len({key_ids[number] // SLOTS for number in numbers})
        found.append(
            {
                "erased": name, "recordings": recordings, "rows": rows, "pages": pages,
                "pages_rekeyed": touched, "wall_s": round(wall_s, 3), "cpu_s": round(cpu_s, 3),
                "page_alone_ms": round(1000 * page_s, 2),
                "against_pages_alone": round(wall_s / page_s / (2 * touched), 2),
            }
        )  # fmt: skip
    parts.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sv-", dir=given.folder) as folder:
        rows = measure(Path(folder) / "store", given.recordings, given.rows)
    for name in rows[0]:
        print(f"{name:>20}" + "".join(f"{row[name]!s:>12}" for row in rows))
    print(json.dumps({"bench": "vault erase", "machine": platform.platform(), "rows": rows}))


if __name__ == "__main__":
    main()
