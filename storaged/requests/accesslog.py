"""Who asked what of the store, and what came of it: one JSON line a request, append-only.

Each line carries the SHA-256 of the line before, so that a changed or missing one shows. A line is
written before its reply leaves; of requests that hear or search, it is also synced. Numbers and
Call-IDs appear as tokens only. Lines go into room that was written ahead: the file does not grow by
them, so their sync is no commit of the file system's journal, which would wait for all that
recording writes at the time (docs/performance.md). FORMAT.md §10. What fits: spanvault.logchain.
Who is told of the log's head, so that it cannot be written anew unseen: storaged.requests.witness.
"""

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from spanvault import logchain
from spanvault.logchain import FIRST, Head
from storaged import files
from storaged.diskfaults import named

log = logging.getLogger(__name__)
_REST_MAX: Final = 64 << 20  # bytes behind a line that does not fit that are looked at
ROOM: Final = 1 << 19  # zero bytes ahead, some two thousand lines
_SPARE: Final = 32  # a disk that has less than so many times that left is not filled with zeros


class AccessLog:
    """The open log. For one thread.

    known: the head that was told of last; what lies behind it is checked now.
    """

    def __init__(self, path: Path, known: Head | None = None, at_ns: int = 0) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        files.sync_folder(path.parent)
        self.fault: str | None = None  # one line, if somebody changed the log
        self._size, self._last = 0, FIRST
        self._end = 0  # of the room ahead
        self.untold = False  # a line that matters came since the head was told of
        self._unsynced = self._unsure = False
        self._open(known, at_ns)

    @property
    def head(self) -> tuple[int, str]:
        """Its size, and its last line's digest."""
        return self._size, self._last

    def append(self, entry: dict[str, Any], *, sync: bool) -> None:
        """Write one line. Raises OSError: then nothing may be given out."""
        line = json.dumps({**entry, "prev": self._last}, separators=(",", ":")).encode()
        self._cut_back()
        self._unsure = True
        try:
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            files.write_all(self._descriptor, line + b"\n")
            self._unsynced = True
            if sync:
                self.untold = True
                self.sync()
        except OSError:
            with contextlib.suppress(OSError):  # tried again before the next line
                self._cut_back()
            raise
        self._unsure = False
        self._size += len(line) + 1
        self._end = max(self._end, self._size)
        self._last = logchain.digest(line)

    def _cut_back(self) -> None:
        """Remove what a failing disk took of a line: the next would not follow it."""
        if self._unsure:
            with named(self._descriptor):
                os.ftruncate(self._descriptor, self._size)
            self._unsure, self._end = False, self._size

    def sync(self) -> None:
        """Make all lines durable. Raises OSError."""
        if self._unsynced:
            with named(self._descriptor):
                os.fdatasync(self._descriptor)
            self._unsynced = False

    def make_room(self) -> None:
        """See to it that there is room ahead, if the disk has plenty. Without, lines are slower.

        Raises OSError where the disk does not even tell how much there is.
        """
        left = os.fstatvfs(self._descriptor)
        plenty = left.f_bavail * left.f_frsize >= _SPARE * ROOM
        if self._end - self._size > ROOM // 2 or self._unsure or not plenty:
            return
        self._unsure = True  # until it is there
        with contextlib.suppress(OSError):
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            files.write_all(self._descriptor, bytes(self._size + ROOM - self._end))
            with named(self._descriptor):
                os.fdatasync(self._descriptor)
            self._unsure, self._end = False, self._size + ROOM

    def close(self) -> None:
        """Cut the room that was not needed; sync and close."""
        if self._end > self._size:
            with contextlib.suppress(OSError):  # a start passes over it
                os.ftruncate(self._descriptor, self._size)
        self.sync()
        os.close(self._descriptor)

    def _open(self, known: Head | None, at_ns: int) -> None:
        """Go on behind the last line. What a crash left goes; what somebody changed stays, told."""
        start, last = (known.size, known.sha256) if known else (0, FIRST)
        size = os.fstat(self._descriptor).st_size
        if size < start or self._line_before(start) != last:
            self.fault = "it is not what it was when replicas were told of it"
            start, last = 0, FIRST
        self._size, self._last = self._follow(start, last)
        self._end = size
        rest = os.pread(self._descriptor, min(size - self._size, _REST_MAX), self._size)
        if logchain.is_room(rest):
            self._note(at_ns, {})
            return
        self._end = self._size
        if logchain.is_torn(rest):
            os.ftruncate(self._descriptor, self._size)
            self._note(at_ns, {"cut": size - self._size})
            return
        changed, end = self._size, rest.rfind(b"\n") + 1
        self.fault = f"the line at byte {changed} does not follow the one before"
        os.ftruncate(self._descriptor, changed + end)  # a last line that was cut was never answered
        self._end = self._size = changed + end
        self._last = self._line_before(self._size)
        self._note(at_ns, {"changed": changed})

    def _note(self, at_ns: int, found: dict[str, int]) -> None:
        """A line of our own, if there is anything to say."""
        if self.fault:
            log.error("The access log was changed", extra={"FILE": str(self._path),
                                                           "FAULT": self.fault})  # fmt: skip
            found = found or {"changed": 0}
        if found:
            self.append({"at_ns": at_ns, "who": "storaged", "kind": "opened", **found}, sync=True)

    def _follow(self, start: int, last: str) -> tuple[int, str]:
        """The size up to the last line that fits, and its digest."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(start)
            for line in file:
                text = line.removesuffix(b"\n")
                if text == line or not logchain.follows(text, last):
                    break
                start, last = start + len(line), logchain.digest(text)
        return start, last

    def _line_before(self, end: int) -> str:
        """The digest of the line that ends there, line feed included."""
        block = 1 << 16
        while end:
            start = max(0, end - block)
            data = os.pread(self._descriptor, end - 1 - start, start)
            before = data.rfind(b"\n")
            if before >= 0 or start == 0:
                return logchain.digest(data[before + 1 :])
            block *= 4
        return FIRST
