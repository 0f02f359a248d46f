"""A mirrored port that may go down, lose its cable, or disappear and come back.

The ring belongs to one interface of the kernel's; when that has gone, another one of its name is
waited for, as after a driver was loaded again. What is wrong is said once when it begins, in one
line for as long as it lasts, and once when it is over. What was sent meanwhile would be missing by
sequence number, as if the network had lost it: the blocks around say that it was us.
The ring itself: capture.sources.ring.
"""

import errno
import logging
import select
import time
from collections.abc import Iterator
from typing import Final

from capture.model import Block
from capture.sources import interface as interfaces
from capture.sources.interface import Link
from capture.sources.ring import Ring

LOOK_S: Final = 1.0
# Whoever brought the interface back has had time to set it up; if not, a restart of the unit will.
PREPARED_S: Final = 5.0
SECOND: Final = 1_000_000_000
LAG_NS: Final = 300_000_000  # a frame may lie so long in the ring before we see it
AWAY: Final = (errno.ENODEV, errno.ENETDOWN)  # it went again under our hands


class Port:
    """One interface's traffic. Raises as Ring does if it cannot be opened at first."""

    def __init__(
        self, interface: str, megabytes: int, log: logging.Logger, group: int | None = None
    ) -> None:
        self.interface, self._megabytes, self._group, self._log = interface, megabytes, group, log
        self.interruptions = 0  # times the link was lost
        self.missed = 0  # frames the card had no room for
        self._link, self._earlier_drops = Link.UP, 0
        self._look_at = self._changed_at = 0.0
        self._well_ns = time.time_ns()  # until then nothing was lost but what the ring counts
        self._last_ns = self._well_ns  # the last frame
        self._unheard: list[tuple[int, int]] = []  # since when something was, and until when
        self._missed_before = self._carrier_before = self._down_before = 0
        self._noticed_ns, self._mended_at = 0, 0.0
        self._ring: Ring | None = self._open()
        self._look()

    @property
    def trouble(self) -> str:
        """One line while the link is not up, else nothing."""
        if self._link is Link.UP:
            return ""
        return f"{self.interface} {self._link.value.format(self.interface)}"

    def drops(self) -> int:
        """Frames that the kernel had no room for, since the beginning."""
        return self._earlier_drops + (self._ring.drops() if self._ring else 0)

    def blocks(self, timeout_ms: int, wake_fd: int | None = None) -> Iterator[Block]:
        """As Ring.blocks; while the interface is away, only time passes.

        Raises OSError if the port cannot be captured from any more.
        """
        if time.monotonic() >= self._look_at:
            self._look()
        if self._link is Link.GONE and self._ring is not None:
            yield from self.drain()
            self._close(self._ring)
        if self._ring is None:
            select.select([] if wake_fd is None else [wake_fd], [], [], timeout_ms / 1000)
            return
        try:
            yield from map(self._told, self._ring.blocks(timeout_ms, wake_fd))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            self._is(Link.GONE)

    def drain(self) -> Iterator[Block]:
        """As Ring.drain; also when the interface has gone."""
        for _ in range(2):  # that it has gone is told once, before what is still there
            try:
                if self._ring is not None:
                    yield from map(self._told, self._ring.drain())
                return
            except OSError:
                continue

    def close(self) -> None:
        """Stop to capture; what was counted can still be asked for."""
        if self._ring is not None:
            self._close(self._ring)

    def _open(self) -> Ring:
        ring = Ring(self.interface, self._megabytes, self._group)
        self._settled(ring, interfaces.counted(self.interface))
        if remedy := interfaces.unmerge(self.interface):
            self._log.warning(
                "the interface may merge frames: packets and their times could be lost",
                extra={"INTERFACE": self.interface, "HINT": remedy},
            )
        return ring

    def _look(self) -> None:
        """See how the interface is; open it again if it has come back."""
        self._look_at = time.monotonic() + LOOK_S
        if self._ring is None and not self._back():
            return
        if self._ring is not None:
            self._see(self._ring)

    def _see(self, ring: Ring) -> None:
        """Tell how the link of a ring is, and what was lost since last looked at."""
        link, counted = ring.link(), interfaces.counted(self.interface)
        # A driver that starts anew may count from 0 again.
        if (missed := max(0, counted.missed - self._missed_before)) > 0:
            self.missed += missed
            self._lost(self._well_ns)
        self._missed_before = counted.missed
        # The count may be a moment ahead of the link's state: one change is no loss and return.
        changes = counted.carrier_changes - self._carrier_before
        if link is self._link is Link.UP and (changes > 1 or ring.link_down > self._down_before):
            self.interruptions += 1
            self._log.error("the link was lost for a moment", extra={"INTERFACE": self.interface})
            self._lost(self._well_ns)
            changes = 0
        self._is(link)
        if link is not Link.UP or not changes:
            self._settled(ring, counted)

    def _settled(self, ring: Ring, counted: interfaces.Counted) -> None:
        """All that happened to the link until now is known of."""
        self._carrier_before, self._down_before = counted.carrier_changes, ring.link_down
        self._missed_before = counted.missed
        if self._link is Link.UP:
            self._well_ns = time.time_ns()

    def _lost(self, since_ns: int) -> None:
        """Something was lost since then, and may be for a moment yet."""
        self._unheard.append((since_ns, 0))
        self._mended()

    def _mended(self) -> None:
        self._noticed_ns = time.time_ns()
        self._mended_at = time.monotonic() + LAG_NS / SECOND
        self._unheard[-1] = self._unheard[-1][0], self._noticed_ns + LAG_NS

    def _told(self, block: Block) -> Block:
        """A block that says what was lost before it, or may have been."""
        if not len(block.time_ns):
            return block
        up, self._last_ns = self._link is Link.UP, int(block.time_ns[-1])
        if up or self._last_ns > self._noticed_ns:
            block.unheard = tuple(self._unheard)
        else:  # still from before the link was lost: it was not, until then
            self._unheard[-1] = self._last_ns + 1, self._unheard[-1][1]
            block.unheard = tuple(self._unheard[:-1])
        if up and time.monotonic() > self._mended_at:
            self._unheard = []
        return block

    def _back(self) -> bool:
        link = interfaces.link(self.interface)
        if link in (Link.GONE, Link.DOWN):
            self._is(link)
            if link is Link.DOWN and time.monotonic() - self._changed_at > PREPARED_S:
                raise OSError(errno.ENETDOWN, f"interface '{self.interface}' is back, but down")
            return False
        try:
            self._ring = self._open()
        except OSError as error:
            if error.errno not in AWAY:
                raise
            return False
        return True

    def _close(self, ring: Ring) -> None:
        self._earlier_drops += ring.drops()
        ring.close()
        self._ring = None

    def _is(self, link: Link) -> None:
        """Tell of a change."""
        if link is self._link:
            return
        was_up, self._link, self._changed_at = self._link is Link.UP, link, time.monotonic()
        if link is Link.UP:
            self._mended()
            self._log.info("the link is back", extra={"INTERFACE": self.interface})
        elif was_up:  # how it is lost may change, until it is back
            self.interruptions += 1
            self._lost(max(self._well_ns, self._last_ns + 1))
            fields = {"INTERFACE": self.interface, "FAULT": self.trouble}
            self._log.error("the link is lost", extra=fields)
