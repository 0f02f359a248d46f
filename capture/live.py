"""Record a mirrored port until told to stop.

The shell around what hears the port (capture.hearing): signals, the saved call table, status.
"""

import logging
import time
from typing import Any, Final

from capture import hostclock
from capture.beyond import Beyond
from capture.callstate import CallState
from capture.delivery.courier import Courier
from capture.hearing import Alone, Hearing
from capture.lacking import Lacking
from capture.recorder import Heard
from capture.share import Share
from capture.sources.merged import Merged
from capture.team import Team
from spanvault.daemon import disks
from spanvault.daemon.config import CaptureConfig
from spanvault.daemon.lifecycle import Lifecycle

DRAIN_S: Final = 10.0
LOOK_S: Final = 0.5  # how often it is seen to how the port is, and told of


class Live:
    """One port's recorder. Raises ValueError or OSError if the port cannot be opened."""

    def __init__(
        self, settings: CaptureConfig, interface: str, life: Lifecycle, log: logging.Logger
    ) -> None:
        self._life, self._log, self._interface = life, log, interface
        self._runtime_dir = settings.runtime_dir
        self._state = CallState(settings.runtime_dir)
        self._courier = Courier(settings, life, log)
        listen = Team if settings.workers > 1 else Alone
        self._hearing: Hearing = listen(settings, interface, log)
        self._calls, self._port = self._hearing.calls, self._hearing.port
        self._restore()
        self._dropped = 0
        # Interruptions of the link, frames that the card missed, batches that found no room.
        self._lost = (0, 0, 0)
        self._look_at = 0.0
        self._doubled, self._twice = Share(), 0.0  # of packets that come twice
        self._beyond = Beyond()
        self._merged = Merged(interface)
        self._lacking, self._lacks = Lacking(interface), ""  # what the mirror does not give

    def run(self) -> None:
        """Record; on SIGTERM write what is left and return.

        Raises OSError if the port cannot be heard any more; what was heard is written then, too.
        """
        self._life.ready(f"listening on {self._interface}")
        self._log.info("listening", extra={"INTERFACE": self._interface})
        try:
            while not self._asked_to_stop():
                self._hear()
        except OSError:
            self._stop()
            raise
        self._stop()

    def _hear(self) -> None:
        for heard in self._hearing.hear(self._life.wake_fd):
            self._keep(heard)
            self._turn()
            if self._asked_to_stop():
                break

    def _asked_to_stop(self) -> bool:
        return self._life.stop_requested

    def _restore(self) -> None:
        """Go on with the calls that an earlier life of this capture knew."""
        table = self._state.load()
        if table is None:
            return
        try:
            self._calls.restore(table, hostclock.read())
        except ValueError as error:
            self._log.warning("saved calls cannot be read", extra={"FAULT": str(error)})
            return
        self._log.info("going on with calls", extra={"CALLS": self._calls.active})

    def _turn(self) -> None:
        self._calls.settled(self._courier.pump())
        self._life.beat()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            self._look()
            self._courier.tell(self._line(), self._fields())

    def _look(self) -> None:
        """What was not heard, or not kept, for want of room or of a link, is a loss of ours."""
        if (dropped := self._port.drops()) > self._dropped:
            frames, self._dropped = dropped - self._dropped, dropped
            self._log.error("frames dropped by the capture", extra={"FRAMES": frames})
        counted = self._hearing.counters()
        packets, copies = counted.get("flushed", 0), counted.get("duplicates", 0)
        self._twice = self._doubled.look(time.monotonic(), packets, copies)
        self._beyond.look(time.monotonic(), counted)
        self._merged.look(time.monotonic(), counted.get("oversized", 0))
        self._lacks = self._lacking.look(
            time.monotonic(), counted, self._calls.sip_tls.connections > 0
        )
        lost_batches = self._courier.outbox.lost_batches
        lost = self._port.interruptions, self._port.missed, lost_batches
        if lost != self._lost:
            self._lost = lost
            self._calls.dropped()

    def _keep(self, heard: Heard) -> None:
        """Save the call table, then let out what was heard.

        In that order: storaged must never know a call that a restart of ours would not.
        """
        if heard.ticked:
            self._save()
        self._lacking.heard(heard.calls)
        self._courier.put(heard)

    def _save(self) -> None:
        """Save the call table. Without it recording goes on; a restart would begin calls anew."""
        try:
            self._state.save(self._calls.snapshot(hostclock.read()))
            self._courier.beside = ""
        except OSError as error:
            fault = disks.line(error, self._runtime_dir)
            if not self._courier.beside:
                self._log.error("the call table cannot be saved", extra={"FAULT": fault})
            self._courier.beside = f"after a restart calls would begin anew: {fault}"

    def _stop(self) -> None:
        """Read what the ring still holds, flush, and wait for storaged for a while."""
        self._life.stopping("writing what is left")
        for heard in self._hearing.stop():
            self._keep(heard)
            self._turn()
        self._calls.settled(self._courier.drain(DRAIN_S))
        self._courier.put_away()
        self._save()
        self._courier.tell("stopped", self._fields(), now=True)
        self._courier.close()
        self._log.info("stopped", extra=self._journal_fields())

    def _line(self) -> str:
        line = f"recording {self._calls.active} calls on {self._interface}"
        if flood := self._hearing.counters().get("slow_flood_dropped"):
            line = f"{flood} tunnelled or cut up frames were TOO MANY to look at; {line}"
        if self._dropped:
            line = f"{self._dropped} frames DROPPED: too much load, or ring_mb too small; {line}"
        if missed := self._port.missed:
            line = f"{missed} frames MISSED by the card: ethtool -G {self._interface}; {line}"
        if remedy := self._merged.remedy:
            line = f"{self._hearing.counters()['oversized']} frames MERGED: {remedy}; {line}"
        if self._twice:
            line += f"; {self._twice:.0%} of RTP comes TWICE: mirror received frames only (rx)"
        if self._beyond.line:
            line += f"; {self._beyond.line}"
        if pairs := self._calls.sip_tls.told:
            line += f"; SIP over TLS cannot be read, between {pairs}: mirror a plain hop too"
        if lacks := self._port.trouble or self._lacks:
            line = f"{lacks}; {line}"
        return line

    def _fields(self) -> dict[str, Any]:
        return {
            "interface": self._interface,
            "link": self._port.trouble or "up",
            "link_interruptions": self._port.interruptions,
            "calls": self._calls.active,
            "dropped_frames": self._port.drops(),
            "missed_frames": self._port.missed,
            "rtp_twice_share": round(self._twice, 3),
            "unread_share": round(self._beyond.share, 3),
            "sip_tls_connections": self._calls.sip_tls.connections,
            "sip_tls_between": self._calls.sip_tls.between(),
            **self._hearing.counters(),
        }

    def _journal_fields(self) -> dict[str, Any]:
        return {key.upper(): value for key, value in self._fields().items()}
