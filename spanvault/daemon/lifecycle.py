"""How a daemon lives under systemd: ready, alive, what it is doing, and when to end.

SIGTERM and SIGINT only set a flag and wake the daemon's poll: the loop itself drains and leaves.
Without systemd (no NOTIFY_SOCKET) every notification is a no-op, so daemons need no second way.
Source: sd_notify(3), sd_watchdog_enabled(3). Units: systemd/. Logging: spanvault.daemon.journal.
"""

import ctypes
import os
import signal
import socket
import time
from contextlib import suppress
from types import FrameType
from typing import Final

PATIENCE_S: Final = 0.2
_PR_SET_NAME: Final = 15  # linux/prctl.h


class Lifecycle:
    """The daemon's side of its contract with systemd. One a process, made in the main thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stop_requested = False
        self._status = ""
        self._beat_every_s = _watchdog_interval_s() / 3
        self._next_beat_s = 0.0
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        # Python runs handlers between bytecodes only: a poll() that began just before the signal
        # would sleep on. The wakeup descriptor is written to at once, in C.
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)

    @property
    def wake_fd(self) -> int:
        """Readable once a signal has come. To be polled beside the sockets; never to be read."""
        return self._wake.fileno()

    def ready(self, text: str) -> None:
        """Start-up is over: units ordered after this one may start."""
        self._status = text
        _notify(f"READY=1\nSTATUS={_line(text)}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent only when it differs from the last."""
        if text != self._status:
            self._status = text
            _notify(f"STATUS={_line(text)}")

    def beat(self) -> None:
        """Say that the loop still turns. Call it every turn: it is cheap, and sends rarely."""
        if not self._beat_every_s:
            return
        now_s = time.monotonic()
        if now_s >= self._next_beat_s:
            self._next_beat_s = now_s + self._beat_every_s
            _notify("WATCHDOG=1")

    def stopping(self, text: str) -> None:
        """Draining has begun."""
        self._status = text
        _notify(f"STOPPING=1\nSTATUS={_line(text)}")

    def _request_stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.stop_requested = True
        if number == signal.SIGINT:
            # Someone at a terminal who presses Ctrl-C twice does not want to wait for the drain.
            signal.signal(signal.SIGINT, signal.default_int_handler)


def name_thread(name: str) -> None:
    """Give the calling thread a name that ps -L, top -H and perf show. At most 15 bytes of it."""
    # Not by /proc: that is root's of a process that may not be dumped (spanvault.daemon.memory).
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def _watchdog_interval_s() -> float:
    """What WatchdogSec= asks of this process; 0 if nothing."""
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if pid != str(os.getpid()) or not microseconds.isdecimal():
        return 0.0
    return int(microseconds) / 1e6


def _notify(message: str) -> None:
    """Send to the service manager, if there is one that takes it."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path  # an abstract socket
    # systemd's own sd_notify() waits for room without end, and its Python binding holds the
    # interpreter's lock meanwhile: a service manager that hangs must not stop a recording.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, suppress(OSError):
        manager.settimeout(PATIENCE_S)
        manager.sendto(message.encode(), address)


def _line(text: str) -> str:
    """A status is one line: anything after a line feed would be taken for another assignment."""
    return " ".join(text.split())
