"""Whether the card or kernel merges frames of an interface, and how that is switched off.

Told while frames come that are larger than a network has, and the interface has a feature on that
makes such. The interface is asked only then, and not often: while another driver is busy, the
kernel may let the question wait (RTNL), and so would the ring. Taking apart what was merged:
capture.packets.offload.
"""

from typing import Final

from capture.sources import interface as interfaces

ASK_S: Final = 10.0


class Merged:
    """Fed with a running total of frames that are too large."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self.remedy = ""  # a command, while frames are merged
        self._frames, self._ask_at = 0, 0.0

    def look(self, now_s: float, frames: int) -> None:
        """frames: too large ones since the beginning."""
        if now_s < self._ask_at or not (self.remedy or frames > self._frames):
            return
        self._frames, self._ask_at = frames, now_s + ASK_S
        self.remedy = interfaces.unmerge(self._interface)
