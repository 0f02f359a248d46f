"""From frames to UDP datagrams, all frames of a block at once: link, IPv4, IPv6 and UDP headers.

What is rare or takes a loop is refused, for capture.packets.slowpath: fragments, IP options and
extension headers, TCP, odd link types, merged datagrams. Tunnels are peeled off first
(capture.packets.unwrap). IP and UDP lengths are believed, not the frame's: Ethernet pads short
frames. Checksums are never verified: the kernel leaves them to the card.
Sources: RFC 791, 768, 8200; IEEE 802.1Q; LINKTYPE_ values of libpcap.
The columns: capture.packets.datagrams. Contents: capture.packets.decode.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.model import Block
from capture.packets import opaque, unread
from capture.packets.columns import fields, rows
from capture.packets.datagrams import AHEAD, BEFORE_IP, HEADER, ROW, Datagrams, Flags
from capture.packets.inet import EXTENSIONS
from capture.packets.tunnels import (
    ETHER_TYPES,
    GROUP_POLICY,
    IP_PROTOCOLS,
    LARGEST_UDP,
    TUNNEL_PORTS,
)
from capture.packets.unwrap import (
    BY_ETHER_TYPE,
    LEFT,
    MAY_CARRY,
    fills,
    on_any_port,
    unwrap,
    worth_asking,
)

# Link type: bytes before the IP header, and where the EtherType lies (None: the IP version tells).
LINKS: Final[dict[int, tuple[int, int | None]]] = {
    0: (4, None),  # NULL: BSD loopback, address family in the order of the host
    1: (14, 12),  # Ethernet
    12: (0, None),  # RAW, as some systems write it
    14: (0, None),
    101: (0, None),  # RAW
    108: (4, None),  # LOOP
    113: (16, 14),  # Linux cooked, v1
    228: (0, None),  # IPv4
    229: (0, None),  # IPv6
    276: (20, 0),  # Linux cooked, v2
}
RAW_IP: Final = 101
LISP_HEADER: Final = 8  # bytes; its first two bits may be those of RTP
IPV4, IPV6 = 0x0800, 0x86DD
TAGS: Final = (0x8100, 0x88A8, 0x9100, 0x9200)  # 802.1Q, 802.1ad and what switches used before
MAX_TAGS: Final = 4
UDP, TCP, AUTHENTICATION = 17, 6, 51
FRAGMENT: Final = 44

V6: Final = np.dtype(
    {
        "names": ["version", "payload", "next", "length"],
        "formats": ["u1", ">u2", "u1", ">u2"],
        "offsets": [0, 4, 6, 44],
        "itemsize": 48,
    }
)
# The first 16 bytes of a header row that is plain IPv4 and UDP, and which of their bits tell so:
# EtherType, version and header length; no fragment (but "don't fragment" is allowed), protocol.
PLAIN: Final = np.frombuffer(b"\0\0\x08\0\x45\0\0\0" + b"\0\0\0\0\0\x11\0\0", np.uint64)
TELLING: Final = np.frombuffer(b"\0\0\xff\xff\xff\0\0\0" + b"\0\0\x3f\xff\0\xff\0\0", np.uint64)


def _among(numbers: Iterable[int], size: int = 1 << 16) -> Flags:
    """A table of which numbers are among these."""
    table = np.zeros(size, np.bool_)
    table[list(numbers)] = True
    return table


TAGGED: Final = _among(TAGS)
TUNNEL, SEALED = 1, 2  # what datagrams to a port may be
NOTED_PORTS: Final = _among(TUNNEL_PORTS) * np.uint8(TUNNEL) | _among(opaque.PORTS) * np.uint8(
    SEALED
)
SLOW_ETHERTYPES: Final = _among(number for number in ETHER_TYPES if number not in (IPV4, IPV6))
LLC_SERVICES: Final = _among([0x06, 0xAA], 256)  # IP, SNAP
SLOW_PROTOCOLS: Final = _among([UDP, TCP, AUTHENTICATION, *IP_PROTOCOLS], 256)
SLOW_NEXT_HEADERS: Final = SLOW_PROTOCOLS | _among([FRAGMENT, *EXTENSIONS], 256)


@dataclass(slots=True)
class Refused:
    """What of a block is for the slow path. rows: of its frames; inner: packets in others."""

    rows: NDArray[np.int64]
    inner: Block | None = None  # of IP packets

    @property
    def count(self) -> int:
        """How many both are."""
        return len(self.rows) + (len(self.inner.start) if self.inner else 0)


class Network:
    """The headers around UDP. counters: what was met besides it."""

    def __init__(self, counters: Counter[str]) -> None:
        self.counters = counters

    def decode(self, block: Block) -> tuple[Datagrams, Flags, Refused]:
        """The UDP datagrams of a block, and the frames that were refused.

        Returns a row for each frame, the mask of those that are plain UDP (the others hold
        nonsense: leaving them in costs less than taking them out twice), and what is for the slow
        path. Everything else is counted.
        """
        if block.link_type not in LINKS:
            nothing = np.zeros(len(block.start), np.bool_)
            return _as_they_are(block), nothing, Refused(np.arange(len(block.start)))
        inner, header = _headers(block)
        plain = _plain(header)
        six = _behind_tags(block.data, inner, header, plain)
        frame_end = block.start + block.length
        start = inner + (AHEAD - BEFORE_IP)
        plain &= start <= frame_end
        columns = header.view(HEADER)
        end = _end(inner, columns["total"], 0, start, columns["length"], frame_end)
        datagrams = Datagrams(
            block.data, np.arange(len(inner)), block.time_ns, header,
            np.zeros(len(inner), np.bool_), start, end, np.minimum(end, frame_end),
        )  # fmt: skip
        if len(six):
            _put_ipv6(datagrams, plain, six, inner[six], frame_end[six])
        self._leave_tunnels(datagrams, plain)
        self._leave_merged(datagrams, plain)
        refused = Refused(np.flatnonzero(~plain))
        if len(refused.rows):
            refused = self._peel(block, inner, frame_end, datagrams, plain)
        return datagrams, plain, refused

    def _leave_tunnels(self, datagrams: Datagrams, plain: Flags) -> None:
        """Not plain is what goes to a tunnel's port and does not begin as RTP does.

        Nor what is a tunnel wherever it goes.
        """
        port = datagrams.header.view(HEADER)["destination_port"]
        noted = np.flatnonzero(NOTED_PORTS[port])
        if len(noted):
            carries = NOTED_PORTS[port[noted]]
            first = rows(datagrams.data, datagrams.start[noted], 1).view(np.uint8)
            tunnel = (first >> 6 != 2) | (first == GROUP_POLICY)
            if not tunnel.all():
                looks = np.flatnonzero(~tunnel)  # like RTP, but LISP may too
                within = datagrams.start[noted[looks]] + LISP_HEADER
                tunnel[looks] = fills(datagrams.data, within, datagrams.end[noted[looks]])
            tunnel &= carries & TUNNEL != 0
            if (carries & SEALED).any():
                which = np.flatnonzero((carries & SEALED != 0) & plain[noted])
                tunnel[which[self._sealed(datagrams, noted[which])]] = False
            plain[noted[tunnel]] = False
        first = datagrams.header.view(np.uint8).reshape(-1, ROW)[:, AHEAD]
        which = worth_asking(first)
        if len(which):
            start, end = datagrams.start[which], datagrams.end[which]
            plain[which] &= on_any_port(datagrams.data, start, end) == LEFT

    def _sealed(self, datagrams: Datagrams, row: NDArray[np.int64]) -> Flags:
        """Which of these datagrams are encrypted packets, which are counted."""
        first = rows(datagrams.data, datagrams.start[row], 4).view(np.uint8).reshape(-1, 4)
        port = datagrams.header[row].view(HEADER)["destination_port"]
        length = datagrams.limit[row] - datagrams.start[row]
        return opaque.count_datagrams(port, first, length, self.counters)

    def _leave_merged(self, datagrams: Datagrams, plain: Flags) -> None:
        merged = np.flatnonzero(datagrams.end - datagrams.start > LARGEST_UDP)
        if len(merged):
            self.counters["oversized"] += int(np.count_nonzero(plain[merged]))
            plain[merged] = False

    def _peel(
        self, block: Block, start: NDArray[np.int64], end: NDArray[np.int64],
        datagrams: Datagrams, plain: Flags,
    ) -> Refused:  # fmt: skip
        """Put what is in tunnels in place of what carries it. start, end: what is behind the link.

        Returns what is not plain even then, and not worthless.
        """
        row = np.flatnonzero(~plain)
        header = datagrams.header[row].view(HEADER)
        kind = np.where(start[row] <= end[row], header["kind"], 0)
        carrier = np.flatnonzero(_may_carry(kind, header))
        at, begins = row[carrier], start[row[carrier]]
        peeled, innermost, stop = unwrap(block.data, BY_ETHER_TYPE[kind[carrier]], begins, end[at])
        peeled &= innermost > begins
        if not peeled.any():
            return Refused(row[self._slow(kind, header, block.unread_each)])
        inner = block.within(at[peeled], innermost[peeled], stop[peeled], RAW_IP)
        found, plain[at[peeled]], refused = self.decode(inner)
        datagrams.put(at[peeled], found)
        self.counters["tunnelled"] += len(found.start)
        outer = np.ones(len(row), np.bool_)
        outer[carrier[peeled]] = False
        slow = self._slow(kind[outer], header[outer], block.unread_each)
        return Refused(row[outer][slow], inner.select(refused.rows))

    def _slow(self, kind: NDArray[Any], header: NDArray[Any], each: int) -> Flags:
        """Of frames that are not plain UDP, those the slow path can do something with.

        kind: [n], their EtherTypes, 0 where there is nothing behind it.  header: HEADER[n].
        each: how many frames one that cannot be read stands for.
        """
        four, six = kind == IPV4, kind == IPV6
        ip = four | six
        sealed = opaque.count_frames(kind, header, self.counters, each)
        known: Flags = four & SLOW_PROTOCOLS[header["protocol"]]
        known |= six & SLOW_NEXT_HEADERS[header["next"]]
        odd: Flags = SLOW_ETHERTYPES[kind] | _llc(kind, header)
        odd &= ~sealed
        other, strange = np.flatnonzero(ip & ~known), np.flatnonzero(~(ip | odd))
        self.counters["other_ip"] += each * len(other)
        self.counters["not_ip"] += each * len(strange)
        self.counters["sampled_out"] += (each - 1) * (len(other) + len(strange))
        if len(strange):
            unread.count_numbers(unread.ETHER_TYPE, kind[strange], self.counters, each)
        if len(other):
            protocol = np.where(four, header["protocol"], header["next"])[other]
            unread.count_numbers(unread.PROTOCOL, protocol, self.counters, each)
        known |= odd
        return known


def _headers(block: Block) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Where each frame's IP header begins if it has no tags, and its header row."""
    before, at = LINKS[block.link_type]
    inner = block.start + before
    header = rows(block.data, inner - BEFORE_IP, ROW)
    if at is None:
        version = rows(block.data, inner, 1).view(np.uint8) >> 4
        header.view(HEADER)["kind"] = np.select([version == 4, version == 6], [IPV4, IPV6], 0)
    elif at != before - 2:
        header.view(HEADER)["kind"] = rows(block.data, block.start + at, 2).view(">u2")
    return inner, header


def _may_carry(kind: NDArray[Any], header: NDArray[Any]) -> Flags:
    """Which of these frames may be tunnels. kind: [n], EtherTypes.  header: HEADER[n]."""
    found: Flags = SLOW_ETHERTYPES[kind]
    found |= (kind == IPV4) & MAY_CARRY[header["protocol"]]
    found |= (kind == IPV6) & MAY_CARRY[header["next"]]
    return found


def _llc(kind: NDArray[Any], header: NDArray[Any]) -> Flags:
    """Which frames have a length for an EtherType, and behind it LLC that may lead to IP."""
    found: Flags = kind < unread.LEAST_ETHER_TYPE
    if found.any():
        service = header.view(np.uint8).reshape(-1, ROW)[:, BEFORE_IP : BEFORE_IP + 2]
        found &= (service[:, 0] == service[:, 1]) & LLC_SERVICES[service[:, 0]]
    return found


def _plain(header: NDArray[np.void]) -> Flags:
    """Which header rows are those of IPv4 without options, not a fragment, with UDP in it."""
    words = header.view(np.uint64).reshape(-1, ROW // 8)
    plain: Flags = words[:, 0] & TELLING[0] == PLAIN[0]
    plain &= words[:, 1] & TELLING[1] == PLAIN[1]
    return plain


def _behind_tags(
    data: NDArray[np.uint8], inner: NDArray[np.int64], header: NDArray[np.void], plain: Flags
) -> NDArray[np.int64]:
    """Move inner, header row and mask of tagged frames behind their VLAN tags, 4 bytes each.

    Returns the rows of IPv6 frames.
    """
    odd = np.flatnonzero(~plain)
    kind = header.view(HEADER)["kind"]
    tagged = odd
    for _ in range(MAX_TAGS):
        tagged = tagged[TAGGED[kind[tagged]]]
        if not len(tagged):
            break
        inner[tagged] += 4
        header[tagged] = moved = rows(data, inner[tagged] - BEFORE_IP, ROW)
        plain[tagged] = _plain(moved)
    six: NDArray[np.int64] = odd[kind[odd] == IPV6]
    return six


def _put_ipv6(
    datagrams: Datagrams,
    plain: Flags,
    six: NDArray[np.int64],
    at: NDArray[np.int64],
    frame_end: NDArray[np.int64],
) -> None:
    """Put right what is IPv6 with UDP in it. six: rows.  at, frame_end: of those."""
    header = fields(datagrams.data, at, V6)
    start = at + V6.itemsize
    good = header["version"] >> 4 == 6
    good &= header["next"] == UDP
    good &= start <= frame_end
    six, at, start, header, frame_end = (each[good] for each in (six, at, start, header, frame_end))
    plain[six] = datagrams.six[six] = True
    end = _end(at, header["payload"], 40, start, header["length"], frame_end)
    datagrams.start[six], datagrams.end[six] = start, end
    datagrams.limit[six] = np.minimum(end, frame_end)
    moved = rows(datagrams.data, start - AHEAD, ROW)
    # Should it be refused yet, this is what the slow path is chosen by.
    columns = moved.view(HEADER)
    columns["kind"], columns["next"] = IPV6, UDP
    datagrams.header[six] = moved


def _end(
    at: NDArray[np.int64],
    total: NDArray[Any],
    header: int,
    start: NDArray[np.int64],
    length: NDArray[Any],
    frame_end: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where each payload ends: the shorter of IP's length and UDP's counts.

    total: IP's length, without so many bytes of its header.  length: UDP's. 0 in either means
    that the sender left it to its card to say.
    """
    ip_end = at + total
    ip_end += header
    udp_end = start - 8 + length
    if not total.all():
        ip_end = np.where(total == 0, frame_end, ip_end)
    if not length.all():
        udp_end = np.where(length == 0, ip_end, udp_end)
    end: NDArray[np.int64] = np.maximum(np.minimum(ip_end, udp_end), start)
    return end


def _as_they_are(block: Block) -> Datagrams:
    """Rows for frames of which nothing is known."""
    start, end = block.start, block.start + block.length
    count = len(start)
    return Datagrams(
        block.data, np.arange(count), block.time_ns, np.zeros(count, f"V{ROW}"),
        np.zeros(count, np.bool_), start, end, end,
    )  # fmt: skip
