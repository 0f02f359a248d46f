"""Send lines to journald without ever waiting for it.

journald reads datagrams from a socket that holds few of them. One that hangs (its disk does), is
stopped, or is slower than what is logged must hold up nobody: libsystemd's own call waits for as
long as that takes, here a line is given up after a tenth of a second, and the next ones at once,
until it has refused none for ten: one that is merely slow would else cost that for every line. How
many were lost is the first thing that it is told when it takes lines again, and every ten seconds.
Source: systemd.io/JOURNAL_NATIVE_PROTOCOL. Which lines: spanvault.daemon.journal.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")
WAIT_S: Final = 0.1  # a burst may fill the socket for a moment
CALM_S: Final = 10.0  # without a line refused, before one is waited for; between two of LOST
LOST: Final = "Lines were lost: the journal took none for a while"
_MOST: Final = 32 << 10  # bytes of a value: a datagram has some 200 KiB
_WHOSE: Final = ("SYSLOG_IDENTIFIER",)  # of a line, for what is said in its place
_LENGTH: Final = struct.Struct("<Q")


class Journald:
    """The way to one journald. For one thread at a time. lost: lines that it does not know of."""

    def __init__(self, path: Path = SOCKET, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock_s = path, clock_s
        self._calm_from_s = self._told_from_s = clock_s()  # when to wait, and to tell of LOST
        self._socket: socket.socket | None = None
        self.lost = 0

    def send(self, fields: Mapping[str, str]) -> None:
        """One line; given up where journald does not take it. Raises nothing."""
        behind = self.lost and self._clock_s() >= self._told_from_s
        if (behind and not self._tell_lost(fields)) or not self._take(fields):
            self.lost += 1

    def _tell_lost(self, fields: Mapping[str, str]) -> bool:
        """Tell how many lines were lost, before one that comes. Whether journald took it."""
        told = {"MESSAGE": LOST, "LINES": str(self.lost), "PRIORITY": "4"}
        told |= {name: fields[name] for name in _WHOSE if name in fields}
        if not self._take(told):
            return False
        self.lost, self._told_from_s = 0, self._clock_s() + CALM_S
        return True

    def _take(self, fields: Mapping[str, str]) -> bool:
        """Whether journald took it."""
        wait_s = WAIT_S if self._clock_s() >= self._calm_from_s else 0.0
        try:
            self._connected(wait_s).send(serialize(fields))
        except OSError as error:
            self._calm_from_s = self._clock_s() + CALM_S
            if not isinstance(error, TimeoutError | BlockingIOError):
                self._drop()  # it is away, or was started anew with another socket
            return False
        return True

    def _connected(self, wait_s: float) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.connect(str(self._path))
        self._socket.settimeout(wait_s)
        return self._socket

    def _drop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None


def serialize(fields: Mapping[str, str]) -> bytes:
    """A line as journald reads it: NAME=value, or with a length where that has line feeds."""
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")[:_MOST]
    if b"\n" in data:
        return name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
