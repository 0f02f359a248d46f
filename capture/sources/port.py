"""A mirrored port that may go down, lose its cable, or disappear and come back.

The ring belongs to one interface of the kernel's; when that has gone, another one of its name is
waited for, as after a driver was loaded again. What is wrong is said once when it begins, in one
line for as long as it lasts, and once when it is over. The ring itself: capture.sources.ring.
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


class Port:
    """One interface's traffic. Raises as Ring does if it cannot be opened at first."""

    def __init__(
        self, interface: str, megabytes: int, log: logging.Logger, group: int | None = None
    ) -> None:
        self.interface, self._megabytes, self._group, self._log = interface, megabytes, group, log
        self.interruptions = 0  # times the link was lost
        self.missed = 0  # frames the card had no room for
        self.merging: list[str] = []  # features of the interface that merge frames
        self._link, self._earlier_drops = Link.UP, 0
        self._look_at = self._changed_at = 0.0
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
            yield from self._ring.blocks(timeout_ms, wake_fd)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            self._is(Link.GONE)

    def drain(self) -> Iterator[Block]:
        """As Ring.drain; also when the interface has gone."""
        for _ in range(2):  # that it has gone is told once, before what is still there
            try:
                if self._ring is not None:
                    yield from self._ring.drain()
                return
            except OSError:
                continue

    def close(self) -> None:
        """Stop to capture; what was counted can still be asked for."""
        if self._ring is not None:
            self._close(self._ring)

    def _open(self) -> Ring:
        ring = Ring(self.interface, self._megabytes, self._group)
        self._missed_before = interfaces.missed(self.interface) - self.missed
        self.merging = interfaces.merging(self.interface)
        if self.merging:
            off = " ".join(f"{feature} off" for feature in self.merging)
            self._log.warning(
                "the interface may merge frames: packets and their times could be lost",
                extra={"INTERFACE": self.interface, "HINT": f"ethtool -K {self.interface} {off}"},
            )
        return ring

    def _look(self) -> None:
        """See how the interface is; open it again if it has come back."""
        self._look_at = time.monotonic() + LOOK_S
        if self._ring is None and not self._back():
            return
        if self._ring is not None:
            self.missed = interfaces.missed(self.interface) - self._missed_before
            self._is(self._ring.link())

    def _back(self) -> bool:
        link = interfaces.link(self.interface)
        self._is(link)
        if link is Link.GONE:
            return False
        if link is Link.DOWN:
            if time.monotonic() - self._changed_at > PREPARED_S:
                raise OSError(errno.ENETDOWN, f"interface '{self.interface}' is back, but down")
            return False
        self._ring = self._open()
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
            self._log.info("the link is back", extra={"INTERFACE": self.interface})
        elif was_up:  # how it is lost may change, until it is back
            self.interruptions += 1
            fields = {"INTERFACE": self.interface, "FAULT": self.trouble}
            self._log.error("the link is lost", extra=fields)
