"""Tell RTP, SIP and the rest apart in a block's UDP datagrams, by content, on any port.

RTP headers become columns, without a loop over packets; SIP is rare and handed on datagram by
datagram. That something looks like RTP proves little: capture.media asks signalling about each
new stream. Sources: RFC 3550 §5.1, RFC 5761 §4 (RTCP beside RTP), RFC 7983 (first bytes).
Headers around UDP: capture.network. Frames it refuses: capture.slowpath.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.columns import fields, rows
from capture.model import Block, Datagram, Endpoint, Packets
from capture.network import Datagrams, Network

RTP: Final = np.dtype(
    [
        ("first", "u1"),  # version 2 bits, padding, extension, CSRC count 4 bits
        ("second", "u1"),  # marker, payload type 7 bits
        ("sequence", ">u2"),
        ("timestamp", ">u4"),
        ("ssrc", ">u4"),
    ]
)
VERSION, VERSION_2 = 0xC0, 0x80
PADDING, EXTENSION, CSRC_COUNT = 0x20, 0x10, 0x0F
RTCP_FIRST, RTCP_LAST = 192, 223  # of the second byte
STUN_COOKIE: Final = 0x2112A442
ZRTP_FIRST: Final = 0x10
DTLS: Final = (20, 63)  # of the first byte
SIP_VERSION: Final = b"SIP/2.0"
SIP_WITHIN: Final = 4096  # bytes that are searched for it
PRINTABLE: Final = np.zeros(256, np.bool_)  # how a SIP message, or junk before it, may begin
PRINTABLE[[*b"\t\n\r", *range(0x20, 0x7F)]] = True


@dataclass(slots=True)
class Decoded:
    """A block, told apart."""

    packets: Packets
    signalling: list[Datagram]
    refused: NDArray[np.int64]  # rows of the block that take the slow path
    datagrams: Datagrams  # what the packets came in, row by row

    def endpoints(self, row: int) -> tuple[Endpoint, Endpoint]:
        """Source and destination of a packet."""
        return self.datagrams.endpoints(row)


class Decoder:
    """Blocks in, columns out. counters: frames and datagrams by what they were."""

    def __init__(self, seed: int | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self._network = Network(self.counters, seed)

    def decode(self, block: Block) -> Decoded:
        """Decode a block. Raises nothing: whatever it is, it is counted."""
        datagrams, plain, refused = self._network.decode(block)
        self.counters["frames"] += len(block.start)
        self.counters["refused"] += len(refused)
        return self._tell_apart(datagrams, plain, refused)

    def admit(self, datagrams: Sequence[Datagram]) -> Decoded:
        """Take in what the slow path made of refused frames."""
        nothing = np.empty(0, np.int64)
        udp = [each for each in datagrams if each.transport == "udp"]
        plain = np.ones(len(udp), np.bool_)
        decoded = self._tell_apart(self._network.admit(udp), plain, nothing)
        # Whatever came over TCP was found by its SIP framing already.
        decoded.signalling += [each for each in datagrams if each.transport != "udp"]
        decoded.signalling.sort(key=lambda datagram: datagram.time_ns)
        return decoded

    def _tell_apart(
        self, udp: Datagrams, plain: NDArray[np.bool_], refused: NDArray[np.int64]
    ) -> Decoded:
        header = fields(udp.data, udp.start, RTP)
        first, second = header["first"], header["second"]
        control = second - np.uint8(RTCP_FIRST) <= RTCP_LAST - RTCP_FIRST  # wraps below
        version_2 = first & VERSION == VERSION_2
        media = version_2 & ~control & plain
        media &= udp.limit - udp.start >= RTP.itemsize
        offset, fits = self._header_size(udp, first, media)
        media &= fits
        signalling: list[Datagram] = []
        if not media.all():
            other = np.flatnonzero(plain & ~media)
            self.counters["rtcp"] += int(np.count_nonzero((version_2 & control)[other]))
            signalling = self._signalling(udp, other, header)
            keep = np.flatnonzero(media)
            udp, header, offset = udp.select(keep), header[keep], offset[keep]
        packets = self._packets(udp, header, offset)
        return Decoded(packets, signalling, refused, udp)

    def _header_size(
        self, udp: Datagrams, first: NDArray[np.uint8], media: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Bytes of RTP header with CSRCs and extension, and whether the datagram has them."""
        size = (first & CSRC_COUNT).astype(np.int64) * 4 + RTP.itemsize
        extended = np.flatnonzero((first & EXTENSION != 0) & media)
        if len(extended):
            words = rows(udp.data, udp.start[extended] + size[extended] + 2, 2).view(">u2")
            size[extended] += 4 + 4 * words.astype(np.int64)
        return size, udp.start + size <= udp.end

    def _packets(
        self, udp: Datagrams, header: NDArray[np.void], offset: NDArray[np.int64]
    ) -> Packets:
        self.counters["rtp"] += len(header)
        start = udp.start + offset
        length = np.maximum(udp.limit - start, 0)
        truncated = udp.limit < udp.end
        padded = np.flatnonzero((header["first"] & PADDING != 0) & ~truncated & (length > 0))
        if len(padded):
            padding = rows(udp.data, udp.end[padded] - 1, 1).view(np.uint8).astype(np.int64)
            right = (padding > 0) & (padding <= length[padded])
            # A count that cannot be is somebody's fault, not a reason to lose the sound.
            self.counters["bad_padding"] += len(padded) - int(right.sum())
            length[padded[right]] -= padding[right]
        second = header["second"]
        return Packets(
            udp.data, udp.time_ns, udp.source_key, udp.destination_key,
            header["ssrc"].astype(np.uint32), header["sequence"].astype(np.uint16),
            header["timestamp"].astype(np.uint32), second & np.uint8(0x7F), second > 0x7F,
            start, length, truncated, udp.frame,
        )  # fmt: skip

    def _signalling(
        self, udp: Datagrams, other: NDArray[np.int64], header: NDArray[np.void]
    ) -> list[Datagram]:
        """The SIP messages among the datagrams that are not RTP; the rest is counted by kind."""
        first, size = header["first"][other], (udp.end - udp.start)[other]
        found = []
        for row in other[PRINTABLE[first] & (size > len(SIP_VERSION))].tolist():
            payload = bytes(udp.data[udp.start[row] : udp.limit[row]])
            if SIP_VERSION in payload[:SIP_WITHIN]:
                source, destination = udp.endpoints(row)
                time_ns = int(udp.time_ns[row])
                found.append(Datagram(time_ns, source, destination, payload, "udp"))
        cookie = header["timestamp"][other] == STUN_COOKIE
        self.counters["sip"] += len(found)
        self.counters["stun"] += int(np.count_nonzero((first < 4) & cookie))
        self.counters["dtls"] += int(
            np.count_nonzero((first >= DTLS[0]) & (first <= DTLS[1]) & ~PRINTABLE[first])
        )
        self.counters["zrtp"] += int(np.count_nonzero(first == ZRTP_FIRST))
        self.counters["not_rtp"] += len(other) - len(found)
        return found
