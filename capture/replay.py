"""Record capture files as fast as storaged takes what is in them.

The same recorder as on a live port; time is that of the files. Files that follow each other in time
(a rotated capture) are one: a call may begin in one and end in the next.
"""

import json
import logging
from pathlib import Path
from typing import Final

from capture.courier import POLL_MS, Courier
from capture.ids import new_id
from capture.model import Block
from capture.recorder import Recorder
from capture.sources import files
from spanvault.config import CaptureConfig
from spanvault.lifecycle import Lifecycle

# Then reading waits for storaged. Two groups of its commits, each of which costs something for
# every recording; of more than that, the memory costs what it saves.
UNACKNOWLEDGED_BYTES: Final = 128 << 20
FOLLOWS_NS: Final = 10_000_000_000  # a file that begins within so long continues the one before
BEFORE_NS: Final = 10_000_000  # frames come a little out of order, so also where files were cut
PATIENCE_S: Final = 30.0  # then a storaged that acknowledges nothing is given up


class Replay:
    """One run over capture files. report: print a JSON line for each call that is safe."""

    def __init__(
        self,
        settings: CaptureConfig,
        report: bool,
        life: Lifecycle,
        log: logging.Logger,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._settings, self._report, self._life, self._log = settings, report, life, log
        self._courier = Courier(settings, life, log)
        self._recorder = Recorder(settings, new_id, slow_frames=None)
        self._frames = 0
        self._patience_s = patience_s

    def run(self, paths: list[Path]) -> bool:
        """Whether every file was whole and storaged stored everything that was in them.

        Raises TimeoutError if storaged stores nothing while there is more to read, OSError as the
        disk does.
        """
        self._life.ready("replaying capture files")
        faults = 0
        for path in paths:
            try:
                for number, block in enumerate(files.blocks(path)):
                    self._receive(block, first=number == 0)
                    if self._life.stop_requested:
                        break
            except ValueError as error:
                # What could be read of the file has been recorded.
                faults += 1
                self._log.error("capture file", extra={"FAULT": str(error)})
        self._finish()
        self._settle(self._courier.drain(self._patience_s))
        left, refused = self._courier.outbox.waiting, self._courier.outbox.refused_batches
        if left:
            self._log.error("storaged did not store everything", extra={"BATCHES_LEFT": left})
        self._print({"frames": self._frames, "unacknowledged": left})
        self._courier.close()
        return not (faults or left or refused or self._life.stop_requested)

    def _receive(self, block: Block, first: bool) -> None:
        if first and not self._follows(block):
            self._finish()
            self._recorder = Recorder(self._settings, new_id, slow_frames=None)
        self._frames += len(block.start)
        self._courier.put(self._recorder.receive(block))
        self._pump(0)
        while self._courier.outbox.memory_bytes > UNACKNOWLEDGED_BYTES:
            self._pump(POLL_MS)
            if self._life.stop_requested:
                return
            if self._courier.stalled_s > self._patience_s:
                raise TimeoutError(f"storaged has stored nothing for {self._patience_s:.0f} s")

    def _finish(self) -> None:
        """The calls that this recorder hears end here; say what it could not hear."""
        self._courier.put(self._recorder.finish())
        if segments := self._recorder.slow_path.counters["sip_tls_segments"]:
            self._log.warning(
                "SIP over TLS cannot be read: its calls are missing",
                extra={"TLS_SEGMENTS": segments, "HINT": "Mirror a hop that is plain too."},
            )

    def _follows(self, block: Block) -> bool:
        """Whether a file's first block goes on where the last file ended."""
        last_ns = self._recorder.now_ns
        if last_ns is None or not len(block.start):
            return True
        return -BEFORE_NS <= int(block.time_ns[0]) - last_ns < FOLLOWS_NS

    def _pump(self, wait_ms: int) -> None:
        self._settle(self._courier.pump(wait_ms))
        self._life.beat()

    def _settle(self, ids: list[bytes]) -> None:
        self._recorder.calls.settled(ids)
        for call_id in ids:
            self._print({"id": call_id.hex()})

    def _print(self, document: dict[str, str | int]) -> None:
        if self._report:
            print(json.dumps(document), flush=True)
