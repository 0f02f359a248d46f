"""One stretch of memory for the payloads of all that is held, lent out in slabs.

What one second has left the next one fills, lowest slab first: the memory that was ever touched is
what was held at once, not a second's buffer for each that may be filling, waiting or leaving. It is
reserved generously and at once, for pages that nobody has touched cost nothing, and growing copies.
What lies in it: capture.media.held.
"""

from heapq import heappop, heappush
from typing import Final

import numpy as np
from numpy.typing import NDArray

SLAB: Final = 1 << 20  # bytes; no payload is larger, and 50 calls fill one in 1.3 s
RESERVED: Final = 256 << 20  # bytes; 1.5 s of 1 Gbit/s
GROWTH: Final = 4
WIDTH_BITS: Final = 5
# Payloads lie in places of so many bytes, whole ones: G.711, G.722 and G.726 at 20 ms, and G.729's
# 20 bytes, waste little.
WIDTH: Final = 1 << WIDTH_BITS


class Arena:
    """Memory in slabs of one size."""

    def __init__(self, reserved: int = RESERVED, slab: int = SLAB) -> None:
        self.data: NDArray[np.uint8] = np.empty(reserved, np.uint8)
        self.slab = slab
        self._free: list[int] = []
        self._used = 0  # bytes that were ever lent

    def lend(self) -> int:
        """The first byte of a slab that is nobody's."""
        if self._free:
            return heappop(self._free)
        start, self._used = self._used, self._used + self.slab
        if self._used > len(self.data):
            grown = np.empty(max(self._used, GROWTH * len(self.data)), np.uint8)
            grown[:start] = self.data[:start]
            self.data = grown
        return start

    def take_back(self, start: int) -> None:
        """The slab that begins there is free again."""
        heappush(self._free, start)


class Slabs:
    """Slabs that somebody fills; lent until nobody refers to this any more.

    Chunks on their way out refer to what was held as well as the second that held it.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.at = self.end = 0  # what is left of the last one
        self._starts: list[int] = []

    def __del__(self) -> None:
        for start in self._starts:
            self.arena.take_back(start)

    def next(self) -> None:
        """Go on in another slab."""
        self.at = self.arena.lend()
        self.end = self.at + self.arena.slab
        self._starts.append(self.at)
