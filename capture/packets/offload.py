"""Take apart what a network card or kernel merged: many RTP packets in one UDP datagram (GRO).

Segments of one flow are merged when all have one size but the last, which may be shorter. Nothing
in a frame tells that size (the kernel could, by PACKET_VNET_HDR; a capture file never), but RTP
does: its headers recur at that stride, with the SSRC of the first and sequence numbers that count
on. Only what exceeds an ordinary network's frames is looked at: a merging of two G.711 packets is
not seen. Merging is best switched off (ethtool -K IF gro off), and capture says so.
Sources: Linux net/ipv4/udp_offload.c; RFC 3550 §5.1.
"""

from struct import unpack_from
from typing import Final

HEADER: Final = 12
MAX_SEGMENTS: Final = 64  # UDP_GRO_CNT_MAX
MAX_SEGMENT: Final = 9_216  # bytes: what is merged came as frames, jumbo ones at most


def segments(payload: bytes) -> list[bytes]:
    """The RTP packets of a merged datagram, or the datagram alone if it is none.

    Raises nothing: bytes that no merging explains are one packet.
    """
    stride = _stride(payload)
    if stride is None:
        return [payload]
    return [payload[at : at + stride] for at in range(0, len(payload), stride)]


def _stride(payload: bytes) -> int | None:
    if len(payload) < 2 * HEADER or payload[0] >> 6 != 2:
        return None
    ssrc = payload[8:HEADER]
    # Silence may be full of an SSRC of zeros: no place is tried that no merging could have.
    least = max(HEADER, -(-len(payload) // MAX_SEGMENTS))
    at = payload.find(ssrc, least + 8, MAX_SEGMENT + HEADER)
    while at >= 0:
        if _recurs(payload, at - 8):
            return at - 8
        at = payload.find(ssrc, at + 1, MAX_SEGMENT + HEADER)
    return None


def _recurs(payload: bytes, stride: int) -> bool:
    """Whether there is an RTP header at each multiple of the stride, each one number on."""
    (first,) = unpack_from("!H", payload, 2)
    places = range(stride, len(payload), stride)
    return len(payload) - places[-1] >= HEADER and all(
        payload[at] >> 6 == 2
        and payload[at + 8 : at + HEADER] == payload[8:HEADER]
        and unpack_from("!H", payload, at + 2)[0] == (first + number) & 0xFFFF
        for number, at in enumerate(places, 1)
    )
