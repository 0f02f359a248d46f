"""Whether much of what a port mirrors is beyond us: encrypted as a whole, or of an unknown kind.

A line of VPN beside telephony is nobody's fault; where a fifth of all frames cannot be read, calls
are most likely among them, and the administrator is told. What counts: capture.packets.opaque,
capture.packets.unread.
"""

from collections.abc import Mapping

from capture.packets import opaque, unread
from capture.packets.unread import Told
from capture.share import Share


class Beyond:
    """Fed with running counts. share: of all frames of the last minute, 0 where it is little."""

    def __init__(self) -> None:
        self.share, self.line = 0.0, ""
        self._share = Share()

    def look(self, now_s: float, counters: Mapping[str, int]) -> None:
        """counters: since the beginning; most of what we cannot read is sampled."""
        found = told(counters)
        frames = counters.get("frames", 0) + counters.get("sampled_out", 0)
        self.share = self._share.look(now_s, frames, sum(each.frames for each in found))
        self.line = ""
        if self.share:
            self.line = f"{self.share:.0%} of all frames CANNOT BE READ, most are {found[0].what}"


def told(counters: Mapping[str, int]) -> list[Told]:
    """All that was heard and cannot be read, most first."""
    found = [*opaque.told(counters), *unread.told(counters)]
    return sorted(found, key=lambda each: -each.frames)
