"""How much memory of the capture a concurrent call takes, and how long the collector stops it.

A recorder of its own process hears generated calls, all at once, with the table of calls saved each
second and freed memory kept as the daemon does; what it gives is let go at once, as if
acknowledged. Anonymous memory is asked for after each block, and as each part of a second leaves:
the capture file does not count. A call's share is what the larger run takes more than the smaller.
Prints a table and one JSON line.

    python bench/memory.py [--calls 500 5000]
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import calls

from capture.__main__ import COLLECTED, KEPT_BYTES
from capture.ids import new_id
from capture.recorder import Recorder
from capture.sources.files import blocks
from spanvault.daemon import memory
from spanvault.daemon.config import CaptureConfig

RAMP_S, TALK_S = 3, 7
FULL_S = 6  # all calls talk, and have for a while


def anonymous_kb() -> int:
    """Memory of this process that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


class Pauses:
    """How long the garbage collector stopped us."""

    def __init__(self) -> None:
        self.longest_ms = self._began = 0.0
        gc.callbacks.append(self._told)

    def _told(self, phase: str, _: dict[str, int]) -> None:
        now = time.process_time()
        if phase == "start":
            self._began = now
        else:
            self.longest_ms = max(self.longest_ms, (now - self._began) * 1000)


def hear(path: Path) -> dict[str, Any]:
    """What one run took. Media that leaves counts in the peak, part by part."""
    gc.freeze()
    gc.set_threshold(*COLLECTED)
    memory.keep_freed(KEPT_BYTES)
    recorder, pauses = Recorder(CaptureConfig(), new_id), Pauses()
    before, packets, rest, peak, table, sound = anonymous_kb(), 0, 0, 0, 0, 0
    began, began_ns = time.process_time(), 0
    for block in blocks(path):
        began_ns = began_ns or int(block.time_ns[0])
        heard = recorder.receive(block)
        packets += len(block.start)
        full = FULL_S <= (int(block.time_ns[0]) - began_ns) / 1e9 < RAMP_S + TALK_S - 1
        left = 0
        for media in heard.media:
            left += len(media.payload) + media.frames.nbytes
            peak = max(peak, anonymous_kb() - before if full else 0)
        if heard.ticked:
            size = len(recorder.calls.snapshot())
            if full:
                table, sound = size, left
        now = anonymous_kb() - before
        if full:
            peak = max(peak, now)
            rest = min(rest or now, now)
    return {
        "rest_kb": rest, "peak_kb": peak, "table_kb": table // 1024, "sound_kb": sound // 1024,
        "pause_ms": round(pauses.longest_ms, 1), "packets": packets,
        "cpu_s": round(time.process_time() - began, 2),
    }  # fmt: skip


def measure(count: int, folder: Path) -> dict[str, Any]:
    """One row, from a process that has done nothing else."""
    path = folder / f"{count}.pcap"
    calls.RAMP_S = RAMP_S
    calls.write(path, calls.Shape(count, TALK_S))
    command = [sys.executable, __file__, "--hear", str(path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path.unlink()
    return {"calls": count, **json.loads(told)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--calls", type=int, nargs=2, default=[500, 5000])
    parser.add_argument("--hear", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hear:
        print(json.dumps(hear(arguments.hear)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(count, Path(folder)) for count in sorted(arguments.calls)]
    print(f"{'calls':>6} {'at rest':>9} {'peak':>9} {'table':>8} {'a second':>9} {'pause':>8}")
    for row in rows:
        print(
            f"{row['calls']:>6,} {row['rest_kb'] // 1024:>6} MiB {row['peak_kb'] // 1024:>5} MiB "
            f"{row['table_kb']:>4,} KiB {row['sound_kb'] // 1024:>5} MiB {row['pause_ms']:>5} ms"
        )
    less, more = rows
    each = {
        name: round((more[name] - less[name]) / (more["calls"] - less["calls"]), 1)
        for name in ("rest_kb", "peak_kb", "table_kb", "sound_kb")
    }
    growth = round(more["cpu_s"] / less["cpu_s"], 1)
    print(
        f"\na call: {each['rest_kb']} KiB at rest, {each['peak_kb']} with the second that leaves "
        f"({each['sound_kb']}); {more['calls'] // less['calls']}× the calls: {growth}× the CPU"
    )
    print(json.dumps({"bench": "memory", "rows": rows, "a_call": each, "cpu": growth}))


if __name__ == "__main__":
    main()
