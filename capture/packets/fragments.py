"""Put IP datagrams together again, within bounds of memory and of packet time.

A port filter never sees the second fragment of a long INVITE, so every recorder that filters
loses 3–5 % of calls. Fragments come in any order, twice (both mirror directions), or not at all.
Sources: RFC 791 §3.2, RFC 8200 §4.5, RFC 5722 (overlaps), RFC 1858. Peeling:
capture.packets.tunnels.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from capture.packets.inet import without_extensions
from capture.packets.packet import Packet

LIFETIME_NS: Final = 15_000_000_000  # Linux gives fragments 30 s, RFC 791 proposes 15 s
MAX_DATAGRAMS: Final = 2_048
MAX_BYTES: Final = 8 << 20
MAX_DATAGRAM: Final = 65_535
MAX_PARTS: Final = 128

# The destination belongs to the key: two calls from one host may share an identification.
Key = tuple[bytes, bytes, int, int]


@dataclass(slots=True)
class _Partial:
    born_ns: int
    parts: dict[int, bytes] = field(default_factory=dict)  # by offset
    size: int = 0  # bytes held
    total: int | None = None  # known once the last part is there


class Fragments:
    """Datagrams in the making. Fed with fragments, gives the whole when it is complete."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._partials: OrderedDict[Key, _Partial] = OrderedDict()  # oldest first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._partials)

    def receive(self, packet: Packet, time_ns: int) -> Packet | None:
        """Take a fragment; return the whole datagram if this one completed it.

        One that the snap length cut never completes: its first fragment is all there will be.
        Raises ValueError on fragments that overlap or exceed 65,535 bytes; all are dropped then.
        """
        self._expire(time_ns)
        if packet.missing:
            self._count("fragments_cut")
            if packet.offset:
                return None
            return without_extensions(packet._replace(more=False, missing=MAX_DATAGRAM))
        key = (packet.source, packet.destination, packet.protocol, packet.identity)
        partial = self._partials.get(key)
        if partial is None:
            partial = self._partials[key] = _Partial(time_ns)
        try:
            whole = self._place(partial, packet)
        except ValueError:
            self._drop(key)
            self._count("fragments_overlapping")
            raise
        if whole is None:
            self._bound()
            return None
        self._drop(key)
        first = packet._replace(payload=memoryview(whole), offset=0, more=False)
        self._count("datagrams_reassembled")
        return without_extensions(first)

    def _place(self, partial: _Partial, packet: Packet) -> bytes | None:
        part, offset = bytes(packet.payload), packet.offset
        end = offset + len(part)
        if end > MAX_DATAGRAM:
            raise ValueError(f"fragment ends at {end}, beyond any datagram")
        if not packet.more:
            if partial.total not in (None, end):
                raise ValueError("two last fragments disagree on the length")
            partial.total = end
        held = partial.parts.get(offset)
        if held is not None:
            if held != part:
                raise ValueError("fragments overlap")
            return self._whole(partial)  # a copy
        if len(partial.parts) >= MAX_PARTS:
            raise ValueError(f"more than {MAX_PARTS} fragments in one datagram")
        if any(at < end and offset < at + len(other) for at, other in partial.parts.items()):
            raise ValueError("fragments overlap")  # RFC 5722: nothing of it can be trusted
        partial.parts[offset] = part
        partial.size += len(part)
        self._bytes += len(part)
        return self._whole(partial)

    @staticmethod
    def _whole(partial: _Partial) -> bytes | None:
        if partial.total is None or partial.size < partial.total:
            return None
        if partial.size > partial.total:
            raise ValueError("fragments lie behind the last one")
        return b"".join(part for _, part in sorted(partial.parts.items()))

    def _expire(self, now_ns: int) -> None:
        while self._partials:
            key, oldest = next(iter(self._partials.items()))
            # abs: a capture's clock may be set back by years between two frames.
            if abs(now_ns - oldest.born_ns) < LIFETIME_NS:
                return
            self._drop(key)
            self._count("fragments_expired")

    def _bound(self) -> None:
        while len(self._partials) > MAX_DATAGRAMS or self._bytes > MAX_BYTES:
            self._drop(next(iter(self._partials)))
            self._count("fragments_evicted")

    def _drop(self, key: Key) -> None:
        self._bytes -= self._partials.pop(key).size
