"""A daemon's notifications, read from the other end of its notify socket."""

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.daemon.lifecycle import Lifecycle, name_thread


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Lifecycle belongs to a process of its own: give pytest back its handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


class Manager:
    """systemd's end of the socket."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        messages = []
        while select.select([self.socket], [], [], 0)[0]:
            messages.append(self.socket.recv(4096).decode())
        return messages


@pytest.fixture
def manager(tmp_path, monkeypatch) -> Manager:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return Manager(str(tmp_path / "notify"))


def test_ready_and_status_are_told_once(manager):
    life = Lifecycle("storaged")
    life.ready("no captures yet")
    life.status("no captures yet")
    life.status("2 captures, 40 streams")
    life.status("2 captures, 40 streams")
    life.stopping("writing what is left")
    assert manager.heard() == [
        "READY=1\nSTATUS=no captures yet",
        "STATUS=2 captures, 40 streams",
        "STOPPING=1\nSTATUS=writing what is left",
    ]


def test_a_status_cannot_smuggle_in_another_assignment(manager):
    Lifecycle("storaged").status("disk\nMAINPID=1")
    assert manager.heard() == ["STATUS=disk MAINPID=1"]


def test_beats_come_a_few_times_an_interval_however_fast_the_loop_turns(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    now = iter([100.0, 105.0, 109.9, 110.0, 121.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    life = Lifecycle("capture")
    for _ in range(5):
        life.beat()
    assert manager.heard() == ["WATCHDOG=1"] * 3  # at 100, 110 and 121 s


def test_a_watchdog_meant_for_another_process_is_not_fed(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Lifecycle("capture").beat()
    assert manager.heard() == []


def test_without_systemd_everything_is_silent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    life = Lifecycle("capture")
    life.ready("x")
    life.beat()
    life.stopping("y")
    assert not life.stop_requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_wakes_the_poll(number):
    life = Lifecycle("capture")
    assert select.select([life.wake_fd], [], [], 0) == ([], [], [])
    os.kill(os.getpid(), number)
    assert select.select([life.wake_fd], [], [], 1)[0] == [life.wake_fd]
    assert life.stop_requested


def test_a_second_ctrl_c_breaks_off_the_drain():
    Lifecycle("capture")
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_manager_that_does_not_listen_stops_nobody(manager, monkeypatch):
    monkeypatch.setattr("spanvault.daemon.lifecycle.PATIENCE_S", 0.001)
    life = Lifecycle("capture")
    for number in range(600):  # more than the socket holds
        life.status(f"recording {number} calls")
    assert "STATUS=recording 0 calls" in manager.heard()


def test_thread_is_named_for_top_and_perf():
    named = []

    def work() -> None:
        name_thread("committer")
        named.append(Path("/proc/thread-self/comm").read_text())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert named == ["committer\n"]
