"""Frames from a live interface: an AF_PACKET ring of TPACKET_V3 blocks shared with the kernel.

The kernel fills blocks of 1 MiB and hands each over when it is full or 40 ms old, so a wake-up
brings thousands of frames and no frame is copied on its way here. The order of the set-up
matters: a socket bound before its ring is ready would queue frames of every interface.
Sources: packet(7); Linux Documentation/networking/packet_mmap.rst and include/uapi/linux/
if_packet.h. Capture files: capture.sources.files.
"""

import errno
import fcntl
import mmap
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.columns import fields
from capture.model import Block

SOL_PACKET, ETH_P_ALL = 263, 3
ADD_MEMBERSHIP, RX_RING, STATISTICS, VERSION, IGNORE_OUTGOING = 1, 5, 6, 10, 23
TPACKET_V3, PROMISCUOUS = 2, 1
SIOCGIFFLAGS, SIOCGIFHWADDR, IFF_UP = 0x8913, 0x8927, 1
BLOCK: Final = 1 << 20  # bytes; 64 KiB costs twice the time a frame
FRAME: Final = 2048  # only divides the block: V3 packs frames of any size
RETIRE_MS: Final = 40
TO_USER, TO_KERNEL = 1, 0
VLAN_VALID: Final = 0x10  # the tag was stripped into the header; VID 0 exists, so test this bit
LINK_TYPES: Final = {1: 1, 772: 1, 65534: 101, 801: 127, 802: 127, 803: 127}  # ARPHRD_ → LINKTYPE_

STATUS, FRAMES, FIRST, USED = 2, 3, 4, 5  # words of a block's header
HEADER: Final = np.dtype(
    {
        "names": ["next", "seconds", "nanoseconds", "captured", "original", "status", "mac",
                  "vlan", "family", "interface"],
        "formats": ["<u4", "<u4", "<u4", "<u4", "<u4", "<u4", "<u2", "<u4", "<u2", "<u4"],
        "offsets": [0, 4, 8, 12, 16, 20, 24, 32, 48, 52],
        "itemsize": 56,
    }
)  # fmt: skip
ADDRESS_AT: Final = 48  # of the sockaddr_ll in a frame's header: family, protocol, interface
ADDRESS_MASK: Final = np.uint64(0xFFFFFFFF_0000FFFF)  # without the protocol


class Ring:
    """One interface's mirrored traffic. Close it, or use it as a context manager."""

    def __init__(self, interface: str, megabytes: int) -> None:
        """Begin to capture.

        Raises ValueError if there is no such interface or it cannot be captured from, and
        OSError if the system will not let us; both say what to do.
        """
        self.interface = interface
        self.link_down = 0  # times the interface went down
        self._count = max(2, megabytes)
        self._current = 0
        self._drops = 0
        self._dropped: deque[tuple[int, int]] = deque()  # when, how many: not yet told of
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # deaf until bound
        except PermissionError:
            raise OSError(
                errno.EPERM,
                f"may not capture on {interface}: run as root, or with CAP_NET_RAW as "
                "spanvault-capture@.service does",
            ) from None
        try:
            self._set_up()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Ring":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when a block is ready."""
        return self._socket.fileno()

    def blocks(self, timeout_ms: int, wake_fd: int | None = None) -> Iterator[Block]:
        """The blocks that are ready, waiting for the first one; ends when there is none.

        wake_fd: ends the waiting when it becomes readable. A block's data goes back to the
        kernel when the next is asked for. Raises OSError if the interface has gone.
        """
        if self._status() & TO_USER == 0:
            self._wait(timeout_ms, wake_fd)
        while self._status() & TO_USER:
            try:
                yield self._block()
            finally:  # also when the caller goes on with something else after this one
                self._words[self._current, STATUS] = TO_KERNEL
                self._current = (self._current + 1) % self._count

    def drain(self) -> Iterator[Block]:
        """What was on its way: the kernel keeps the last frames until their block is due."""
        until = time.monotonic() + 3 * RETIRE_MS / 1000
        while (left_ms := int((until - time.monotonic()) * 1000)) > 0:
            yield from self.blocks(left_ms)

    def drops(self) -> int:
        """Frames that the kernel had no room for, since the beginning."""
        statistics = self._socket.getsockopt(SOL_PACKET, STATISTICS, 12)  # reading resets it
        dropped: int = struct.unpack("3I", statistics)[1]
        if dropped:
            self._drops += dropped
            self._dropped.append((time.time_ns(), dropped))
        return self._drops

    def close(self) -> None:
        """Stop to capture."""
        self._socket.close()
        self._ring = np.empty(0, np.uint8)
        self._words = np.empty((0, 0), np.uint32)

    def _set_up(self) -> None:
        self._index, hardware = self._look_up()
        if hardware not in LINK_TYPES:
            raise ValueError(
                f"{self.interface}: frames of hardware type {hardware} are not understood. "
                "Capture on an Ethernet interface."
            )
        self._link_type = LINK_TYPES[hardware]
        self._socket.setsockopt(SOL_PACKET, VERSION, TPACKET_V3)
        self._socket.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
        request = struct.pack(
            "7I", BLOCK, self._count, FRAME, BLOCK // FRAME * self._count, RETIRE_MS, 0, 0
        )
        try:
            self._socket.setsockopt(SOL_PACKET, RX_RING, request)
            memory = mmap.mmap(
                self._socket.fileno(), BLOCK * self._count, mmap.MAP_SHARED | _POPULATE
            )
        except OSError as error:
            raise OSError(
                error.errno,
                f"no memory for a capture ring of {self._count} MiB ({error.strerror}): "
                "lower ring_mb in capture.toml",
            ) from None
        self._ring = np.frombuffer(memory, np.uint8)
        self._words = self._ring.view(np.uint32).reshape(self._count, -1)
        self._socket.bind((self.interface, ETH_P_ALL))
        member = struct.pack("iHH8s", self._index, PROMISCUOUS, 0, b"")
        self._socket.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, member)

    def _look_up(self) -> tuple[int, int]:
        """The interface's index and hardware type. Raises ValueError with what to do."""
        request = self.interface.encode()[:15].ljust(40, b"\0")
        try:
            index = socket.if_nametoindex(self.interface)
            flags = fcntl.ioctl(self._socket, SIOCGIFFLAGS, request)
            hardware = fcntl.ioctl(self._socket, SIOCGIFHWADDR, request)
        except OSError:
            known = ", ".join(name for _, name in socket.if_nameindex())
            raise ValueError(f"no interface '{self.interface}'. There are: {known}") from None
        if not struct.unpack_from("H", flags, 16)[0] & IFF_UP:
            raise ValueError(
                f"interface '{self.interface}' is down: ip link set {self.interface} up"
            )
        return index, struct.unpack_from("H", hardware, 16)[0]

    def _status(self) -> int:
        return int(self._words[self._current, STATUS])

    def _wait(self, timeout_ms: int, wake_fd: int | None) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLERR)
        if wake_fd is not None:
            poll.register(wake_fd, select.POLLIN)
        ready = dict(poll.poll(timeout_ms))
        if ready.get(self._socket.fileno(), 0) & select.POLLERR:
            self._failed(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _failed(self, error: int) -> None:
        """An interface that is set down may come back; one that was removed does not."""
        try:
            present = socket.if_nametoindex(self.interface) == self._index
        except OSError:
            present = False
        if not present:
            raise OSError(errno.ENODEV, f"interface '{self.interface}' has gone")
        if error == errno.ENETDOWN:
            self.link_down += 1
        elif error:
            raise OSError(error, f"capture on '{self.interface}' failed")

    def _block(self) -> Block:
        words = self._words[self._current]
        data = self._ring[self._current * BLOCK : (self._current + 1) * BLOCK]
        data = data[: int(words[USED])]  # behind it lie frames of the block's last use
        at = _offsets(data, int(words[FIRST]), int(words[FRAMES]), self._index)
        header = fields(data, at, HEADER)
        time_ns = header["seconds"].astype(np.int64) * 1_000_000_000 + header["nanoseconds"]
        start = at + header["mac"]
        vlan = np.where(header["status"] & VLAN_VALID, header["vlan"] & 0xFFF, -1)
        self.drops()
        return Block(
            data, start, header["captured"].astype(np.int64), header["original"].astype(np.int64),
            time_ns, self._link_type, self._dropped_until(time_ns), vlan.astype(np.int32),
        )  # fmt: skip

    def _dropped_until(self, time_ns: NDArray[np.int64]) -> int:
        """Frames dropped up to this block's last one. Those in the ring are older than the loss."""
        dropped = 0
        while self._dropped and len(time_ns) and self._dropped[0][0] <= int(time_ns[-1]):
            dropped += self._dropped.popleft()[1]
        return dropped


_POPULATE: Final = getattr(mmap, "MAP_POPULATE", 0)


def _offsets(data: NDArray[np.uint8], first: int, count: int, interface: int) -> NDArray[Any]:
    """Where each frame's header lies in a block.

    Every header holds the same socket address but for its protocol: that is searched for, and the
    headers' own links prove what was found. If they do not, the links are followed one by one.
    """
    if not count:
        return np.empty(0, np.int64)
    signature = np.uint64(interface << 32 | socket.AF_PACKET)
    words = data[: len(data) // 8 * 8].view(np.uint64)
    at = np.flatnonzero(words & ADDRESS_MASK == signature) * 8 - ADDRESS_AT
    if len(at) == count and at[0] == first:
        following = data[: len(data) // 4 * 4].view(np.uint32)[at >> 2]
        if (np.diff(at) == following[:-1]).all():
            return at
    return _walk(data, first, count)


def _walk(data: NDArray[np.uint8], first: int, count: int) -> NDArray[np.int64]:
    link, view = struct.Struct("<I").unpack_from, data.data
    at, found = first, []
    for _ in range(count):
        found.append(at)
        at += link(view, at)[0]
    return np.array(found, np.int64)
