"""Opening a recording of two hours in its midst, off the disk and from memory: for bench/vault.

Made: stereo G.711, committed every 2 s as a running storaged does, each commit synced. Asked is a
running storaged over CURVE, as the command asks it: the call, then a page of its media from a
moment in the midst (about a minute of sound, 1 MiB), with its line in the access log synced.
*cold*: storaged has just started, and before that object, index and key files were dropped from
memory. *busy*: from memory, while storaged takes in 5,250 calls at once (bench/ingest.py).
"""

import multiprocessing
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, Final

import ingest
from daemon import drop, running
from recordings import record

from spanvault import messages as m
from spanvault import wire
from tests.support.vault import SECOND, START, Client, Parts, Rig

HOURS: Final = 2
TURNS: Final = {"cold": 9, "warm": 101}
BUSY: Final = ingest.Load("long", 5250, 180, 26, False, 256 << 20, False)
WARM_UP_S: Final = 6
APART_S: Final = 0.03  # a listener's seeks follow each other at once in no player


def make(folder: Path) -> m.Call:
    """The recording, in a store of its own. Takes as long as its 3,600 syncs."""
    with running(folder):
        pass
    shutil.copy(folder / "unlock.key", folder / "store")
    parts = Parts(folder / "store")
    (call,) = record(parts, range(1, 2), HOURS * 3600)
    parts.close()
    return call


def seek_ms(client: Client, call: m.Call, at_s: int) -> float:
    """Until the sound of a moment is there, for somebody who asks for this call."""
    begun = time.perf_counter()
    about, _ = client.ask(m.Get(call.id))
    page, bulk = client.ask(m.Fetch(call.id, from_ns=START + at_s * SECOND))
    took_s = time.perf_counter() - begun
    starts = wire.decode_media(bulk).table["start_ns"]
    assert about.sealed
    assert not page.faults
    assert starts.min() <= START + at_s * SECOND <= starts.max()
    return 1000 * took_s


def busy_ms(rig: Rig, client: Client, call: m.Call, moments: list[int]) -> list[float]:
    """Seeks while storaged takes in what BUSY says, sent by a process of its own."""
    sender = multiprocessing.get_context("fork").Process(target=send, args=(rig,))
    sender.start()
    time.sleep(WARM_UP_S)
    times = []
    while sender.is_alive():
        times.append(seek_ms(client, call, moments[len(times) % len(moments)]))
        time.sleep(APART_S)
    assert sender.exitcode == 0, "nothing was taken in meanwhile"
    return times


def send(rig: Rig) -> None:
    """What a capture sends, in time."""
    assert rig.process is not None
    sender, traffic = ingest.Sender(rig.capture(), BUSY.in_flight), ingest.Traffic(BUSY)
    calls = traffic.first_records()
    for at in range(0, len(calls), 500):
        sender.send(calls[at : at + 500])
    usage, retention = ingest.Usage(rig.process.pid), ingest.Retention(rig.store)
    ingest.play(sender, traffic, 0, BUSY, usage, retention)


def measure(folder: Path) -> list[dict[str, Any]]:
    """Make it, open it; leaves nothing."""
    folder.mkdir()
    call = make(folder)
    store = folder / "store"
    found: dict[str, list[float]] = {state: [] for state in TURNS}
    moments = [at * HOURS * 3600 // 110 for at in range(3, 107)]
    for turn in range(TURNS["cold"]):
        drop(path for path in store.rglob("*") if path.is_file())
        with running(folder, commit_interval_s=2.0) as rig:
            client = rig.client("operator")
            found["cold"].append(seek_ms(client, call, moments[11 * turn]))
            if turn == TURNS["cold"] - 1:
                found["warm"] = [seek_ms(client, call, at) for at in moments[: TURNS["warm"]]]
                found["busy"] = busy_ms(rig, client, call, moments)
    (path,) = store.glob(f"pools/*/objects/*/{call.id.hex()}.svr")
    size = path.stat().st_size
    shutil.rmtree(folder)
    return [
        {
            "cache": state, "hours": HOURS, "megabytes": round(size / 1e6), "turns": len(times),
            "median_ms": round(statistics.median(times), 1),
            "p99_ms": round(sorted(times)[len(times) * 99 // 100], 1),
            "most_ms": round(max(times), 1),
        }
        for state, times in found.items()
    ]  # fmt: skip
