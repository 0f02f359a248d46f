"""Calls over a bad network, and what is true of each of their streams: nothing here is ours.

Every stream has a codec, packet time, header and damage of its own: packets lost, late and sent
twice, numbers and timestamps that wrap, CSRCs, extensions, padding, payloads of any length, changes
of SSRC and of payload type. The truth is counted with sets, from numbers that never wrapped.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from tests.support.callgen import ANSWERED_NS, SECOND, START_NS, Frame, Phone, around
from tests.support.frames import ethernet, ipv4, ipv6, rtp, udp

MS: Final = SECOND // 1000
DTMF: Final = 101
BEGIN_WITHIN_S: Final = 10.0  # the calls, one after the other


class Codec(NamedTuple):
    """A payload type as SDP has it. size: bytes a millisecond; 0 if every payload has its own."""

    payload_type: int
    name: str
    clock_rate: int
    size: int


CODECS: Final = (
    Codec(0, "PCMU/8000", 8000, 8),
    Codec(8, "PCMA/8000", 8000, 8),
    Codec(9, "G722/8000", 8000, 8),
    Codec(18, "G729/8000", 8000, 1),
    Codec(96, "AMR/8000", 8000, 0),
    Codec(97, "AMR-WB/16000", 16000, 0),
    Codec(111, "opus/48000/2", 48000, 0),
    Codec(118, "L16/16000", 16000, 16),
)
PACKET_MS: Final = (10, 20, 20, 20, 30, 60)


class Packet(NamedTuple):
    """One RTP packet as it arrives. number: its sequence number, had that never wrapped."""

    time_ns: int
    number: int
    timestamp: int
    payload_type: int
    marker: bool
    payload: bytes


@dataclass(slots=True)
class Stream:
    """All packets of one SSRC in order of arrival, copies too."""

    source: str
    destination: str
    ssrc: int
    arrivals: list[Packet] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the call's others."""
        return self.source, self.destination, self.ssrc

    def counts(self) -> tuple[int, int, int, int]:
        """Packets, lost, duplicates, late."""
        heard = Counter(each.number for each in self.arrivals)
        late, highest = 0, -1
        for number in dict.fromkeys(each.number for each in self.arrivals):
            late += number < highest
            highest = max(highest, number)
        lost = max(heard) - min(heard) + 1 - len(heard)
        return len(heard), lost, heard.total() - len(heard), late

    def payload_types(self) -> dict[int, int]:
        """Unique packets by payload type."""
        return dict(Counter(each.payload_type for each in self.unique().values()))

    def unique(self) -> dict[int, Packet]:
        """What must be stored, by extended sequence number: the first heard is 65536 + 16 bits."""
        first = self.arrivals[0].number
        found: dict[int, Packet] = {}
        for each in self.arrivals:
            found.setdefault(65536 + (first & 0xFFFF) + each.number - first, each)
        return found


@dataclass(slots=True)
class Call:
    """A call and its streams."""

    call_id: str
    streams: list[Stream] = field(default_factory=list)


def calls(count: int, talk_s: float, seed: int) -> tuple[list[Call], list[Frame]]:
    """So many calls, and all of their frames in order of arrival."""
    made, frames = [], []
    for number in range(count):
        call, heard = _call(number, talk_s, random.Random(f"{seed}-{number}"))
        made.append(call)
        frames += heard
    return made, sorted(frames, key=lambda frame: frame.time_ns)


def _call(number: int, talk_s: float, chance: random.Random) -> tuple[Call, list[Frame]]:
    start_ns = START_NS + round(chance.uniform(0, BEGIN_WITHIN_S) * SECOND)
    call = Call(f"impaired-{number}@example.org")
    six, tags = chance.random() < 0.1, [(0x8100, 100)] * chance.choice((0, 0, 0, 1, 2))
    ends = [_end(number, side, six) for side in (0, 1)]
    media = []
    for source, destination in (ends, ends[::-1]):
        speech = Speech(talk_s, start_ns + ANSWERED_NS, chance)
        for stream, packet, data in speech.packets(source, destination):
            stream.arrivals.append(packet)
            if not call.streams or call.streams[-1] is not stream:
                call.streams.append(stream)
            media.append(Frame(packet.time_ns, _frame(data, source, destination, six, tags)))
    phones = [
        Phone(
            f"{side}{number:05}", f"10.40.{number // 200}.{side + 1}", 0, 0, np.zeros(0, np.int16)
        )
        for side in (0, 1)
    ]
    bodies = (_sdp(ends[0]), _sdp(ends[1]))
    return call, around(media, start_ns, phones[0], phones[1], call.call_id, bodies, talk_s)


def _end(number: int, side: int, six: bool) -> tuple[str, int]:
    """Where a party receives: one host has the calls of a hundred, told apart by port."""
    host = f"fd00::{side + 1}:{number // 100 + 1:x}" if six else f"10.5{side}.0.{number // 100 + 1}"
    return host, 20_000 + 2 * (number % 100)


def _sdp(end: tuple[str, int]) -> str:
    version = 6 if ":" in end[0] else 4
    types = " ".join(str(codec.payload_type) for codec in CODECS)
    lines = [
        "v=0", f"o=- 1 1 IN IP{version} {end[0]}", "s=-", f"c=IN IP{version} {end[0]}", "t=0 0",
        f"m=audio {end[1]} RTP/AVP {types} {DTMF}",
        *(f"a=rtpmap:{codec.payload_type} {codec.name}" for codec in CODECS),
        f"a=rtpmap:{DTMF} telephone-event/8000", "",
    ]  # fmt: skip
    return "\r\n".join(lines)


def _frame(
    data: bytes, source: tuple[str, int], destination: tuple[str, int], six: bool,
    tags: list[tuple[int, int]],
) -> bytes:  # fmt: skip
    datagram = udp(data, source[1], destination[1])
    if not six:
        return ethernet(ipv4(datagram, source[0], destination[0]), tags=tags)
    return ethernet(ipv6(datagram, *(_six(end[0]) for end in (source, destination))), 0x86DD, tags)


def _six(address: str) -> bytes:
    """Of fd00::x:y."""
    return bytes.fromhex(
        "fd00" + "".join(part.zfill(4) for part in address[6:].split(":")).zfill(28)
    )


class Speech:
    """What one party sends in a call, and what the network does to it."""

    def __init__(self, talk_s: float, start_ns: int, chance: random.Random) -> None:
        self._chance, self._start_ns = chance, start_ns
        self._codec, self._ms = chance.choice(CODECS), chance.choice(PACKET_MS)
        self._count = int(talk_s * 1000 / self._ms)
        self._csrcs = [chance.getrandbits(32) for _ in range(chance.choice((0, 0, 0, 1, 15)))]
        self._extended, self._padded = chance.random() < 0.2, chance.random() < 0.2
        self._lost, self._late, self._twice = (
            chance.choice((0.0, 0.01, limit)) for limit in (0.2, 0.2, 0.5)
        )
        self._changes = chance.choice((None, None, "ssrc", "payload type"))

    def packets(
        self, source: tuple[str, int], destination: tuple[str, int]
    ) -> Iterator[tuple[Stream, Packet, bytes]]:
        """Each packet in order of arrival, the stream it is of, and its bytes."""
        half = self._chance.randrange(1, self._count) if self._changes else self._count
        other = self._chance.choice(CODECS) if self._changes == "payload type" else self._codec
        kinds = [self._codec] * half + [other] * (self._count - half)
        spans = (
            [range(half), range(half, self._count)]
            if self._changes == "ssrc"
            else [range(self._count)]
        )
        for span in spans:
            stream = Stream(_text(source), _text(destination), self._chance.getrandbits(32))
            sent = [
                (packet, self._bytes(packet, stream.ssrc)) for packet in self._sent(span, kinds)
            ]
            for packet, data in self._arrive(sent):
                yield stream, packet, data

    def _sent(self, span: range, kinds: list[Codec]) -> Iterator[Packet]:
        """Every packet of a stream at its time. Half of the streams wrap at once."""
        chance, wraps = self._chance, self._chance.random() < 0.5
        number = chance.randrange(65_500, 65_536) if wraps else chance.randrange(60_000)
        stamp = (1 << 32) - 4_000 if wraps else chance.getrandbits(31)
        event = chance.randrange(len(span))  # where a digit is dialled
        for place, at in enumerate(span):
            codec = kinds[at]
            pressed = event <= place < event + 5
            yield Packet(
                self._start_ns + at * self._ms * MS + round(abs(chance.gauss(0, 0.8)) * MS),
                number + place,
                stamp & 0xFFFFFFFF,
                DTMF if pressed else codec.payload_type,
                place == 0 or chance.random() < 0.02,
                chance.randbytes(4 if pressed else self._size(codec)),
            )
            stamp += 0 if pressed else codec.clock_rate * self._ms // 1000

    def _size(self, codec: Codec) -> int:
        return codec.size * self._ms if codec.size else self._chance.randrange(180)

    def _bytes(self, packet: Packet, ssrc: int) -> bytes:
        padding = (
            self._chance.randrange(1, 20) if self._padded and self._chance.random() < 0.5 else 0
        )
        return rtp(
            packet.number, packet.timestamp, ssrc, packet.payload, packet.payload_type,
            marker=packet.marker, csrcs=self._csrcs,
            extension=bytes(4 * self._chance.randrange(4)) if self._extended else None,
            padding=bytes(padding - 1) + bytes([padding]) if padding else b"",
        )  # fmt: skip

    def _arrive(self, sent: list[tuple[Packet, bytes]]) -> list[tuple[Packet, bytes]]:
        """Some never, some late, some again; never two at the same time."""
        chance = self._chance
        arrived: dict[int, tuple[Packet, bytes]] = {}
        for at, (packet, data) in enumerate(sent):
            if at and chance.random() < self._lost:
                continue
            time_ns = packet.time_ns
            if chance.random() < self._late:
                time_ns += chance.randrange(300 * MS)
            times = [time_ns]
            if chance.random() < self._twice:
                times.append(
                    time_ns + chance.choice((chance.randrange(MS), chance.randrange(400 * MS)))
                )
            for each in times:
                while each in arrived:
                    each += 1
                arrived[each] = (packet._replace(time_ns=each), data)
        return [arrived[each] for each in sorted(arrived)]


def _text(end: tuple[str, int]) -> str:
    host, port = end
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
