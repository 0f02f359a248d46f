"""What an attacker, or an unlucky mirror, costs the capture, and how far behind the wire it gets.

The recorder of a process of its own hears generated calls and what happens to them:

- *hung up together*: all calls end within a second, as where a gateway restarts
- *BYEs*: forged, for all calls within a fifth of a second, while their media goes on
- *contests*: INVITEs and answers under new Call-IDs name the ends of all calls, and behind a pause
  their media is the newer calls': all of them turn out so within a second
- *named ports*: the same of fewer calls, again and again, and their media goes on through it
- *TLS*: the signalling cannot be read; no call claims any media

Each is compared with the same media and signalling without it. *Turn*: the longest that the ring
waits for a block; *behind*: how many seconds the capture is behind the wire at most, if it has a
core for itself (a ring holds 1.75 s of 1 Gbit/s); both from when all calls talk. *Streams*: those
that were told apart. Prints a table and one JSON line.

    python bench/abuse.py [--only NAME …]
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import calls
import numpy as np
from calls import NO_PAUSE, Message, Pause, Shape
from memory import anonymous_kb
from numpy.typing import NDArray

from capture.__main__ import COLLECTED, KEPT_BYTES
from capture.ids import new_id
from capture.recorder import Recorder
from capture.sources.files import blocks
from spanvault.daemon import memory
from spanvault.daemon.config import CaptureConfig

RAMP_S = 1
BEGINS_US = 3_000_000  # all calls talk, and have for a while
LIVE, FEWER, UNCLAIMED = Shape(5000, 5), Shape(500, 6), Shape(2500, 10)


class Scene(NamedTuple):
    """Calls, what is done to them, how many events that is; `plain` is the same without it."""

    shape: Shape
    said: Callable[[NDArray[np.int64]], list[Message]]  # given when the calls begin
    events: int
    pause: Pause = NO_PAUSE
    plain: str = "quiet"


def talk(shape: Shape, *, ended: bool = True) -> Callable[[NDArray[np.int64]], list[Message]]:
    """What sets the calls up, and ends them."""

    def said(begin_us: NDArray[np.int64]) -> list[Message]:
        every = calls.dialogs(begin_us, shape.talk_s)
        return [each for each in every if ended or not _ends(each)]

    return said


def _ends(message: Message) -> bool:
    return b" BYE\r\n" in message.text


def byes(begin_us: NDArray[np.int64]) -> list[Message]:
    """Forged, of all calls, within 0.2 s."""
    every = talk(LIVE)(begin_us)
    spread_us = np.linspace(0, 200_000, LIVE.calls).astype(int)
    return [
        replace(each, time_us=BEGINS_US + int(spread_us[each.call])) if _ends(each) else each
        for each in every
    ]


def again(
    shape: Shape, rounds: int, ring_us: int = 0
) -> Callable[[NDArray[np.int64]], list[Message]]:
    """Newer calls between the same ends, one a second and call; none of them ends."""

    def said(begin_us: NDArray[np.int64]) -> list[Message]:
        return [*talk(shape, ended=False)(begin_us), *_newer(shape, rounds, ring_us)]

    return said


def _newer(shape: Shape, rounds: int, ring_us: int) -> Iterator[Message]:
    """ring_us: so much longer until each is answered."""
    for number in range(rounds):
        begin_us = BEGINS_US + number * 1_000_000 + np.linspace(0, 10**6, shape.calls).astype(int)
        for each in calls.dialogs(begin_us, shape.talk_s):
            if not _ends(each):
                text = each.text.replace(b"-bench@", b"-%d@" % number)
                late_us = ring_us if text.startswith((b"SIP/2.0 200", b"ACK")) else 0
                yield replace(each, text=text, time_us=each.time_us + late_us)


def nothing(_: NDArray[np.int64]) -> list[Message]:
    """No signalling that can be read."""
    return []


# The pause lies between INVITE and answer of every newer call.
SCENES = {
    "quiet": Scene(LIVE, talk(LIVE, ended=False), 0),
    "hung up together": Scene(LIVE, talk(LIVE), LIVE.calls),
    "BYEs": Scene(LIVE, byes, LIVE.calls),
    "contests": Scene(LIVE, again(LIVE, 1, 1_200_000), LIVE.calls, Pause(4_020_000, 4_340_000)),
    "quiet, 500": Scene(FEWER, talk(FEWER, ended=False), 0),
    "named ports": Scene(FEWER, again(FEWER, 4), 4 * FEWER.calls, plain="quiet, 500"),
    "claimed": Scene(UNCLAIMED, talk(UNCLAIMED, ended=False), 0),
    "TLS": Scene(UNCLAIMED, nothing, UNCLAIMED.calls, plain="claimed"),
}


def hear(path: Path) -> dict[str, Any]:
    """What one run took."""
    gc.freeze()
    gc.set_threshold(*COLLECTED)
    memory.keep_freed(KEPT_BYTES)
    recorder = Recorder(CaptureConfig(), new_id)
    before, packets, peak, first_ns, heard_ns = anonymous_kb(), 0, 0, 0, 0
    total_s = behind_s = most_s = longest_s = 0.0
    for block in blocks(path):
        began_s = time.process_time()
        for media in recorder.receive(block).media:
            packets += len(media.frames)
        took_s = time.process_time() - began_s
        now_ns = int(block.time_ns[-1])
        first_ns = first_ns or now_ns
        total_s += took_s
        if now_ns >= first_ns + 1000 * BEGINS_US:  # calls were set up faster than anywhere
            behind_s = max(0.0, behind_s - (now_ns - (heard_ns or now_ns)) / 1e9) + took_s
            heard_ns = now_ns
            longest_s, most_s = max(longest_s, took_s), max(most_s, behind_s)
        peak = max(peak, anonymous_kb() - before)
    packets += sum(len(media.frames) for media in recorder.finish().media)
    counters = recorder.counters()
    names = ("rtp", "streams", "orphans", "unmatched_dropped", "unmatched_ignored")
    return {
        "cpu_s": round(total_s, 2), "turn_s": round(longest_s, 3), "behind_s": round(most_s, 2),
        "peak_mb": peak // 1000, "flushed": packets,
        "counters": {name: counters[name] for name in names if name in counters},
    }  # fmt: skip


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One row, from a process that has done nothing else."""
    scene, path = SCENES[name], folder / "scene.pcap"
    said = scene.said(calls.begins(scene.shape, np.random.default_rng(1)))
    frames = calls.write(path, scene.shape, said=said, pause=scene.pause)
    command = [sys.executable, __file__, "--hear", str(path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path.unlink()
    return {"scene": name, "frames": frames, "messages": len(said), **json.loads(told)}


def show(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """A row of the table; what it costs more than the plain one, by event."""
    row, scene = rows[name], SCENES[name]
    more = "–"
    if scene.events:
        plain = rows[scene.plain]
        each_s = row["cpu_s"] - plain["cpu_s"] * row["frames"] / plain["frames"]
        row["event_us"] = round(each_s / scene.events * 1e6)
        more = f"{row['event_us']:,}"
    print(
        f"{name:>18} {row['frames']:>10,} {scene.events:>7,} {row['cpu_s']:>6.2f} {more:>9}"
        f" {1000 * row['turn_s']:>8.0f} {row['behind_s']:>7.2f} {row['peak_mb']:>7,}"
        f" {row['counters']['streams']:>7,} {row['flushed']:>10,}",
        flush=True,
    )


def chosen(names: Sequence[str]) -> list[str]:
    """These scenes, and what they are compared with."""
    wanted = set(names) | {SCENES[name].plain for name in names if SCENES[name].events}
    return [name for name in SCENES if name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--hear", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hear:
        print(json.dumps(hear(given.hear)))
        return
    calls.RAMP_S = RAMP_S
    print(
        f"{'scene':>18} {'frames':>10} {'events':>7} {'CPU s':>6} {'us each':>9} {'turn ms':>8}"
        f" {'behind':>7} {'peak MB':>7} {'streams':>7} {'flushed':>10}"
    )
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for name in chosen(given.only):
            rows[name] = measure(name, Path(folder))
            show(name, rows)
    print(json.dumps({"bench": "abuse", "rows": list(rows.values())}))


if __name__ == "__main__":
    main()
