"""How many chunks a CPU-second storaged takes in, seals, syncs and acknowledges.

Measured: the real daemon over a CURVE socket, on a real disk; a sender with prepared batches keeps
a bounded number of bytes unacknowledged, as a capture does. CPU is the daemon's alone (user and
system, all threads). Paced, it sends one second's chunks a second; `--fast`, as many as are
acknowledged. Prints a table and one JSON line.

    python bench/ingest.py [--calls 5250] [--seconds 20] [--fast] [--in-flight-mb 256]
                           [--folder DIR]
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from spanvault import messages as m
from spanvault import wire
from spanvault.chunk import CHUNK, FRAME, Media
from tests.support.vault import START, Client, Rig, call_id, make_call

PACKETS, BYTES = 50, 160  # a second of G.711 in one stream
BATCH = 128  # chunks
TICK = os.sysconf("SC_CLK_TCK")


def batches(calls: int) -> list[Media]:
    """One second of so many calls, two streams each, in batches of BATCH chunks."""
    streams = [(call_id(number), stream) for number in range(calls) for stream in (0, 1)]
    payload = memoryview(os.urandom(BATCH * PACKETS * BYTES))
    made = []
    for start in range(0, len(streams), BATCH):
        part = streams[start : start + BATCH]
        table, frames = np.zeros(len(part), CHUNK), np.zeros(len(part) * PACKETS, FRAME)
        table["recording_id"] = [np.void(recording) for recording, _ in part]
        table["stream"] = [stream for _, stream in part]
        table["frames"], table["payload_bytes"] = PACKETS, PACKETS * BYTES
        frames["length"] = BYTES
        made.append(Media(table, frames, payload[: len(part) * PACKETS * BYTES]))
    return made


def usage(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / TICK
    return cpu_s, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def seconds_of(media: list[Media], seconds: int) -> Iterator[tuple[int, Media]]:
    """The batches second after second, each with its own start."""
    for second in range(seconds):
        for part in media:
            table = part.table.copy()
            table["start_ns"] = START + second * 1_000_000_000
            yield second, part._replace(table=table)


def send(client: Client, media: list[Media], seconds: int, fast: bool, in_flight: int) -> float:
    """Send and wait for every acknowledgement. Returns the wall seconds it took."""
    waiting: dict[int, int] = {}
    begun_s = time.monotonic()
    for sequence, (second, part) in enumerate(seconds_of(media, seconds), 1):
        while sum(waiting.values()) > in_flight:
            settle(client, waiting, 1.0)
        if not fast and (ahead_s := begun_s + second - time.monotonic()) > 0:
            time.sleep(ahead_s)
        client.send(m.Batch("bench", sequence), part)
        waiting[sequence] = part.payload.nbytes
        settle(client, waiting, 0)
    while waiting:
        settle(client, waiting, 1.0)
    return time.monotonic() - begun_s


def settle(client: Client, waiting: dict[int, int], wait_s: float) -> None:
    """Take acknowledgements in."""
    while (answer := client.receive(wire.decode_from_ingest, wait_s)) is not None:
        for sequence in answer[0].sequences:
            waiting.pop(sequence)
        wait_s = 0


def measure(calls: int, seconds: int, fast: bool, in_flight: int, folder: Path) -> dict[str, Any]:
    """One run on a new store."""
    rig = Rig(folder, commit_interval_s=2.0)
    try:
        rig.start()
        assert rig.process is not None
        capture, media = rig.capture(), batches(calls)
        for start in range(0, calls, 500):
            some = [make_call(n, final=False) for n in range(start, min(calls, start + 500))]
            capture.send(m.Batch("bench", 10**9 + start, some), Media(*NOTHING))
            while capture.receive(wire.decode_from_ingest) is None:
                pass
        send(capture, media, 2, True, in_flight)  # files made, keys handed out
        before_s, resident = usage(rig.process.pid)
        wall_s = send(capture, [shifted(part) for part in media], seconds, fast, in_flight)
        cpu_s, after = usage(rig.process.pid)
        rig.stop()
    finally:
        rig.close()
    chunks = 2 * calls * seconds
    size = chunks * (PACKETS * (BYTES + FRAME.itemsize) + CHUNK.itemsize)
    used_s = cpu_s - before_s
    return {
        "calls": calls, "seconds": seconds, "paced": not fast, "in_flight_mb": in_flight >> 20,
        "wall_s": round(wall_s, 2),
        "cpu_s": round(used_s, 2), "cores": round(used_s / wall_s, 3),
        "chunks_per_cpu_s": round(chunks / used_s), "mb_per_cpu_s": round(size / used_s / 1e6),
        "mb_per_s": round(size / wall_s / 1e6),
        "resident_mb": round(after / 1e6), "grown_mb": round((after - resident) / 1e6),
    }  # fmt: skip


NOTHING = (np.zeros(0, CHUNK), np.zeros(0, FRAME), memoryview(b""))


def shifted(media: Media) -> Media:
    """The same streams under other numbers, so that nothing counts as stored already."""
    table = media.table.copy()
    table["stream"] += 2
    return media._replace(table=table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, nargs="+", default=[525, 5250])
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--in-flight-mb", type=int, default=256)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    rows = []
    for calls in given.calls:
        with tempfile.TemporaryDirectory(prefix="sv-", dir=given.folder) as folder:
            rows.append(
                measure(calls, given.seconds, given.fast, given.in_flight_mb << 20, Path(folder))
            )
    for name in rows[0]:
        print(f"{name:>18}" + "".join(f"{row[name]!s:>12}" for row in rows))
    print(json.dumps({"bench": "ingest", "machine": platform.platform(), "rows": rows}))


if __name__ == "__main__":
    main()
