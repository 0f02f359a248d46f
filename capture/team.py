"""Several workers on one port, where one core cannot hear it all, and one call table.

The kernel shares the interface's flows among the workers' rings (PACKET_FANOUT_HASH): both
directions of a flow, and a datagram's fragments, are heard by one of them. Each is a process of its
own; this one has the calls, the outbox and the wire. A worker that ends or falls silent ends us
all: systemd starts the capture again, which goes on with the calls it knew.
Source: packet(7). What is said between us: capture.worker. Putting it together: capture.ensemble.
Why so: docs/decisions/0007-workers.md.
"""

import contextlib
import errno
import logging
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import zmq

from capture import worker
from capture.ensemble import Ensemble
from capture.hearing import POLL_MS
from capture.ids import new_id
from capture.recorder import Heard
from capture.sources import interface as interfaces
from capture.worker import Task, Told
from spanvault.daemon.config import CaptureConfig

SILENT_S: Final = 20.0
STOP_S: Final = 10.0
LEAST_MB: Final = 32  # of a ring: where little is heard, each MiB is a block of 80 ms
AT_ONCE: Final = 16  # messages of one worker before another's turn


class TeamPort:
    """The port as its workers last told of it."""

    def __init__(self, workers: int) -> None:
        self._told: list[Told | None] = [None] * workers

    @property
    def interruptions(self) -> int:
        """Times the link was lost."""
        return max((told.interruptions for told in self._told if told), default=0)

    @property
    def trouble(self) -> str:
        """One line while the link is not up, else nothing."""
        return next((told.trouble for told in self._told if told and told.trouble), "")

    @property
    def missed(self) -> int:
        """Frames that the card had no room for, since the beginning."""
        return max((told.missed for told in self._told if told), default=0)

    def drops(self) -> int:
        """Frames that the kernel had no room for in any ring, since the beginning."""
        return sum(told.drops for told in self._told if told)

    def tell(self, number: int, told: Told) -> None:
        """News of a worker."""
        self._told[number] = told


class Team:
    """The workers of one port. Raises OSError or ValueError if they cannot hear it."""

    def __init__(self, settings: CaptureConfig, interface: str, log: logging.Logger) -> None:
        interfaces.find(interface)  # what is wrong with it is better said once than by each
        self._ensemble = Ensemble(settings, settings.workers, new_id)
        self.calls, self._interface, self._log = self._ensemble.calls, interface, log
        self.port = TeamPort(settings.workers)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._told_s = [time.monotonic()] * settings.workers
        self._ending = [False] * settings.workers
        self._last = [False] * settings.workers
        group = secrets.randbits(16)
        ring_mb = max(LEAST_MB, settings.ring_mb // settings.workers)
        for number in range(settings.workers):
            endpoint = f"ipc://{settings.runtime_dir}/worker-{number}"
            self._sockets.append(self._listen(endpoint))
            task = Task(
                number, group, endpoint, interface, ring_mb, settings.unmatched_s,
                settings.unmatched_mb, settings.orphans, settings.orphan_packets,
            )  # fmt: skip
            self._processes.append(_start(task))
        while not all(socket.poll(POLL_MS) for socket in self._sockets):
            self._watch()  # who says a word, listens

    def hear(self, wake_fd: int | None) -> Iterator[Heard]:
        """See Hearing."""
        heard = False
        for number in self._ready(wake_fd):
            for _ in range(AT_ONCE):
                if not self._sockets[number].poll(0):
                    break
                heard = True
                yield self._receive(number)
                self._order()
        self._watch()
        if not heard:
            yield Heard()

    def stop(self) -> Iterator[Heard]:
        """See Hearing."""
        self._order(stop=True)
        yield from self._hear_out(self._ending)
        self._ensemble.conclude()
        self._order(last=True)
        yield from self._hear_out(self._last)
        if not all(self._last):
            self._log.error("a worker did not say its last word")
        yield self._ensemble.pause()
        self.close()

    def counters(self) -> dict[str, int]:
        """See Hearing."""
        return self._ensemble.counters()

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _listen(self, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.PAIR)
        socket.rcvhwm = worker.WAITING
        socket.sndhwm = 0  # we never wait for a worker: it may be waiting for us
        socket.bind(endpoint)
        return socket

    def _ready(self, wake_fd: int | None) -> list[int]:
        """The workers that have something to say, waiting a moment for one."""
        poller = zmq.Poller()
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)
        if wake_fd is not None:
            poller.register(wake_fd, zmq.POLLIN)
        ready = dict(poller.poll(POLL_MS))
        return [number for number, socket in enumerate(self._sockets) if socket in ready]

    def _receive(self, number: int) -> Heard:
        frames: list[Any] = self._sockets[number].recv_multipart(copy=False)
        told, report = worker.decode([frame.buffer for frame in frames])
        self._told_s[number] = time.monotonic()
        self._ending[number] |= told.word.ending
        self._last[number] = told.word.last
        self.port.tell(number, told)
        return self._ensemble.receive(number, report)

    def _hear_out(self, done: list[bool]) -> Iterator[Heard]:
        """What the workers have still to say. done: of each, whether that was all."""
        end = time.monotonic() + STOP_S
        while self._speaking(done) and time.monotonic() < end:
            for number in self._ready(None):
                yield self._receive(number)

    def _order(self, stop: bool = False, last: bool = False) -> None:
        for number, socket in enumerate(self._sockets):
            if orders := self._ensemble.orders(number, stop, last):
                with contextlib.suppress(zmq.Again):  # it is not there any more
                    socket.send(msgspec.msgpack.encode(orders), zmq.NOBLOCK)

    def _speaking(self, done: list[bool]) -> bool:
        """Whether a worker that runs has still something to say."""
        pairs = zip(self._processes, done, strict=True)
        return any(process.poll() is None and not last for process, last in pairs)

    def _watch(self) -> None:
        """Raise OSError if a worker cannot go on, ValueError if it never will."""
        for number, process in enumerate(self._processes):
            if process.poll() == worker.EX_CONFIG:
                raise ValueError(f"worker {number} cannot hear {self._interface}: see its message")
            if process.returncode is not None:
                raise OSError(errno.ECHILD, f"worker {number} ended: {process.returncode}")
            if time.monotonic() - self._told_s[number] > SILENT_S:
                raise OSError(errno.ETIMEDOUT, f"worker {number} says nothing")


def _start(task: Task) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "capture.worker", msgspec.json.encode(task).decode()]
    return subprocess.Popen(command, stdin=subprocess.PIPE)
