"""Record a mirrored port until told to stop.

The shell around a recorder on the AF_PACKET ring: clock, signals, the saved call table.
"""

import logging
import time
from typing import Any, Final

from capture.callstate import CallState
from capture.courier import POLL_MS, Courier
from capture.ids import new_id
from capture.model import Block
from capture.recorder import Heard, Recorder
from capture.sources.ring import Ring
from spanvault.config import CaptureConfig
from spanvault.lifecycle import Lifecycle

RING_LAG_NS: Final = 300_000_000  # a frame may lie so long in the ring before we see it
DRAIN_S: Final = 10.0


class Live:
    """One port's recorder. Raises ValueError or OSError if the port cannot be opened."""

    def __init__(
        self, settings: CaptureConfig, interface: str, life: Lifecycle, log: logging.Logger
    ) -> None:
        self._life, self._log, self._interface = life, log, interface
        self._state = CallState(settings.state_dir, settings.runtime_dir)
        self._recorder = Recorder(settings, new_id)
        self._courier = Courier(settings, life, log)
        self._restore()
        self._ring = Ring(interface, settings.ring_mb)
        self._dropped = 0

    def run(self) -> None:
        """Record; on SIGTERM write what is left and return."""
        self._life.ready(f"listening on {self._interface}")
        self._log.info("listening", extra={"INTERFACE": self._interface})
        while not self._asked_to_stop():
            for block in self._ring.blocks(POLL_MS, self._life.wake_fd):
                self._block(block)
                if self._asked_to_stop():
                    break
            self._keep(self._recorder.tick(time.time_ns() - RING_LAG_NS))
            self._turn()
        self._stop()

    def _asked_to_stop(self) -> bool:
        return self._life.stop_requested

    def _restore(self) -> None:
        """Go on with the calls that an earlier life of this capture knew."""
        table = self._state.load()
        if table is None:
            return
        try:
            self._recorder.calls.restore(table)
        except ValueError as error:
            self._log.warning("saved calls cannot be read", extra={"FAULT": str(error)})
            return
        self._log.info("going on with calls", extra={"CALLS": self._recorder.calls.active})

    def _block(self, block: Block) -> None:
        self._dropped += block.dropped
        if block.dropped:
            self._log.error("frames dropped by the capture", extra={"FRAMES": block.dropped})
        self._keep(self._recorder.receive(block))
        self._turn()

    def _turn(self) -> None:
        self._recorder.calls.settled(self._courier.pump())
        self._life.beat()
        self._courier.tell(self._line(), self._fields())

    def _keep(self, heard: Heard) -> None:
        """Save the call table, then let out what was heard.

        In that order: storaged must never know a call that a restart of ours would not.
        """
        if heard.ticked:
            self._state.save(self._recorder.calls.snapshot())
        self._courier.put(heard)

    def _stop(self) -> None:
        """Read what the ring still holds, flush, and wait for storaged for a while."""
        self._life.stopping("writing what is left")
        for block in self._ring.drain():
            self._block(block)
        self._ring.close()
        self._keep(self._recorder.pause())
        self._recorder.calls.settled(self._courier.drain(DRAIN_S))
        self._courier.put_away()
        self._state.save(self._recorder.calls.snapshot())
        self._courier.tell("stopped", self._fields(), now=True)
        self._courier.close()
        self._log.info("stopped", extra=self._journal_fields())

    def _line(self) -> str:
        line = f"recording {self._recorder.calls.active} calls on {self._interface}"
        return line + (f"; {self._dropped} frames DROPPED" if self._dropped else "")

    def _fields(self) -> dict[str, Any]:
        return {
            "interface": self._interface,
            "calls": self._recorder.calls.active,
            "dropped_frames": self._dropped,
            **self._recorder.counters(),
        }

    def _journal_fields(self) -> dict[str, Any]:
        return {key.upper(): value for key, value in self._fields().items()}
