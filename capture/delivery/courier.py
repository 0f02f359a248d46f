"""Carry what a recorder has heard to storaged, and tell how that goes.

Outbox, spool and link put together for the two shells that need them: capture.live and
capture.replay.
"""

import logging
import os
import time
from typing import Any, Final

from capture.delivery.link import Link
from capture.delivery.outbox import Outbox
from capture.delivery.spool import Spool
from capture.recorder import Heard
from spanvault import slots
from spanvault.daemon.config import CaptureConfig
from spanvault.daemon.lifecycle import Lifecycle
from spanvault.media.chunk import NO_MEDIA
from spanvault.messages import Health
from spanvault.slots import Slots

POLL_MS: Final = 100
TELL_S: Final = 2.0
STOP_S: Final = 10.0


class Courier:
    """One capture's way to storaged. Raises ValueError if a certificate cannot be read."""

    def __init__(self, settings: CaptureConfig, life: Lifecycle, log: logging.Logger) -> None:
        self._life, self._log = life, log
        self._name = settings.name
        # A clock value is higher than any sequence an earlier life used, even one it forgot.
        first_sequence = time.time_ns()
        self._spool = Spool(settings.state_dir / "spool")
        megabytes = settings.outbox_mb << 20, settings.spool_mb << 20
        self._slots = self._memory(megabytes[0]) if slots.path_of(settings.storaged) else None
        self.beside = ""  # what else is wrong, in one line
        self.outbox = Outbox(settings.name, self._spool, *megabytes, first_sequence, self._slots)
        self.link = Link(settings, self.outbox, log, self._slots)
        self._tell_at = 0.0
        self._lost_batches = 0
        self._fault = ""  # of the spool's disk, as last logged
        self._moved_s = time.monotonic()

    def _memory(self, size: int) -> Slots | None:
        """To hand media over in; without it media goes by the socket."""
        try:
            return Slots(size)
        except OSError as error:
            self._log.warning("no memory to share with storaged", extra={"FAULT": str(error)})
            return None

    @property
    def stalled_s(self) -> float:
        """How long batches have been waiting without any being acknowledged."""
        return time.monotonic() - self._moved_s

    def put(self, heard: Heard) -> None:
        """Take what was heard: a call's first records, so that its media finds its pool; then the
        media; then last records, so that they seal all of it.
        """
        self.outbox.add([call for call in heard.calls if not call.final], NO_MEDIA)
        for media in heard.media:
            self.outbox.add([], media)
        self.outbox.add([call for call in heard.calls if call.final], NO_MEDIA)

    def pump(self, wait_ms: int = 0) -> list[bytes]:
        """Send and receive. Returns the ids of calls whose last record is safe."""
        waiting = self.outbox.waiting
        settled = self.link.pump(time.monotonic_ns(), wait_ms)
        if not waiting or self.outbox.waiting < waiting:
            self._moved_s = time.monotonic()
        if self.outbox.lost_batches > self._lost_batches:
            self._log.error(
                "batches lost: neither storaged nor the spool took them",
                extra={"BATCHES": self.outbox.lost_batches - self._lost_batches},
            )
            self._lost_batches = self.outbox.lost_batches
        self._log_fault()
        return settled

    def _log_fault(self) -> None:
        """When the spool's disk begins to fail, otherwise, or no more; not at every try."""
        fault = self._spool.fault
        if fault and fault != self._fault:
            self._log.error("the spool's disk fails", extra={"FAULT": fault})
        elif self._fault and not fault:
            self._log.info("the spool's disk is mended")
        self._fault = fault

    def drain(self, patience_s: float) -> list[bytes]:
        """Wait for acknowledgements as long as some come. Returns what was settled.

        Once a stop was asked for, a pause of STOP_S is enough to give up.
        """
        settled: list[bytes] = []
        self._moved_s = time.monotonic()
        while self.outbox.waiting and self.stalled_s < patience_s:
            settled += self.pump(POLL_MS)
            self._life.beat()
            if self._life.stop_requested:
                patience_s = min(patience_s, STOP_S)
        return settled

    def put_away(self) -> None:
        """Seal to disk, for the next start, what storaged did not take."""
        left, lost = self.outbox.put_away()
        self._log_fault()
        if left:
            self._log.warning("batches wait on disk for storaged", extra={"BATCHES": left})
        if lost:
            self._log.error("batches lost: they could not be put on disk", extra={"BATCHES": lost})

    def tell(self, state: str, fields: dict[str, Any], now: bool = False) -> None:
        """Say how it goes, to systemd and to storaged; every two seconds is enough."""
        if not now and time.monotonic() < self._tell_at:
            return
        self._tell_at = time.monotonic() + TELL_S
        trouble = self._trouble()
        line = f"{state}; {trouble}" if trouble else state
        self._life.status(line)
        all_fields = {
            **fields,
            "waiting_batches": self.outbox.waiting,
            "spooled_batches": self.outbox.spooled,
            "lost_batches": self.outbox.lost_batches,
            "refused_batches": self.outbox.refused_batches,
            "sealed_to": self.link.sealed_to,
            "host": os.uname().nodename,
        }
        self.link.report(Health(f"capture {self._name}", line, all_fields))

    def close(self) -> None:
        """Leave the wire."""
        self.link.close()
        self.outbox.close()
        if self._slots is not None:
            self._slots.close()

    def _trouble(self) -> str:
        fault = self._spool.fault
        if self.outbox.lost_batches:
            cause = fault or "start storaged, enlarge spool_mb"
            return f"{self.outbox.lost_batches} batches LOST: {cause}"
        if fault:
            return fault
        if self.outbox.spooled:
            return f"{self.outbox.spooled} batches on disk wait for storaged: is it running?"
        if self.beside:
            return self.beside
        return "" if self.link.connected else "storaged has not answered yet"
