"""What share of a port's traffic, in the last minute, is not worth the room it takes.

RTP that comes twice, as from a mirror of both directions: copies are told apart before anything is
counted (docs/decisions/0006), so nothing is wrong with the recordings; but half of the port's room
and of our time goes into them, and the administrator can have it back. What a sender repeats, as
the end of a digit, is far below the share that counts. Or frames that nobody here can read, since
they are encrypted or of a kind we do not know: then calls are missing.
"""

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0  # a mirror that was mended is no longer told of
LEAST: Final = 500  # packets in it, or the share means nothing
SHARE: Final = 0.2  # less is not how a port is mirrored


class Share:
    """Fed with running totals; tells of the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def look(self, now_s: float, packets: int, wasted: int) -> float:
        """How many wasted ones there were for a packet, 0 where it is not worth telling.

        packets, wasted: since the beginning; the latter need not be among the former.
        """
        self._seen.append((now_s, packets, wasted))
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - WINDOW_S:
            self._seen.popleft()
        _, before, wasted_before = self._seen[0]
        heard, more = packets - before, wasted - wasted_before
        share = more / heard if heard >= LEAST else 0.0
        return share if share >= SHARE else 0.0
