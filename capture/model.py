"""What the rooms of capture hand each other: blocks, datagrams, streams and where they belong.

Times are nanoseconds since 1970-01-01T00:00Z by the capture's clock, never by ours: a file is
replayed with the clock of the day it was made.
"""

import ipaddress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4096)  # the same few hosts call again and again
def host_text(address: bytes) -> str:
    """An address of 4 or 16 bytes for people's eyes: RFC 5952."""
    return str(ipaddress.ip_address(address))


class Endpoint(NamedTuple):
    """An IP address (4 or 16 bytes) and a port."""

    address: bytes
    port: int

    def __str__(self) -> str:
        host = host_text(self.address)
        return f"[{host}]:{self.port}" if len(self.address) == 16 else f"{host}:{self.port}"


@dataclass(slots=True)
class Block:
    """Frames as they came from a ring block or a stretch of a capture file; all columns of n.

    data: uint8[*], only lent: it may be overwritten once the block has been received.
    """

    data: NDArray[np.uint8]
    start: NDArray[np.int64]  # offset of each frame's first byte in data
    length: NDArray[np.int64]  # bytes captured
    original: NDArray[np.int64]  # bytes on the wire
    time_ns: NDArray[np.int64]
    link_type: int  # LINKTYPE_ of pcap; of all frames in the block
    dropped: int = 0  # frames the kernel had no room for, since the block before
    vlan: NDArray[np.int32] | None = None  # tag that the card or kernel took off, -1 for none
    # From when to when none reached the kernel: there was no link, or no room on the card.
    unheard: tuple[tuple[int, int], ...] = ()
    unread_each: int = 1  # frames that one stands for of those that nobody can read

    def select(self, rows: NDArray[np.int64]) -> "Block":
        """Some of its frames, uncopied; frames dropped before the block do not count in them."""
        return self.within(rows, self.start[rows], self.start[rows] + self.length[rows])

    def within(
        self,
        rows: NDArray[np.int64],
        start: NDArray[np.int64],
        end: NDArray[np.int64],
        link_type: int | None = None,
    ) -> "Block":
        """What lies in some of its frames, as frames. start, end: int64[len(rows)], in data.

        link_type: of what lies there, if not the same.
        """
        length = end - start
        cut = self.original[rows] - self.length[rows]
        return Block(
            self.data, start, length, length + cut, self.time_ns[rows],
            self.link_type if link_type is None else link_type,
        )  # fmt: skip

    def earlier(self, by_ns: int) -> "Block":
        """The same frames by another clock."""
        if not by_ns:
            return self
        unheard = tuple((begin - by_ns, end - by_ns) for begin, end in self.unheard)
        return replace(self, time_ns=self.time_ns - by_ns, unheard=unheard)

    def part(self, start: int, end: int) -> "Block":
        """Some of its frames, uncopied; what was lost before the block counts in its first part."""
        rows = slice(start, end)
        return Block(
            self.data, self.start[rows], self.length[rows], self.original[rows],
            self.time_ns[rows], self.link_type, 0 if start else self.dropped,
            None if self.vlan is None else self.vlan[rows], () if start else self.unheard,
            self.unread_each,
        )  # fmt: skip


class Datagram(NamedTuple):
    """One UDP payload, or one SIP message out of a TCP stream, with who sent it."""

    time_ns: int
    source: Endpoint
    destination: Endpoint
    payload: bytes
    transport: str  # "udp", "tcp", "ws": WebSocket
    missing: int = 0  # bytes at its end that were on the wire and not captured (snap length)
    slow: bool = False  # it came by the slow path


@dataclass(slots=True)
class Packets:
    """RTP packets as columns of n, in order of arrival; addresses are keys (see decode)."""

    data: NDArray[np.uint8]
    time_ns: NDArray[np.int64]
    source_key: NDArray[np.uint64]
    destination_key: NDArray[np.uint64]
    ssrc: NDArray[np.uint32]
    sequence: NDArray[np.uint16]
    timestamp: NDArray[np.uint32]
    payload_type: NDArray[np.uint8]
    marker: NDArray[np.bool_]
    payload_start: NDArray[np.int64]  # offset in data
    payload_length: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    whole: NDArray[np.bool_]  # the payload is the whole packet: see capture.packets.rtpheader
    frame: NDArray[np.int64]  # row in the block, for the rare look at addresses


class NewStream(NamedTuple):
    """A stream that was heard for the first time: media asks signalling where it belongs."""

    row: int  # media's own number for it
    time_ns: int
    source: Endpoint
    destination: Endpoint
    ssrc: int
    payload_type: int
    timestamp: int | None = None  # of its first packet, where media knows it
    slow: bool = False  # it came by the slow path


class Attach(NamedTuple):
    """Signalling's answer, at once or later: this row is stream `number` of this recording."""

    row: int
    recording_id: bytes
    number: int
    clock_rate: int = 0  # of its media clock, for the jitter; 0: by the payload type
    kinds: bytes = bytes(128)  # what each payload type may carry: capture.media.events
    whole: bool = False  # held packets stay so: encrypted, perhaps, or their header tells more
    clock_ns: int = 0  # what is added to its times as it leaves: capture.clock


class Close(NamedTuple):
    """The row takes no packets after this time; the same addresses then open a new stream."""

    row: int
    at_ns: int


class Contest(NamedTuple):
    """A newer call names both ends of a row whose own call has not ended: see media.turnover."""

    row: int
    since_ns: int  # when it named the first of them
    until_ns: int  # and the other


class Overdue(NamedTuple):
    """A stream that behaves like RTP, and that nobody claims: what is held of it is about to go."""

    row: int
    packets: int  # heard of it unclaimed
    octets: int  # of their payloads
    first_ns: int
    last_ns: int
    held_ns: int  # nothing from before is there any more


class StreamTotals(NamedTuple):
    """What a row has heard so far."""

    packets: int  # unique
    lost: int
    duplicates: int
    late: int
    jitter: float
    first_ns: int
    last_ns: int
    payload_types: dict[int, int]  # packets by payload type
    events: int = 0  # packets of telephone events, among all
    events_first_ns: int = 0
    events_last_ns: int = 0


Columns = NDArray[Any]
