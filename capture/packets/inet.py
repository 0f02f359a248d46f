"""IPv4 and IPv6 headers with whatever options and extensions they have, up to the transport's.

Sources: RFC 791, RFC 8200 §4, RFC 4302 (Authentication Header). What lies around an IP packet:
capture.packets.tunnels. Fragments: capture.packets.fragments.
"""

from struct import unpack_from
from typing import Final

from capture.packets.packet import Packet

AUTHENTICATION, FRAGMENT = 51, 44
EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})
MAX_EXTENSIONS: Final = 16


def packet(data: memoryview, start: int, end: int) -> Packet:
    """An IPv4 or IPv6 packet, told apart by its version. Bytes behind its length are trailer.

    Raises ValueError if its headers are cut or nonsense.
    """
    need(data, start, end, 20, "IP header")
    version = data[start] >> 4
    if version == 4:
        return _ipv4(data, start, end)
    if version == 6:
        return _ipv6(data, start, end)
    raise ValueError(f"IP version {version}")


def without_extensions(packet: Packet) -> Packet:
    """A datagram that was put together: headers that were cut up with it are passed over now."""
    data = packet.payload
    protocol, at = _behind_extensions(data, packet.protocol, 0, len(data))
    return packet._replace(protocol=protocol, payload=data[at:])


def fills(data: memoryview, start: int) -> bool:
    """Whether what begins here is an IP packet that ends to the byte where the data does."""
    size = len(data) - start
    if size < 28:
        return False
    if data[start] == 0x45:
        return bool(unpack_from("!H", data, start + 2)[0] == size)
    return data[start] >> 4 == 6 and bool(unpack_from("!H", data, start + 4)[0] == size - 40)


def need(data: memoryview, start: int, end: int, size: int, what: str) -> None:
    """Raise ValueError unless there are so many bytes."""
    if min(end, len(data)) - start < size:
        raise ValueError(f"{what} cut")


def _ipv4(data: memoryview, start: int, end: int) -> Packet:
    header = (data[start] & 15) * 4
    total, identity, fragment = unpack_from("!HHH", data, start + 2)
    if header < 20 or header > end - start:
        raise ValueError(f"IPv4 header length {header}")
    # A total length of 0 is what segmentation offload leaves behind; the frame's end counts then.
    stop = min(end, start + total) if total else end
    if start + header > stop:
        raise ValueError(f"IPv4 total length {total} is less than its header")
    found = Packet(
        source=bytes(data[start + 12 : start + 16]),
        destination=bytes(data[start + 16 : start + 20]),
        protocol=data[start + 9],
        payload=data[start + header : stop],
        identity=identity,
        offset=(fragment & 0x1FFF) * 8,
        more=bool(fragment & 0x2000),
        missing=max(0, start + total - stop),
    )
    guarded = found.protocol == AUTHENTICATION and not found.fragment
    return without_extensions(found) if guarded else found


def _ipv6(data: memoryview, start: int, end: int) -> Packet:
    need(data, start, end, 40, "IPv6 header")
    length = unpack_from("!H", data, start + 4)[0]
    stop = min(end, start + 40 + length) if length else end
    protocol, at = _behind_extensions(data, data[start + 6], start + 40, stop)
    flags = identity = 0
    if protocol == FRAGMENT:
        need(data, at, stop, 8, "IPv6 fragment header")
        protocol = data[at]
        flags, identity = unpack_from("!HI", data, at + 2)
        at += 8
    found = Packet(
        source=bytes(data[start + 8 : start + 24]),
        destination=bytes(data[start + 24 : start + 40]),
        protocol=protocol,
        payload=data[at:stop],
        identity=identity,
        offset=flags & 0xFFF8,
        more=bool(flags & 1),
        missing=max(0, start + 40 + length - stop),
    )
    return found if found.fragment else without_extensions(found)


def _behind_extensions(data: memoryview, protocol: int, at: int, stop: int) -> tuple[int, int]:
    """Protocol and place of what follows the extension headers; a fragment header ends them."""
    for _ in range(MAX_EXTENSIONS):
        if protocol in EXTENSIONS:
            need(data, at, stop, 8, "IPv6 extension header")
            protocol, at = data[at], at + 8 * (data[at + 1] + 1)
        elif protocol == AUTHENTICATION:  # counts in words of 4
            need(data, at, stop, 8, "authentication header")
            protocol, at = data[at], at + 4 * (data[at + 1] + 2)
        else:
            break
    if at > stop:
        raise ValueError("extension headers are longer than the packet")
    return protocol, at
