"""A kernel filter that keeps out of the ring what the decoder would only count.

A mirrored port carries more than telephony: ARP, spanning tree, IPsec, IPTV's own protocols. They
need not cost ring space. What may hold UDP, TCP or a tunnel passes whatever its port is (SIP and
RTP have none of their own), and so do fragments, whose later parts have no port at all. Tables of
the decoder say what that is, so nothing it could use is lost here. Wherever the IP header does not
lie where the filter looks (tags, PPPoE, MPLS) the frame passes.
Sources: Linux Documentation/networking/filter.rst, linux/filter.h. Ethernet only.
"""

import ctypes
import socket
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.packets.network import IPV4, IPV6, SLOW_ETHERTYPES, SLOW_NEXT_HEADERS, SLOW_PROTOCOLS

SO_ATTACH_FILTER: Final = 26
LOAD2, LOAD1, IF_EQUAL, RETURN = 0x28, 0x30, 0x15, 0x06
ETHER_TYPE, PROTOCOL, NEXT_HEADER = 12, 23, 20  # where they lie in an untagged frame
WHOLE: Final = 0x40000  # bytes to keep: all
NOTHING: Final = 0

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def ethernet() -> list[Instruction]:
    """The filter for Ethernet frames.

    The kernel has taken the outer VLAN tag off already; an inner one is in SLOW_ETHERTYPES.
    """
    four = [(LOAD1, 0, 0, PROTOCOL), *_one_of(SLOW_PROTOCOLS)]
    six = [(LOAD1, 0, 0, NEXT_HEADER), *_one_of(SLOW_NEXT_HEADERS)]
    return [
        (LOAD2, 0, 0, ETHER_TYPE),
        (IF_EQUAL, 0, len(four), IPV4),
        *four,
        (IF_EQUAL, 0, len(six), IPV6),
        *six,
        *_one_of(SLOW_ETHERTYPES),
    ]


def nothing() -> list[Instruction]:
    """The filter for a socket that is not to hear anything yet."""
    return [(RETURN, 0, 0, NOTHING)]


def everything() -> list[Instruction]:
    """The filter for links of which we know too little to tell."""
    return [(RETURN, 0, 0, WHOLE)]


def attach(sock: socket.socket, instructions: list[Instruction]) -> None:
    """Let only what the filter passes come to this socket. Raises OSError."""
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("HBBI", *each) for each in instructions)
    )
    # Only its address is handed over: code must live until the kernel has read it.
    program = struct.pack("HP", len(instructions), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _one_of(table: NDArray[np.bool_]) -> list[Instruction]:
    """Pass a frame if the table holds True at what was loaded, else drop it."""
    wanted = np.flatnonzero(table).tolist()
    count = len(wanted)
    return [
        *((IF_EQUAL, count - number, 0, value) for number, value in enumerate(wanted)),
        (RETURN, 0, 0, NOTHING),
        (RETURN, 0, 0, WHOLE),
    ]
