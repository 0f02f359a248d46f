"""Wi-Fi behind a controller: CAPWAP's data packets, and the 802.11 frames in them.

Only what access points send in the clear, as most do on the wire; under DTLS it is counted
(capture.packets.opaque). CAPWAP cuts long frames up by itself: parts are handed on as those of an
IP packet are, under protocols of our own.
Sources: RFC 5415 §3.4, §4.3; IEEE 802.11 §9.2.4, §9.3.2.1; IEEE 802.2 (SNAP).
Other tunnels: capture.packets.tunnels. Captures of the air itself: capture.packets.dissect.
"""

from struct import unpack_from
from typing import Final

from capture.packets.inet import need
from capture.packets.packet import Next, Packet
from capture.packets.unread import SEALED, SEVERAL, WIFI, Unread

DATA, NO_DATA, PROTECTED = 0x0008, 0x0040, 0x4000  # of frame control, first byte lowest
SUBFRAMES: Final = 0x80  # of the first byte of QoS control
TO_AND_FROM_DS, QUALITY, ORDER = 0x0300, 0x0080, 0x8000
NATIVE, FRAGMENT, LAST, KEEP_ALIVE = 0x0100, 0x0080, 0x0040, 0x0008  # flags of CAPWAP
PARTS_OF_WIFI, PARTS_OF_ETHERNET = 0x101, 0x102  # beyond IANA's protocol numbers
SNAP: Final = b"\xaa\xaa\x03\0\0\0"


def is_capwap(datagram: memoryview) -> bool:
    """Whether a UDP datagram to its port is data in the clear, with a header of two words or more.

    datagram: UDP header and all.
    """
    return datagram[8] == 0 and datagram[9] >> 3 >= 2


def capwap(data: memoryview, start: int, end: int) -> Next | Packet:
    """An 802.11 or 802.3 frame behind CAPWAP's header, or a part of one, which lacks addresses.

    Raises ValueError where there is none.
    """
    need(data, start, end, 8, "CAPWAP header")
    size, flags = (data[start + 1] >> 3) * 4, unpack_from("!H", data, start + 2)[0]
    if flags & KEEP_ALIVE:
        raise ValueError("CAPWAP keep-alive")
    if flags & FRAGMENT:
        identity, offset = unpack_from("!HH", data, start + 4)
        kind = PARTS_OF_WIFI if flags & NATIVE else PARTS_OF_ETHERNET
        part = data[start + size : end]
        return Packet(b"", b"", kind, part, identity, offset & 0xFFF8, not flags & LAST)
    return Next("wifi" if flags & NATIVE else "ethernet", start + size, end)


def frame(data: memoryview, start: int, end: int) -> Next:
    """What a data frame of 802.11 carries behind LLC. Raises ValueError where that is nothing."""
    need(data, start, end, 32, "802.11 header")
    control = unpack_from("<H", data, start)[0]
    if not _is_data(control):
        control = unpack_from("!H", data, start)[0]  # Cisco's controllers swap the two bytes
    if not _is_data(control):
        raise ValueError("an 802.11 frame without data")
    if control & PROTECTED:
        raise Unread(WIFI, SEALED)
    at = start + 24 + 6 * (control & TO_AND_FROM_DS == TO_AND_FROM_DS)
    if control & QUALITY:
        at += 2 + _joined(data, at, end)
    at += 4 * bool(control & ORDER)
    need(data, at, end, 8, "LLC header")
    if bytes(data[at : at + 6]) != SNAP:
        raise ValueError("802.11 data that is not SNAP")
    return Next("typed", at + 6, end)


def _joined(data: memoryview, quality: int, end: int) -> int:
    """Bytes of a subframe's header, where several may lie in one frame (A-MSDU). Raises Unread."""
    if not data[quality] & SUBFRAMES:
        return 0
    need(data, quality, end, 16, "A-MSDU")
    (size,) = unpack_from("!H", data, quality + 14)
    if quality + 16 + size + 14 <= end:
        raise Unread(WIFI, SEVERAL)
    return 14


def _is_data(control: int) -> bool:
    return control & 0x000F == DATA and not control & NO_DATA
