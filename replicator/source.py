"""The store, as a replicator asks it: one request at a time, over one encrypted socket.

It is given ciphertext only. Requests and replies: spanvault/WIRE.md. What to ask for:
replicator.plan.
"""

import hashlib
import threading
from collections.abc import Iterator
from typing import Final, TypeVar

import zmq

from replicator.targets import PART_BYTES
from spanvault import transport, wire
from spanvault.daemon.config import ReplicatorConfig
from spanvault.messages import (
    Change,
    Done,
    ErasureReceipt,
    Failure,
    Feed,
    FeedReply,
    Health,
    Import,
    Message,
    ReadObject,
    ReadObjectReply,
    Receipt,
    Return,
)

TIMEOUT_S: Final = 30.0
QUICK_TIMEOUT_S: Final = 10.0  # for what costs storaged nothing
FEED_WAIT_MS: Final = 2000
FEED_LIMIT: Final = 200
_TURN_MS: Final = 100  # how soon a request gives way to a stop

R = TypeVar("R", bound=Message)


class StoreError(Exception):
    """The store is away, or does not serve us now: asked again later.

    code: as in messages.Failure; empty if it did not answer at all.
    """

    def __init__(self, text: str, hint: str, code: str = "") -> None:
        super().__init__(text)
        self.hint, self.code = hint, code


class Refused(StoreError):
    """The store will not take or give just this; other requests go on."""


class Stopped(Exception):
    """A stop was requested while waiting for the store."""


class Source:
    """storaged's request API for the replicator's role. Used by one thread."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        settings: ReplicatorConfig,
        stop: threading.Event,
    ) -> None:
        """Raises ValueError if a certificate cannot be read. Connects when first asked."""
        self._context, self._endpoint, self._stop = context, settings.storaged, stop
        self._certificate = transport.load_certificate(settings.certificate)
        self._server = transport.load_certificate(settings.storaged_certificate)
        self._socket: zmq.Socket[bytes] | None = None

    def feed(
        self,
        position: int,
        wait_ms: int = FEED_WAIT_MS,
        limit: int = FEED_LIMIT,
        target: str = "",
    ) -> FeedReply:
        """What changed behind a position, for a target. Raises StoreError, Stopped."""
        question = Feed(position, limit, wait_ms, target)
        reply, _ = self._ask(question, FeedReply, timeout_s=QUICK_TIMEOUT_S)
        return reply

    def read_object(self, change: Change) -> Iterator[bytes]:
        """A recording's ciphertext in parts. Raises Refused unless all of it is as announced."""
        digest, size = hashlib.sha256(), 0
        while size < change.size:
            part = self._read_part(change, size)
            digest.update(part)
            size += len(part)
            if size == change.size and digest.hexdigest() != change.sha256:
                break  # before the last part leaves: a damaged copy must not become whole
            yield part
        if size != change.size or digest.hexdigest() != change.sha256:
            raise Refused(
                "recording is damaged in the store: its SHA-256 is another",
                "Run 'spanvault verify' on it; a sound copy at another target can be restored.",
            )

    def receipt(self, receipt: Receipt) -> None:
        """Tell the store of a verified copy. Raises StoreError, Refused, Stopped."""
        self._ask(receipt, Done)

    def erasure_receipt(self, receipt: ErasureReceipt) -> None:
        """Tell the store that a target followed. Raises StoreError, Refused, Stopped."""
        self._ask(receipt, Done)

    def give_back(self, message: Return, *bulk: bytes) -> None:
        """Send a part of what the store asked back. Raises StoreError, Refused, Stopped."""
        self._ask(message, Done, *bulk)

    def health(self, health: Health) -> None:
        """Tell the store how the replicator is. Raises StoreError, Refused, Stopped."""
        self._ask(health, Done, timeout_s=QUICK_TIMEOUT_S)

    def import_change(self, message: Import, *bulk: bytes) -> None:
        """Put a replica's change into the store. Raises StoreError, Refused, Stopped."""
        self._ask(message, Done, *bulk)

    def size_of(self, recording_id: bytes) -> int | None:
        """How large the store's own copy is; None if it has none. Raises StoreError, Stopped."""
        try:
            reply, _ = self._ask(ReadObject(recording_id, 0, 1), ReadObjectReply)
        except Refused:
            return None
        return reply.total

    def close(self) -> None:
        """Drop the connection and whatever is under way on it."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _read_part(self, change: Change, offset: int) -> bytes:
        size = min(PART_BYTES, change.size - offset)
        try:
            reply, bulk = self._ask(ReadObject(change.id, offset, size), ReadObjectReply)
        except StoreError as error:
            if error.code != "unavailable":
                raise
            # The store is there, but its disk cannot give this file: the others may be sound.
            raise Refused(str(error), error.hint, error.code) from error
        part = bytes(bulk[0]) if bulk else b""
        if reply.total != change.size or not 0 < len(part) <= size:
            raise Refused(
                f"recording has {reply.total} bytes in the store, {change.size} were announced",
                "Run 'spanvault verify' on it.",
            )
        return part

    def _ask(
        self, message: Message, kind: type[R], *bulk: bytes, timeout_s: float = TIMEOUT_S
    ) -> tuple[R, list[wire.Buffer]]:
        """One request and its reply, which must be of the given kind."""
        if self._socket is None:
            self._socket = transport.connect(
                self._context, self._endpoint, self._certificate, self._server
            )
        try:
            self._socket.send_multipart(wire.encode(message, *bulk), zmq.NOBLOCK)
            frames = self._receive(self._socket, timeout_s)
            reply, rest = wire.decode_reply(frames)
        except (zmq.ZMQError, ValueError, TimeoutError, Stopped) as error:
            # A late reply must not be taken for the next request's: it ends with its socket.
            self.close()
            if isinstance(error, Stopped):
                raise
            raise _away(self._endpoint, error) from error
        if isinstance(reply, Failure):
            raise _failed(reply)
        if not isinstance(reply, kind):
            self.close()
            raise _away(self._endpoint, f"it answered with {type(reply).__name__}")
        return reply, rest

    def _receive(self, socket: "zmq.Socket[bytes]", timeout_s: float) -> list[bytes]:
        for _ in range(int(timeout_s * 1000 / _TURN_MS)):
            if socket.poll(_TURN_MS):
                return socket.recv_multipart()
            if self._stop.is_set():
                raise Stopped
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")


def _away(endpoint: str, cause: object) -> StoreError:
    return StoreError(
        f"storaged cannot be asked at {endpoint}: {cause}",
        "Is spanvault-storaged running, and the replicator's certificate in its clients folder?",
    )


def _failed(failure: Failure) -> StoreError:
    """The exception for a refusal: about this one thing, or about everything."""
    about_one = failure.code in ("invalid", "not_found", "corrupt")
    kind = Refused if about_one else StoreError
    return kind(f"storaged: {failure.error}", failure.hint, failure.code)
