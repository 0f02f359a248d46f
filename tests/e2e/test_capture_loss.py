"""When the machine cannot keep up, that is told apart from a bad network: counted and marked.

The capture is stopped for some seconds amid calls: its ring overflows, as it does on a machine that
has too much to do. Every frame that was sent is then either stored or counted as dropped, and the
calls that were up bear the mark, those before and after do not.
"""

import ctypes
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spanvault.client import Client
from spanvault.media.chunk import CAPTURE_LOSS
from spanvault.messages import Call, Search
from tests.support.appliance import Appliance
from tests.support.callgen import ANSWERED_NS, SECOND, Frame, answered, phones
from tests.support.lab import Lab
from tests.support.stored import streams_of

LACKING = [name for name in ("ip", "tc", "ethtool") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and a raw socket need root"),
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
    pytest.mark.timeout(180),
]
CLONE_NEWNET = 0x40000000
STOPPED_S, AGAIN_S = 4.0, 8.5  # the least ring of a worker has room for three seconds
# Call-ID: begins at, talks for (seconds).
BEFORE = {f"before-{n}": (0.1 * n, 1.0) for n in range(3)}
DURING = {f"during-{n}": (0.2 + 0.1 * n, 10.0) for n in range(6)}
BEGUN_UNHEARD = {f"unheard-{n}": (7.3 + 0.05 * n, 3.0) for n in range(2)}
AFTER = {f"after-{n}": (11.5 + 0.1 * n, 1.5) for n in range(3)}
CALLS = {**BEFORE, **DURING, **BEGUN_UNHEARD, **AFTER}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_capture_lost_is_counted_and_marked(tmp_path, workers):
    with (
        Lab() as lab,
        Appliance(
            tmp_path / "a", "span0", lab.within("span"), ring_mb=8 * workers, workers=workers
        ) as appliance,
    ):
        appliance.start("storaged")
        appliance.start("capture")
        start_ns = time.time_ns() + SECOND
        frames = [frame for name in CALLS for frame in call_frames(name, start_ns)]
        with sending(lab, sorted(frames, key=lambda frame: frame.time_ns)):
            wait_until(start_ns + round(STOPPED_S * SECOND))
            with stopped(appliance.processes["capture"].pid):
                wait_until(start_ns + round(AGAIN_S * SECOND))
        appliance.wait(lambda: settled(appliance))
        with appliance.client() as client:
            calls = {call.call_ids[0]: call for call in client.search(Search(limit=100))}
            told = health(client)["fields"]
            compare(client, calls, start_ns)
        assert told["dropped_frames"] > 0
        assert told["frames"] + told["dropped_frames"] == len(frames)
        status = appliance.spanvault("status").stdout
        assert f"{told['dropped_frames']} frames DROPPED" in " ".join(status.split())


def compare(client: Client, calls: dict[str, Call], start_ns: int) -> None:
    """The mark is on the calls it belongs to, and what is not stored was on the wire meanwhile."""
    assert calls.keys() == CALLS.keys()
    marked = {name for name, call in calls.items() if "capture_loss" in call.flags}
    assert marked == {*DURING, *BEGUN_UNHEARD}
    # A stopped capture has room for what comes first, and is behind for a moment when it goes on.
    gap_ns = range(start_ns + round(STOPPED_S * SECOND), start_ns + round((AGAIN_S + 2) * SECOND))
    for name, call in calls.items():
        missing = list(not_stored(client, call, name, start_ns))
        if name in BEGUN_UNHEARD:
            assert "started_mid_call" in call.flags
            assert missing
            continue
        assert sum(stream.lost for stream in call.streams) == len(missing)
        assert all(sent_ns in gap_ns for sent_ns in missing)
        assert bool(missing) == (name in DURING)
        assert flagged(client, call) == (name in DURING)


def not_stored(client: Client, call: Call, name: str, start_ns: int) -> Iterator[int]:
    """When the packets were sent that storaged does not have."""
    begin_s, talk_s = CALLS[name]
    talk_ns = start_ns + round(begin_s * SECOND) + ANSWERED_NS
    for stream, frames in streams_of(client, call.id).items():
        later_ns = 7_000_000 if call.streams[stream].party == "callee" else 0
        there = {frame.number - 1000 for frame in frames}
        for number in range(round(talk_s * 50)):
            if number not in there:
                yield talk_ns + later_ns + number * 20_000_000


def flagged(client: Client, call: Call) -> bool:
    """Whether a chunk of the call bears the mark."""
    cursor: int | None = 0
    marks = 0
    while cursor is not None:
        page = client.fetch(call.id, cursor)
        marks |= sum(int(chunk.header["flags"]) & CAPTURE_LOSS for chunk in page.media.chunks())
        cursor = page.next
    return bool(marks)


def call_frames(name: str, start_ns: int) -> list[Frame]:
    begin_s, talk_s = CALLS[name]
    number = list(CALLS).index(name)
    return answered(start_ns + round(begin_s * SECOND), *phones(talk_s, number), name)


def settled(appliance: Appliance) -> bool:
    with appliance.client() as client:
        calls = list(client.search(Search(limit=100)))
        return len(calls) == len(CALLS) and all(
            call.final and client.get(call.id).sealed for call in calls
        )


def health(client: Client) -> dict[str, Any]:
    (found,) = [each for each in client.status().daemons if each["daemon"].startswith("capture")]
    return found


def wait_until(time_ns: int) -> None:
    time.sleep(max(0.0, (time_ns - time.time_ns()) / SECOND))


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process and its children, with no time to run."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    everyone = [pid, *map(int, children)]
    for each in everyone:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in everyone:
            os.kill(each, signal.SIGCONT)


@contextmanager
def sending(lab: Lab, frames: list[Frame]) -> Iterator[None]:
    """Frames go to the mirror, each at its time; ends when all are on the wire."""
    thread = threading.Thread(target=_send, args=(lab.network("switch"), frames))
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _send(network: str, frames: list[Frame]) -> None:
    with _within(network), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("mon", 0))
        for frame in frames:
            wait_until(frame.time_ns)
            sender.send(frame.data)


@contextmanager
def _within(network: str) -> Iterator[None]:
    """This thread in a network namespace; a socket that is opened there stays."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{network}", os.O_RDONLY)
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)
        os.close(there)
