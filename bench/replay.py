"""What the whole product costs: a capture file to sealed, committed recordings, beside tcpdump.

Measured: `spanvault replay` into a new store, over all its processes (the command, storaged,
capture): CPU time, user and system, of each; the most memory each ever held (capture's with what it
hands to storaged). What it stored is compared with what was sent. A capture of one call shows what
starting the processes costs, whatever the size. The yardstick is `tcpdump -r FILE -w OTHER` on the
same file. Both find the file in the page cache, and Python finds modules compiled, as where
the product is installed. Prints a table, how CPU and memory grow from the first shape to each
other, and one JSON line.

    python bench/replay.py [--shape CALLS:SECONDS …] [--folder DIR]
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calls import Shape, write

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SAMPLE_S = 0.05
READ_BYTES = 4 << 20
PROCESSES = ("command", "capture", "storaged")
ONE_CALL = Shape(1, 1)


@dataclass
class Used:
    """Of one process. CPU in seconds, memory in bytes at its highest."""

    user_s: float = 0.0
    system_s: float = 0.0
    peak: int = 0

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s


def replay(capture: Path, folder: Path) -> tuple[dict[str, Used], float, list[dict[str, Any]]]:
    """One replay into a new store: what each process used, wall seconds, the calls it printed."""
    store, out = folder / "store", folder / "calls"
    arguments = [
        str(Path(sys.executable).with_name("spanvault")), "replay", str(capture), "--json",
        "--store", str(store), "--unlock-key", str(folder / "unlock.key"),
    ]  # fmt: skip
    begun_s = time.monotonic()
    with out.open("wb") as file:
        command = subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.DEVNULL, env=installed(folder)
        )
        used, total = watch(command.pid)
    wall_s = time.monotonic() - begun_s
    assert os.waitstatus_to_exitcode(total[1]) == 0, "the replay failed"
    command.returncode = 0
    own = used["command"]
    own.user_s = total[2].ru_utime - used["capture"].user_s - used["storaged"].user_s
    own.system_s = total[2].ru_stime - used["capture"].system_s - used["storaged"].system_s
    calls = [json.loads(line) for line in out.read_bytes().splitlines()]
    shutil.rmtree(store)
    (folder / "unlock.key").unlink()
    return used, wall_s, calls


def installed(folder: Path) -> dict[str, str]:
    """The environment of a product whose modules were compiled when it was installed."""
    other = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**other, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}


def watch(command: int) -> tuple[dict[str, Used], tuple[int, int, Any]]:
    """Look at the command and its children until it ends. Also what wait4() says of all of them.

    A process's last SAMPLE_S are lost, so they count as the command's: the sum is exact.
    """
    used = {name: Used() for name in PROCESSES}
    while True:
        ended = os.wait4(command, os.WNOHANG)
        if ended[0]:
            return used, ended
        look(command, used["command"])
        children = Path(f"/proc/{command}/task/{command}/children")
        try:
            pids = [int(pid) for pid in children.read_text().split()]
        except OSError:
            pids = []
        for pid in pids:
            words = arguments_of(pid)
            for name in ("capture", "storaged"):
                if name in words[:3]:
                    look(pid, used[name])
        time.sleep(SAMPLE_S)


def look(pid: int, used: Used) -> None:
    """Note what a process has used so far. Source: proc_pid_stat(5), proc_pid_status(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return
    used.user_s, used.system_s = int(fields[11]) * TICK_S, int(fields[12]) * TICK_S
    high = [line.split() for line in status.splitlines() if line.startswith("VmHWM")]
    own = max([0, *(int(words[1]) * 1024 for words in high)])
    used.peak = max(used.peak, own + handed_over(pid))


def handed_over(pid: int) -> int:
    """Bytes of anonymous memory files (spanvault.slots), which no process's own memory counts."""
    size = 0
    for descriptor in range(3, 16):
        path = Path(f"/proc/{pid}/fd/{descriptor}")
        with contextlib.suppress(OSError):
            if "/memfd:media" in str(path.readlink()):
                size += path.stat().st_blocks * 512
    return size


def arguments_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def read_once(capture: Path) -> None:
    """What is read from the disk costs whoever reads it first; later ones find it in memory."""
    with capture.open("rb", buffering=0) as file:
        while file.read(READ_BYTES):
            pass


def tcpdump(capture: Path, other: Path) -> Used:
    """Copy a capture as tcpdump does."""
    process = subprocess.Popen(
        ["tcpdump", "-r", capture, "-w", other, "-Z", "root"], stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, "tcpdump failed"
    other.unlink()
    return Used(usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)


def check(shape: Shape, calls: list[dict[str, Any]]) -> None:
    """Raise AssertionError unless every call and every packet that was sent was recorded."""
    assert len(calls) == shape.calls, f"{len(calls)} calls of {shape.calls}"
    for call in calls:
        assert call["outcome"] == "answered"
        assert call["end_reason"] == "bye"
        heard = [channel["packets"] for channel in call["channels"]]
        assert heard == 2 * [shape.packets // (2 * shape.calls)], call
        assert not any(channel["lost"] for channel in call["channels"])


def measure(shape: Shape, folder: Path, start_s: float) -> dict[str, Any]:
    """One row. start_s: CPU time of a replay of next to nothing."""
    capture = folder / "calls.pcap"
    frames = write(capture, shape)
    size = capture.stat().st_size
    read_once(capture)
    copied = tcpdump(capture, folder / "copy.pcap")
    read_once(capture)
    used, wall_s, calls = replay(capture, folder)
    check(shape, calls)
    capture.unlink()
    total_s = sum(one.cpu_s for one in used.values())
    return {
        "calls": shape.calls, "talk_s": shape.talk_s, "frames": frames, "bytes": size,
        "cpu_s": round(total_s, 2), "start_s": round(start_s, 2), "wall_s": round(wall_s, 2),
        "packets_per_cpu_s": round(frames / total_s),
        "without_start": round(frames / max(TICK_S, total_s - start_s)),
        "tcpdump_cpu_s": round(copied.cpu_s, 2),
        "tcpdump_packets_per_cpu_s": round(frames / copied.cpu_s),
        "ratio_to_tcpdump": round(total_s / copied.cpu_s, 2),
        **{f"{name}_s": [round(one.user_s, 2), round(one.system_s, 2)]
           for name, one in used.items()},
        **{f"{name}_peak_mb": round(one.peak / 1e6) for name, one in used.items()},
    }  # fmt: skip


def start_up(folder: Path) -> float:
    """CPU seconds of a replay of one call of one second."""
    capture = folder / "one.pcap"
    write(capture, ONE_CALL)
    replay(capture, folder)  # what is imported is compiled
    used, _, calls = replay(capture, folder)
    check(ONE_CALL, calls)
    return sum(one.cpu_s for one in used.values())


def growth(few: dict[str, Any], many: dict[str, Any]) -> str:
    """CPU and memory of one row against those of another, start-up apart."""
    calls = many["calls"] - few["calls"]
    work_s = [max(TICK_S, row["cpu_s"] - row["start_s"]) for row in (few, many)]
    memory = sum(many[f"{name}_peak_mb"] - few[f"{name}_peak_mb"] for name in PROCESSES)
    each = 1000 * memory / max(1, calls)
    return (
        f"{few['frames']:,} → {many['frames']:,} packets ({many['frames'] / few['frames']:.1f}×): "
        f"{work_s[1] / work_s[0]:.1f}× the CPU; {each:.0f} KB a further call"
    )


def shape(text: str) -> Shape:
    calls, _, seconds = text.partition(":")
    return Shape(int(calls), int(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--shape", type=shape, nargs="+", metavar="CALLS:SECONDS",
        default=[Shape(100, 120), Shape(1000, 120), Shape(5000, 24)],
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    rows = []
    with tempfile.TemporaryDirectory(prefix="sv-", dir=given.folder) as folder:
        start_s = start_up(Path(folder))
        rows = [measure(one, Path(folder), start_s) for one in given.shape]
    for name in rows[0]:
        print(f"{name:>26}" + "".join(f"{row[name]!s:>16}" for row in rows))
    for row in rows[1:]:
        print(growth(rows[0], row))
    print(json.dumps({"bench": "replay", "machine": platform.platform(), "rows": rows}))


if __name__ == "__main__":
    main()
