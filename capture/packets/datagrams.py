"""UDP datagrams of a block as columns: where each lies, between whom, and the headers before it.

A header row is the bytes around the start of a payload, gathered once, so that whoever asks about
a field asks all datagrams at once. Endpoints become numbers of 64 bits, which compare and hash
without a loop.
Sources: RFC 791, 768, 8200. How frames become such columns: capture.packets.network. What is in
them: capture.packets.decode.
"""

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.model import Datagram, Endpoint
from capture.packets.columns import rows

BEFORE_IP: Final = 4  # bytes of a header row in front of the IP header: two of them its EtherType
AHEAD: Final = 32  # bytes of a header row in front of the UDP payload
ROW: Final = (
    48  # of them, behind AHEAD the first 16 of the payload: capture.packets.decode knows those
)
HEADER: Final = np.dtype(
    {
        "names": ["kind", "control", "total", "next", "protocol", "source", "destination",
                  "source_port", "destination_port", "length"],
        "formats": [">u2", "u1", ">u2", "u1", "u1", ">u4", ">u4", ">u2", ">u2", ">u2"],
        "offsets": [2, 4, 6, 10, 13, 16, 20, 24, 26, 28],
        "itemsize": ROW,
    }
)  # fmt: skip
IS_IPV6: Final = np.uint64(1 << 63)
PORT_BITS: Final = np.uint64(16)

Flags = NDArray[np.bool_]


@dataclass(slots=True)
class Datagrams:
    """UDP datagrams as columns of n, in order of arrival. Offsets are into data."""

    data: NDArray[np.uint8]
    frame: NDArray[np.int64]  # row in the block
    time_ns: NDArray[np.int64]
    header: NDArray[np.void]  # ROW bytes: AHEAD in front of the payload, then its first ones
    six: Flags  # IPv6: the addresses are in data only
    start: NDArray[np.int64]  # of the payload
    end: NDArray[np.int64]  # of the payload as its lengths say
    limit: NDArray[np.int64]  # of what the capture holds of it, at most end

    def select(self, which: NDArray[np.int64]) -> "Datagrams":
        """Some of them. which: int64[m], rows."""
        columns = (getattr(self, name)[which] for name in self.__slots__[1:])
        return Datagrams(self.data, *columns)

    def put(self, row: NDArray[np.int64], inner: "Datagrams") -> None:
        """Have others in place of those at these rows, which stay of their frame and time."""
        for name in ("header", "six", "start", "end", "limit"):
            getattr(self, name)[row] = getattr(inner, name)

    def endpoints(self, row: int) -> tuple[Endpoint, Endpoint]:
        """Source and destination of one of them."""
        size = 16 if self.six[row] else 4
        ports = int(self.start[row]) - 8
        data = self.data[ports - 2 * size : ports + 4].tobytes()
        source, destination = struct.unpack_from(">HH", data, 2 * size)
        return Endpoint(data[:size], source), Endpoint(data[size : 2 * size], destination)


def as_columns(datagrams: Sequence[Datagram]) -> Datagrams:
    """Datagrams that the slow path found, as the same columns."""
    parts = [
        part
        for source, destination, payload in (each[1:4] for each in datagrams)
        for part in (
            source.address, destination.address,
            struct.pack(">HHI", source.port, destination.port, 0), payload,
        )
    ]  # fmt: skip
    data = np.frombuffer(b"".join(parts), np.uint8)
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)[3::4]
    starts = ends - np.array([len(each.payload) for each in datagrams], np.int64)
    whole = ends + np.array([each.missing for each in datagrams], np.int64)
    return Datagrams(
        data, np.full(len(datagrams), -1),
        np.array([each.time_ns for each in datagrams], np.int64),
        rows(data, starts - AHEAD, ROW),
        np.array([len(each.source.address) == 16 for each in datagrams], np.bool_),
        starts, whole, ends,
    )  # fmt: skip


class EndpointKeys:
    """Endpoints as numbers."""

    def __init__(self, seed: int | None = None) -> None:
        # IPv6 addresses are folded into 47 bits with secret odd factors: nobody outside can
        # construct two that meet.
        self._factors = np.random.default_rng(
            secrets.randbits(128) if seed is None else seed
        ).integers(0, 1 << 64, 4, np.uint64, endpoint=False) | np.uint64(1)

    def of(self, datagrams: Datagrams) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """64 bits for the source of each, and for its destination: address and port.

        IPv4's are exact; IPv6's folded, and never like one of IPv4.
        """
        header = datagrams.header.view(HEADER)
        source = _key4(header["source"], header["source_port"])
        destination = _key4(header["destination"], header["destination_port"])
        six = np.flatnonzero(datagrams.six)
        if len(six):
            ports = datagrams.start[six] - 8
            address = rows(datagrams.data, ports - 32, 32).view("<u8").reshape(-1, 4)
            source[six] = self._fold(address[:, :2], header["source_port"][six])
            destination[six] = self._fold(address[:, 2:], header["destination_port"][six])
        return source, destination

    def _fold(self, address: NDArray[np.uint64], port: NDArray[Any]) -> NDArray[np.uint64]:
        """EndpointKeys of IPv6 endpoints. address: uint64[n, 2]."""
        mixed = address[:, 0] * self._factors[0]
        mixed ^= mixed >> np.uint64(32)
        mixed = (mixed + address[:, 1]) * self._factors[1]
        mixed ^= mixed >> np.uint64(29)
        mixed *= self._factors[2]
        key: NDArray[np.uint64] = mixed >> np.uint64(17) << PORT_BITS
        key |= port.astype(np.uint64)
        key |= IS_IPV6
        return key


def _key4(address: NDArray[Any], port: NDArray[Any]) -> NDArray[np.uint64]:
    """EndpointKeys of IPv4 endpoints: address and port, exactly."""
    key = address.astype(np.uint64)
    key <<= PORT_BITS
    key |= port
    return key
