"""Which refused frames are worth a loop: of TCP, those alone that may carry SIP.

A mirrored port carries the web, too. Reading one segment of it takes 7 µs, looking at all of a
block's at once 1: the bare acknowledgements go, and whatever is of no connection that is known to
carry SIP and neither holds a start line of it nor begins as a WebSocket's text of one does. No port
is asked: SIP is found on any, and in the middle of a connection. What is TLS is told of, not taken.
Sources: RFC 9293 §3.1; RFC 791, 8200. What becomes of the rest: capture.packets.slowpath,
capture.packets.tcp.
"""

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.model import Block
from capture.packets.columns import fields, rows
from capture.packets.framing import beginning
from capture.packets.network import FRAGMENT, IPV4, IPV6, LINKS, MAX_TAGS, TAGS
from capture.packets.tls import Connections, look_like_tls

TCP: Final = 6
SYN_OR_RST: Final = 0x06
SIP_VERSION: Final = re.compile(rb"SIP/2\.0")
# A WebSocket's text may be masked; its first byte is not: FIN or not, text or binary.
WEBSOCKET: Final = np.zeros(256, np.bool_)
WEBSOCKET[[0x01, 0x02, 0x81, 0x82]] = True

V4: Final = np.dtype(
    {
        "names": ["version", "total", "fragment", "protocol", "source"],
        "formats": ["u1", ">u2", "<u2", "u1", ">u4"],
        "offsets": [0, 2, 6, 9, 12],
        "itemsize": 20,
    }
)
V6: Final = np.dtype(
    {
        "names": ["version", "payload", "next", "source"],
        "formats": ["u1", ">u2", "u1", ("<u8", 2)],
        "offsets": [0, 4, 6, 8],
        "itemsize": 40,
    }
)
SEGMENT: Final = np.dtype(
    {
        "names": ["source_port", "destination_port", "offset", "flags"],
        "formats": [">u2", ">u2", "u1", "u1"],
        "offsets": [0, 2, 12, 13],
        "itemsize": 20,
    }
)
# Where addresses and ports lie, in one run, from the IP header on: what names a connection.
FLOW: Final = {4: (12, 12), 6: (8, 36)}

Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(slots=True)
class Frames:
    """Refused frames of a block as columns of n, by what lies behind link header and VLAN tags."""

    block: Block
    row: Integers  # in the block
    at: Integers  # of the IP header, if it is one
    version: NDArray[np.int64]  # 4, 6, or 0 where it is no IP

    def select(self, which: NDArray[Any]) -> "Frames":
        """Some of them. which: bool[n] or int64[m]."""
        return Frames(self.block, self.row[which], self.at[which], self.version[which])

    def senders(self) -> NDArray[np.uint64]:
        """A number for each one's outermost source address; the same for all that is no IP."""
        senders = np.zeros(len(self.row), np.uint64)
        four, six = self.version == 4, self.version == 6
        senders[four] = fields(self.block.data, self.at[four], V4)["source"]
        address = fields(self.block.data, self.at[six], V6)["source"]
        senders[six] = address[:, 0] ^ address[:, 1]
        return senders


def outline(block: Block, row: Integers) -> Frames:
    """Find the IP headers of some frames of a block. row: int64[n], rising."""
    start = block.start[row]
    if block.link_type not in LINKS:
        return Frames(block, row, start, np.zeros(len(row), np.int64))
    before, kind_at = LINKS[block.link_type]
    at = start + before
    if kind_at is None:
        ip = np.ones(len(row), np.bool_)
    else:
        kind = rows(block.data, start + kind_at, 2).view(">u2").astype(np.uint16)
        for _ in range(MAX_TAGS):
            tagged = np.flatnonzero(np.isin(kind, TAGS))
            at[tagged] += 4
            kind[tagged] = rows(block.data, at[tagged] - 2, 2).view(">u2")
        ip = (kind == IPV4) | (kind == IPV6)
    version = rows(block.data, at, 1).view(np.uint8) >> 4
    ip &= ((version == 4) | (version == 6)) & (at + 20 <= start + block.length[row])
    return Frames(block, row, at, np.where(ip, version, 0).astype(np.int64))


@dataclass(slots=True)
class _Segments:
    """Whole TCP segments as columns of m."""

    which: Integers  # index among the frames
    key: NDArray[np.void]  # addresses and ports
    header: NDArray[np.void]
    start: Integers  # of the payload
    end: Integers


def without_other_tcp(
    frames: Frames,
    known: Container[bytes],
    secure: Connections,
    count: Callable[[str, int], None],
) -> Frames:
    """The frames without TCP that has nothing to do with SIP, which is counted.

    known: connections that carry SIP, each source address, destination address, source port and
    destination port, as in the packet.  secure: is told of those that are TLS.
    """
    keep = np.ones(len(frames.row), np.bool_)
    for version in FLOW:
        segments = _segments(frames, version)
        if len(segments.which):
            keep[segments.which] = _of_interest(frames.block, segments, known, secure)
    count("tcp_without_sip", len(keep) - int(np.count_nonzero(keep)))
    return frames.select(keep)


def _segments(frames: Frames, version: int) -> _Segments:
    """The frames that are TCP as plain as can be: the rest is left for the loop to judge."""
    data, block = frames.block.data, frames.block
    which = np.flatnonzero(frames.version == version)
    at, row = frames.at[which], frames.row[which]
    frame_end = block.start[row] + block.length[row]
    if version == 4:
        four = fields(data, at, V4)
        plain = (four["version"] == 0x45) & (four["protocol"] == TCP)
        plain &= four["fragment"] & FRAGMENT == 0
        tcp, length = at + 20, four["total"].astype(np.int64)
    else:
        six = fields(data, at, V6)
        plain = six["next"] == TCP
        tcp, length = at + 40, six["payload"].astype(np.int64) + 40
    header = fields(data, tcp, SEGMENT)
    start = tcp + (header["offset"] >> 4).astype(np.int64) * 4
    end = np.where(length > 40 * (version == 6), np.minimum(at + length, frame_end), frame_end)
    plain &= (tcp + 20 <= start) & (start <= end)
    offset, width = FLOW[version]
    key = rows(data, at[plain] + offset, width)
    return _Segments(which[plain], key, header[plain], start[plain], end[plain])


def _of_interest(
    block: Block, segments: _Segments, known: Container[bytes], secure: Connections
) -> Flags:
    """Which segments are of a connection that carries SIP, or seem to begin one."""
    filled = segments.start < segments.end
    first = rows(block.data, segments.start, 2).view(np.uint8).reshape(-1, 2)
    told = np.zeros(len(filled), np.bool_)
    asked = np.flatnonzero(filled)
    spans = zip(segments.start[asked].tolist(), segments.end[asked].tolist(), strict=True)
    websocket = WEBSOCKET[first[asked, 0]].tolist()
    search, view = SIP_VERSION.search, block.data.data
    tls = np.flatnonzero(filled if secure.awaited else filled & look_like_tls(first))
    for at in tls.tolist():
        secure.receive(bytes(segments.key[at]), view[segments.start[at] : segments.end[at]])
    told[asked] = [
        (perhaps or search(view, start, end) is not None)
        and beginning(bytes(view[start:end]))[0] != ""
        for perhaps, (start, end) in zip(websocket, spans, strict=True)
    ]
    # Of what begins here, the rest may lie in this block, too.
    begun = set(segments.key[told].tolist())
    asked = np.flatnonzero((filled | (segments.header["flags"] & SYN_OR_RST != 0)) & ~told)
    keys = segments.key[asked].tolist()
    told[asked] = [key in begun or key in known for key in keys]
    return told
