"""How many of the RTP packets that are heard come twice, as from a mirror of both directions.

Copies are told apart before anything is counted (docs/decisions/0006), so nothing is wrong with the
recordings; but half of the port's room and of our time goes into them, and the administrator can
have it back. What a sender repeats, as the end of a digit, is far below the share that counts.
"""

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0  # a mirror that was mended is no longer told of
LEAST: Final = 500  # packets in it, or the share means nothing
SHARE: Final = 0.2  # of packets that came again: less is not how a port is mirrored


class Doubled:
    """Fed with running totals; tells of the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def look(self, now_s: float, packets: int, copies: int) -> float:
        """The share of packets that came again, 0 where it is not worth telling.

        packets, copies: since the beginning; packets without the copies.
        """
        self._seen.append((now_s, packets, copies))
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - WINDOW_S:
            self._seen.popleft()
        _, before, copied = self._seen[0]
        heard, again = packets - before, copies - copied
        share = again / heard if heard >= LEAST else 0.0
        return share if share >= SHARE else 0.0
