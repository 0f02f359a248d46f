"""Changes to frames and captures by packets, with the lengths and checksums mended behind them.

Of a capture in which bytes are changed anywhere, most is not read: the chain of records breaks, or
IP says another length. Here a packet is repeated, left out, moved in time, sent by another host, or
put into a tunnel; what it carries is changed as text (tests.fuzz.mutators), as RTP, or as libFuzzer
likes.
"""

import random
import struct
from typing import Final, NamedTuple

from tests.fuzz.mutators import Plain, message
from tests.support.callgen import SECOND, Frame
from tests.support.frames import pcapng_block
from tests.support.wrapping import WRAPPINGS

ETHERNET: Final = 14
MOST_RECORDS: Final = 200
TUNNELS: Final = [each.wrap for each in WRAPPINGS.values() if each.link_type == 1]
STEPS_NS: Final = (1, 1_000_000, 20_000_000, SECOND, 40 * SECOND, 5_000 * SECOND)
MAGICS: Final = {  # a classic file's first bytes: byte order, nanoseconds of a tick
    b"\xa1\xb2\xc3\xd4": (">", 1000), b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1), b"\x4d\x3c\xb2\xa1": ("<", 1),
}  # fmt: skip
ENHANCED: Final = 6  # pcapng's block of a packet


class Layout(NamedTuple):
    """Where the parts of an Ethernet frame with UDP in IPv4 lie."""

    ip: int
    udp: int

    @property
    def payload(self) -> int:
        return self.udp + 8


def layout(data: bytes) -> Layout | None:
    """None of other frames, and of fragments."""
    ip = ETHERNET
    if len(data) < ip + 28 or data[12:14] != b"\x08\0" or data[ip] >> 4 != 4 or data[ip + 9] != 17:
        return None
    udp = ip + 4 * (data[ip] & 15)
    if udp < ip + 20 or len(data) < udp + 8 or data[ip + 6] & 0x3F or data[ip + 7]:
        return None
    return Layout(ip, udp)


def mended(data: bytes) -> bytes:
    """A frame whose IPv4 and UDP say its true lengths, IPv4 its true checksum, UDP none."""
    if not (found := layout(data)):
        return data
    whole = bytearray(data[: found.ip + 65_535])
    struct.pack_into(">H", whole, found.ip + 2, len(whole) - found.ip)
    struct.pack_into(">HH", whole, found.udp + 4, len(whole) - found.udp, 0)
    whole[found.ip + 10 : found.ip + 12] = b"\0\0"
    head = whole[found.ip : found.udp]
    total = sum(struct.unpack(f">{len(head) // 2}H", head))
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into(">H", whole, found.ip + 10, ~(total + (total >> 16)) & 0xFFFF)
    return bytes(whole)


def frame(data: bytes, chance: random.Random, plain: Plain) -> bytes:
    """A frame with its payload or its addresses changed, and whole again; now and then broken."""
    found = layout(data)
    if not found or not chance.randrange(10):
        return plain(data)
    head, payload = data[: found.payload], data[found.payload :]
    if not chance.randrange(6):
        return mended(_elsewhere(head, found, chance) + payload)
    if b"SIP/2.0" in payload:
        payload = message(payload, chance, plain)
    elif len(payload) >= 12 and payload[0] >> 6 == 2 and chance.random() < 0.6:
        payload = _rtp(payload, chance)
    else:
        payload = plain(payload)
    return mended(head + payload)


def _elsewhere(head: bytes, found: Layout, chance: random.Random) -> bytes:
    """From or to another port or host, or the other way round."""
    new = bytearray(head)
    source, target, ports = found.ip + 12, found.ip + 16, found.udp
    match chance.randrange(3):
        case 0:
            new[source:target], new[target : target + 4] = (
                head[target : target + 4],
                head[source:target],
            )
            new[ports : ports + 4] = head[ports + 2 : ports + 4] + head[ports : ports + 2]
        case 1:
            at = ports + chance.choice((1, 3))
            new[at] ^= chance.choice((1, 2, 4))
        case _:
            at = chance.choice((source, target)) + 3
            new[at] = chance.choice((new[at] ^ 1, new[at] + 1 & 0xFF, chance.randrange(256)))
    return bytes(new)


def _rtp(payload: bytes, chance: random.Random) -> bytes:
    """An RTP packet with a field of its header changed."""
    first, kind, sequence, stamp, ssrc = struct.unpack_from(">BBHII", payload)
    step = chance.choice((1, -1, 2, 100, 3000, 32_768, chance.randrange(65_536)))
    match chance.randrange(6):
        case 0:
            sequence += step
        case 1:
            stamp += chance.choice((160, 160 * step, 1 << 31, 8000 * step))
        case 2:
            ssrc ^= chance.choice((1, 1 << 31, chance.randrange(1 << 32)))
        case 3:
            kind = chance.choice((kind ^ 0x80, chance.randrange(128), 13, 101, 200, 201, 203))
        case 4:
            first ^= chance.choice((0x10, 0x20, 1, 0x0F, 0x80))
        case _:
            payload = payload[: 12 + chance.choice((0, 1, 4, len(payload)))] + payload[12:][:step]
    head = struct.pack(
        ">BBHII", first, kind, sequence & 0xFFFF, stamp & 0xFFFFFFFF, ssrc & 0xFFFFFFFF
    )
    return head + payload[12:]


# --- captures -------------------------------------------------------------------------------------


class Container(NamedTuple):
    """A capture file taken apart. order: of its bytes.  front: what comes before the records."""

    order: str
    tick_ns: int
    front: bytes
    records: list[Frame]
    pcapng: bool

    def whole(self) -> bytes:
        """As a file; times beyond its clock begin anew."""
        return self.front + b"".join(map(self._record, self.records[:MOST_RECORDS]))

    def _record(self, one: Frame) -> bytes:
        ticks, size = max(0, one.time_ns) // self.tick_ns, len(one.data)
        if self.pcapng:
            high, low = divmod(ticks & (1 << 64) - 1, 1 << 32)
            head = struct.pack(f"{self.order}5I", 0, high, low, size, size)
            return pcapng_block(ENHANCED, head + one.data + bytes(-size % 4), self.order)
        seconds, rest = divmod(ticks, SECOND // self.tick_ns)
        return struct.pack(f"{self.order}4I", seconds & 0xFFFFFFFF, rest, size, size) + one.data


def opened(data: bytes) -> Container | None:
    """A capture file's records, up to what is no record; None of something else."""
    if data[:4] in MAGICS and len(data) >= 24:
        order, tick_ns = MAGICS[data[:4]]
        return Container(order, tick_ns, data[:24], _classic(data, order, tick_ns), False)
    if data[:4] == b"\x0a\x0d\x0d\x0a" and len(data) >= 28:
        order = "<" if data[8:12] == b"\x4d\x3c\x2b\x1a" else ">"
        return _blocks(data, order)
    return None


def _classic(data: bytes, order: str, tick_ns: int) -> list[Frame]:
    records, at = list[Frame](), 24
    while at + 16 <= len(data):
        seconds, rest, size, _ = struct.unpack_from(f"{order}4I", data, at)
        records.append(Frame(seconds * SECOND + rest * tick_ns, data[at + 16 : at + 16 + size]))
        at += 16 + size
    return records


def _blocks(data: bytes, order: str) -> Container:
    front, records, at = b"", list[Frame](), 0
    while at + 12 <= len(data):
        kind, size = struct.unpack_from(f"{order}2I", data, at)
        if size < 12:
            break
        if kind == ENHANCED and size >= 32:
            high, low, taken = struct.unpack_from(f"{order}3I", data, at + 12)
            inside = data[at + 28 : min(at + size - 4, at + 28 + taken)]
            records.append(Frame(1000 * (high << 32 | low), inside))
        else:
            front += data[at : at + size]
        at += size
    return Container(order, 1000, front, records, True)


def capture(data: bytes, chance: random.Random, plain: Plain) -> bytes:
    """A capture with some of its packets changed; now and then the file itself."""
    file = opened(data)
    if file is None or not file.records or not chance.randrange(12):
        return plain(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        _change(file.records, chance, plain)
    return file.whole()


def _change(records: list[Frame], chance: random.Random, plain: Plain) -> None:
    """One packet, or its place in time."""
    at = chance.randrange(len(records))
    time_ns, data = one = records[at]
    match chance.randrange(12):
        case 0:
            records.insert(chance.randrange(len(records) + 1), one)
        case 1 if len(records) > 1:
            del records[at]
        case 2:
            step_ns = chance.choice((-1, 1)) * chance.choice(STEPS_NS)
            records[at] = Frame(max(0, time_ns + step_ns), data)
        case 3:  # time stands, or goes on behind a gap
            step_ns = chance.choice(STEPS_NS)
            records[at:] = [Frame(each.time_ns + step_ns, each.data) for each in records[at:]]
        case 4:
            records[at] = Frame(time_ns, data[: chance.randrange(len(data) + 1)])
        case 5 if layout(data):
            records[at : at + 1] = chance.choice(TUNNELS)(one)
        case 6:  # a packet goes on: the next of its stream
            records.insert(at + 1, Frame(time_ns + 20_000_000, _next(data)))
        case _:
            records[at] = Frame(time_ns, frame(data, chance, plain))


def _next(data: bytes) -> bytes:
    """The RTP packet that follows one; anything else again."""
    found = layout(data)
    if not found or len(data) < found.payload + 12 or data[found.payload] >> 6 != 2:
        return data
    at = found.payload + 2
    sequence, stamp = struct.unpack_from(">HI", data, at)
    told = struct.pack(">HI", sequence + 1 & 0xFFFF, stamp + 160 & 0xFFFFFFFF)
    return data[:at] + told + data[at + 6 :]
