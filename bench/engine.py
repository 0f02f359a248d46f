"""How many RTP packets a CPU-second the media engine orders, beside a loop over packets.

Measured: a capture file to chunks ready to leave (read, decode, find the stream, deduplicate,
order, count, cut), in CPU time of this process. The struct loop does the same job packet by
packet; dpkt, where installed, only the parsing. Prints a table and one JSON line.

    python bench/engine.py [--calls 50 500 5000] [--packets 500000]
"""

import argparse
import importlib
import json
import os
import platform
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from traffic import RATE, Truth, schedule, write

from capture.decode import Decoder
from capture.media import Media
from capture.model import Attach
from capture.sources.files import blocks
from spanvault.config import CaptureConfig


def engine(path: Path, truth: Truth) -> int:
    """Our engine. Returns RTP packets; raises AssertionError if a count differs from the truth."""
    decoder, media = Decoder(), Media(CaptureConfig())
    rows: dict[int, int] = {}  # SSRC → row
    for block in blocks(path):
        decoded = decoder.decode(block)
        for stream in media.receive(decoded.packets, decoded.endpoints):
            rows[stream.ssrc] = stream.row
            media.attach(Attach(stream.row, stream.ssrc.to_bytes(16, "big"), 0))
        media.tick(int(block.time_ns[-1]))
    media.flush()
    totals = [media.totals(rows[ssrc]) for ssrc in sorted(rows)]
    for name in ("packets", "lost", "duplicates"):
        found = np.array([getattr(each, name) for each in totals])
        assert np.array_equal(found, getattr(truth, name)), name
    return decoder.counters["rtp"]


def struct_loop(path: Path, truth: Truth) -> int:
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
    assert count == truth.packets.sum()
    return count


def dpkt_loop(path: Path, truth: Truth) -> int:  # noqa: ARG001
    """dpkt taking the packets apart, and nothing else. Raises ImportError where it is missing."""
    dpkt = importlib.import_module("dpkt")
    count = 0
    with path.open("rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            udp = dpkt.ethernet.Ethernet(frame).data.data
            if isinstance(udp, dpkt.udp.UDP) and udp.data[0] >> 6 == 2:
                dpkt.rtp.RTP(udp.data)
                count += 1
    return count


def rate(work: Callable[[Path, Truth], int], path: Path, truth: Truth, turns: int) -> float:
    """Packets per CPU-second, the best of several turns."""
    best = 0.0
    for _ in range(turns):
        began = time.process_time()
        packets = work(path, truth)
        best = max(best, packets / (time.process_time() - began))
    return best


def measure(calls: int, impaired: bool, packets: int, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    path = folder / f"{calls}.pcap"
    seconds = max(3.0, packets / (2 * calls * RATE))
    truth = write(path, schedule(calls, seconds, impaired))
    row: dict[str, Any] = {"calls": calls, "traffic": "impaired" if impaired else "clean"}
    row["packets"] = int(truth.packets.sum() + truth.duplicates.sum())
    row["engine"] = round(rate(engine, path, truth, 3))
    row["struct"] = round(rate(struct_loop, path, truth, 1))
    try:
        row["dpkt"] = round(rate(dpkt_loop, path, truth, 1))
    except ImportError:
        row["dpkt"] = None
    path.unlink()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--calls", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--packets", type=int, default=500_000, help="in each capture")
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}; packets per CPU-second, best of 3 (loops: 1)\n"
    )
    print(
        f"{'calls':>6} {'traffic':9} {'packets':>9} {'engine':>10} {'struct':>9} {'ratio':>6}"
        f" {'dpkt':>9} {'ratio':>6}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for calls in arguments.calls:
            for impaired in (False, True):
                row = measure(calls, impaired, arguments.packets, Path(folder))
                rows.append(row)
                dpkt = (
                    f"{row['dpkt']:>9,} {row['engine'] / row['dpkt']:>5.1f}×" if row["dpkt"] else ""
                )
                print(
                    f"{calls:>6,} {row['traffic']:9} {row['packets']:>9,} {row['engine']:>10,} "
                    f"{row['struct']:>9,} {row['engine'] / row['struct']:>5.1f}× {dpkt}"
                )
    print(json.dumps({"bench": "engine", "rows": rows}))


if __name__ == "__main__":
    main()
