"""How fast sealed recordings reach a target, verified and receipted, and how fast they come back.

Measured: the real storaged and replicator, store and target side by side on one disk; the time
from the replicator's start to the last receipt, and of `replicator restore` into an empty store.
CPU is user and system of each daemon. Prints a table and one JSON line.

    python bench/replication.py [--folder DIR]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from spanvault.private import toml
from tests.support.appliance import Appliance
from tests.support.ingest import Ingest

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Shape(NamedTuple):
    """So many recordings of so many seconds. size: payload bytes a second."""

    name: str
    recordings: int
    seconds: int
    size: int


SHAPES = (Shape("short calls", 1000, 3, 16_000), Shape("long calls", 40, 10, 1_000_000))


def cpu_s(pid: int) -> float:
    """User and system time of a process so far. Source: proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def quicken(appliance: Appliance) -> None:
    with (appliance.etc / "storaged.toml").open("a") as file:
        file.write("commit_interval_s = 0.2\n")


def copy(shape: Shape, appliance: Appliance) -> dict[str, Any]:
    """Have it recorded, then start the replicator and wait for the last receipt."""
    quicken(appliance)
    appliance.start("storaged")
    with Ingest(appliance.etc / "capture.toml") as ingest:
        for first in range(0, shape.recordings, 20):
            numbers = range(first, min(first + 20, shape.recordings))
            ingest.store(numbers, shape.seconds, shape.size)
    storaged = appliance.processes["storaged"].pid
    before_s, began_s = cpu_s(storaged), time.monotonic()
    appliance.start("replicator")
    receipts = appliance.folder / "replicator" / "receipts.jsonl"
    while not receipts.exists() or receipts.read_bytes().count(b"\n") < shape.recordings:
        time.sleep(0.02)
    wall_s = time.monotonic() - began_s
    replicator_s = cpu_s(appliance.processes["replicator"].pid)
    size = sum(path.stat().st_size for path in appliance.replica.rglob("*.svr"))
    storaged_s = cpu_s(storaged) - before_s
    for name in ("replicator", "storaged"):
        appliance.stop(name)
    return row(shape, "copy", size, wall_s, replicator_s, storaged_s)


def restore(shape: Shape, old: Appliance, new: Appliance) -> dict[str, Any]:
    """Bring old's replica into new's empty store."""
    quicken(new)
    (new.etc / "keys/unlock.key").write_bytes((old.etc / "keys/unlock.key").read_bytes())
    config = new.etc / "replicator.toml"
    targets = [{"name": "siteb", "kind": "directory", "path": old.replica}]
    text = (
        config.read_text()
        .partition("[[targets]]")[0]
        .replace("/replicator.key_secret", "/operator.key_secret")
    )  # only operators may import
    config.write_text(text + toml({"targets": targets}))
    new.start("storaged")
    command = [sys.executable, "-m", "replicator", "restore", "--config", str(config)]
    before, began_s = os.times(), time.monotonic()
    subprocess.run([*command, "--target", "siteb"], stdout=subprocess.DEVNULL, check=True)
    wall_s, after = time.monotonic() - began_s, os.times()
    spent_s = sum(after[2:4]) - sum(before[2:4])  # of children that ended
    size = sum(path.stat().st_size for path in new.store.rglob("*.svr"))
    return row(shape, "restore", size, wall_s, spent_s, cpu_s(new.processes["storaged"].pid))


def row(
    shape: Shape, job: str, size: int, wall_s: float, replicator_s: float, storaged_s: float
) -> dict[str, Any]:
    return {
        "job": job,
        "shape": shape.name,
        "recordings": shape.recordings,
        "mb": round(size / 1e6, 1),
        "wall_s": round(wall_s, 2),
        "recordings_per_s": round(shape.recordings / wall_s, 1),
        "mb_per_s": round(size / 1e6 / wall_s, 1),
        "replicator_cpu_s": round(replicator_s, 2),
        "storaged_cpu_s": round(storaged_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where store and target lie (default: /tmp)")
    rows = []
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        for shape in SHAPES:
            place = Path(folder) / shape.name.replace(" ", "-")
            with Appliance(place / "old") as old, Appliance(place / "new") as new:
                rows += [copy(shape, old), restore(shape, old, new)]
    print(
        f"{'':8} {'':12} {'files':>6} {'MB':>7} {'s':>6} {'/s':>7} {'MB/s':>6}  CPU s: own, store's"
    )
    for one in rows:
        print(
            f"{one['job']:8} {one['shape']:12} {one['recordings']:6} {one['mb']:7.1f} "
            f"{one['wall_s']:6.2f} {one['recordings_per_s']:7.1f} {one['mb_per_s']:6.1f}  "
            f"{one['replicator_cpu_s']:.2f}, {one['storaged_cpu_s']:.2f}"
        )
    load = os.getloadavg()[0]
    print(f"\n{os.cpu_count()} cores, load {load:.1f}, Linux {platform.release()}, start included")
    print(json.dumps({"bench": "replication", "load": round(load, 2), "rows": rows}))


if __name__ == "__main__":
    main()
