"""The vault's figures: erasing among millions, taking in, opening a long recording, the scrub.

`erase`: bench/erasing.py. `ingest`: bench/ingest.py, as it runs by itself. `open` and `scrub`:
bench/opening.py, bench/scrubbing.py. Prints tables and one JSON line each, at the end what was
wanted beside what was reached, and ends with status 1 where something was missed.

With --folder the index stays there (20 GB with ten million) and is used again; without, it is made
in the folder for temporary files, and removed. Where that has less than 40 GB free, one million is
made, and the tables say so. Search rows follow an erasure: after the last batch they are waited for
--rows-s seconds at most (0: not at all); `days_left` says what was left.

    python bench/vault.py [--recordings N] [--folder DIR] [--rows-s 120]
                          [--only erase|ingest|open|scrub]
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent))

import erasing
import ingest
import opening
import scrubbing

MOST: Final = 10_000_000
FEWER: Final = 1_000_000
ROOM_BYTES: Final = 40 << 30  # free for ten million
ROWS_S: Final = 120.0

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]


def measures(folder: Path, calls: int, rows_s: float) -> dict[str, Callable[[], Tables]]:
    """What can be measured."""
    return {
        "erase": lambda: erasing.measure(folder, calls, rows_s),
        "ingest": lambda: {"ingest": ingest.measure_all(folder, ingest.loads())},
        "open": lambda: {"vault open": opening.measure(folder / "opening")},
        "scrub": lambda: {"vault scrub": scrubbing.measure(folder / "scrubbing")},
    }


def wanted(tables: Tables) -> Iterator[dict[str, Any]]:
    """What was wanted of what was measured, and whether it was reached."""
    for size, most_s in ((1, 1.0), (erasing.BATCH, 5.0)):
        times = [row["wall_s"] for row in tables.get("vault erase", []) if row["erased"] == size]
        if times:
            of = tables["vault"][0]["recordings"]
            yield _line(f"{size:,} of {of:,} erased, the longest, s", max(times), most_s)
    full = [row for row in tables.get("ingest", []) if row["calls"] == opening.BUSY.calls]
    for row in full:
        name = f"cores for {2 * row['calls']:,} streams, {row['mb_per_s']} MB/s, every 2 s"
        yield _line(name, row["cores"], 0.5)
    for row in tables.get("vault open", []):
        name = f"seek in {row['hours']} hours, {row['cache']}, p99 ms"
        yield _line(name, row["p99_ms"], 50.0)
    rates = {(row["calls of"], row["program"]): row["mb_per_s"]
             for row in tables.get("vault scrub", [])}  # fmt: skip
    for name in scrubbing.CALLS if rates else ():
        # One core cannot hash faster than that, whatever the disk reads.
        bound = min(rates[name, "dd"], rates[name, "sha256sum"])
        yield _line(f"what one core could read and hash, to the scrub of {name}",
                    round(bound / rates[name, "scrub"], 2), 1.15)  # fmt: skip


def _line(name: str, measured: float, at_most: float) -> dict[str, Any]:
    return {
        "figure": name, "measured": measured, "at most": at_most, "reached": measured <= at_most
    }  # fmt: skip


def show(name: str, rows: Rows) -> None:
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
    parser.add_argument("--recordings", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rows-s", type=float, default=ROWS_S)
    parser.add_argument("--only", choices=measures(Path(), 0, 0))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sv-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        roomy = given.folder or shutil.disk_usage(folder).free >= ROOM_BYTES
        calls = given.recordings or (MOST if roomy else FEWER)
        tables: Tables = {}
        for name, work in measures(folder, calls, given.rows_s).items():
            if given.only in (None, name):
                for title, rows in work().items():
                    (ingest.show if title == "ingest" else show)(title, rows)
                    tables[title] = rows
        lines = list(wanted(tables))
        show("vault wanted", lines)
    sys.exit(not all(line["reached"] for line in lines))


if __name__ == "__main__":
    main()
