"""The blocks of pcapng: sections of either byte order, several interfaces with their own clocks.

Runs of enhanced packet blocks, which are nearly all there is, are read by the hundred; all else one
by one, many to a search of the window: a search costs as much as reading dozens.
Source: draft-ietf-opsawg-pcapng. Windows of a file: capture.sources.files.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from capture.model import Block
from capture.packets.columns import rows
from capture.sources.records import MAX_CAPTURED, run

SECTION: Final = 0x0A0D0D0A  # reads the same in both byte orders
INTERFACE, OBSOLETE, SIMPLE, ENHANCED = 1, 2, 3, 6
PACKETS: Final = {ENHANCED: 20, OBSOLETE: 20, SIMPLE: 4}  # fields before the frame, in bytes
BYTE_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
OPTION_END, OPTION_RESOLUTION, OPTION_OFFSET = 0, 9, 14
SMALLEST: Final = 12  # a block's type and its length, twice
NANO: Final = 1_000_000_000
FAR_S: Final = 1 << 32  # seconds; time stamp and offset of so many still fit into 64 bits as ns
RUN: Final = 64  # enhanced packets in a row that are worth a search of the window
STEPS: Final = 4_096  # blocks read one by one before the next search
Frame = tuple[int, int, int, int]  # where it starts, captured and original length, time


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface description: what its frames are and how its clock ticks."""

    link_type: int
    snap_length: int
    ticks: int = 1_000_000  # a second
    offset_s: int = 0

    def time_ns(self, high: NDArray[np.uint32], low: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Nanoseconds since 1970 of 64-bit time stamps."""
        stamp = high.astype(np.uint64) << np.uint64(32) | low
        whole, part = np.divmod(stamp, np.uint64(self.ticks))
        # Finer than a nanosecond: drop digits first, or the product would overflow.
        coarse = max(1, self.ticks // NANO)
        part_ns = part // np.uint64(coarse) * np.uint64(NANO) // np.uint64(self.ticks // coarse)
        seconds = np.minimum(whole, np.uint64(FAR_S)).astype(np.int64) + self.offset_s
        return seconds * NANO + part_ns.astype(np.int64)


class PcapngReader:
    """Reads a file's windows one after the other."""

    def __init__(self, order: str) -> None:
        self.position = 0
        self._order = order
        self._interfaces: list[Interface] = []
        self._last_ns = 0  # a simple packet has no time of its own
        self._found = np.empty(0, np.int64)  # enhanced packets ahead, as places in the file

    @classmethod
    def open(cls, head: NDArray[np.uint8]) -> Self | None:
        """A reader if the file begins as this format does."""
        if bytes(head[:4]) != SECTION.to_bytes(4, "little"):
            return None
        order = BYTE_ORDERS.get(bytes(head[8:12]))
        if order is None:
            raise ValueError("damaged: a pcapng section header without a byte-order magic")
        return cls(order)

    def read(self, window: NDArray[np.uint8], limit: int) -> Block | None:
        """See Reader.read."""
        if not len(self._found):
            self._found = self._search(window) + self.position
        if len(self._found) >= RUN:
            return self._enhanced(window, self._found[:limit] - self.position)
        self._found = self._found[:0]
        return self._several(window, min(limit, STEPS))

    def _search(self, window: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The enhanced packet blocks that follow each other from the window's start on."""
        words = window[: len(window) // 4 * 4].view(f"{self._order}u4")
        at = np.flatnonzero(words[: -SMALLEST // 4] == ENHANCED)
        length = words[at + 1].astype(np.int64)
        end = at + length // 4
        sane = (length >= SMALLEST + PACKETS[ENHANCED]) & (length % 4 == 0) & (end <= len(words))
        at, length, end = at[sane], length[sane], end[sane]
        twice = words[end - 1] == length  # the length is repeated at the end
        return run(at[twice] * 4, length[twice])

    def _enhanced(self, window: NDArray[np.uint8], at: NDArray[np.int64]) -> Block:
        """A block of the leading frames whose interfaces share a link type."""
        header = rows(window, at, 28).view(f"{self._order}u4").reshape(-1, 7)
        number, length, captured = (header[:, each].astype(np.int64) for each in (2, 1, 5))
        link_type = self._interface(int(number[0])).link_type
        alike = [each.link_type == link_type for each in self._interfaces]
        # A frame that cannot be ends the block: what came before is given, the fault comes next.
        fits = captured <= length - SMALLEST - PACKETS[ENHANCED]
        odd = np.flatnonzero(~(np.isin(number, np.flatnonzero(alike)) & fits))
        count = int(odd[0]) if len(odd) else len(at)
        if not count:
            raise self._damaged("a frame longer than its block")
        header, at, number = header[:count], at[:count], number[:count]
        time_ns = np.empty(count, np.int64)
        for each in np.unique(number).tolist():
            mine = number == each
            time_ns[mine] = self._interfaces[each].time_ns(header[mine, 3], header[mine, 4])
        self._last_ns = int(time_ns[-1])
        self._found = self._found[count:]
        self.position += int(at[-1] + length[count - 1])
        original = header[:, 6].astype(np.int64)
        return Block(window, at + 28, captured[:count], original, time_ns, link_type)

    def _several(self, window: NDArray[np.uint8], steps: int) -> Block | None:
        """The frames of up to so many blocks at the window's start, as long as links are alike.

        None if not even the first block is whole.
        """
        begun, at, link_type = self.position, 0, None
        frames: list[Frame] = []
        for _ in range(steps):
            try:
                found = self._one(window[at:])
            except ValueError:
                if not at:
                    raise
                break  # what came before is given first; the fault comes next
            if found is None:
                break
            length, frame, of_type = found
            if frame:
                if of_type != (link_type := of_type if link_type is None else link_type):
                    break
                frames.append((at + frame[0], *frame[1:]))
                self._last_ns = frame[3]
            at += length
            self.position = begun + at
        return _block(window, frames, link_type or 0) if at else None

    def _one(self, window: NDArray[np.uint8]) -> tuple[int, Frame | None, int] | None:
        """Length, frame and its link type of the block at the start; None if it is not whole."""
        if len(window) < SMALLEST:
            return None
        kind, length = struct.unpack_from(f"{self._order}II", window.data)
        if kind == SECTION:
            length = self._section(window)
        if length < SMALLEST or length % 4:
            raise self._damaged(f"a block of {length} bytes")
        if kind in PACKETS and length > MAX_CAPTURED + SMALLEST + 4096:
            raise self._damaged(f"a packet block of {length} bytes")
        if length > len(window) and (kind in PACKETS or kind in (SECTION, INTERFACE)):
            return None
        if kind == INTERFACE:
            self._interfaces.append(self._description(bytes(window[8 : length - 4])))
        if kind not in PACKETS:
            return length, None, 0
        head = bytes(window[8 : min(8 + PACKETS[kind], length - 4)])
        return length, *self._packet(kind, head, length - SMALLEST)

    def _section(self, window: NDArray[np.uint8]) -> int:
        order = BYTE_ORDERS.get(bytes(window[8:12]))
        if order is None:
            raise self._damaged("a section header without a byte-order magic")
        self._order = order
        self._interfaces = []
        length: int = struct.unpack_from(f"{order}I", window.data, 4)[0]
        return length

    def _description(self, body: bytes) -> Interface:
        if len(body) < 8:
            raise self._damaged("an interface description cut short")
        link_type, _, snap_length = struct.unpack_from(f"{self._order}HHI", body)
        ticks, offset_s, at = 1_000_000, 0, 8
        while at + 4 <= len(body):
            code, size = struct.unpack_from(f"{self._order}HH", body, at)
            value = body[at + 4 : at + 4 + size]
            if code == OPTION_END:
                break
            if code == OPTION_RESOLUTION and len(value) == 1:
                ticks = self._resolution(value[0])
            elif code == OPTION_OFFSET and len(value) == 8:
                (far_s,) = struct.unpack(f"{self._order}q", value)
                offset_s = max(-FAR_S, min(far_s, FAR_S))
            at += 4 + (size + 3) // 4 * 4
        return Interface(link_type, snap_length, ticks, offset_s)

    def _resolution(self, value: int) -> int:
        """Ticks a second: a power of ten, or of two where the upper bit is set."""
        ticks: int = 2 ** (value & 0x7F) if value & 0x80 else 10**value
        if ticks >= 1 << 63:
            raise self._damaged(f"a clock of {ticks} ticks a second")
        return ticks

    def _packet(self, kind: int, header: bytes, room: int) -> tuple[Frame, int]:
        """The frame in a packet block and its link type. room: bytes of header and frame."""
        if len(header) < PACKETS[kind]:
            raise self._damaged("a packet block cut short")
        if kind == SIMPLE:
            interface = self._interface(0)
            (original,) = struct.unpack(f"{self._order}I", header)
            captured = min(original, room - 4, interface.snap_length or original)
            time_ns = self._last_ns
        else:
            layout = "HHIIII" if kind == OBSOLETE else "IIIII"
            number, *_, high, low, captured, original = struct.unpack(self._order + layout, header)
            interface = self._interface(number)
            stamp = np.array([high, low], np.uint32)
            time_ns = int(interface.time_ns(stamp[:1], stamp[1:])[0])
        if captured > room - PACKETS[kind]:
            raise self._damaged("a frame longer than its block")
        return (8 + PACKETS[kind], captured, original, time_ns), interface.link_type

    def _interface(self, number: int) -> Interface:
        if number >= len(self._interfaces):
            raise self._damaged(f"a frame of interface {number}, which was not described")
        return self._interfaces[number]

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"damaged: {what} at offset {self.position}. The frames before it were read."
        )


def _block(window: NDArray[np.uint8], frames: list[Frame], link_type: int) -> Block:
    """A block of a few frames."""
    start, captured, original, time_ns = np.array(frames, np.int64).reshape(-1, 4).T
    return Block(window, start, captured, original, time_ns, link_type)
