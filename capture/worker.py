"""One worker of a port: a process with a ring in the port's group, and an ear.

    python -m capture.worker TASK        (started by capture.team; TASK is JSON)

Its words leave over a ZeroMQ PAIR on a unix socket in the capture's runtime folder, which only our
user may enter; orders come the same way. Frames of a message: the word as MessagePack, totals and
payload types (capture.ear), then three frames for each flush of media. Should the team's process
die, our standard input ends, and so do we. Signals are the team's business.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import zmq

from capture.ear import TOTALS, TYPES, Ear, Orders, Report, Word
from capture.hostclock import HostClock
from capture.media.leaving import Leaving
from capture.sources.port import Port
from spanvault import wire
from spanvault.daemon import journal, memory
from spanvault.daemon.config import CaptureConfig

EX_IOERR, EX_CONFIG = 74, 78  # sysexits.h
POLL_MS: Final = 100
TELL_S: Final = 0.05  # the time at least so often while there are frames
# A frame may lie so long in the ring before we see it.
RING_LAG_NS: Final = 300_000_000
# Messages that may wait for a team that is busy; then the ring waits, and what it loses is counted.
WAITING: Final = 64
LAST_WORD_MS: Final = 10_000  # may take so long to be read
LAST_ORDERS_S: Final = 10.0  # may take so long to come: the slowest worker is waited for
PARENT: Final = 0  # standard input


class Task(msgspec.Struct):
    """What a worker is to do."""

    number: int
    group: int  # of rings that share the interface's flows
    endpoint: str
    interface: str
    ring_mb: int
    unmatched_s: float
    unmatched_mb: int
    orphans: int
    orphan_packets: int


class Told(msgspec.Struct, array_like=True):
    """A word, and how the port is."""

    word: Word
    drops: int
    missed: int
    interruptions: int
    trouble: str


def encode(told: Told, report: Report) -> list[Any]:
    """The frames of a message."""
    frames = [msgspec.msgpack.encode(told), *map(wire.byte_view, (report.totals, report.types))]
    for media in report.media:
        frames += [wire.byte_view(media.table), wire.byte_view(media.frames), media.payload]
    return frames


def decode(frames: Sequence[Any]) -> tuple[Told, Report]:
    """A message, uncopied. Our own worker sent it: what is wrong with it is a fault of ours."""
    told = _told.decode(frames[0])
    totals, types = np.frombuffer(frames[1], TOTALS), np.frombuffer(frames[2], TYPES)
    media = Leaving(wire.decode_media(frames[at : at + 3]) for at in range(3, len(frames), 3))
    return told, Report(told.word, totals, types, media)


_told: Final = msgspec.msgpack.Decoder(Told)
_orders: Final = msgspec.msgpack.Decoder(Orders)


class Worker:
    """The loop around an ear. Raises OSError or ValueError if the port cannot be opened."""

    def __init__(self, task: Task, log: logging.Logger) -> None:
        settings = CaptureConfig(
            unmatched_s=task.unmatched_s, unmatched_mb=task.unmatched_mb,
            orphans=task.orphans, orphan_packets=task.orphan_packets,
        )  # fmt: skip
        self._ear = Ear(settings)
        self._host = HostClock(self._ear.clock)
        self._port = Port(task.interface, task.ring_mb, log, task.group)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(WAITING)
        self._socket.connect(task.endpoint)
        self._stopping = False
        self._tell_at = 0.0

    def run(self) -> None:
        """Hear until told to stop, or nobody is there to tell."""
        while not self._told_to_stop():
            now_ns = self._host.now_ns()
            for block in self._port.blocks(POLL_MS):
                self._ear.receive(block)
                self._turn()
                if self._told_to_stop():
                    break
            self._ear.tick(now_ns - RING_LAG_NS)
            self._turn()
        for block in self._port.drain():
            self._ear.receive(block)
        self._port.close()
        self._ear.stop()
        self._tell()
        self._ear.finish(self._last_orders())
        self._tell()
        self._socket.close(linger=0 if _ended(PARENT) else LAST_WORD_MS)
        self._context.term()

    def _last_orders(self) -> Orders | None:
        """What the team wants of that which nobody had claimed; None if it says nothing."""
        end = time.monotonic() + LAST_ORDERS_S
        while time.monotonic() < end and not _ended(PARENT):
            if self._socket.poll(POLL_MS):
                orders = _orders.decode(self._socket.recv())
                if orders.last:
                    return orders
                self._ear.obey(orders)
        return None

    def _told_to_stop(self) -> bool:
        return self._stopping or _ended(PARENT)

    def _turn(self) -> None:
        while self._socket.poll(0):
            orders = _orders.decode(self._socket.recv())
            self._stopping |= orders.stop
            self._ear.obey(orders)
            self._tell_at = 0.0
        if self._ear.urgent or time.monotonic() >= self._tell_at:
            self._tell()

    def _tell(self) -> None:
        self._tell_at = time.monotonic() + TELL_S
        report, port = self._ear.report(), self._port
        told = Told(report.word, port.drops(), port.missed, port.interruptions, port.trouble)
        frames = encode(told, report)
        # Whoever is killed takes nothing any more: a plain send would wait for ever.
        while not self._socket.poll(POLL_MS, zmq.POLLOUT):
            if _ended(PARENT):
                return
        self._socket.send_multipart(frames, copy=False)


def _ended(descriptor: int) -> bool:
    """Whether the other end of a pipe, on which nothing is ever sent, is gone."""
    try:
        return os.read(descriptor, 1) == b""
    except BlockingIOError:
        return False


def main() -> int:
    """Hear; the exit status is 0, 74 or 78 (see sysexits.h)."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    memory.keep_private()
    os.set_blocking(PARENT, False)
    task = msgspec.json.decode(sys.argv[1], type=Task)
    log = journal.set_up("capture")
    if task.number:  # all see the same link: one tells of it
        log = logging.Logger("silent", logging.CRITICAL)
    try:
        Worker(task, log).run()
    except (OSError, ValueError) as error:
        logging.getLogger("capture").error("a worker cannot go on", extra={"FAULT": str(error)})
        return EX_CONFIG if isinstance(error, ValueError) else EX_IOERR
    return 0


if __name__ == "__main__":
    sys.exit(main())
