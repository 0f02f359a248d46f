"""A kernel filter that keeps out of the ring what the decoder would only count.

A mirrored port carries more than telephony: ARP, spanning tree, IPsec, IPTV's own protocols. They
need not cost ring space: of every SAMPLED one passes, cut to SAMPLE bytes, so that the decoder can
tell what they are. What may hold UDP, TCP or a tunnel passes whatever its port is (SIP and
RTP have none of their own), and so do fragments, whose later parts have no port at all. Tables of
the decoder say what that is, so nothing it could use is lost here. Wherever the IP header does not
lie where the filter looks (tags, PPPoE, MPLS) the frame passes.
Sources: Linux Documentation/networking/filter.rst, linux/filter.h. Ethernet only.
"""

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.packets.network import IPV4, IPV6, SLOW_ETHERTYPES, SLOW_NEXT_HEADERS, SLOW_PROTOCOLS
from capture.packets.unread import LEAST_ETHER_TYPE

SO_ATTACH_FILTER: Final = 26
LOAD2, LOAD1, LOAD4, IF_EQUAL, IF_LEAST, AND, RETURN = 0x28, 0x30, 0x20, 0x15, 0x35, 0x54, 0x06
RANDOM: Final = 0xFFFFF000 + 56  # what LOAD4 finds there: SKF_AD_RANDOM
ETHER_TYPE, LLC, PROTOCOL, NEXT_HEADER = 12, 14, 23, 20  # where they lie in an untagged frame
LLC_WANTED: Final = (0x0606, 0xAAAA)  # its first two bytes before IP, and before SNAP
SAMPLED: Final = 16  # a power of two; spanning tree alone shows within minutes that a mirror lives
SAMPLE: Final = 96  # bytes: all headers that are looked at
WHOLE: Final = 0x40000  # bytes to keep: all
NOTHING: Final = 0

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def ethernet() -> list[Instruction]:
    """The filter for Ethernet frames.

    The kernel has taken the outer VLAN tag off already; an inner one is in SLOW_ETHERTYPES.
    """
    lengths = [(LOAD2, 0, 0, LLC), *_one_of(LLC_WANTED)]
    four = [(LOAD1, 0, 0, PROTOCOL), *_one_of(_numbers(SLOW_PROTOCOLS))]
    six = [(LOAD1, 0, 0, NEXT_HEADER), *_one_of(_numbers(SLOW_NEXT_HEADERS))]
    return [
        (LOAD2, 0, 0, ETHER_TYPE),
        (IF_LEAST, len(lengths), 0, LEAST_ETHER_TYPE),
        *lengths,
        (IF_EQUAL, 0, len(four), IPV4),
        *four,
        (IF_EQUAL, 0, len(six), IPV6),
        *six,
        *_one_of(_numbers(SLOW_ETHERTYPES)),
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


def _numbers(table: NDArray[np.bool_]) -> list[int]:
    """Where a table holds True."""
    numbers: list[int] = np.flatnonzero(table).tolist()
    return numbers


def _one_of(wanted: Sequence[int]) -> list[Instruction]:
    """Pass a frame if what was loaded is wanted, else hardly ever, and cut."""
    count = len(wanted)
    return [
        *((IF_EQUAL, count - number + 3, 0, value) for number, value in enumerate(wanted)),
        (LOAD4, 0, 0, RANDOM),
        (AND, 0, 0, SAMPLED - 1),
        (IF_EQUAL, 2, 0, 0),
        (RETURN, 0, 0, NOTHING),
        (RETURN, 0, 0, WHOLE),
        (RETURN, 0, 0, SAMPLE),
    ]
