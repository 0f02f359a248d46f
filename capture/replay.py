"""Record capture files as fast as storaged takes what is in them.

The same recorder as on a live port; time is that of the files. Files that follow each other in time
(a rotated capture), or overlap (signalling and media captured apart), are one: a call may begin in
one and end in the next.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from capture import beyond
from capture.delivery.courier import POLL_MS, Courier
from capture.ids import new_id
from capture.model import Block
from capture.recorder import Recorder
from capture.share import SHARE
from capture.sources.merging import merged
from spanvault.daemon.config import CaptureConfig
from spanvault.daemon.lifecycle import Lifecycle

# Then reading waits for storaged. Two groups of its commits, each of which costs something for
# every recording; of more than that, the memory costs what it saves.
UNACKNOWLEDGED_BYTES: Final = 128 << 20
FOLLOWS_NS: Final = 10_000_000_000  # a file that begins within so long continues the one before
BEFORE_NS: Final = 10_000_000  # frames come a little out of order, so also where files were cut
PATIENCE_S: Final = 30.0  # then a storaged that acknowledges nothing is given up


class TimeLine(NamedTuple):
    """What was heard of one time."""

    last_ns: int
    sip: int  # messages
    rtp: int  # packets


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
        # Whoever reads an old file wants what is in it, not to see it expire.
        self._settings = msgspec.structs.replace(settings, orphan_days=None)
        self._report, self._life, self._log = report, life, log
        self._courier = Courier(settings, life, log)
        self._recorder = Recorder(self._settings, new_id, slow_frames=None)
        self._frames = self._faults = 0
        self._lines: list[TimeLine] = []
        self._patience_s = patience_s

    def run(self, paths: Iterable[Path]) -> bool:
        """Whether every file was whole and storaged stored everything that was in them.

        Raises TimeoutError if storaged stores nothing while there is more to read, OSError as the
        disk does.
        """
        self._life.ready("replaying capture files")
        for block, begins in merged(paths, self._fault):
            self._receive(block, begins)
            if self._life.stop_requested:
                break
        self._finish()
        self._compare_clocks()
        self._settle(self._courier.drain(self._patience_s))
        left, refused = self._courier.outbox.waiting, self._courier.outbox.refused_batches
        if left:
            self._log.error("storaged did not store everything", extra={"BATCHES_LEFT": left})
        self._print({"frames": self._frames, "unacknowledged": left})
        self._courier.close()
        return not (self._faults or left or refused or self._life.stop_requested)

    def _fault(self, error: ValueError) -> None:
        """A file cannot be read to its end. What could be has been recorded."""
        self._faults += 1
        self._log.error("capture file", extra={"FAULT": str(error)})

    def _compare_clocks(self) -> None:
        """Signalling of one time and media of another are most likely one capture by two clocks."""
        signalling = [line for line in self._lines if line.sip and not line.rtp]
        media = [line for line in self._lines if line.rtp and not line.sip]
        if signalling and media and len(self._lines) == len(signalling) + len(media):
            self._faults += 1
            apart_s = abs(signalling[0].last_ns - media[0].last_ns) // 1_000_000_000
            self._log.error(
                "signalling and media are of different times: no call has any sound",
                extra={
                    "APART_S": apart_s,
                    "HINT": f"Were they captured by clocks {apart_s} s apart? "
                    "Then set one right: editcap -t SECONDS IN OUT.",
                },
            )

    def _receive(self, block: Block, begins: bool) -> None:
        if begins and not self._follows(block):
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
        counters = self._recorder.counters()
        self._lines.append(
            TimeLine(
                self._recorder.now_ns or 0, counters.get("sip_messages", 0), counters.get("rtp", 0)
            )
        )
        if connections := self._recorder.calls.sip_tls.connections:
            self._log.warning(
                "SIP over TLS cannot be read: its calls are missing",
                extra={
                    "TLS_CONNECTIONS": connections,
                    "BETWEEN": self._recorder.calls.sip_tls.told,
                    "HINT": "Mirror a hop that is plain too.",
                },
            )
        found = beyond.told(counters)
        if found and sum(each.frames for each in found) >= SHARE * counters["frames"]:
            self._log.warning(
                "much of the capture cannot be read: calls may be missing",
                extra={
                    "FRAMES": counters["frames"],
                    "UNREAD": ", ".join(f"{each.frames} of {each.what}" for each in found[:3]),
                    "HINT": "spanvault explain tells what can be done.",
                },
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
