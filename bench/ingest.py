"""How many chunks a CPU-second storaged takes in, seals, syncs and acknowledges.

Measured: the real daemon over a CURVE socket, on a real disk; a sender with prepared batches keeps
a bounded number of bytes unacknowledged, as a capture does. Calls begin and end all the time, so
that files, keys, records and seals are in the figure: `long` are many calls of some minutes,
`short` are 2,000 calls of 10 s, 200 a second. A call's record comes three times, the last seals.
CPU is the daemon's alone (user and system), apart by thread: `main` takes batches in, `zmq`
receives and decrypts (CURVE), `committer` seals, writes and syncs. The kernel's own write-back is
not in it. Paced, it sends one second's chunks a second; `--fast`, as many as are acknowledged.
With --pools the calls are spread evenly over three pools.
Memory is RssAnon, the process's own (not the pages of LMDB's file that it has mapped); `grown`: its
highest in the last third of the time less that in the second; minutes_mb: the highest of each.
Prints a table and one JSON line.

    python bench/ingest.py [--calls 525 5250] [--seconds 30] [--mean-s 180] [--fast] [--no-short]
                           [--in-flight-mb 256] [--pools] [--folder DIR]
    python bench/ingest.py --calls 5250 --no-short --seconds 600      ten minutes: is memory flat?
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from spanvault import messages as m
from spanvault import wire
from spanvault.media.chunk import CHUNK, FRAME, NO_MEDIA, Media
from tests.support.vault import SECOND, START, Client, Rig, call_id

PACKETS, BYTES = 50, 160  # a second of G.711 in one stream
BATCH = 128  # chunks
TICK = os.sysconf("SC_CLK_TCK")
KEPT_S = 60  # an ended call's object
POOLS = ("base", "core", "sensitive")
CALLEE = "+4912345678"  # and the number of the pool
RULES = "".join(
    f'[pools.{pool}]\n[[rules]]\npool = "{pool}"\nnumber = ["{CALLEE}{number}"]\n'
    for number, pool in enumerate(POOLS)
    if number
)
SHORT_CALLS, SHORT_MEAN_S = 2000, 10
THREADS = {"committer": "committer", "requests": "requests", "ZMQbg/IO/0": "zmq"}


class Load(NamedTuple):
    """What is sent."""

    name: str
    calls: int  # at once
    mean_s: int  # each call's length
    seconds: int
    fast: bool
    in_flight: int  # bytes
    pools: bool


class Traffic:
    """Calls at once, of which as many end as begin in each second."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.numbers = np.arange(load.calls)
        self._next, self._turned = load.calls, 0.0
        self._ids = {n: call_id(n) for n in range(load.calls)}
        self._payload = memoryview(os.urandom(BATCH * PACKETS * BYTES))

    def records(self, second: int) -> list[m.Call]:
        """New calls, those of the second before that were answered, and those that end."""
        ended = self._turn()
        born = range(self._next - len(ended), self._next)
        answered = range(max(0, born.start - len(ended)), born.start)
        return [
            *(self._record(n, 0, second) for n in born),
            *(self._record(n, 1, second) for n in answered if n in self._ids),
            *(self._record(n, 2, second) for n in ended),
        ]

    def first_records(self) -> list[m.Call]:
        return [self._record(n, 0, 0) for n in self.numbers.tolist()]

    def media(self, second: int) -> Iterator[Media]:
        """The chunks of all calls, two streams each, in batches of BATCH chunks."""
        ids = b"".join(self._ids[n] * 2 for n in self.numbers.tolist())
        table = np.zeros(2 * len(self.numbers), CHUNK)
        table["recording_id"] = np.frombuffer(ids, "V16")
        table["stream"] = np.arange(len(table)) % 2
        table["frames"], table["payload_bytes"] = PACKETS, PACKETS * BYTES
        table["start_ns"] = START + second * SECOND
        frames = np.zeros(BATCH * PACKETS, FRAME)
        frames["length"] = BYTES
        for at in range(0, len(table), BATCH):
            part = table[at : at + BATCH]
            packets = len(part) * PACKETS
            yield Media(part, frames[:packets], self._payload[: packets * BYTES])

    def _turn(self) -> list[int]:
        """Put new calls in place of the oldest; gives the old ones."""
        self._turned += self._load.calls / self._load.mean_s
        ended = []
        for _ in range(int(self._turned)):
            at = self._next % self._load.calls
            ended.append(int(self.numbers[at]))
            self.numbers[at] = self._next
            self._ids[self._next] = call_id(self._next)
            self._next += 1
        self._turned -= len(ended)
        return ended

    def _record(self, number: int, revision: int, second: int) -> m.Call:
        final = revision == 2
        streams = [
            m.Stream(
                n, "callee" if n else "caller", "audio", n, f"10.0.0.{n}:4000", "10.0.0.9:5000",
                {8: m.Codec("PCMA", 8000)}, {8: PACKETS * second}, START, START, PACKETS * second,
            )
            for n in (0, 1)
        ]  # fmt: skip
        return m.Call(
            self._ids.pop(number) if final else self._ids[number],
            "bench", [f"{number}@bench.example"],
            f"+4930{number:07d}", f"{CALLEE}{number % len(POOLS)}",
            START + number, START if revision else None, START + second * SECOND if final else None,
            "answered" if revision else "in_progress", "bye" if final else None,
            streams=streams, revision=revision, final=final,
        )  # fmt: skip


class Sender:
    """A capture that keeps a bounded number of bytes unacknowledged."""

    def __init__(self, client: Client, in_flight: int) -> None:
        self._client, self._in_flight = client, in_flight
        self._waiting: dict[int, int] = {}
        self._sequence = 0

    def send(self, calls: list[m.Call], media: Media = NO_MEDIA) -> None:
        while sum(self._waiting.values()) > self._in_flight:
            self.settle(1.0)
        self._sequence += 1
        self._client.send(m.Batch("bench", self._sequence, calls), media)
        self._waiting[self._sequence] = media.payload.nbytes
        self.settle(0)

    def settle(self, wait_s: float) -> None:
        """Take acknowledgements in."""
        while (answer := self._client.receive(wire.decode_from_ingest, wait_s)) is not None:
            for sequence in answer[0].sequences:
                self._waiting.pop(sequence)
            wait_s = 0

    def finish(self) -> None:
        """Wait for every acknowledgement."""
        while self._waiting:
            self.settle(1.0)


class Usage:
    """A process's CPU seconds by thread, and its own bytes of memory over time."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self._pid = pid
        self.memory: list[int] = []

    def cpu_s(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for task in (self._folder / "task").iterdir():
            head, _, rest = (task / "stat").read_text().rpartition(")")
            name = "main" if int(task.name) == self._pid else head.partition("(")[2]
            fields = rest.split()
            used_s = (int(fields[11]) + int(fields[12])) / TICK
            name = THREADS.get(name, name if name == "main" else "other")
            found[name] = found.get(name, 0.0) + used_s
        return found

    def sample(self) -> None:
        status = (self._folder / "status").read_text()
        self.memory.append(1024 * int(status.partition("RssAnon:")[2].split()[0]))

    @property
    def minutes(self) -> list[int]:
        """The most of each minute: a sample a second."""
        return [max(self.memory[at : at + 60]) for at in range(0, len(self.memory), 60)]

    @property
    def grown(self) -> int:
        third = max(1, len(self.memory) // 3)
        return max(self.memory[-third:]) - max(self.memory[-2 * third : -third] or [0])


class Retention:
    """Removes what ended long ago, or ten minutes would take 57 GB of disk."""

    def __init__(self, store: Path) -> None:
        self._pools = [store / "pools" / pool / "objects" for pool in POOLS]
        self._ended: deque[tuple[int, bytes]] = deque()

    def turn(self, second: int, calls: list[m.Call]) -> None:
        self._ended += [(second, call.id) for call in calls if call.final]
        while self._ended and self._ended[0][0] < second - KEPT_S:
            name = self._ended.popleft()[1].hex()
            for objects in self._pools:
                (objects / name[-2:] / f"{name}.svr").unlink(missing_ok=True)


def play(
    sender: Sender, traffic: Traffic, first: int, load: Load, usage: Usage, retention: Retention
) -> float:
    """Send so many seconds. Returns the wall seconds until the last acknowledgement."""
    begun_s = time.monotonic()
    for second in range(first, first + load.seconds):
        if not load.fast and (ahead_s := begun_s + second - first - time.monotonic()) > 0:
            time.sleep(ahead_s)
        for media in traffic.media(second):
            sender.send([], media)
        records = traffic.records(second)
        for at in range(0, len(records), 500):
            sender.send(records[at : at + 500])
        usage.sample()
        retention.turn(second, records)
    sender.finish()
    return time.monotonic() - begun_s


def measure(load: Load, folder: Path) -> dict[str, Any]:
    """One run on a new store."""
    rig = Rig(folder, commit_interval_s=2.0)
    if load.pools:
        rig.config.write_text(rig.config.read_text() + RULES)
    try:
        rig.start()
        assert rig.process is not None
        sender, usage = Sender(rig.capture(), load.in_flight), Usage(rig.process.pid)
        traffic = Traffic(load)
        calls = traffic.first_records()
        for start in range(0, len(calls), 500):
            sender.send(calls[start : start + 500])
        warm = load._replace(seconds=4, fast=True)
        retention = Retention(rig.store)
        # files made, keys handed out
        play(sender, traffic, 0, warm, Usage(rig.process.pid), retention)
        before = usage.cpu_s()
        wall_s = play(sender, traffic, 4, load, usage, retention)
        used = {name: cpu_s - before.get(name, 0.0) for name, cpu_s in usage.cpu_s().items()}
        objects = [len(list(rig.store.glob(f"pools/{pool}/objects/*/*"))) for pool in POOLS]
        rig.stop()
    finally:
        rig.close()
    return {**report(load, wall_s, used, usage), "objects": "/".join(map(str, objects))}


def report(load: Load, wall_s: float, used: dict[str, float], usage: Usage) -> dict[str, Any]:
    chunks = 2 * load.calls * load.seconds
    size = chunks * (PACKETS * (BYTES + FRAME.itemsize) + CHUNK.itemsize)
    total_s = max(1 / TICK, sum(used.values()))
    heard_s = wall_s if load.fast else max(wall_s, load.seconds)
    return {
        "load": load.name, "calls": load.calls, "mean_s": load.mean_s, "seconds": load.seconds,
        "pools": len(POOLS) if load.pools else 1,
        "paced": not load.fast, "in_flight_mb": load.in_flight >> 20, "wall_s": round(wall_s, 2),
        "mb_per_s": round(size / heard_s / 1e6),
        "cpu_s": round(total_s, 2),
        **{f"cpu_{name}_s": round(used.get(name, 0.0), 2)
           for name in ("main", "zmq", "committer", "requests", "other")},
        "cores": round(total_s / heard_s, 3),
        "ns_per_packet": round(total_s / (chunks * PACKETS) * 1e9),
        "chunks_per_cpu_s": round(chunks / total_s), "mb_per_cpu_s": round(size / total_s / 1e6),
        "memory_mb": round(max(usage.memory) / 1e6), "grown_mb": round(usage.grown / 1e6),
        "minutes_mb": "/".join(str(round(size / 1e6)) for size in usage.minutes),
    }  # fmt: skip


CALLS: Final = (525, 5250)
SECONDS: Final = 30
IN_FLIGHT_MB: Final = 256


def loads(
    calls: Iterable[int] = CALLS, mean_s: int = 180, seconds: int = SECONDS, *, fast: bool = False,
    in_flight_mb: int = IN_FLIGHT_MB, pools: bool = False, short: bool = True,
) -> list[Load]:  # fmt: skip
    """What is measured; without more, what is measured by itself."""
    common = (seconds, fast, in_flight_mb << 20, pools)
    found = [Load("long", each, mean_s, *common) for each in calls]
    return [*found, Load("short", SHORT_CALLS, SHORT_MEAN_S, *common)] if short else found


def measure_all(folder: Path, wanted: Iterable[Load]) -> list[dict[str, Any]]:
    """A run each, all in one folder below this, which is removed at the end.

    ext4 looks at each inode that was freed lately before it gives out a new one, so a store that is
    removed slows the next one down.
    """
    with tempfile.TemporaryDirectory(prefix="sv-", dir=folder) as own:
        return [measure(load, Path(own) / str(at)) for at, load in enumerate(wanted)]


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """A table and its JSON line."""
    for field in rows[0]:
        print(f"{field:>18}" + "".join(f"{row[field]!s:>12}" for row in rows))
    print(json.dumps({"bench": name, "machine": platform.platform(), "rows": rows}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, nargs="+", default=CALLS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--mean-s", type=int, default=180)
    parser.add_argument("--in-flight-mb", type=int, default=IN_FLIGHT_MB)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--no-short", action="store_true")
    parser.add_argument("--pools", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    wanted = loads(
        given.calls, given.mean_s, given.seconds, fast=given.fast,
        in_flight_mb=given.in_flight_mb, pools=given.pools, short=not given.no_short,
    )  # fmt: skip
    show("ingest", measure_all(given.folder, wanted))


if __name__ == "__main__":
    main()
