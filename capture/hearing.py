"""How live capture hears its port: in this process, or by a team of workers.

capture.live sees no difference. The team: capture.team.
"""

import logging
from collections.abc import Iterator
from typing import Final, Protocol

from capture.calls.calls import Calls
from capture.hostclock import HostClock
from capture.ids import new_id
from capture.recorder import Heard, Recorder
from capture.sources.port import Port
from spanvault.daemon.config import CaptureConfig

POLL_MS: Final = 100
RING_LAG_NS: Final = 300_000_000  # a frame may lie so long in the ring before we see it


class PortState(Protocol):
    """How a port is, for status."""

    @property
    def interruptions(self) -> int:
        """Times the link was lost."""

    @property
    def missed(self) -> int:
        """Frames that the card had no room for, since the beginning."""

    @property
    def trouble(self) -> str:
        """One line while the link is not up, else nothing."""

    def drops(self) -> int:
        """Frames that the kernel had no room for, since the beginning."""


class Hearing(Protocol):
    """A port that is listened to, and the calls on it. Raises OSError if that cannot go on."""

    calls: Calls

    @property
    def port(self) -> PortState:
        """How the port is."""

    def hear(self, wake_fd: int | None) -> Iterator[Heard]:
        """What is there, waiting a moment for it. wake_fd: ends the waiting when readable."""

    def stop(self) -> Iterator[Heard]:
        """What is left, and the end of it: the calls go on without us."""

    def counters(self) -> dict[str, int]:
        """Everything counted."""


class Alone:
    """One ring and one recorder, in this process."""

    def __init__(self, settings: CaptureConfig, interface: str, log: logging.Logger) -> None:
        self._recorder = Recorder(settings, new_id)
        self.calls, self._log = self._recorder.calls, log
        self.port = Port(interface, settings.ring_mb, log)
        self._host = HostClock(self._recorder.clock)

    def hear(self, wake_fd: int | None) -> Iterator[Heard]:
        """See Hearing."""
        turned, now_ns = False, self._host.now_ns()
        for block in self.port.blocks(POLL_MS, wake_fd):
            turned = True
            yield self._recorder.receive(block)
        ticked = self._recorder.tick(now_ns - RING_LAG_NS)
        if ticked.ticked or not turned:
            yield ticked

    def stop(self) -> Iterator[Heard]:
        """See Hearing."""
        for block in self.port.drain():
            yield self._recorder.receive(block)
        self.port.close()
        yield self._recorder.pause()

    def counters(self) -> dict[str, int]:
        """See Hearing."""
        return self._recorder.counters()
