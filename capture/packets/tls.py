"""Which connections are TLS, and for what: each is told of once, with what its client offered.

SIP in TLS cannot be read, but that it is there can be told: who began such a connection names in
its ClientHello, in the clear, the protocols it would speak. A hello may fill several segments; a
connection that was up before us shows records only. Whether it carries SIP:
capture.signalling.siptls.
Sources: RFC 8446 §4.1.2, §5.1; RFC 7301 §3.1.
"""

from collections import OrderedDict
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capture.model import Endpoint

RECORDS: Final = (20, 24)  # content types, first and last
HANDSHAKE: Final = 22
CLIENT_HELLO: Final = 1
MAJOR: Final = 3
ALPN: Final = 16
MAX_TOLD: Final = 16_384  # connections that are known to have been told of
MAX_PARTIAL: Final = 256  # hellos of which more is to come
MAX_HELLO: Final = 16_384  # bytes; a record holds no more
MAX_SIGHTINGS: Final = 1_024  # between two times that somebody asks


class Sighting(NamedTuple):
    """A TLS connection. protocols: what its client offers; None: it was not heard to say."""

    client: Endpoint  # where nothing was heard of who began it: the sender
    server: Endpoint
    protocols: tuple[str, ...] | None


class Connections:
    """TLS among TCP segments. Fed with what fills them; gives sightings."""

    def __init__(self) -> None:
        self._told: OrderedDict[bytes, bool] = OrderedDict()  # and whether by its hello
        self._partial: OrderedDict[bytes, bytes] = OrderedDict()
        self._found: list[Sighting] = []

    def sightings(self) -> list[Sighting]:
        """The connections that were found since last asked."""
        found, self._found = self._found, []
        return found

    @property
    def awaited(self) -> bool:
        """Whether segments are of interest that do not look like TLS: the rest of a hello."""
        return bool(self._partial)

    def receive(self, key: bytes, payload: memoryview) -> None:
        """What fills a segment. key: its addresses, then its ports, source first."""
        begun = self._partial.pop(key, None)
        if begun is not None:
            self._hello(key, begun + bytes(payload))
        elif not is_tls(payload):
            return
        elif payload[0] == HANDSHAKE and payload[5:6] == bytes([CLIENT_HELLO]):
            if not self._told.get(key):
                self._hello(key, bytes(payload))
        elif key not in self._told:
            self._tell(key, None, by_hello=False)

    def _hello(self, key: bytes, payload: bytes) -> None:
        try:
            protocols = offered(payload)
        except EOFError:
            if len(payload) < MAX_HELLO:
                self._partial[key] = payload
                if len(self._partial) > MAX_PARTIAL:
                    self._tell(self._partial.popitem(last=False)[0], None)
                return
            protocols = None
        except ValueError:
            protocols = None
        self._tell(key, protocols)

    def _tell(self, key: bytes, protocols: tuple[str, ...] | None, by_hello: bool = True) -> None:
        client, server = _ends(key)
        self._told[key] = self._told[_reversed(key)] = by_hello
        while len(self._told) > 2 * MAX_TOLD:
            self._told.popitem(last=False)
        if len(self._found) < MAX_SIGHTINGS:
            self._found.append(Sighting(client, server, protocols))


def is_tls(payload: memoryview) -> bool:
    """Whether a segment begins with the header of a TLS record."""
    return (
        len(payload) >= 5
        and RECORDS[0] <= payload[0] <= RECORDS[1]
        and payload[1] == MAJOR
        and payload[2] <= 4
    )


def look_like_tls(first: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The same at a glance. first: uint8[n, 2], how segments begin."""
    kind = (first[:, 0] >= RECORDS[0]) & (first[:, 0] <= RECORDS[1])
    alike: NDArray[np.bool_] = kind & (first[:, 1] == MAJOR)
    return alike


def offered(payload: bytes) -> tuple[str, ...] | None:
    """The protocols a ClientHello offers, None if it names none.

    payload: from the record's header on. Raises EOFError if more of it is to come, ValueError if it
    is no ClientHello.
    """
    hello = _handshake(payload)
    at = 4 + 2 + 32  # handshake header, version, random
    at += 1 + _number(hello, at, 1)  # session
    at += 2 + _number(hello, at, 2)  # cipher suites
    at += 1 + _number(hello, at, 1)  # compression
    end = min(4 + _number(hello, 1, 3), at + 2 + _number(hello, at, 2))
    at += 2
    while at + 4 <= end:
        kind, size = _number(hello, at, 2), _number(hello, at + 2, 2)
        at += 4
        if kind == ALPN:
            return _names(_bytes(hello, at + 2, size - 2))
        at += size
    return None


def _handshake(payload: bytes) -> bytes:
    """What lies in the handshake records that follow each other."""
    parts, at = [], 0
    while at < len(payload) and payload[at] == HANDSHAKE:
        size = _number(payload, at + 3, 2)
        parts.append(payload[at + 5 : at + 5 + size])
        at += 5 + size
    if not parts or parts[0][:1] != bytes([CLIENT_HELLO]):
        raise ValueError("not a ClientHello")
    return b"".join(parts)


def _names(listed: bytes) -> tuple[str, ...]:
    names, at = [], 0
    while at < len(listed):
        size = listed[at]
        names.append(listed[at + 1 : at + 1 + size].decode("ascii", "replace"))
        at += 1 + size
    return tuple(names)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(_bytes(data, at, size), "big")


def _bytes(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise EOFError("TLS record goes on")
    return data[at : at + max(0, size)]


def _ends(key: bytes) -> tuple[Endpoint, Endpoint]:
    size = (len(key) - 4) // 2
    source, destination, ports = key[:size], key[size : 2 * size], key[2 * size :]
    return (
        Endpoint(source, int.from_bytes(ports[:2], "big")),
        Endpoint(destination, int.from_bytes(ports[2:], "big")),
    )


def _reversed(key: bytes) -> bytes:
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]
