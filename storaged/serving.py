"""The request socket, on a thread of its own: a long check never holds up recording.

Nor does it hold up other requests: what takes long is carried out in turns, between which whatever
else has come is answered. A Feed that has nothing to tell waits here as well. How many may be under
way is bounded for each client. What is answered: storaged.requests.desk.
"""

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple

import zmq

from spanvault import wire
from spanvault.daemon.lifecycle import name_thread
from spanvault.messages import Check, Erase, Failure, Feed, Fetch, Mend, Move, Search, Verify
from spanvault.transport import Clients, Identity
from storaged.format.walk import Steps
from storaged.requests.desk import Answer, Desk

log = logging.getLogger(__name__)
_TURN_MS: Final = 500  # how soon a stop is noticed
_WAITING_TURN_MS: Final = 50  # how soon a waiting Feed hears of a change
_MAX_WAIT_MS: Final = 60_000
_WORK_S: Final = 0.05  # at long answers before the socket is looked at again
_AT_ONCE: Final = 32  # messages taken before long answers get their turn
UNDER_WAY: Final = 16  # waiting Feeds and long answers of one client
_FOLLOW_S: Final = 2.0  # between two looks at what must follow its call into a higher pool
_CONVERT_S: Final = 0.25  # between two looks at days that must get new keys
_RETIRE_S: Final = 0.25  # between two looks at ingest keys that must go
_REST: Final = 10.0  # parts of rest to one of looking: where much waits, a look takes longer
_SYNC_S: Final = 2.0  # the access log, where a line need not be durable at once


class _Waiting(NamedTuple):
    """A Feed put off."""

    route: bytes
    who: Identity
    request: Feed
    until_s: float


class _Long(NamedTuple):
    """An answer that is not finished."""

    route: bytes
    who: Identity
    steps: Steps[Answer]


class _Background:
    """Work that nobody waits for, in steps, each followed by the rest that it gives, in seconds."""

    def __init__(
        self, begin: Callable[[], Generator[float | None, None, None]], every_s: float
    ) -> None:
        self._begin, self._every_s = begin, every_s
        self._steps: Generator[float | None, None, None] | None = None
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long until there is something to do."""
        return max(0.0, self._next_s - now_s)

    def turn(self, now_s: float) -> None:
        """A step, if it is time."""
        if now_s < self._next_s:
            return
        self._steps, begun_s = self._steps or self._begin(), time.thread_time()
        try:
            rest_s = next(self._steps) or 0.0
        except StopIteration:
            rest_s = max(self._every_s, _REST * (time.thread_time() - begun_s))
            self._steps = None
        self._next_s = time.monotonic() + rest_s

    def close(self) -> None:
        """Give up what is under way."""
        if self._steps is not None:
            self._steps.close()


class Serving:
    """Owns the request socket from start() to close()."""

    def __init__(self, socket: "zmq.Socket[bytes]", clients: Clients, desk: Desk) -> None:
        self._socket, self._clients, self._desk = socket, clients, desk
        self._waiting: list[_Waiting] = []
        self._long: deque[_Long] = deque()
        self._stopping = threading.Event()
        self.broken: BaseException | None = None
        self.unreadable = 0
        self._synced_s = 0.0
        self._background = (
            _Background(desk.following, _FOLLOW_S),
            _Background(desk.converting, _CONVERT_S),
            _Background(desk.retiring, _RETIRE_S),
        )
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer what waits, end the thread, close the socket."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        name_thread("requests")
        try:
            while not self._stopping.is_set():
                self._turn()
            self._answer_waiting(float("inf"))
            self._give_up()
            self._desk.sync_log(ending=True)
        except BaseException as error:  # handed to the main thread, which ends the daemon with it
            self.broken = error
        finally:
            for each in self._background:
                each.close()
            self._socket.close(linger=1000)

    def _turn(self) -> None:
        """Take what has come, go on with what takes long."""
        patience_ms = self._patience_ms(time.monotonic())
        for _ in range(_AT_ONCE):
            if not self._socket.poll(patience_ms):
                break
            self._receive()
            patience_ms = 0
        self._work(time.monotonic() + _WORK_S)
        for each in self._background:
            each.turn(time.monotonic())
        self._answer_waiting(time.monotonic())
        self._sync_log(time.monotonic())

    def _patience_ms(self, now_s: float) -> int:
        """How long the socket may be waited for."""
        if self._long:
            return 0
        wait_s = min(each.wait_s(now_s) for each in self._background)
        return min(_WAITING_TURN_MS if self._waiting else _TURN_MS, math.ceil(1000 * wait_s))

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
        self._take(bytes(route.buffer), who, request, bulk)

    def _take(self, route: bytes, who: Identity, request: Any, bulk: list[Any]) -> None:
        """Answer a request, or put it beside the others that take their time."""
        waits = isinstance(request, Feed) and self._desk.can_wait(who, request)
        long = isinstance(request, Verify | Check | Mend | Move | Erase)
        if (waits or long) and self._under_way(who) >= UNDER_WAY:
            self._send(route, self._desk.busy(who, request, UNDER_WAY).frames())
        elif waits:
            until_s = time.monotonic() + min(request.wait_ms, _MAX_WAIT_MS) / 1000
            self._waiting.append(_Waiting(route, who, request, until_s))
        elif isinstance(request, Search | Fetch) and self._under_way(who) >= UNDER_WAY:
            # Seldom long enough to be worth a refusal: these end before the next one is taken.
            self._send(route, self._desk.answer(who, request, bulk).frames())
        else:
            self._step(_Long(route, who, self._desk.answering(who, request, bulk)))

    def _under_way(self, who: Identity) -> int:
        return sum(one.who == who for one in self._waiting) + sum(
            one.who == who for one in self._long
        )

    def _work(self, until_s: float) -> None:
        """Go on with long answers, in turn."""
        while self._long and time.monotonic() < until_s:
            self._step(self._long.popleft())

    def _step(self, one: _Long) -> None:
        """One step: the answer is sent, or goes to the end of the line."""
        try:
            next(one.steps)
        except StopIteration as done:
            self._send(one.route, done.value.frames())
        else:
            self._long.append(one)

    def _give_up(self) -> None:
        """The daemon ends: who waits for a long answer must ask again."""
        for one in self._long:
            one.steps.close()
            failure = Failure("unavailable", "storaged is stopping", "Ask again in a moment.")
            self._send(one.route, wire.encode(failure))

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
