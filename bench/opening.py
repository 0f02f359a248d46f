"""Opening a recording of two hours in its midst, off the disk and from memory: for bench/vault.

Made: stereo G.711, committed every 2 s as a running storaged does, each commit synced. Asked is a
running storaged over CURVE, as the command asks it: the call, then a page of its media from a
moment in the midst (about a minute of sound, 1 MiB), with its line in the access log synced.
*cold*: storaged has just started, and before that object, index and key files were dropped from
memory.
"""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any, Final

from daemon import drop, running
from recordings import record

from spanvault import messages as m
from spanvault import wire
from tests.support.vault import SECOND, START, Client, Parts

HOURS: Final = 2
TURNS: Final = {"cold": 9, "warm": 101}


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


def measure(folder: Path) -> list[dict[str, Any]]:
    """Make it, open it; leaves nothing."""
    folder.mkdir()
    call = make(folder)
    store = folder / "store"
    found: dict[str, list[float]] = {state: [] for state in TURNS}
    moments = [at * HOURS * 3600 // 110 for at in range(3, 107)]
    for turn in range(TURNS["cold"]):
        drop(path for path in store.rglob("*") if path.is_file())
        with running(folder) as rig:
            client = rig.client("operator")
            found["cold"].append(seek_ms(client, call, moments[11 * turn]))
            if turn == TURNS["cold"] - 1:
                found["warm"] = [seek_ms(client, call, at) for at in moments[: TURNS["warm"]]]
    (path,) = store.glob("pools/*/objects/*/*.svr")
    size = path.stat().st_size
    shutil.rmtree(folder)
    return [
        {
            "cache": state, "hours": HOURS, "megabytes": round(size / 1e6), "turns": len(times),
            "median_ms": round(statistics.median(times), 1), "most_ms": round(max(times), 1),
        }
        for state, times in found.items()
    ]  # fmt: skip
