"""The thread of the rolling check. It never runs while recording has to wait for the disk.

What is checked, and how fast: storaged.integrity.scrub.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import lmdb

from spanvault.daemon.lifecycle import name_thread
from storaged.index.view import View
from storaged.integrity.scrub import Scrub

log = logging.getLogger(__name__)
_LATE_S: Final = 0.5  # between two looks whether recording still has to wait
_RETRY_S: Final = 60.0
_PATIENCE_S: Final = 5.0  # a read that the disk does not answer must not keep the daemon


class Scrubbing:
    """Runs a Scrub from start() to close().

    late: whether recording waits for the disk.
    """

    def __init__(self, scrub: Scrub, late: Callable[[], bool]) -> None:
        self._scrub, self._late = scrub, late
        self._stopping = threading.Event()
        self.fault: str | None = None  # one line, while it cannot go on
        self.waits = False  # for recording
        self.broken: BaseException | None = None  # the daemon must end
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)

    def start(self) -> None:
        """Begin, unless it is turned off."""
        if not self._scrub.off:
            self._thread.start()

    def close(self) -> None:
        """End, and write down where it was."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE_S)

    def fields(self, view: View) -> dict[str, Any]:
        """What a StatusReply tells of it."""
        told = self._scrub.fields(view)
        if self.fault or self.waits:
            told["state"] = self.fault or "waits for recording"
        return told

    def _run(self) -> None:
        name_thread("scrub")
        try:
            while not self._stopping.is_set():
                self._turn()
                self._stopping.wait(_RETRY_S)
        except BaseException as error:  # handed to the main thread, which ends the daemon with it
            self.broken = error

    def _turn(self) -> None:
        """Check until a stop is asked for, or something breaks."""
        try:
            turns = self._scrub.turning()
            while not self._rest(next(turns)):
                self.fault = None
            turns.close()
            self._scrub.save()
        except lmdb.PanicError:
            raise
        except (OSError, lmdb.Error) as error:
            self._fail(str(error))
        except Exception as error:  # recording must go on, whatever the check stumbled over
            log.exception("The check of all recordings failed by a fault of ours")
            self._fail(f"a fault of ours: {type(error).__name__}")

    def _rest(self, seconds: float) -> bool:
        """Wait, and as long as recording has to wait. True if a stop is asked for."""
        if seconds > 0:
            self._stopping.wait(seconds)
        while self._late() and not self._stopping.wait(_LATE_S):
            self.waits = True
        self.waits = False
        return self._stopping.is_set()

    def _fail(self, text: str) -> None:
        if text != self.fault:
            log.error("The check of all recordings cannot go on", extra={"FAULT": text})
        self.fault = text
