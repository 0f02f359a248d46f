"""The request socket, on a thread of its own: a long check never holds up recording.

A Feed that has nothing to tell waits here without holding up the others. What is answered:
storaged.requests.
"""

import contextlib
import logging
import threading
import time
from typing import Any, Final, NamedTuple

import zmq

from spanvault import wire
from spanvault.messages import Feed
from spanvault.transport import Clients, Identity
from storaged.requests import Desk

log = logging.getLogger(__name__)
_TURN_MS: Final = 500  # how soon a stop is noticed
_WAITING_TURN_MS: Final = 50  # how soon a waiting Feed hears of a change
_MAX_WAIT_MS: Final = 60_000
_SYNC_S: Final = 2.0  # the access log, where a line need not be durable at once


class _Waiting(NamedTuple):
    """A Feed put off."""

    route: bytes
    who: Identity
    request: Feed
    until_s: float


class Serving:
    """Owns the request socket from start() to close()."""

    def __init__(self, socket: "zmq.Socket[bytes]", clients: Clients, desk: Desk) -> None:
        self._socket, self._clients, self._desk = socket, clients, desk
        self._waiting: list[_Waiting] = []
        self._stopping = threading.Event()
        self.broken: BaseException | None = None
        self.unreadable = 0
        self._synced_s = 0.0
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer what waits, end the thread, close the socket."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._socket.poll(_WAITING_TURN_MS if self._waiting else _TURN_MS):
                    self._receive()
                self._answer_waiting(time.monotonic())
                self._sync_log(time.monotonic())
            self._answer_waiting(float("inf"))
        except BaseException as error:  # handed to the main thread, which ends the daemon with it
            self.broken = error
        finally:
            self._socket.close(linger=1000)

    def _sync_log(self, now_s: float) -> None:
        if now_s - self._synced_s >= _SYNC_S:
            self._synced_s = now_s
            self._desk.sync_log()

    def _receive(self) -> None:
        route, *frames = self._socket.recv_multipart(copy=False)
        try:
            who = self._clients.identity_of(frames[0] if frames else route)
        except ValueError:
            self.unreadable += 1
            return  # a peer that ZAP did not let in; there is nobody to answer
        try:
            request, bulk = wire.decode_request([frame.buffer for frame in frames])
        except ValueError as error:
            self.unreadable += 1
            log.warning("A request cannot be read", extra={"PEER": str(who), "FAULT": str(error)})
            self._send(bytes(route.buffer), self._desk.refuse(who, str(error)).frames())
            return
        if isinstance(request, Feed) and self._desk.can_wait(who, request):
            until_s = time.monotonic() + min(request.wait_ms, _MAX_WAIT_MS) / 1000
            self._waiting.append(_Waiting(bytes(route.buffer), who, request, until_s))
            return
        self._send(bytes(route.buffer), self._desk.answer(who, request, bulk).frames())

    def _answer_waiting(self, now_s: float) -> None:
        still = []
        for one in self._waiting:
            if now_s < one.until_s and self._desk.can_wait(one.who, one.request):
                still.append(one)
            else:
                self._send(one.route, self._desk.answer(one.who, one.request, []).frames())
        self._waiting = still

    def _send(self, route: bytes, frames: list[Any]) -> None:
        # A client that is gone, or takes nothing, asks again: all requests are idempotent.
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([route, *frames], zmq.NOBLOCK)
