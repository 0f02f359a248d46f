"""A team of workers records as one process does, and stands and falls together."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.messages import Call, Search
from tests.support import callgen
from tests.support.appliance import Appliance
from tests.support.callgen import SECOND
from tests.support.stored import streams_of
from tests.support.veth import ip, plug_in, veth
from tests.support.voices import payloads

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a ring needs root"),
]
CALLS = 110
TALK_S = 2.0
DAEMONS = ("storaged", "capture")


@pytest.fixture(scope="module")
def traffic() -> list[callgen.Frame]:
    """The calls, beginning within a second; times from 0."""
    frames = []
    for number in range(CALLS):
        pair = callgen.phones(TALK_S, number)
        frames += callgen.answered(number * SECOND // CALLS, *pair, f"{number}@team")
    return sorted(frames)


def send(sender: socket.socket, frames: list[callgen.Frame]) -> None:
    """Each when it is due."""
    begun_ns = time.monotonic_ns()
    for frame in frames:
        early_ns = begun_ns + frame.time_ns - time.monotonic_ns()
        if early_ns > 1_000_000:
            time.sleep(early_ns / 1e9)
        sender.send(frame.data)


def record(folder: Path, workers: int, frames: list[callgen.Frame]) -> dict[str, tuple]:
    """What is stored of the calls, by Call-ID."""
    with veth() as sender, Appliance(folder, "far", workers=workers) as appliance:
        for name in DAEMONS:
            appliance.start(name)
        send(sender, frames)
        with appliance.client() as client:
            appliance.wait(lambda: finals(client) == CALLS)
            calls = list(client.search(Search(limit=2 * CALLS)))
            stored = {
                call.call_ids[0]: (*facts(call), streams_of(client, call.id)) for call in calls
            }
        assert appliance.stop("capture") == 0
    return stored


def finals(client) -> int:
    return sum(call.final for call in client.search(Search(limit=2 * CALLS)))


def facts(call: Call) -> tuple:
    """What a record says, but for times and the order in which streams were met."""
    streams = {
        (stream.ssrc, stream.source, stream.destination): (
            stream.party, stream.packets, stream.lost, stream.duplicates, stream.late,
            stream.payload_types, sorted(stream.codecs),
        )
        for stream in call.streams
    }  # fmt: skip
    numbers = {stream.number: stream.ssrc for stream in call.streams}
    return call.outcome, call.end_reason, call.flags, streams, numbers


def said(number: int) -> dict[int, list[bytes]]:
    """What each SSRC of a call said."""
    return {phone.ssrc: payloads(phone.samples) for phone in callgen.phones(TALK_S, number)}


@pytest.mark.timeout(200)
def test_two_workers_record_what_one_does_and_what_was_said(tmp_path, traffic):
    alone = record(tmp_path / "1", 1, traffic)
    team = record(tmp_path / "2", 2, traffic)
    assert len(alone) == len(team) == CALLS
    for call_id, (*known, numbers, frames) in team.items():
        assert known == list(alone[call_id][:-2])
        spoken = said(int(call_id.partition("@")[0]))
        heard = {numbers[n]: [frame.payload for frame in sorted(f)] for n, f in frames.items()}
        assert heard == spoken


def family(appliance: Appliance) -> list[int]:
    """The workers' processes."""
    pid = appliance.processes["capture"].pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def team(tmp_path) -> Iterator[Appliance]:
    """A team of two that listens, and storaged."""
    with veth(), Appliance(tmp_path / "a", "far", workers=2) as appliance:
        for name in DAEMONS:
            appliance.start(name)
        yield appliance


def test_a_worker_that_dies_ends_the_capture_for_systemd_to_start_again(team):
    one, other = family(team)
    os.kill(one, signal.SIGKILL)
    assert team.finished("capture") == 74
    assert "ended: -9" in team.log("capture")
    assert "stopped" in team.log("capture")
    team.wait(lambda: not alive(other))


@pytest.mark.parametrize("stuck_s", [0, 6], ids=["at work", "waiting for it to listen"])
def test_workers_do_not_outlive_the_capture(team, stuck_s):
    workers = family(team)
    team.processes["capture"].send_signal(signal.SIGSTOP)
    time.sleep(stuck_s)  # 64 words of 50 ms
    team.kill("capture")
    team.wait(lambda: not any(map(alive, workers)))


def test_signals_to_all_of_them_stop_them_in_order(team):
    for worker in family(team):  # as systemd sends them
        os.kill(worker, signal.SIGTERM)
    assert team.stop("capture") == 0
    assert "stopped" in team.log("capture")
    assert "last word" not in team.log("capture")


def test_a_link_that_is_lost_is_told_of_once_and_heard_again(team, traffic):
    ip("link del far")
    team.wait(lambda: "far has gone" in team.statuses["capture"])
    plug_in()
    team.wait(lambda: "far has gone" not in team.statuses["capture"])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("near", 0))
        send(sender, [frame for frame in traffic if b"7@team" in frame.data][:3])
        team.wait(lambda: "recording 1 calls" in team.statuses["capture"])
    assert team.log("capture").count("the link is lost") == 1


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
