"""The classic capture format: one link type, one clock resolution, a chain of records.

Source: draft-ietf-opsawg-pcap. Windows of a file: capture.sources.files.
"""

import struct
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from capture.model import Block
from capture.sources.records import MAX_CAPTURED, places, run

MAGICS: Final = {  # first four bytes: byte order, nanoseconds a tick
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
FILE_HEADER: Final = 24
RECORD_HEADER: Final = 16
LINK_TYPE: Final = 0xFFFF  # above it: length of a frame check sequence, which the IP length cuts


class PcapReader:
    """Reads a file's windows one after the other."""

    def __init__(self, order: str, tick_ns: int, link_type: int) -> None:
        self.position = FILE_HEADER
        self._order, self._tick_ns, self._link_type = order, tick_ns, link_type
        self._length = struct.Struct(f"{order}I").unpack_from
        self._memory = np.empty(0, np.bool_)

    @classmethod
    def open(cls, head: NDArray[np.uint8]) -> Self | None:
        """A reader if the file begins as this format does. Raises ValueError if it ends there."""
        known = MAGICS.get(bytes(head[:4]))
        if known is None:
            return None
        if len(head) < FILE_HEADER:
            raise ValueError("cut off within the pcap file header; there are no frames in it")
        (link_type,) = struct.unpack_from(f"{known[0]}I", head.data, 20)
        return cls(*known, link_type & LINK_TYPE)

    def read(self, window: NDArray[np.uint8], limit: int) -> Block | None:
        """See Reader.read."""
        at = self._search(window)[:limit]
        if len(at) < limit:
            at = self._walk(window, at, limit)
        if not len(at):
            return None
        block = self._block(window, at)
        self.position += int(block.start[-1] + block.length[-1])
        return block

    def _search(self, window: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The records from the window's start on that lie within 256 s of the first one.

        The upper bytes of the seconds are then the same in each: a signature to search for.
        """
        if len(window) < RECORD_HEADER:
            return np.empty(0, np.int64)
        count = len(window) - RECORD_HEADER + 1
        first, second = self._masks(len(window))
        upper, next_to_it = (3, 2) if self._order == "<" else (0, 1)
        np.equal(window[upper : upper + count], window[upper], out=first[:count])
        np.equal(window[next_to_it : next_to_it + count], window[next_to_it], out=second[:count])
        first[count:] = False
        both = first.view(np.uint64)
        both &= second.view(np.uint64)
        at = places(first)
        header = self._headers(window, at)
        seconds, length = header[:, 0], header[:, 2].astype(np.int64) + RECORD_HEADER
        whole = seconds >> 8 == seconds[0] >> 8
        whole &= header[:, 2] <= header[:, 3]
        whole &= at + length <= len(window)
        kept = np.flatnonzero(whole)
        return run(at[kept], length[kept])

    def _masks(self, size: int) -> NDArray[np.bool_]:
        """Two masks of so many bytes and up to 63 more, in memory that is used again."""
        groups = (size + 63) // 64
        if groups * 128 > len(self._memory):
            self._memory = np.empty(groups * 128, np.bool_)
        return self._memory[: groups * 128].reshape(2, -1)

    def _walk(
        self, window: NDArray[np.uint8], found: NDArray[np.int64], limit: int
    ) -> NDArray[np.int64]:
        """The whole records behind the ones found, one by one."""
        data, size = window.data, len(window)
        at = self._next(data, int(found[-1])) if len(found) else 0
        more: list[int] = []
        while at + RECORD_HEADER <= size and len(found) + len(more) < limit:
            following = self._next(data, at)
            if following - at > MAX_CAPTURED + RECORD_HEADER:
                if len(found) + len(more):
                    break  # what came before is given first; the fault comes next
                raise ValueError(
                    f"damaged: the record at offset {self.position + at} claims "
                    f"{following - at - RECORD_HEADER} bytes. The frames before it were read."
                )
            if following > size:
                break
            more.append(at)
            at = following
        return np.concatenate((found, np.array(more, np.int64)))

    def _next(self, data: memoryview, at: int) -> int:
        captured: int = self._length(data, at + 8)[0]
        return at + RECORD_HEADER + captured

    def _headers(self, window: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint32]:
        """seconds, fraction, captured, original of each record: uint32[n, 4], in file order."""
        view = np.ndarray((len(window) - RECORD_HEADER + 1,), "V16", window, strides=(1,))
        return view[at].view(f"{self._order}u4").reshape(-1, 4)

    def _block(self, window: NDArray[np.uint8], at: NDArray[np.int64]) -> Block:
        seconds, fraction, captured, original = (
            column.astype(np.int64) for column in self._headers(window, at).T
        )
        time_ns = seconds * 1_000_000_000 + fraction * self._tick_ns
        return Block(window, at + RECORD_HEADER, captured, original, time_ns, self._link_type)
