"""Headers of bridged networks beyond VLAN tags: fabrics, rings, LLC, MACsec that only signs.

Sources: RFC 6325 §3 (TRILL); Cisco FabricPath and ISL; IEEE 802.1BR (E-TAG), IEC 62439-3 (HSR),
IEEE 802.2 (LLC, SNAP), IEEE 802.1AE §9 (MACsec). The table that leads here:
capture.packets.tunnels.
"""

from struct import unpack_from
from typing import Final

from capture.packets.inet import need
from capture.packets.packet import Next
from capture.packets.unread import SAP, Unread

SNAP: Final = b"\xaa\xaa\x03"
IP_SAP: Final = b"\x06\x06\x03"
TYPED: Final = (b"\0\0\0", b"\0\0\xf8")  # organisations whose protocols are EtherTypes
ETHERNET: Final = 14  # bytes of the header that LLC follows
ISL: Final = (b"\x01\0\x0c\0\0", b"\x03\0\x0c\0\0")  # of a destination address
ISL_HEADER: Final = 26
ENCRYPTED, CHANGED, SECTAG_SCI = 0x08, 0x04, 0x20  # of a SecTAG's first byte
TRILL_OPTIONS: Final = 6  # bits of hop count below the length of options


def llc(data: memoryview, start: int, end: int) -> Next:
    """What follows a length in place of an EtherType; with Cisco's ISL a whole frame."""
    need(data, start, end, 8, "LLC header")
    head = bytes(data[start : start + 3])
    if head == IP_SAP:
        return Next("ip", start + 3, end)
    outer = start - ETHERNET
    if head == SNAP and outer >= 0 and bytes(data[outer : outer + 5]) in ISL:
        return Next("ethernet", outer + ISL_HEADER, end)
    if head == SNAP and bytes(data[start + 3 : start + 6]) in TYPED:
        return Next("typed", start + 6, end)
    raise Unread(SAP, head[0])


def trill(data: memoryview, start: int, end: int) -> Next:
    """RFC 6325 §3.2: version, flags, length of options in words, hop count; two nicknames."""
    need(data, start, end, 6, "TRILL header")
    options = (unpack_from("!H", data, start)[0] >> TRILL_OPTIONS & 0x1F) * 4
    return Next("ethernet", start + 6 + options, end)


def macsec(data: memoryview, start: int, end: int) -> Next:
    """What a SecTAG only signs; what follows it is trailed by a check value."""
    need(data, start, end, 8, "SecTAG")
    control = data[start]
    if control & (ENCRYPTED | CHANGED):
        raise ValueError("MACsec is encrypted")
    return Next("typed", start + 6 + 8 * bool(control & SECTAG_SCI), end)
