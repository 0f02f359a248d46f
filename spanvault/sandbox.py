"""A process that may die: code that reads what anybody may have sent, in C, without a key.

It has one socket to its parent, a bounded memory, and no more rights than it needs; it holds
neither certificate nor unlock key, since it begins anew (exec) with an empty environment. Death
and silence of it are one exception here. Both ends of the socket are in this file: `Sandbox` for
the parent, `serve` for the main() that runs within. Messages: length as u32, bytes.
What runs within: spanvault.audio.worker, spanvault.video.worker.
"""

import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from spanvault.daemon import memory

ANSWER_S: Final = 20.0  # a second of sound takes milliseconds; more is a loop that never ends
MEMORY_BYTES: Final = 1 << 30  # beyond what it has when it begins
MESSAGE_BYTES: Final = 256 << 20
FIRST_BYTES: Final = 64 << 10  # of a message that says it is long: then twice what has come
OUT_OF_MEMORY: Final = 3  # exit status
LENGTH: Final = struct.Struct("<I")
KEPT_VARIABLES: Final = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "LANG")
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
# By version: rights over files, over TCP ports, and scopes (abstract sockets, signals).
_LANDLOCK_RIGHTS: Final = {
    1: (0x1FFF,), 2: (0x3FFF,), 3: (0x7FFF,), 4: (0x7FFF, 3), 5: (0xFFFF, 3), 6: (0xFFFF, 3, 3),
}  # fmt: skip


class SandboxDied(Exception):
    """It cannot answer any more, and was ended. The text tells how it came to that."""


class Sandbox:
    """A module whose main() runs as a process. files: descriptors that it inherits."""

    def __init__(
        self, module: str, files: tuple[int, ...] = (), answer_s: float = ANSWER_S
    ) -> None:
        self._ours, theirs = socket.socketpair()
        self._answer_s = answer_s
        self._ours.settimeout(answer_s)
        with theirs:
            self.process = subprocess.Popen(
                # -P: what lies in the folder that we were called in is not ours to run.
                [sys.executable, "-P", "-c", f"import {module}; {module}.main()"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={key: os.environ[key] for key in KEPT_VARIABLES if key in os.environ},
                pass_fds=files,
                start_new_session=True,  # Ctrl-C is for us
            )

    def tell(self, message: bytes) -> None:
        """Send a message. Raises SandboxDied."""
        try:
            self._ours.sendall(LENGTH.pack(len(message)) + message)
        except OSError as error:
            raise self._died(error) from None

    def ask(self, message: bytes) -> bytes:
        """Send a message and wait for the answer. Raises SandboxDied."""
        self.tell(message)
        try:
            answer = _receive(self._ours)
        except (OSError, ValueError) as error:
            raise self._died(error) from None
        if answer is None:
            raise self._died(EOFError())
        return answer

    def close(self) -> None:
        """End it, however it is."""
        self._ours.close()
        self.process.kill()
        self.process.wait()

    def _died(self, error: Exception) -> SandboxDied:
        if isinstance(error, TimeoutError):
            self.close()
            return SandboxDied(f"gave no answer in {self._answer_s:g} s")
        self._ours.close()
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.close()
            return SandboxDied("gave an answer that is none")
        if code < 0:
            return SandboxDied(f"was ended by {signal.Signals(-code).name}")
        if code == OUT_OF_MEMORY:
            return SandboxDied("ran out of memory")
        return SandboxDied(f"ended with status {code}")


def serve(answer: Callable[[bytes], bytes | None]) -> None:
    """Within: answer each message until the parent closes the socket; None is no answer."""
    confine()
    with socket.socket(fileno=os.dup(0)) as parent:
        while (message := _receive(parent)) is not None:
            try:
                reply = answer(message)
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            if reply is not None:
                parent.sendall(LENGTH.pack(len(reply)) + reply)


def confine() -> None:
    """Give up what is not needed: files, memory without end, core dumps, a life of its own.

    To be called when everything is imported: no file can be opened afterwards.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    memory.keep_private()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _close_files(libc)


def _close_files(libc: ctypes.CDLL) -> None:
    """Landlock: no file can be opened, no connection made, no process outside be traced.

    It runs under the operator's user, who may read the unlock key. A kernel without Landlock
    (before 5.13, or where it is switched off) leaves it at the rest.
    Source: Linux, Documentation/userspace-api/landlock.rst.
    """
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return
    # Every right that this version knows is handled, and none is granted again.
    newest = max(known for known in _LANDLOCK_RIGHTS if known <= version)
    rights = struct.pack(f"{len(_LANDLOCK_RIGHTS[newest])}Q", *_LANDLOCK_RIGHTS[newest])
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, rights, len(rights), 0)
    if ruleset >= 0:
        libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)


def _receive(peer: socket.socket) -> bytes | None:
    """The next message; None at the end. Raises OSError, ValueError for one that is too long."""
    head = _exactly(peer, LENGTH.size)
    if head is None:
        return None
    (length,) = LENGTH.unpack(head)
    if length > MESSAGE_BYTES:
        raise ValueError(f"message of {length} bytes")
    return _exactly(peer, length)


def _exactly(peer: socket.socket, count: int) -> bytes | None:
    """So many bytes; None where the peer ends before. Memory is taken as they come."""
    data, at = bytearray(), 0
    while at < count:
        if at == len(data):
            data.extend(bytes(min(count - at, max(at, FIRST_BYTES))))
        with memoryview(data) as view, view[at:] as rest:
            read = peer.recv_into(rest)
        if not read:
            return None
        at += read
    return bytes(data)
