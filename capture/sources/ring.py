"""Frames from a live interface: an AF_PACKET ring of TPACKET_V3 blocks shared with the kernel.

The kernel fills blocks of 1 MiB and hands each over when it is full or 80 ms old, so a wake-up
brings thousands of frames and no frame is copied on its way here. The order of the set-up
matters: a socket bound before its ring is ready would queue frames of every interface, and one
that hears before it has joined its group would hear what is another's.
Sources: packet(7); Linux Documentation/networking/packet_mmap.rst and include/uapi/linux/
if_packet.h. What is kept out: capture.sources.filter. An interface that goes and comes back:
capture.sources.port. Capture files: capture.sources.files.
"""

import errno
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

from capture.model import Block
from capture.packets.columns import fields
from capture.sources import filter as packet_filter
from capture.sources import interface as interfaces

SOL_PACKET, ETH_P_ALL = 263, 3
ADD_MEMBERSHIP, RX_RING, STATISTICS, VERSION, FANOUT, IGNORE_OUTGOING = 1, 5, 6, 10, 18, 23
TPACKET_V3, PROMISCUOUS = 2, 1
# Both directions of a flow to one socket, and all fragments of a datagram with its flow.
FANOUT_HASH_WHOLE: Final = 0x8000 << 16
BLOCK: Final = 1 << 20  # bytes; 64 KiB costs twice the time a frame
FRAME: Final = 2048  # only divides the block: V3 packs frames of any size
RETIRE_MS: Final = 80  # at 40, fifty calls cost nearly a percent of a core more
TO_USER, TO_KERNEL = 1, 0
ETHERNET: Final = 1
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

    def __init__(self, interface: str, megabytes: int, group: int | None = None) -> None:
        """Begin to capture.

        group: all rings of one number (16 bits) share the interface's flows among them.
        Raises ValueError if the interface is of a kind that cannot be captured from, and OSError
        if it is missing or down or the system will not let us; both say what to do.
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
            self._set_up(group)
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

    def link(self) -> interfaces.Link:
        """How the interface is now."""
        return interfaces.link(self.interface, self._index)

    def close(self) -> None:
        """Stop to capture."""
        self._socket.close()
        self._ring = np.empty(0, np.uint8)
        self._words = np.empty((0, 0), np.uint32)

    def _set_up(self, group: int | None) -> None:
        self._index, hardware = interfaces.find(self.interface)
        if hardware not in LINK_TYPES:
            raise ValueError(
                f"{self.interface}: frames of hardware type {hardware} are not understood. "
                "Capture on an Ethernet interface."
            )
        self._link_type = LINK_TYPES[hardware]
        self._socket.setsockopt(SOL_PACKET, VERSION, TPACKET_V3)
        self._socket.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
        self._map()
        packet_filter.attach(self._socket, packet_filter.nothing())
        self._socket.bind((self.interface, ETH_P_ALL))
        if group is not None:
            # Of this interface's number, for an earlier one's group may not be gone yet: its ring
            # lasts as long as a block of it is looked at, and no other device may join the group.
            number = group + self._index & 0xFFFF
            self._socket.setsockopt(
                SOL_PACKET, FANOUT, struct.pack("I", FANOUT_HASH_WHOLE | number)
            )
        ethernet = self._link_type == ETHERNET
        wanted = packet_filter.ethernet() if ethernet else packet_filter.everything()
        self._unread_each = packet_filter.SAMPLED if ethernet else 1
        packet_filter.attach(self._socket, wanted)
        member = struct.pack("iHH8s", self._index, PROMISCUOUS, 0, b"")
        self._socket.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, member)

    def _map(self) -> None:
        """Have the kernel make the ring, and see it as numpy does."""
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
        if self.link() is interfaces.Link.GONE:
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
            unread_each=self._unread_each,
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
