"""Link types that our own table does not know, by scapy: Ethernet with its preamble and the like.

Some 400 µs a frame, so for what is rare only; scapy is imported when the first such frame comes.
Our table: capture.packets.tunnels, which goes on from the IP header found here.
"""

import functools
from typing import Any, Final

from capture.packets.unread import LINK_TYPE, Unread

FRAMES_EACH: Final = 20  # so many frames of the slow path's allowance does one of these cost


def ip_packet(frame: memoryview, link_type: int) -> memoryview:
    """The bytes from the outermost IP header on. link_type: of pcap's LINKTYPE_s.

    Raises ValueError if scapy does not know the link type, or finds no IP in the frame.
    """
    dissect, layers = _scapy()
    first = dissect.get(link_type)
    if first is None:
        raise Unread(LINK_TYPE, link_type)
    try:
        packet = first(bytes(frame))
        found = next((layer for layer in map(packet.getlayer, layers) if layer is not None), None)
    except Exception as error:  # scapy's dissectors raise whatever their input makes them
        raise ValueError(f"link type {link_type}: {type(error).__name__} in scapy") from None
    if found is None:
        raise ValueError(f"link type {link_type}: no IP in the frame")
    return memoryview(found.original)


@functools.cache
def _scapy() -> tuple[dict[int, Any], tuple[Any, Any]]:
    """scapy's layer for each link type, and its two of IP."""
    import scapy.layers.all  # noqa: F401 - fills the table of link types
    from scapy.config import conf
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    return dict(conf.l2types.num2layer), (IP, IPv6)
