"""RTCP packets: what senders and receivers report of their streams.

A datagram holds several packets one behind the other (compound), or, between those who agreed on
it, a single one of any type (reduced-size). Types that say nothing of a stream's course, extended
reports and feedback among them, are told by their number and stepped over by their length. Whose a
report report is, and what becomes of it: capture.calls.control, spanvault.media.farend.
Telling RTCP from RTP: capture.packets.decode.
Sources: RFC 3550 §6 and A.2, RFC 5506 (reduced-size), RFC 3611 (XR), RFC 4585 (feedback).
"""

import struct
from typing import Final, NamedTuple

SENDER_REPORT, RECEIVER_REPORT, DESCRIPTION, GOODBYE = 200, 201, 202, 203
HEADER: Final = struct.Struct(">BBH")  # version, padding, count; type; length in words - 1
REPORT: Final = struct.Struct(">IIIIII")
SENDER: Final = struct.Struct(">IQIII")
SSRC: Final = struct.Struct(">I")
CNAME: Final = 1
MAX_PACKETS: Final = 64  # of one datagram: an Ethernet frame holds 375 of the least


class Report(NamedTuple):
    """What one receiver heard of one sender. RFC 3550 §6.4.1."""

    ssrc: int  # of the sender
    fraction: int  # of 256: packets lost since the report before
    lost: int  # since the beginning; negative where copies came
    highest: int  # extended sequence number
    jitter: int  # units of the sender's media clock
    last_sr: int  # middle 32 bits of the NTP time of the last sender report heard; 0 if none
    delay: int  # since that was heard, 1/65536 s


class SenderReport(NamedTuple):
    """What a sender says of itself, and of whom it hears. RFC 3550 §6.4.1."""

    ssrc: int
    ntp: int  # 64 bits, its own clock
    timestamp: int  # of its media clock, at the same moment
    packets: int
    octets: int
    reports: tuple[Report, ...]


class ReceiverReport(NamedTuple):
    """What one who sends nothing says of whom it hears. RFC 3550 §6.4.2."""

    ssrc: int
    reports: tuple[Report, ...]


class Description(NamedTuple):
    """Who is behind an SSRC: CNAMEs alone are kept. RFC 3550 §6.5."""

    names: tuple[tuple[int, str], ...]


class Goodbye(NamedTuple):
    """These SSRCs send no more. RFC 3550 §6.6."""

    ssrcs: tuple[int, ...]


class Other(NamedTuple):
    """Any other type, by its number: APP, feedback, XR …"""

    kind: int
    ssrc: int


Packet = SenderReport | ReceiverReport | Description | Goodbye | Other


def parse(data: bytes, *, cut: bool = False) -> list[Packet]:
    """The packets of a datagram, one at least.

    cut: the capture did not keep all of it; what is whole is given.  Bytes too few for another
    packet behind the last one are left out.
    Raises ValueError, naming the fault, where lengths or counts contradict each other.
    """
    found: list[Packet] = []
    at = 0
    while at < len(data) and len(found) < MAX_PACKETS:
        if found and len(data) - at < HEADER.size:
            break  # phones that pad wrongly; packets are whole words, so it is none
        end = _end(data, at)
        if end > len(data):
            if cut and found:
                return found
            raise ValueError(f"RTCP packet at byte {at} ends at {end}, behind the last byte")
        found.append(_packet(data, at, end))
        at = end
    if not found:
        raise ValueError("an empty datagram is no RTCP")
    return found


def sender_of(packets: list[Packet]) -> int:
    """The SSRC of whoever sent a datagram: the first packet names it."""
    first = packets[0]
    if isinstance(first, Description):
        return first.names[0][0] if first.names else 0
    if isinstance(first, Goodbye):
        return first.ssrcs[0] if first.ssrcs else 0
    return first.ssrc


def _end(data: bytes, at: int) -> int:
    """Where the packet here ends, by its own word. Raises ValueError if it has no header."""
    if len(data) - at < HEADER.size:
        raise ValueError(f"{len(data) - at} bytes behind the last RTCP packet")
    first, _, words = HEADER.unpack_from(data, at)
    if first >> 6 != 2:
        raise ValueError(f"RTCP version {first >> 6} at byte {at}")
    return at + 4 * (int(words) + 1)


def _packet(data: bytes, at: int, end: int) -> Packet:
    first, kind, _ = HEADER.unpack_from(data, at)
    body = data[at + HEADER.size : _unpadded(data, at, end) if first & 0x20 else end]
    count = first & 0x1F
    if kind == SENDER_REPORT:
        return _sender_report(body, count)
    if kind == RECEIVER_REPORT:
        return ReceiverReport(_ssrc(body), _reports(body, SSRC.size, count))
    if kind == DESCRIPTION:
        return Description(_names(body, count))
    if kind == GOODBYE:
        if len(body) < SSRC.size * count:
            raise ValueError(f"RTCP BYE of {count} sources has {len(body)} bytes")
        return Goodbye(struct.unpack_from(f">{count}I", body))
    return Other(kind, _ssrc(body))


def _unpadded(data: bytes, at: int, end: int) -> int:
    """Where the padding begins. RFC 3550 §6.4.1: its last byte counts it."""
    padding = data[end - 1]
    if end != len(data) or padding % 4 or not 0 < padding <= end - at - HEADER.size:
        raise ValueError(f"{padding} bytes of padding in the RTCP packet at byte {at}")
    return end - padding


def _sender_report(body: bytes, count: int) -> SenderReport:
    if len(body) < SENDER.size:
        raise ValueError(f"RTCP sender report of {len(body)} bytes")
    ssrc, ntp, timestamp, packets, octets = SENDER.unpack_from(body)
    reports = _reports(body, SENDER.size, count)
    return SenderReport(ssrc, ntp, timestamp, packets, octets, reports)


def _reports(body: bytes, at: int, count: int) -> tuple[Report, ...]:
    if len(body) < at + REPORT.size * count:
        raise ValueError(f"{count} RTCP reports in {max(0, len(body) - at)} bytes")
    return tuple(
        Report(ssrc, loss >> 24, _signed(loss & 0xFFFFFF), highest, jitter, last_sr, delay)
        for ssrc, loss, highest, jitter, last_sr, delay in REPORT.iter_unpack(
            body[at : at + REPORT.size * count]
        )
    )


def _signed(lost: int) -> int:
    """24 bits of two's complement."""
    return lost - (1 << 24) if lost >> 23 else lost


def _ssrc(body: bytes) -> int:
    if len(body) < SSRC.size:
        raise ValueError("RTCP packet without an SSRC")
    return int(SSRC.unpack_from(body)[0])


def _names(body: bytes, count: int) -> tuple[tuple[int, str], ...]:
    """SSRC and CNAME of each chunk. Chunks are padded to whole words with at least one zero."""
    names: list[tuple[int, str]] = []
    at = 0
    for _ in range(count):
        ssrc, name = _ssrc(body[at : at + SSRC.size]), ""
        at += SSRC.size
        while at < len(body) and body[at]:
            kind, size = body[at], body[at + 1] if at + 1 < len(body) else 256
            if at + 2 + size > len(body):
                raise ValueError(f"RTCP SDES item of {size} bytes is cut")
            if kind == CNAME:
                name = body[at + 2 : at + 2 + size].decode("utf-8", "replace")
            at += 2 + size
        at += 4 - at % 4  # past the zeros
        names.append((ssrc, name))
    return tuple(names)
