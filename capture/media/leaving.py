"""Chunks that have been counted and cut, and whose payloads lie yet where they were held.

A second of all calls leaves at once. Its payloads are copied out part by part as each is asked for:
a part that is sent before the next is asked for is all the memory that leaving takes, and lies in
the processor's cache yet. What was held stays until the last part has gone.
Who cuts: capture.media.chunks. Who sends: capture.delivery.courier.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capture.media.arena import Slabs
from capture.packets.columns import gather, scatter
from spanvault.media.chunk import Media


@dataclass(slots=True)
class Part:
    """Some chunks. place: int64[n], where the payload of each frame lies."""

    table: NDArray[np.void]  # CHUNK[c]
    frames: NDArray[np.void]  # FRAME[n]
    place: NDArray[np.int64]
    size: int  # bytes of all payloads
    slabs: Slabs

    def media(self) -> Media:
        """A copy of the payloads, with the chunks they belong to."""
        payload = np.empty(self.size, np.uint8)
        if self.size:
            length = self.frames["length"].copy()
            _copy(self.slabs.arena.data, self.place, length, payload)
        return Media(self.table, self.frames, payload.data)


class Leaving:
    """Media in order, to be gone through part by part; going through it again copies again."""

    def __init__(self, parts: Iterable[Part | Media] = ()) -> None:
        self._parts = list(parts)

    def __iter__(self) -> Iterator[Media]:
        for part in self._parts:
            yield part.media() if isinstance(part, Part) else part

    def __len__(self) -> int:
        return len(self._parts)

    def __iadd__(self, later: "Leaving") -> "Leaving":
        self._parts += later._parts
        return self

    @property
    def frames(self) -> int:
        """How many frames leave."""
        return sum(len(part.frames) for part in self._parts)


def _copy(
    arena: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.uint16],
    out: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Payloads one after the other: one gather for each length that occurs."""
    if int(length.min()) == int(length.max()):
        gather(arena, start, int(length[0]), out)
        return
    place = np.cumsum(length, dtype=np.int64) - length
    by_length = np.argsort(length, kind="stable")
    ends = np.cumsum(np.bincount(length))
    for size, end in enumerate(ends.tolist()):
        first = int(ends[size - 1]) if size else 0
        if size and end > first:
            which = by_length[first:end]
            scatter(arena, start[which], size, out, place[which])
