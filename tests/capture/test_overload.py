"""What a capture loses that cannot keep up is counted, told and marked; what others lose is not."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.injector import ends, numbers
from spanvault.client import Client
from spanvault.media.chunk import CAPTURE_LOSS
from spanvault.messages import Call, Search
from tests.support.appliance import Appliance
from tests.support.callgen import Dialogue, Phone, sdp
from tests.support.folders import REPOSITORY
from tests.support.veth import veth

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a ring needs root"),
]
CALLS = 60
RATE = 2 * CALLS * 50
SILENT = np.zeros(0, np.int16)


@pytest.fixture
def cable() -> Iterator[socket.socket]:
    with veth() as sender:
        yield sender


def dialogues() -> list[tuple[Dialogue, Phone, Phone]]:
    found = []
    for number in range(CALLS):
        where = ends(number)
        caller = Phone("100", where.phone, where.phone_port, 0, SILENT)
        callee = Phone("200", where.gateway, where.gateway_port, 0, SILENT)
        found.append((Dialogue(caller, callee, f"{number}@overload"), caller, callee))
    return found


def inject(seconds: float, *options: str) -> subprocess.Popen[str]:
    words = ["--streams", str(2 * CALLS), "--rate", str(RATE), "--seconds", str(seconds)]
    command = [sys.executable, str(REPOSITORY / "bench/injector.py"), "far", *words, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def frames_made(injector: subprocess.Popen[str]) -> int:
    output, _ = injector.communicate(timeout=60)
    return int(json.loads(output)["frames"])


def begin(sender: socket.socket) -> None:
    for words, caller, callee in dialogues():
        sender.send(words.request(0, "INVITE", body=sdp(caller)).data)
        sender.send(words.response(0, "200 OK", body=sdp(callee)).data)


def hang_up(sender: socket.socket) -> None:
    for words, _, _ in dialogues():
        sender.send(words.request(0, "BYE", 2).data)


def all_over(client: Client) -> list[Call]:
    calls = list(client.search(Search(limit=2 * CALLS)))
    return calls if len(calls) == CALLS and all(call.final for call in calls) else []


def capture_fields(client: Client) -> dict:
    daemons = client.status().daemons
    return next(each["fields"] for each in daemons if "capture" in each["daemon"])


def flags(client: Client, call: Call) -> tuple[int, int]:
    """Chunks of a call, and how many of them are marked."""
    chunks = marked = 0
    cursor: int | None = 0
    while cursor is not None:
        page = client.fetch(call.id, cursor)
        chunks += len(page.media.table)
        marked += int(np.count_nonzero(page.media.table["flags"] & CAPTURE_LOSS))
        cursor = page.next
    return chunks, marked


@pytest.mark.parametrize("workers", [1, 2])
def test_frames_that_found_no_room_are_a_loss_of_the_captures(tmp_path, cable, workers):
    with Appliance(tmp_path / "a", "far", ring_mb=2, workers=workers) as appliance:
        for name in ("storaged", "capture"):
            appliance.start(name)
        begin(cable)
        injector = inject(9)
        time.sleep(2)
        hold_up(appliance, 4)
        made = frames_made(injector)
        hang_up(cable)
        with appliance.client() as client:
            appliance.wait(lambda: bool(all_over(client)))
            appliance.wait(lambda: capture_fields(client)["calls"] == 0)
            calls, told = all_over(client), capture_fields(client)
            marks = [flags(client, call) for call in calls]
        streams = [stream for call in calls for stream in call.streams]
        assert told["dropped_frames"] > 1_000
        assert told["rtp"] + told["dropped_frames"] == made
        assert sum(stream.packets for stream in streams) == told["rtp"]
        assert sum(stream.lost for stream in streams) == told["dropped_frames"]
        assert {tuple(call.flags) for call in calls} == {("capture_loss",)}
        assert all(0 < marked < chunks / 2 for chunks, marked in marks)
        assert f"{told['dropped_frames']} frames DROPPED" in appliance.spanvault("status").stdout


def hold_up(appliance: Appliance, seconds: float) -> None:
    """The processes get no CPU for a while."""
    pid = appliance.processes["capture"].pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pids = [pid, *map(int, children)]
    for each in pids:
        os.kill(each, signal.SIGSTOP)
    time.sleep(seconds)
    for each in pids:
        os.kill(each, signal.SIGCONT)


def test_what_the_network_lost_doubled_and_swapped_is_no_loss_of_the_captures(tmp_path, cable):
    with Appliance(tmp_path / "a", "far") as appliance:
        for name in ("storaged", "capture"):
            appliance.start(name)
        begin(cable)
        made = frames_made(inject(4, "--impaired"))
        hang_up(cable)
        with appliance.client() as client:
            appliance.wait(lambda: bool(all_over(client)))
            calls = all_over(client)
        sent = numbers(made // (2 * CALLS), impaired=True)
        unique = len(np.unique(sent))
        counts = (unique, int(sent.max()) + 1 - unique, len(sent) - unique)
        assert counts[1] == counts[2] == 2
        found = {(s.packets, s.lost, s.duplicates) for call in calls for s in call.streams}
        assert found == {counts}
        assert {tuple(call.flags) for call in calls} == {()}
