"""RTP packets as columns, and a plain reading of RFC 3550 to hold the vectorised one to."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from capture.model import Endpoint, Packets
from tests.support.frames import EPOCH, SECOND

PHONE = Endpoint(bytes([10, 0, 0, 1]), 4000)
GATEWAY = Endpoint(bytes([10, 0, 0, 2]), 5000)


class Sent(NamedTuple):
    """One packet, as it arrives. at: seconds."""

    sequence: int
    at: float
    timestamp: int | None = None  # by default 160 a number
    payload: bytes | None = None  # by default the number and its last digits
    ssrc: int = 0x1234
    payload_type: int = 8

    @property
    def stamp(self) -> int:
        """The RTP timestamp."""
        return (self.sequence * 160 if self.timestamp is None else self.timestamp) & 0xFFFFFFFF

    @property
    def content(self) -> bytes:
        """The payload."""
        return f"packet {self.sequence}".encode() if self.payload is None else self.payload

    @property
    def time_ns(self) -> int:
        """When it arrives."""
        return EPOCH + round(self.at * SECOND)


def steady(numbers: Iterable[int], begin: float = 0.0) -> list[Sent]:
    """Packets every 20 ms, each at its own time."""
    return [Sent(number, begin + 0.02 * place) for place, number in enumerate(numbers)]


def packets(sent: Sequence[Sent]) -> Packets:
    """The columns that decoding gives, with other bytes between the payloads."""
    contents = [each.content for each in sent]
    data = b"".join(b"header" + content for content in contents)
    ends = np.cumsum([len(content) + len(b"header") for content in contents], dtype=np.int64)
    lengths = np.array([len(content) for content in contents], np.int64)
    keys = [int.from_bytes(end.address, "big") << 16 | end.port for end in (PHONE, GATEWAY)]
    count = len(sent)
    return Packets(
        data=np.frombuffer(data, np.uint8),
        time_ns=np.array([each.time_ns for each in sent], np.int64),
        source_key=np.full(count, keys[0], np.uint64),
        destination_key=np.full(count, keys[1], np.uint64),
        ssrc=np.array([each.ssrc for each in sent], np.uint32),
        sequence=np.array([each.sequence & 0xFFFF for each in sent], np.uint16),
        timestamp=np.array([each.stamp for each in sent], np.uint32),
        payload_type=np.array([each.payload_type for each in sent], np.uint8),
        marker=np.zeros(count, np.bool_),
        payload_start=ends - lengths,
        payload_length=lengths,
        truncated=np.zeros(count, np.bool_),
        whole=np.zeros(count, np.bool_),
        frame=np.arange(count),
    )


def endpoints(_: int) -> tuple[Endpoint, Endpoint]:
    """All of them go from the phone to the gateway."""
    return PHONE, GATEWAY


class Truth(NamedTuple):
    """What a stream must have counted."""

    packets: int
    lost: int
    duplicates: int
    late: int


def truth(sent: Sequence[Sent]) -> Truth:
    """Counted with sets, from numbers that never wrapped."""
    heard = Counter(each.sequence for each in sent)
    late, highest = 0, -1
    for number in dict.fromkeys(each.sequence for each in sent):
        late += number < highest
        highest = max(highest, number)
    expected = max(heard) - min(heard) + 1
    return Truth(len(heard), expected - len(heard), heard.total() - len(heard), late)


def jitter(sent: Sequence[Sent], clock_rate: int = 8000) -> float:
    """RFC 3550 §A.8, packet by packet, copies left out."""
    value = 0.0
    once = {each.sequence: each for each in reversed(sent)}  # the first of each
    heard = [each for each in sent if once[each.sequence] is each]
    for previous, each in pairwise(heard):
        ticks = (each.stamp - previous.stamp + 2**31) % 2**32 - 2**31
        difference = abs((each.time_ns - previous.time_ns) * clock_rate / SECOND - ticks)
        value += (difference - value) / 16
    return value
