"""The socket that journald reads, where a test may read it, or let it hang."""

import socket
from pathlib import Path
from types import TracebackType


class Place:
    """A datagram socket at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        """As journald's start makes it."""
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self.path))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def read(self) -> list[dict[str, str]]:
        """The lines that wait there."""
        found = []
        while one := self.read_one():
            found += one
        return found

    def read_one(self) -> list[dict[str, str]]:
        """The line that has waited longest, if there is one."""
        try:
            return [_parse(self._socket.recv(1 << 20))]
        except BlockingIOError:
            return []


def _parse(data: bytes) -> dict[str, str]:
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        fields[name.decode()], data = value.decode("utf-8", "replace"), rest
    return fields
