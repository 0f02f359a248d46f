"""Who asked what of the store, and what came of it: one JSON line a request, append-only.

Each line carries the SHA-256 of the line before, so that a changed or missing one shows. A line is
written before its reply leaves; of requests that hear or search, it is also synced. Numbers and
Call-IDs appear as tokens only. FORMAT.md §10. Making it tamper-evident comes later.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from storaged import files

FIRST = "0" * 64  # `prev` of the first line


class AccessLog:
    """The open log. For one thread."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        files.sync_folder(path.parent)
        self._size, self._last = self._tail()
        self._unsynced = False
        # A line that a crash cut off was never answered: it ends at the last line feed.
        os.ftruncate(self._descriptor, self._size)

    def append(self, entry: dict[str, Any], *, sync: bool) -> None:
        """Write one line. Raises OSError: then nothing may be given out."""
        line = json.dumps({**entry, "prev": self._last}, separators=(",", ":")).encode()
        try:
            files.write_all(self._descriptor, line + b"\n")
            self._unsynced = True
            if sync:
                self.sync()
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line) + 1
        self._last = hashlib.sha256(line).hexdigest()

    def sync(self) -> None:
        """Make all lines durable. Raises OSError."""
        if self._unsynced:
            os.fdatasync(self._descriptor)
            self._unsynced = False

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._descriptor)

    def _tail(self) -> tuple[int, str]:
        """The size up to the last whole line, and that line's hash."""
        size = os.fstat(self._descriptor).st_size
        block = 1 << 16
        while True:
            start = max(0, size - block)
            data = os.pread(self._descriptor, size - start, start)
            end = data.rfind(b"\n")
            before = data.rfind(b"\n", 0, max(end, 0))
            if end >= 0 and (before >= 0 or start == 0):
                return start + end + 1, hashlib.sha256(data[before + 1 : end]).hexdigest()
            if start == 0:
                return 0, FIRST
            block *= 4


def check(lines: bytes) -> list[int]:
    """The numbers (from 1) of lines that do not follow the one before."""
    wrong, last = [], FIRST
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            fits = json.loads(line)["prev"] == last
        except (ValueError, KeyError, TypeError, RecursionError):
            fits = False
        if not fits:
            wrong.append(number)
        last = hashlib.sha256(line).hexdigest()
    return wrong
