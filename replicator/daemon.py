"""The replicator as a daemon: a follower for each target, health to storaged, an orderly end.

What each follower does: replicator.follower. Lifecycle under systemd: spanvault.daemon.lifecycle.
"""

import contextlib
import logging
import select
import threading
import time
from typing import Final

import zmq

from replicator import report
from replicator.follower import Follower
from replicator.source import Source, Stopped, StoreError
from replicator.state import StateFolder
from replicator.targets import check_name, make_target
from spanvault.daemon.config import ReplicatorConfig
from spanvault.daemon.lifecycle import Lifecycle
from spanvault.messages import Health

log = logging.getLogger(__name__)
HEALTH_S: Final = 3.0
TURN_S: Final = 0.5
DRAIN_S: Final = 10.0  # a target that hangs longer than this is left behind at the end


class Daemon:
    """All followers and the reporter, sharing one ZeroMQ context."""

    def __init__(self, settings: ReplicatorConfig) -> None:
        """Raises ValueError for settings that cannot work."""
        check_targets(settings)
        self._stop = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reporter_source = Source(self._context, settings, self._stop)
        state = StateFolder(settings.state_dir)
        self._followers = [
            Follower(
                target.name,
                make_target(target),
                Source(self._context, settings, self._stop),
                state,
                settings.retry_s,
                self._stop,
            )
            for target in settings.targets
        ]

    def run(self, life: Lifecycle) -> int:
        """Follow until asked to stop. Gives the exit code."""
        threads = [*self._followers, threading.Thread(target=self._report, daemon=True)]
        for thread in threads:
            thread.start()
        life.ready(self._line())
        log.info("Replicator ready", extra={"TARGETS": len(self._followers)})
        while not life.stop_requested and all(f.is_alive() for f in self._followers):
            life.beat()
            life.status(self._line())
            select.select([life.wake_fd], [], [], TURN_S)
        life.stopping("finishing what is under way")
        asked = life.stop_requested
        self._drain(threads)
        return 0 if asked else 1

    def _line(self) -> str:
        return report.status_line([f.progress for f in self._followers], time.time_ns())

    def _report(self) -> None:
        """Send Health every few seconds; an absent storaged is the followers' to complain of."""
        try:
            while not self._stop.wait(1.0):  # so that the first time there is something to tell
                self._tell_health()
                self._stop.wait(HEALTH_S - 1.0)
        except Stopped:
            pass
        finally:
            self._reporter_source.close()

    def _tell_health(self) -> None:
        progress, now_ns = [f.progress for f in self._followers], time.time_ns()
        health = Health(
            "replicator", report.status_line(progress, now_ns), report.fields(progress, now_ns)
        )
        with contextlib.suppress(StoreError):
            self._reporter_source.health(health)

    def _drain(self, threads: list[threading.Thread]) -> None:
        self._stop.set()
        deadline = time.monotonic() + DRAIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            log.warning("A target hangs; leaving it behind")
            return  # its socket is still in use: ending the context would wait for it
        self._context.term()


def check_targets(settings: ReplicatorConfig) -> None:
    """Raise ValueError for a target that cannot be: bad or double name, unknown kind."""
    seen: set[str] = set()
    for target in settings.targets:
        try:
            if "/" in check_name(target.name) or target.name in seen:
                raise ValueError(target.name)
        except ValueError:
            raise ValueError(
                f"target name {target.name!r} is not usable: each needs its own, "
                "of letters, digits, '_', '-' and inner dots"
            ) from None
        seen.add(target.name)
        make_target(target)
