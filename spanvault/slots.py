"""Media from a capture to the storaged of the same host: through memory, not through a socket.

Encrypting, copying and decrypting it for the process next door took a third of all CPU time. So a
capture writes a batch's media into a slot of an anonymous memory file (memfd), whose descriptor it
hands to storaged once, over a unix socket beside the ingest endpoint; the batch, over CURVE, names
the slot. Only who is let in by CURVE can have a slot read, and only by the memory's random name.
storaged copies the slot with one pread() and maps nothing: whatever a capture does to its memory
meanwhile or afterwards, storaged has bytes that do not change, and checks them as any others.
Rules: WIRE.md §4. Why so: docs/decisions/0010-media-by-memory.md. Who sends:
capture.delivery.outbox.
"""

import fcntl
import heapq
import logging
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from spanvault.messages import Slot

log = logging.getLogger(__name__)
SLOT_BYTES: Final = 1 << 20
KEPT_BYTES: Final = 256 << 20  # what a slot beyond took is given back when it is free again
NAME_BYTES: Final = 16
MOST_BYTES: Final = 16 << 20  # copied of one batch
MOST_MEMORIES: Final = 64  # one a capture; the oldest goes, and its batches come as frames again
_CREDENTIALS: Final = struct.Struct("3i")  # process, user, group
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def path_of(endpoint: str) -> str | None:
    """Where memories of an ingest endpoint are handed over; None if it is on another host."""
    if not endpoint.startswith("ipc:///"):
        return None
    return endpoint.removeprefix("ipc://") + ".memory"


class Slots:
    """A capture's memory. Raises OSError if there is none to be had."""

    def __init__(self, size: int) -> None:
        """size: bytes at most; only what is written to is ever taken from the system."""
        self.name = os.urandom(NAME_BYTES)
        count = max(1, size // SLOT_BYTES)
        self._descriptor = os.memfd_create("media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._descriptor, count * SLOT_BYTES)
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self._map = mmap.mmap(self._descriptor, count * SLOT_BYTES)
        self._free = list(range(count))  # a heap: the lowest first, so that few are ever touched
        self._caller: socket.socket | None = None

    def put(self, parts: Sequence[Any]) -> Slot | None:
        """Write the media frames of one batch. None if no slot is free, or too small."""
        table, frames, payload = (memoryview(part).nbytes for part in parts)
        size = table + frames + payload
        if not self._free or size > SLOT_BYTES:
            return None
        offset = heapq.heappop(self._free) * SLOT_BYTES
        slot = Slot(self.name, offset, (table, frames, payload))
        try:
            written = os.pwritev(self._descriptor, parts, slot.offset)
        except OSError:  # the system is short of memory
            written = -1
        if written != size:
            self.free(slot)
            return None
        return slot

    def get(self, slot: Slot) -> list[bytes]:
        """A copy of the media frames in a slot."""
        starts = [slot.offset + sum(slot.sizes[:part]) for part in range(len(slot.sizes))]
        return [
            self._map[start : start + size] for start, size in zip(starts, slot.sizes, strict=True)
        ]

    def free(self, slot: Slot) -> None:
        """Nobody needs what lies in this slot."""
        heapq.heappush(self._free, slot.offset // SLOT_BYTES)
        if slot.offset >= KEPT_BYTES:
            self._map.madvise(mmap.MADV_REMOVE, slot.offset, SLOT_BYTES)

    def hand_over(self, endpoint: str, user: int) -> bool:
        """Give storaged the memory; again whenever storaged is new. Whether it can have it.

        user: the one storaged runs as, as it said over CURVE: nobody else is given anything.
        """
        self._hang_up()
        path = path_of(endpoint)
        if path is None:
            return False
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            caller.connect(path)
            if _user_of(caller) != user:
                raise PermissionError("who listens there is not storaged")
            socket.send_fds(caller, [self.name], [self._descriptor])
        except OSError:  # an older storaged, or one too busy: it gets frames
            caller.close()
            return False
        self._caller = caller
        return True

    @property
    def held(self) -> bool:
        """Whether storaged still has the memory: with its process the connection goes at once."""
        if self._caller is None:
            return False
        try:
            return bool(self._caller.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Give everything back, also what storaged still has open."""
        self._hang_up()
        self._map.madvise(mmap.MADV_REMOVE)
        self._map.close()
        os.close(self._descriptor)

    def _hang_up(self) -> None:
        if self._caller is not None:
            self._caller.close()
            self._caller = None


class Memory:
    """One capture's memory, as storaged has it."""

    def __init__(self, caller: socket.socket) -> None:
        caller.setblocking(False)
        self._caller = caller
        self.name = b""
        self._descriptor = -1

    def look(self) -> bool:
        """Take the descriptor if it has come. False if the capture has gone or talks nonsense."""
        try:
            name, descriptors, _, _ = socket.recv_fds(
                self._caller, NAME_BYTES + 1, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return True
        except OSError:
            return False
        if (
            self.name
            or len(name) != NAME_BYTES
            or len(descriptors) != 1
            or not _is_memory(descriptors[0])
        ):
            for descriptor in descriptors:
                os.close(descriptor)
            return False
        self.name, self._descriptor = name, descriptors[0]
        return True

    def read(self, offset: int, size: int) -> bytes:
        """Copy bytes out: fewer than asked for where the memory ends. Raises OSError."""
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        """Let go of it."""
        self._caller.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Memories:
    """storaged's end: the memories that captures of this host have handed over."""

    def __init__(self, endpoint: str) -> None:
        self._memories: list[Memory] = []  # oldest first
        self._listener: socket.socket | None = None
        path = path_of(endpoint)
        if path is not None:
            try:
                self._listener = _listen(path)
            except OSError as error:
                log.warning("Captures cannot hand over memory", extra={"FAULT": str(error)})

    def take(self, slot: Slot) -> list[memoryview] | None:
        """The media frames in a slot, copied; None if they cannot be had: then they come again."""
        memory = self._find(slot.memory)
        size = sum(slot.sizes)
        if memory is None or min(slot.sizes) < 0 or size > MOST_BYTES:
            return None
        try:
            data = memoryview(memory.read(slot.offset, size))
        except (OSError, OverflowError):
            return None
        if len(data) != size:
            return None
        table, frames, _ = slot.sizes
        return [data[:table], data[table : table + frames], data[table + frames :]]

    def refresh(self) -> None:
        """Take in the memories of new captures, let go of those of captures that have gone."""
        while self._listener is not None:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                break
            self._memories.append(Memory(caller))
            if len(self._memories) > MOST_MEMORIES:
                self._memories.pop(0).close()
        for memory in list(self._memories):
            if not memory.look():
                memory.close()
                self._memories.remove(memory)

    def close(self) -> None:
        """Let go of everything."""
        for memory in self._memories:
            memory.close()
        self._memories.clear()
        if self._listener is not None:
            Path(self._listener.getsockname()).unlink(missing_ok=True)
            self._listener.close()
            self._listener = None

    def _find(self, name: bytes) -> Memory | None:
        for look_again in (True, False):
            for memory in self._memories:
                if memory.name and memory.name == name:
                    return memory
            if look_again:
                self.refresh()
        return None


def _listen(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)  # of a storaged that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        listener.bind(path)
        # As the ingest socket's: who may enter the folder may call, CURVE decides who is heard.
        Path(path).chmod(0o660)
        listener.listen(MOST_MEMORIES)
    except OSError:
        listener.close()
        raise
    return listener


def _user_of(peer: socket.socket) -> int:
    """Who listens at the other end. Source: SO_PEERCRED in unix(7)."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(credentials)[1]
    return user


def _is_memory(descriptor: int) -> bool:
    """Whether it is an anonymous memory of fixed size: reading a file could block for ever."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False
