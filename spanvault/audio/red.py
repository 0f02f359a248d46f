"""RED: each packet repeats earlier ones, so that a lost packet's sound is still there.

A copy is used only where the packet itself was not heard. Source: RFC 2198 §3, §4.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

REMEMBERED: Final = 512  # timestamps; copies are of packets a few places back
MAX_BLOCKS: Final = 32


class Piece(NamedTuple):
    """A block of a packet. age: ticks by which it is older than the packet's own sound."""

    payload_type: int
    age: int
    payload: bytes


def parse(payload: bytes) -> list[Piece]:
    """The blocks of a packet, its own last. Raises ValueError where lengths do not fit."""
    heads, at = [], 0
    while at < len(payload) and payload[at] & 0x80:
        head = int.from_bytes(payload[at : at + 4], "big")
        heads.append((head >> 24 & 0x7F, head >> 10 & 0x3FFF, head & 0x3FF))
        at += 4
        if at >= len(payload) or len(heads) > MAX_BLOCKS:
            raise ValueError("RED: no block of its own")
    if at >= len(payload):
        raise ValueError("RED: empty")
    own, at = payload[at] & 0x7F, at + 1
    pieces = []
    for number, age, length in heads:
        if at + length > len(payload):
            raise ValueError("RED: a block is longer than the packet")
        pieces.append(Piece(number, age, payload[at : at + length]))
        at += length
    return [*sorted(pieces, key=lambda piece: -piece.age), Piece(own, 0, payload[at:])]


class Recovery:
    """One stream's packets, of which each sound is taken once.

    silent: whether a payload type is no sound. What repairs a sound (RFC 5109) may bear its
    timestamp, and is not the sound.
    """

    def __init__(self, silent: Callable[[int], bool] = lambda _: False) -> None:
        self._silent = silent
        self._order: deque[int] = deque()
        self._heard: set[int] = set()
        self.recovered = 0  # packets whose sound only a copy had

    def unwrap(self, packets: Iterable[tuple[int, bytes]]) -> Iterator[list[Piece]]:
        """For each (timestamp, payload), by rising sequence: what of it is to be heard, in order.

        A payload that is no RED gives nothing.
        """
        for timestamp, payload in packets:
            try:
                pieces = parse(payload)
            except ValueError:
                yield []
                continue
            fresh = [piece for piece in pieces if self._take(timestamp - piece.age, piece)]
            self.recovered += sum(piece.age > 0 for piece in fresh)
            yield fresh

    def _take(self, timestamp: int, piece: Piece) -> bool:
        """Whether a sound is new. The packet's own always is: it may be late, not doubled."""
        if self._silent(piece.payload_type):
            return False
        timestamp %= 1 << 32
        known = timestamp in self._heard
        if piece.payload and not known:
            self._heard.add(timestamp)
            self._order.append(timestamp)
            if len(self._order) > REMEMBERED:
                self._heard.discard(self._order.popleft())
        return bool(piece.payload) and (not known or piece.age == 0)
