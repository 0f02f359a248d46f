"""How many RTP packets a CPU-second the media engine orders, beside a loop over packets.

Measured: a capture file to chunks ready to leave (read, decode, find the stream, deduplicate,
order, count, cut), in CPU time of this process, user and system. A recorder runs for months, so its
figure is that of the seconds behind the third; the first three, in which every stream opens and
every buffer is touched for the first time, stand beside it. The struct loop does the same job
packet by packet; dpkt, where installed, only the parsing; both read the beginning of the same
traffic. What was counted is compared with what was generated after the clock has stopped. The
second table is of mirrors that come through a tunnel, the last one says what ten times the calls
cost, for the same seconds of talk. Prints tables and one JSON line. Takes 1.5 GB in /var/tmp.

    python bench/engine.py [--calls 50 500 5000] [--packets 500000] [--turns 5]
"""

import argparse
import gc
import importlib
import json
import os
import platform
import struct
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from traffic import RATE, TUNNELS, Truth, schedule, write

from capture.__main__ import COLLECTED, KEPT_BYTES
from capture.media.engine import Media
from capture.model import Attach, StreamTotals
from capture.packets.decode import Decoder
from capture.sources.files import blocks
from spanvault.daemon import memory
from spanvault.daemon.config import CaptureConfig

SECONDS = 10.0  # of traffic, at least
START = 3  # of them
LOOPED = 1_000_000  # packets, for those that take their time
TUNNELLED_CALLS = 500

Row = dict[str, Any]
Check = Callable[[], None]  # raises AssertionError if what was counted is not true


def engine(path: Path, truth: Truth) -> tuple[Check, list[tuple[float, int]]]:
    """Our engine, every stream claimed at its first packet.

    Returns also, for each second that has left, CPU seconds used and packets heard by then.
    """
    marks = [(time.process_time(), 0)]
    heard = 0
    media, decoder = Media(CaptureConfig()), Decoder()
    rows: dict[int, int] = {}  # SSRC → row
    for block in blocks(path):
        decoded = decoder.decode(block)
        for stream in media.receive(decoded.packets, decoded.endpoints):
            rows[stream.ssrc] = stream.row
            media.attach(Attach(stream.row, stream.ssrc.to_bytes(16, "big"), 0))
        heard += len(decoded.packets.ssrc)
        leaving = media.tick(int(block.time_ns[-1]))
        for _ in leaving:
            pass  # a part is copied out as it is asked for
        if leaving:
            marks.append((time.process_time(), heard))
    media.flush()
    return lambda: compare([media.totals(rows[ssrc]) for ssrc in sorted(rows)], truth), marks


def paces(path: Path, truth: Truth, turns: int) -> tuple[int, int]:
    """Packets per CPU-second while it starts and while it runs; each the best of several turns."""
    start = running = 0.0
    for _ in range(turns):
        check, marks = engine(path, truth)
        if len(marks) <= START + 1:
            raise SystemExit("too few seconds to tell start and pace apart: more --packets")
        (began, _), (settled, before), (ended, after) = marks[0], marks[START], marks[-1]
        start = max(start, before / (settled - began))
        running = max(running, (after - before) / (ended - settled))
        check()
    return round(start), round(running)


def compare(totals: list[StreamTotals], truth: Truth) -> None:
    for name in ("packets", "lost", "duplicates"):
        found = np.array([getattr(each, name) for each in totals])
        assert np.array_equal(found, getattr(truth, name)), name


def struct_loop(path: Path, truth: Truth) -> Check:
    """The same job, packet by packet, as short as it can be written."""
    data = path.read_bytes()
    streams: dict[tuple[bytes, bytes, int], tuple[dict[int, Any], list[Any]]] = {}
    at, count = 24, 0
    while at < len(data):
        seconds, fraction, size, _ = struct.unpack_from("<4I", data, at)
        ip, at = at + 30, at + 16 + size
        while data[ip - 2 : ip] == b"\x81\x00":
            ip += 4
        kind = data[ip - 2 : ip]
        if kind == b"\x08\x00" and data[ip + 9] == 17:
            udp, ends = ip + (data[ip] & 15) * 4, data[ip + 12 : ip + 20]
        elif kind == b"\x86\xdd" and data[ip + 6] == 17:
            udp, ends = ip + 40, data[ip + 8 : ip + 40]
        else:
            continue
        if data[udp + 8] >> 6 != 2:
            continue
        sequence, stamp, ssrc = struct.unpack_from(">HII", data, udp + 10)
        arrival = seconds * 1_000_000_000 + fraction
        key = (ends, data[udp : udp + 4], ssrc)
        if (found := streams.get(key)) is None:
            found = streams[key] = ({}, [sequence + 65536, 0, 0.0, stamp, arrival])
        packets, state = found
        extended = state[0] + ((sequence - state[0] + 32768) & 0xFFFF) - 32768
        if extended in packets:
            state[1] += 1
            continue
        state[0] = max(state[0], extended)
        difference = abs((arrival - state[4]) * 8e-6 - (stamp - state[3]))
        state[2] += (difference - state[2]) / 16
        state[3:] = stamp, arrival
        length = struct.unpack_from(">H", data, udp + 4)[0]
        packets[extended] = (stamp, arrival, data[udp + 1], data[udp + 20 : udp + length])
        count += 1
    for packets, _ in streams.values():
        b"".join(packets[number][3] for number in sorted(packets))
    return lambda: _equal(count, int(truth.packets.sum()))


def dpkt_loop(path: Path, truth: Truth) -> Check:
    """dpkt taking the packets apart, and nothing else. Raises ImportError where it is missing."""
    dpkt = importlib.import_module("dpkt")
    count = 0
    with path.open("rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            udp = dpkt.ethernet.Ethernet(frame).data.data
            if isinstance(udp, dpkt.udp.UDP) and udp.data[0] >> 6 == 2:
                dpkt.rtp.RTP(udp.data)
                count += 1
    return lambda: _equal(count, truth.heard)


def _equal(found: int, true: int) -> None:
    assert found == true, f"{found} packets, not {true}"


def pace(work: Callable[[Path, Truth], Check], path: Path, truth: Truth) -> int | None:
    """Packets per CPU-second of one of the loops; None if it is not installed."""
    began = time.process_time()
    try:
        check = work(path, truth)
    except ImportError:
        return None
    used = time.process_time() - began
    check()
    return round(truth.heard / used)


def measure(calls: int, impaired: bool, packets: int, turns: int, folder: Path) -> Row:
    """One row of the table."""
    path = folder / f"{calls}.pcap"
    seconds = max(SECONDS, packets / (2 * calls * RATE))
    plan = schedule(calls, seconds, impaired)
    truth = write(path, plan)
    row: Row = {"calls": calls, "traffic": "impaired" if impaired else "clean"}
    row["packets"], row["seconds"] = truth.heard, seconds
    row["start"], row["engine"] = paces(path, truth, turns)
    truth = write(path, plan.first(LOOPED))
    row["struct"], row["dpkt"] = pace(struct_loop, path, truth), pace(dpkt_loop, path, truth)
    path.unlink()
    return row


def tunnelled(calls: int, turns: int, folder: Path) -> list[Row]:
    """The same impaired traffic as it is, and as mirrors over a network bring it."""
    path = folder / "tunnel.pcap"
    plan = schedule(calls, SECONDS, impaired=True)
    rows = []
    for name in ("", *TUNNELS):
        truth = write(path, plan, name)
        _, running = paces(path, truth, turns)
        rows.append({"calls": calls, "tunnel": name or "none", "engine": running})
    path.unlink()
    return rows


def growth(rows: list[Row]) -> list[Row]:
    """What each step to more calls costs: the engine's CPU for a second of talk, as a ratio."""
    steps = []
    for traffic in ("clean", "impaired"):
        mine = [row for row in rows if row["traffic"] == traffic]
        for fewer, more in pairwise(sorted(mine, key=lambda row: row["calls"])):
            used = [row["packets"] / row["seconds"] / row["engine"] for row in (fewer, more)]
            steps.append(
                {
                    "from": fewer["calls"], "to": more["calls"], "traffic": traffic,
                    "cores": [round(each, 4) for each in used],
                    "cpu_ratio": round(used[1] / used[0], 2),
                }
            )  # fmt: skip
    return steps


def versus(row: Row, other: str) -> str:
    if row[other] is None:
        return f"{'–':>9} {'':>6}"
    return f"{row[other]:>9,} {row['engine'] / row[other]:>5.1f}×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--calls", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--packets", type=int, default=500_000, help="in each capture, at least")
    parser.add_argument("--turns", type=int, default=5, help="of the engine; the best counts")
    arguments = parser.parse_args()
    gc.set_threshold(*COLLECTED)  # as the daemon does, and
    memory.keep_freed(KEPT_BYTES)
    conditions = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}; G.711, 20 ms; packets per CPU-second, best of "
        f"{arguments.turns} (loops: 1)"
    )
    print(conditions + "\n")
    print(
        f"{'calls':>6} {'traffic':9} {'packets':>9} {'start':>10} {'engine':>10}"
        f" {'struct':>9} {'ratio':>6}"
        f" {'dpkt':>9} {'ratio':>6}"
    )
    rows = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for calls, impaired in product(arguments.calls, (False, True)):
            row = measure(calls, impaired, arguments.packets, arguments.turns, Path(folder))
            rows.append(row)
            print(
                f"{calls:>6,} {row['traffic']:9} {row['packets']:>9,} {row['start']:>10,} "
                f"{row['engine']:>10,} {versus(row, 'struct')} {versus(row, 'dpkt')}",
                flush=True,
            )
        tunnels = tunnelled(TUNNELLED_CALLS, arguments.turns, Path(folder))
    print(f"\n{'calls':>6} {'tunnel':9} {'engine':>10}")
    for row in tunnels:
        print(f"{row['calls']:>6,} {row['tunnel']:9} {row['engine']:>10,}")
    steps = growth(rows)
    print(f"\n{'calls':>14} {'traffic':9} {'cores':>15} {'CPU':>6}")
    for step in steps:
        few, many = (f"{each:.1%}" for each in step["cores"])
        print(
            f"{step['from']:>6,} → {step['to']:>5,} {step['traffic']:9} {few:>6} → {many:>6} "
            f"{step['cpu_ratio']:>5.1f}×"
        )
    found = {"conditions": conditions, "rows": rows, "tunnels": tunnels, "growth": steps}
    print(json.dumps({"bench": "engine", **found}))


if __name__ == "__main__":
    main()
