"""How many packets a second the whole appliance records from an interface without losing one.

Measured: the three real daemons on a veth pair in a network namespace of this program's own.
SIP opens every call first; then bench/injector.py makes the RTP, on the same cores; capture runs
under SCHED_RR as its unit says, recordings are sealed on disk, and copied to a folder when their
calls end. CPU is each process's own (user and system, all threads), over the seconds of RTP; the
kernel's part in receiving is what the injector used beyond what making frames costs it alone.

Every call record is then held against what was made, stream by stream, and every Nth recording is
read back, frame by frame and byte by byte. Prints a table and one JSON line; exit status 1 if a
row lost anything. 1 GbE of G.711 is 5,250 calls; 50 calls show what idling costs.

    python bench/live.py [--calls 50 1000 2500 5250] [--seconds 20] [--sample 10] [--impaired]
                         [--workers 1] [--folder DIR] [--silence 0]

--silence: storaged is stopped for so many seconds in the midst of it, so that the spool is used.
As root. A row takes a minute besides its seconds, and 50 KB of disk a call and second.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from injector import PACKETS_A_SECOND, Ends, ends
from truth import Truth, false_counts, false_frames

sys.path.insert(0, str(Path(__file__).parent.parent))

from spanvault.client import Client
from spanvault.messages import Search
from tests.support.appliance import Appliance
from tests.support.callgen import Dialogue, Phone, sdp
from tests.support.veth import veth

INTERFACE: Final = "far"
DAEMONS: Final = ("storaged", "replicator", "capture")
REAL_TIME: Final = ("chrt", "--rr", "10")  # as spanvault-capture@.service
TMPFS: Final = Path("/dev/shm")  # where the unit has /run
WIRE: Final = ("chrt", "--rr", "20")  # a wire waits for nobody
CALLS_A_SECOND: Final = 1000
FAR_AWAY_S: Final = 100.0
TICK: Final = os.sysconf("SC_CLK_TCK")
DISK_BLOCKS: Final = 128  # of 4 MiB
SILENT: Final = np.zeros(0, np.int16)


class Dialogues:
    """The SIP of all calls."""

    def __init__(self, sender: socket.socket, calls: int) -> None:
        self._sender = sender
        pairs = [_phones(ends(number)) for number in range(calls)]
        self._calls = [
            (Dialogue(*pair, f"{number}@bench"), pair[0], pair[1])
            for number, pair in enumerate(pairs)
        ]

    def begin(self) -> None:
        """Every call is set up and answered."""
        for number, (words, caller, callee) in enumerate(self._calls):
            self._pace(number)
            self._send(words.request(0, "INVITE", body=sdp(caller)).data)
            self._send(words.response(0, "200 OK", body=sdp(callee)).data)
            self._send(words.request(0, "ACK").data)

    def end(self) -> None:
        """The callers hang up."""
        for number, (words, _, _) in enumerate(self._calls):
            self._pace(number)
            self._send(words.request(0, "BYE", 2).data)
            self._send(words.response(0, "200 OK", "2 BYE").data)

    def _pace(self, number: int) -> None:
        if number % (CALLS_A_SECOND // 100) == 0:
            time.sleep(0.01)

    def _send(self, frame: bytes) -> None:
        self._sender.send(frame)


def _phones(where: Ends) -> tuple[Phone, Phone]:
    return (
        Phone("100", where.phone, where.phone_port, 0, SILENT),
        Phone("200", where.gateway, where.gateway_port, 0, SILENT),
    )


# --- what is measured ----------------------------------------------------------------------------


class Usage:
    """CPU seconds of the daemons, and the most that waited, from its making on."""

    def __init__(self, appliance: Appliance) -> None:
        self._pids = {name: appliance.processes[name].pid for name in DAEMONS}
        self._before = {name: _cpu_s(pid) for name, pid in self._pids.items()}
        self.began = time.monotonic()
        self.waiting = self.spooled = 0

    def cores(self) -> dict[str, float]:
        """Of a core, by daemon."""
        seconds = time.monotonic() - self.began
        return {
            name: round((_cpu_s(pid) - self._before[name]) / seconds, 3)
            for name, pid in self._pids.items()
        }

    def look(self, fields: dict[str, Any]) -> None:
        """Remember the worst of capture's health."""
        self.waiting = max(self.waiting, fields["waiting_batches"])
        self.spooled = max(self.spooled, fields["spooled_batches"])


def _cpu_s(pid: int) -> float:
    """Of a process and its workers."""
    used = 0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        used += int(fields[11]) + int(fields[12])
    return used / TICK


def peak_mb(pid: int) -> int:
    """The most memory a process and its workers ever had, their rings included."""
    status = "\n".join(Path(f"/proc/{each}/status").read_text() for each in family(pid))
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return sum(map(int, peaks)) // 1024


def family(pid: int) -> list[int]:
    """A process and those it started."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def capture_fields(client: Client) -> dict[str, Any]:
    """What capture last told of itself."""
    found = [each for each in client.status(FAR_AWAY_S).daemons if "capture" in each["daemon"]]
    return dict(found[0]["fields"]) if found else {}


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} within {seconds:g} s: no")
        time.sleep(0.5)


def inject(streams: int, seconds: float, *options: str) -> subprocess.Popen[str]:
    script = str(Path(__file__).parent / "injector.py")
    rate = streams * PACKETS_A_SECOND
    command = [*WIRE, sys.executable, script, INTERFACE, "--streams", str(streams),
               "--rate", str(rate), "--seconds", str(seconds), *options]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def made(injector: subprocess.Popen[str]) -> dict[str, float]:
    """What an injector that ends tells of itself."""
    output, _ = injector.communicate()
    if injector.returncode:
        raise SystemExit("the injector failed")
    return dict(json.loads(output))


# --- one row --------------------------------------------------------------------------------------


def measure(given: argparse.Namespace, calls: int, sender: socket.socket) -> dict[str, Any]:
    """Record so many calls on a new store."""
    folder = Path(tempfile.mkdtemp(prefix="spanvault-live-", dir=given.folder))
    settings = {"ring_mb": 256, "workers": given.workers}
    memory = tempfile.TemporaryDirectory(prefix="spanvault-live-", dir=TMPFS)
    try:
        with (
            memory as runtime,
            Appliance(
                folder / "a", INTERFACE, REAL_TIME, runtime_dir=Path(runtime), **settings
            ) as appliance,
        ):
            for name in DAEMONS:
                appliance.start(name)
            with appliance.client() as client:
                return record(given, calls, appliance, client, Dialogues(sender, calls))
    except BaseException:
        for log in folder.glob("a/log/*.log"):
            print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def record(
    given: argparse.Namespace, calls: int, appliance: Appliance, client: Client, words: Dialogues
) -> dict[str, Any]:
    """The calls, from INVITE to the copy of the last recording. Returns the row."""
    disk, streams = disk_mb_s(given.folder), 2 * calls
    options = ["--impaired"] if given.impaired else []
    alone = made(inject(streams, 2, *options, "--drop"))
    words.begin()
    until(lambda: capture_fields(client).get("calls") == calls, "all calls known", 60)
    usage = Usage(appliance)
    injector = inject(streams, given.seconds, *options)
    time.sleep(2)
    hold_up(appliance, given.silence)
    while injector.poll() is None:
        time.sleep(2)
        usage.look(capture_fields(client))
    sent, cores = made(injector), usage.cores()
    words.end()
    until(lambda: all_stored(capture_fields(client)), "all calls over and acknowledged", 180)
    until(lambda: copied(client) == calls, "all recordings copied", 300)
    truth = Truth(int(sent["frames"]), streams, given.impaired)
    return {
        "calls": calls,
        "packets_s": round(sent["frames"] / sent["seconds"]),
        "sent": int(sent["frames"]),
        **stored(client, truth, streams, given.sample),
        **shares(alone, sent, cores),
        "waiting_batches": usage.waiting,
        "spooled_batches": usage.spooled,
        "capture_mb": peak_mb(appliance.processes["capture"].pid),
        "storaged_mb": peak_mb(appliance.processes["storaged"].pid),
        "disk_mb_s": disk,
    }


def hold_up(appliance: Appliance, seconds: float) -> None:
    """storaged gets no CPU for a while."""
    if seconds:
        storaged = appliance.processes["storaged"]
        storaged.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        storaged.send_signal(signal.SIGCONT)


def stored(client: Client, truth: Truth, streams: int, sample: int) -> dict[str, Any]:
    """What came of the packets, held against the truth."""
    told = capture_fields(client)
    found = list(client.search(Search(limit=5 * streams)))
    read = [false_frames(client, call, truth) for call in found[::sample]]
    row = {
        "heard": told["rtp"],
        "tp_drops": told["dropped_frames"],
        "stored": sum(stream.packets for call in found for stream in call.streams),
        "false_streams": false_counts(found, truth, streams),
        "frames_read": sum(count for count, _ in read),
        "false_frames": sum(wrong for _, wrong in read),
    }
    row["lost_batches"] = told["lost_batches"]
    lost = row["tp_drops"] or row["lost_batches"] or row["false_streams"] or row["false_frames"]
    return {**row, "loss_free": not lost}


def shares(
    alone: dict[str, float], sent: dict[str, float], cores: dict[str, float]
) -> dict[str, float]:
    """Who used how much of a core. alone: what making frames costs that nobody hears."""
    injector = alone["cpu_s"] / alone["frames"] * sent["frames"] / sent["seconds"]
    both = sent["cpu_s"] / sent["seconds"]
    used = {"injector": injector, "kernel": both - injector, **cores}
    return {
        **{f"{name}_core": round(share, 3) for name, share in used.items()},
        "all_cores": round(both + sum(cores.values()), 3),
    }


def all_stored(fields: dict[str, Any]) -> bool:
    """Whether no call is live and no batch waits."""
    return fields["calls"] == fields["waiting_batches"] == 0


def copied(client: Client) -> int:
    """Recordings whose copy was read back."""
    found = [each for each in client.status(FAR_AWAY_S).daemons if each["daemon"] == "replicator"]
    return sum(target["copied"] for each in found for target in each["fields"]["targets"].values())


def disk_mb_s(folder: Path) -> int:
    """What the disk takes, written in one go and synced: what storaged shares with everybody."""
    block = os.urandom(4 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.monotonic()
        for _ in range(DISK_BLOCKS):
            file.write(block)
        file.flush()
        os.fdatasync(file.fileno())
        return round(DISK_BLOCKS * len(block) / (time.monotonic() - began) / 1e6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, nargs="+", default=[50, 1000, 2500, 5250])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--impaired", action="store_true")
    parser.add_argument("--sample", type=int, default=10, help="read back every Nth recording")
    parser.add_argument("--silence", type=float, default=0, help="seconds without storaged")
    parser.add_argument("--workers", type=int, default=1, help="capture's setting")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    if os.geteuid():
        print("bench/live.py needs root (a raw socket, a network namespace): skipped")
        return 0
    rows = []
    with veth() as sender:
        for calls in given.calls:
            rows.append(measure(given, calls, sender))
    for name in rows[0]:
        print(f"{name:>18}" + "".join(f"{row[name]!s:>12}" for row in rows))
    machine = f"{platform.platform()}, {os.cpu_count()} cores"
    conditions = {"machine": machine, "seconds": given.seconds, "workers": given.workers}
    print(json.dumps({"bench": "live", **conditions, "rows": rows}))
    return 0 if all(row["loss_free"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
