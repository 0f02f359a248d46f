"""Tell RTP, SIP and the rest apart in a block's UDP datagrams, by content, on any port.

RTP headers become columns, without a loop over packets; SIP and RTCP are rare and handed on
datagram by datagram, RTCP within bounds. That something looks like RTP proves little:
capture.media.engine asks signalling about each new stream.
Sources: RFC 3550 §5.1, RFC 5761 §4 (RTCP beside RTP), RFC 7983 (first bytes).
Headers around UDP: capture.packets.network. Frames it refuses: capture.packets.slowpath.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.model import Block, Datagram, Endpoint, Packets
from capture.packets.allowance import Allowance
from capture.packets.datagrams import AHEAD, ROW, Datagrams, EndpointKeys, as_columns
from capture.packets.handshakes import agreed
from capture.packets.network import Network, Refused
from capture.packets.rtpheader import FIXED, MORE, lengths

RTP: Final = np.dtype(
    {  # within a datagram's header row
        "names": ["first", "second", "sequence", "timestamp", "ssrc"],
        "formats": ["u1", "u1", ">u2", ">u4", ">u4"],
        "offsets": [AHEAD, AHEAD + 1, AHEAD + 2, AHEAD + 4, AHEAD + 8],
        "itemsize": ROW,
    }
)
VERSION, VERSION_2 = 0xC0, 0x80  # first: version 2 bits, padding, extension, CSRC count 4 bits
RTCP_FIRST, RTCP_LAST = 192, 223  # second, where RTP has marker and 7 bits of payload type
RTCP_LEAST: Final = 8  # bytes: a header and an SSRC
RTCP_PER_SECOND: Final = 10_000  # 10,000 streams send 2,000; more is somebody's flood
STUN_COOKIE: Final = 0x2112A442
ZRTP_FIRST: Final = 0x10
ZRTP_COOKIE: Final = 0x5A525450
DTLS: Final = (20, 25)  # of the first byte: content types
DTLS_DATA: Final = 23
DTLS_VERSION: Final = 0xFE  # of the second byte
SIP_VERSION: Final = b"SIP/2.0"
SIP_WITHIN: Final = 4096  # bytes that are searched for it
PRINTABLE: Final = np.zeros(256, np.bool_)  # how a SIP message, or junk before it, may begin
PRINTABLE[[*b"\t\n\r", *range(0x20, 0x7F)]] = True


@dataclass(slots=True)
class Decoded:
    """A block, told apart."""

    packets: Packets
    signalling: list[Datagram]
    control: list[Datagram]  # RTCP, by its looks, and what agrees upon keys of media
    refused: Refused  # takes the slow path
    datagrams: Datagrams  # what the packets came in, row by row

    def earlier(self, by_ns: int) -> "Decoded":
        """The same by another clock. Only for what came the fast way."""
        return replace(
            self,
            packets=replace(self.packets, time_ns=self.packets.time_ns - by_ns),
            signalling=[each._replace(time_ns=each.time_ns - by_ns) for each in self.signalling],
            control=[each._replace(time_ns=each.time_ns - by_ns) for each in self.control],
        )

    def endpoints(self, row: int) -> tuple[Endpoint, Endpoint]:
        """Source and destination of a packet."""
        return self.datagrams.endpoints(row)


class Decoder:
    """Blocks in, columns out. counters: frames and datagrams by what they were."""

    def __init__(
        self, seed: int | None = None, control_per_second: int | None = RTCP_PER_SECOND
    ) -> None:
        """control_per_second: RTCP datagrams that are handed on; None: all, for files can wait."""
        self.counters: Counter[str] = Counter()
        self._control_allowed = Allowance(control_per_second)
        self._network, self._keys = Network(self.counters), EndpointKeys(seed)

    def decode(self, block: Block) -> Decoded:
        """Decode a block. Raises nothing: whatever it is, it is counted."""
        datagrams, plain, refused = self._network.decode(block)
        self.counters["frames"] += len(block.start)
        self.counters["refused"] += refused.count
        return self._tell_apart(datagrams, plain, refused)

    def admit(self, datagrams: Sequence[Datagram]) -> Decoded:
        """Take in what the slow path made of refused frames."""
        nothing = Refused(np.empty(0, np.int64))
        udp = [each for each in datagrams if each.transport == "udp"]
        plain = np.ones(len(udp), np.bool_)
        decoded = self._tell_apart(as_columns(udp), plain, nothing)
        # Whatever came over TCP was found by its SIP framing already.
        decoded.signalling += [each for each in datagrams if each.transport != "udp"]
        decoded.signalling = [each._replace(slow=True) for each in decoded.signalling]
        decoded.signalling.sort(key=lambda datagram: datagram.time_ns)
        return decoded

    def _tell_apart(self, udp: Datagrams, plain: NDArray[np.bool_], refused: Refused) -> Decoded:
        header = udp.header.view(RTP)
        first, second = header["first"], header["second"]
        control = second - np.uint8(RTCP_FIRST) <= RTCP_LAST - RTCP_FIRST  # wraps below
        version_2 = first & VERSION == VERSION_2
        media = version_2 & ~control & plain
        start = udp.start + FIXED
        media &= start <= udp.limit
        longer = np.flatnonzero((first & np.uint8(MORE) != 0) & media)
        if len(longer):
            behind = lengths(udp.data, udp.start[longer], first[longer])
            media[longer] = udp.start[longer] + behind <= udp.end[longer]
            start[longer] = udp.start[longer]
        signalling: list[Datagram] = []
        reports: list[Datagram] = []
        if not media.all():
            other = np.flatnonzero(plain & ~media)
            reports = self._control(udp, other[(version_2 & control)[other]], header)
            reports += self._agreements(udp, other, header)
            signalling = self._signalling(udp, other, header)
            keep = np.flatnonzero(media)
            udp, start = udp.select(keep), start[keep]
        return Decoded(self._packets(udp, start), signalling, reports, refused, udp)

    def _packets(self, udp: Datagrams, start: NDArray[np.int64]) -> Packets:
        header = udp.header.view(RTP)
        self.counters["rtp"] += len(header)
        second = header["second"]
        source, destination = self._keys.of(udp)
        return Packets(
            udp.data, udp.time_ns, source, destination,
            header["ssrc"].astype(np.uint32), header["sequence"].astype(np.uint16),
            header["timestamp"].astype(np.uint32), second & np.uint8(0x7F), second > 0x7F,
            start, udp.limit - start, udp.limit < udp.end, header["first"] & np.uint8(MORE) != 0,
            udp.frame,
        )  # fmt: skip

    def _control(
        self, udp: Datagrams, rows: NDArray[np.int64], header: NDArray[np.void]
    ) -> list[Datagram]:
        """The RTCP among datagrams of its first two bytes: those whose first length can be."""
        self.counters["rtcp"] += len(rows)
        size = (udp.end - udp.start)[rows]
        words = header["sequence"][rows].astype(np.int64)
        rows = rows[(size >= RTCP_LEAST) & (4 * (words + 1) <= size)]
        if not len(rows):
            return []
        senders, _ = self._keys.of(udp.select(rows))
        chosen = rows[self._control_allowed.choose(senders, udp.time_ns[rows])]
        self.counters["rtcp_ignored"] += len(rows) - len(chosen)
        return [_datagram(udp, row) for row in chosen.tolist()]

    def _signalling(
        self, udp: Datagrams, other: NDArray[np.int64], header: NDArray[np.void]
    ) -> list[Datagram]:
        """The SIP messages among the datagrams that are not RTP; the rest is counted by kind."""
        first, size = header["first"][other], (udp.end - udp.start)[other]
        found = []
        for row in other[PRINTABLE[first] & (size > len(SIP_VERSION))].tolist():
            payload = bytes(udp.data[udp.start[row] : udp.limit[row]])
            if SIP_VERSION in payload[:SIP_WITHIN]:
                found.append(_datagram(udp, row))
        cookie = header["timestamp"][other] == STUN_COOKIE
        self.counters["sip"] += len(found)
        self.counters["stun"] += int(np.count_nonzero((first < 4) & cookie))
        self.counters["not_rtp"] += len(other) - len(found)
        return found

    def _agreements(
        self, udp: Datagrams, other: NDArray[np.int64], header: NDArray[np.void]
    ) -> list[Datagram]:
        """What agrees upon the keys of media on its own path, of the datagrams that are no RTP."""
        first = header["first"][other]
        zrtp = (first == ZRTP_FIRST) & (header["timestamp"][other] == ZRTP_COOKIE)
        dtls = (first >= DTLS[0]) & (first <= DTLS[1]) & (header["second"][other] == DTLS_VERSION)
        self.counters["dtls"] += int(np.count_nonzero(dtls))
        self.counters["zrtp"] += int(np.count_nonzero(zrtp))
        rows = other[zrtp | (dtls & (first != DTLS_DATA))]
        if not len(rows):
            return []
        senders, _ = self._keys.of(udp.select(rows))
        chosen = rows[self._control_allowed.choose(senders, udp.time_ns[rows])]
        found = [_datagram(udp, row) for row in chosen.tolist()]
        return [each for each in found if agreed(each.payload)]


def _datagram(udp: Datagrams, row: int) -> Datagram:
    """One of them, copied out of the block."""
    source, destination = udp.endpoints(row)
    payload = bytes(udp.data[udp.start[row] : udp.limit[row]])
    missing = int(udp.end[row] - udp.limit[row])
    return Datagram(int(udp.time_ns[row]), source, destination, payload, "udp", missing)
