"""Recording at full pace, alone and while search rows of erased calls go: what each costs.

A store with the calls of some days (bench/millions.py) takes in the load of bench/ingest.py, first
alone; then 1,000 of its calls, of all days, are erased in one batch, and their days come under new
keys meanwhile (storaged.erasing.converting). Told of each half: cores of all threads and of the one
that converts, and how long a batch waited for its acknowledgement, which comes with a group's
commit, every 2 s. Prints a table and one JSON line.

    python bench/beside.py [--recordings 300000] [--calls 5250] [--seconds 25] [--folder DIR]

With --make the store alone is made in the folder, to be used later.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import erasing
import ingest
import millions
from daemon import running, written_mb

from spanvault import messages as m
from spanvault.media.chunk import NO_MEDIA, Media
from storaged.erasing.beside import NAME
from tests.support.vault import Client, Rig

WARM_S = 4


class Timed(ingest.Sender):
    """Notes how long each batch waits for its acknowledgement."""

    def __init__(self, client: Client, in_flight: int) -> None:
        super().__init__(client, in_flight)
        self._sent_s: dict[int, float] = {}
        self.waits_s: list[float] = []

    def send(self, calls: list[m.Call], media: Media = NO_MEDIA) -> None:
        self._sent_s[self._sequence + 1] = time.monotonic()
        super().send(calls, media)

    def settle(self, wait_s: float) -> None:
        super().settle(wait_s)
        now_s = time.monotonic()
        for sequence in [one for one in self._sent_s if one not in self._waiting]:
            if sequence <= self._sequence:
                self.waits_s.append(now_s - self._sent_s.pop(sequence))


def half(
    rig: Rig, client: Client, sender: Timed, traffic: ingest.Traffic, first: int, load: ingest.Load
) -> dict[str, Any]:
    """So many seconds of the load, from one on."""
    assert rig.process is not None
    pid, due = rig.process.pid, erasing.due(client)
    usage, sender.waits_s = ingest.Usage(pid), []
    before, before_mb = usage.cpu_s(), written_mb(pid)
    wall_s = ingest.play(sender, traffic, first, load, usage, ingest.Retention(rig.store))
    after = usage.cpu_s()
    used = {name: cpu_s - before.get(name, 0.0) for name, cpu_s in after.items()}
    waits = sorted(sender.waits_s)
    return {
        "days_due": due, "days_left": erasing.due(client), "wall_s": round(wall_s, 1),
        "cores": round(sum(used.values()) / wall_s, 2),
        "converting": round(used.get(NAME, 0.0) / wall_s, 2),
        "committing": round(used.get("committer", 0.0) / wall_s, 2),
        "written_mb": round(written_mb(pid) - before_mb),
        "ack_p50_s": round(waits[len(waits) // 2], 2), "ack_most_s": round(waits[-1], 2),
        "memory_mb": round(max(usage.memory) / 1e6),
    }  # fmt: skip


def measure(folder: Path, recordings: int, load: ingest.Load) -> list[dict[str, Any]]:
    """Both halves, on a store that is made if it is not there."""
    make(folder, recordings)
    ingest.THREADS[NAME] = NAME
    with running(folder, commit_interval_s=2.0) as rig:
        client, sender = rig.client("operator"), Timed(rig.capture(), load.in_flight)
        erasing.follow(rig, client, erasing.PATIENCE_S, random.Random(0))  # of a run before
        traffic = ingest.Traffic(load)
        calls = traffic.first_records()
        for start in range(0, len(calls), 500):
            sender.send(calls[start : start + 500])
        warm = load._replace(seconds=WARM_S, fast=True)
        half(rig, client, sender, traffic, 0, warm)
        rows = [{"beside": "nothing"} | half(rig, client, sender, traffic, WARM_S, load)]
        chosen = random.sample(range(recordings), erasing.BATCH)
        ids = [millions.call_of(number).id for number in chosen]
        client.ask(m.Erase(ids, "bench"), timeout_s=erasing.PATIENCE_S)
        second = WARM_S + load.seconds
        rows.append({"beside": "search rows"} | half(rig, client, sender, traffic, second, load))
    return rows


def make(folder: Path, recordings: int) -> None:
    """The store, if it is not there."""
    if not (folder / "store").exists():
        with running(folder):
            pass
    millions.make(folder / "store", folder / "unlock.key", recordings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=int, default=300_000)
    parser.add_argument("--calls", type=int, default=5250)
    parser.add_argument("--seconds", type=int, default=25)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--make", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sv-") as own:
        folder = given.folder or Path(own)
        if given.make:
            make(folder, given.recordings)
            return
        (load,) = ingest.loads([given.calls], seconds=given.seconds, short=False)
        ingest.show("beside", measure(folder, given.recordings, load))


if __name__ == "__main__":
    main()
