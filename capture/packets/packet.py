"""What peeling an onion of headers hands on: the next layer, or the packet at its heart.

Who peels: capture.packets.tunnels, capture.packets.hep. Who goes on: capture.packets.fragments,
capture.packets.slowpath.
"""

from typing import NamedTuple


class Next(NamedTuple):
    """What follows a header, and the bytes it may use: data[start:end]. kind: of DECAPSULATORS."""

    kind: str
    start: int
    end: int


class Packet(NamedTuple):
    """The innermost IP packet reached. Addresses have 4 or 16 bytes; protocol is IANA's number.

    A fragment has offset or more set; identity then tells which datagram it belongs to.
    """

    source: bytes
    destination: bytes
    protocol: int
    payload: memoryview
    identity: int = 0
    offset: int = 0
    more: bool = False
    missing: int = 0  # bytes of payload that were on the wire and not captured (snap length)
    time_ns: int | None = None  # when whoever forwarded it heard it, where that is told

    @property
    def fragment(self) -> bool:
        """Whether this is only a part of a datagram."""
        return self.more or self.offset > 0
