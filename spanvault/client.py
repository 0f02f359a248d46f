"""Ask storaged: one request at a time, with time limits, reconnecting, and clear refusals.

The command's only way to a store; it holds no key but its own certificate's.
Messages: spanvault.messages, WIRE.md §6. A store of one's own without running daemons: private.py.
"""

import errno
import socket as sockets
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import zmq

from spanvault.daemon.config import OperatorConfig
from spanvault.media.chunk import NO_MEDIA, Media
from spanvault.messages import (
    Call,
    Certify,
    CertifyReply,
    Check,
    CheckReply,
    Done,
    Erase,
    EraseReply,
    Erasure,
    Erasures,
    ErasuresReply,
    Failure,
    Fetch,
    FetchReply,
    Get,
    GetReply,
    Keys,
    KeysReply,
    Lock,
    MediaKey,
    Mend,
    Mending,
    MendReply,
    Message,
    Move,
    MoveReply,
    OfferShare,
    OfferShareReply,
    Recipients,
    Rotate,
    Search,
    SearchReply,
    Several,
    Status,
    StatusReply,
    Unlock,
    Verify,
    VerifyReply,
)
from spanvault.transport import Certificate, connect, load_certificate
from spanvault.wire import decode_media, decode_reply, encode

TIMEOUT_S: Final = 20.0
VERIFY_TIMEOUT_S: Final = 600.0  # a long recording is read from disk in one go
SEVERAL: Final = 250  # calls of one request
ERASE_TIMEOUT_S: Final = 600.0  # thousands of keys, behind a commit that is under way

R = TypeVar("R", bound=Message)


class RequestFailed(Exception):
    """A request that was not carried out. code: as in messages.Failure; hint: what to do."""

    def __init__(self, code: str, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.code, self.error, self.hint = code, error, hint


class Page(NamedTuple):
    """One answer to Fetch. next: where to go on, None at the end. faults: what was unreadable.

    keys: of the call's SRTP, with the first page.
    """

    media: Media
    next: int | None
    faults: list[str]
    keys: Sequence[MediaKey] = ()


class Client:
    """A connection to storaged. Use as a context manager. Methods raise RequestFailed."""

    def __init__(
        self, endpoint: str, certificate: Certificate, server: Certificate, timeout_s: float
    ) -> None:
        self._endpoint, self._certificate, self._server = endpoint, certificate, server
        self._timeout_s = timeout_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self.locked: list[str] = []  # pools whose calls the last page of a search left out

    @classmethod
    def of(cls, config: OperatorConfig, timeout_s: float = TIMEOUT_S) -> "Client":
        """A client by the command's settings. Raises ValueError for a bad certificate."""
        own = load_certificate(config.certificate)
        return cls(config.storaged, own, load_certificate(config.storaged_certificate), timeout_s)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        self._drop()
        self._context.term()

    def request(
        self, message: Message, expected: type[R], timeout_s: float | None = None
    ) -> tuple[R, list[Any]]:
        """Send one request, wait for its reply and the frames behind it."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        socket = self._connected()
        socket.send_multipart(encode(message))
        if not socket.poll(int(limit_s * 1000)):
            # A reply that comes later must not be taken for the next one's.
            self._drop()
            raise RequestFailed(
                "unavailable",
                f"storaged at {self._endpoint} gave no answer in {limit_s:g} s",
                "Is it busy, or is this certificate missing from its clients folder? "
                "See: systemctl status spanvault-storaged",
            )
        try:
            reply, bulk = decode_reply(socket.recv_multipart())
        except ValueError as error:
            raise RequestFailed("unavailable", f"storaged's answer is not ours: {error}") from None
        if isinstance(reply, Failure):
            raise RequestFailed(reply.code, reply.error, reply.hint)
        if not isinstance(reply, expected):
            raise RequestFailed("unavailable", f"storaged answered {type(reply).__name__}")
        return reply, bulk

    def status(self, timeout_s: float | None = None) -> StatusReply:
        """How the appliance is."""
        return self.request(Status(), StatusReply, timeout_s)[0]

    def search(self, question: Search) -> Iterator[Call]:
        """Matching calls, newest first, page after page; `limit` is that of all of them."""
        left, cursor = question.limit, question.cursor
        while left > 0:
            page, _ = self.request(_page(question, min(left, 500), cursor), SearchReply)
            self.locked = page.locked
            yield from page.calls[:left]
            left -= len(page.calls)
            cursor = page.cursor
            if cursor is None:
                return

    def get(self, call_id: bytes) -> GetReply:
        """One call, its recording's state and receipts."""
        return self.request(Get(call_id), GetReply)[0]

    def several(self, ids: Sequence[bytes]) -> Iterator[Call]:
        """Calls by their ids, those that are there, in that order."""
        for start in range(0, len(ids), SEVERAL):
            page = list(ids[start : start + SEVERAL])
            yield from self.request(Several(page), SearchReply)[0].calls

    def fetch(
        self, call_id: bytes, cursor: int, *, digits: bool = False, from_ns: int | None = None
    ) -> Page:
        """One page of a call's media. digits: of its telephone events instead.

        from_ns: pass over what lies before that moment; some of it may come all the same.
        """
        reply, bulk = self.request(Fetch(call_id, cursor, digits, from_ns), FetchReply)
        try:
            media = decode_media(bulk) if bulk else NO_MEDIA
        except ValueError as error:
            raise RequestFailed("unavailable", f"storaged's media is not ours: {error}") from None
        return Page(media, reply.cursor, reply.faults, reply.keys)

    def verify(self, call_id: bytes) -> VerifyReply:
        """Check one recording by hash and tag."""
        return self.request(Verify(call_id), VerifyReply, VERIFY_TIMEOUT_S)[0]

    def check_keys(self) -> CheckReply:
        """Check all key files; a damaged root of an open pool is written anew."""
        return self.request(Check("keys"), CheckReply, VERIFY_TIMEOUT_S)[0]

    def check_records(self) -> Iterator[CheckReply]:
        """Check all call records, page after page; what is damaged is brought back if it can be."""
        cursor: bytes | None = b""
        while cursor is not None:
            page, _ = self.request(Check("records", cursor), CheckReply, VERIFY_TIMEOUT_S)
            yield page
            cursor = page.cursor

    def check_ledgers(self) -> Iterator[CheckReply]:
        """Check the ledgers, page after page; what damaged files held is written anew."""
        cursor: bytes | None = b""
        while cursor is not None:
            page, _ = self.request(Check("ledgers", cursor), CheckReply, VERIFY_TIMEOUT_S)
            yield page
            cursor = page.cursor

    def recordings(self) -> Iterator[CheckReply]:
        """The ids of all recordings in open pools, page after page."""
        cursor: bytes | None = b""
        while cursor is not None:
            page, _ = self.request(Check("recordings", cursor), CheckReply)
            yield page
            cursor = page.cursor

    def mend(self, ids: Sequence[bytes], *, again: bool) -> list[Mending]:
        """How it stands with damaged recordings; all that are known if no ids are given.

        again: check them first, and have all targets asked anew.
        """
        wanted = Mend(list(ids), again)
        return self.request(wanted, MendReply, VERIFY_TIMEOUT_S)[0].recordings

    def erase(self, ids: Sequence[bytes], reason: str, *, unfinished: bool) -> EraseReply:
        """Erase calls for good: all of them, or none."""
        wanted = Erase(list(ids), reason, unfinished)
        return self.request(wanted, EraseReply, ERASE_TIMEOUT_S)[0]

    def move(self, ids: Sequence[bytes], pool: str, reason: str) -> MoveReply:
        """Move calls up into a higher pool: all of them, or none."""
        return self.request(Move(list(ids), pool, reason), MoveReply, ERASE_TIMEOUT_S)[0]

    def erasures(self, call_id: bytes | None = None) -> Iterator[Erasure]:
        """Erasures, newest first; or the one that a call went with."""
        wanted = Erasures(call_id)
        while True:
            page, _ = self.request(wanted, ErasuresReply)
            yield from page.erasures
            if page.cursor is None:
                return
            wanted = Erasures(cursor=page.cursor)

    def certificate(self, call_id: bytes) -> str:
        """The certificate of an erased call: JSON."""
        return self.request(Certify(call_id), CertifyReply)[0].document

    def keys(self) -> KeysReply:
        """How the pools' keys are."""
        return self.request(Keys(), KeysReply)[0]

    def change_keys(self, message: Unlock | Lock | Rotate | Recipients) -> None:
        """Unlock, lock or rotate a pool, or change who opens it."""
        self.request(message, Done)

    def offer_share(self, pool: str, share: str) -> OfferShareReply:
        """Give one share of a key that a pool is sealed to."""
        return self.request(OfferShare(pool, share), OfferShareReply)[0]

    def _connected(self) -> "zmq.Socket[bytes]":
        if self._socket is None:
            refuse_dead_socket(self._endpoint)
            self._socket = connect(self._context, self._endpoint, self._certificate, self._server)
        return self._socket

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None


def _page(question: Search, limit: int, cursor: bytes | None) -> Search:
    fields = {name: getattr(question, name) for name in question.__struct_fields__}
    return Search(**{**fields, "limit": limit, "cursor": cursor})


def refuse_dead_socket(endpoint: str) -> None:
    """Raise RequestFailed at once where nobody listens at an ipc endpoint, rather than wait."""
    if not endpoint.startswith("ipc:///"):
        return
    path = endpoint.removeprefix("ipc://")
    probe = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError as error:
        if error.errno == errno.EACCES:
            hint = "Run it as root, or as a member of the group that owns the socket."
        else:
            hint = (
                "Is it running? systemctl start spanvault.target; why it does not: "
                "journalctl -u spanvault-storaged. Or name a store: --store DIR"
            )
        reason = (error.strerror or str(error)).lower()
        raise RequestFailed(
            "unavailable", f"storaged cannot be reached at {path} ({reason})", hint
        ) from None
    finally:
        probe.close()
