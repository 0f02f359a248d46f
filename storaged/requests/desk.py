"""The request API: one message in, one reply out; denied, logged and answered in one place.

Who may ask: storaged.requests.policy. What replicas are fed: storaged.requests.feeding. What the
access log says of a request: storaged.requests.subjects. Calls and media: storaged.requests.lookup.
Imports: storaged.integrity.restoring. Sockets, and requests that wait: storaged.serving. Protocol:
WIRE.md §6.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import lmdb
import msgspec

from spanvault import messages as m
from spanvault import wire
from spanvault.media.chunk import Media
from spanvault.transport import Identity
from storaged.diskfaults import explain
from storaged.erasing import certifying
from storaged.erasing.beside import Paced
from storaged.erasing.eraser import STORAGED, Eraser
from storaged.erasing.moving import Mover
from storaged.erasing.retention import Retention
from storaged.erasing.retiring import Retirer
from storaged.faults import Fault
from storaged.format import record
from storaged.format.walk import Steps, finish
from storaged.index.environment import Index
from storaged.index.rows import DamagedRow
from storaged.integrity.checks import Checks
from storaged.integrity.mending import Mender
from storaged.integrity.restoring import Restorer
from storaged.pools.layout import Store
from storaged.pools.opening import Opener
from storaged.pools.vaults import Vaults
from storaged.requests import policy, subjects
from storaged.requests.accesslog import AccessLog
from storaged.requests.custody import Custody
from storaged.requests.feeding import FeedSource, target_of
from storaged.requests.lookup import Lookup
from storaged.requests.receipts import Receipts
from storaged.requests.subjects import SEVERAL_MAX
from storaged.requests.witness import Witness

log = logging.getLogger(__name__)
UNLOGGED: Final = (
    "Nothing is given out, opened or erased that cannot be logged: free space on the store's disk."
)
_HEALTH_MAX: Final = 64 << 10  # bytes of one daemon's account of itself
_encode: Final = msgspec.msgpack.Encoder().encode


class Answer(NamedTuple):
    """A reply and what travels behind it."""

    reply: Any
    bulk: list[bytes] = []  # noqa: RUF012 - never changed
    media: Media | None = None

    def frames(self) -> list[Any]:
        """As wire frames."""
        if self.media is not None:
            return wire.encode_media(self.reply, self.media)
        return wire.encode(self.reply, *self.bulk)


class Desk:
    """Answers requests. For one thread."""

    def __init__(
        self, store: Store, index: Index, vaults: Vaults, access: AccessLog, eraser: Eraser,
        mender: Mender, mover: Mover, clock_ns: Callable[[], int],
        state: Callable[[], tuple[str, dict[str, Any]]], opener: Opener, retention: Retention,
        retirer: Retirer,
    ) -> None:  # fmt: skip
        self._store, self._index, self._vaults, self._eraser = store, index, vaults, eraser
        self._access, self._clock_ns, self._state = access, clock_ns, state
        self._mender, self._mover = mender, mover
        self._lookup = Lookup(index, vaults, mender.reader)
        self._checks = Checks(index, vaults, clock_ns)
        self._retention, self._retirer = retention, retirer
        self._witness = Witness(access, index, store, vaults.base, clock_ns)
        self._restorer = Restorer(store, index, vaults, clock_ns, opener)
        self._source = FeedSource(store, index, vaults, mender)
        self._receipts = Receipts(store, index, vaults.base, clock_ns)
        self.custody = Custody(index, vaults, clock_ns, opener, retirer)
        self._health: dict[str, tuple[m.Health, int]] = {}
        self._handlers: dict[type, Callable[[Any, list[Any]], Answer]] = {
            m.Status: self._status,
            m.Several: lambda request, _: Answer(self._lookup.several(request)),
            m.Get: lambda request, _: Answer(self._lookup.get(request)),
            m.ReadObject: self._read_object,
            m.Import: self._import,
            m.Erasures: self._erasures,
            m.Certify: self._certify,
        }

    def answer(self, who: Identity, request: Any, bulk: list[Any]) -> Answer:
        """Carry a request out, write it down, give the answer."""
        return finish(self.answering(who, request, bulk))

    def answering(self, who: Identity, request: Any, bulk: list[Any]) -> Steps[Answer]:
        """answer() in steps of some milliseconds, so that a long one holds up no other."""
        denied = policy.denial(who, request)
        if denied is None:
            answer = self._noted(who, request) or (yield from self._carry_out(who, request, bulk))
        else:
            answer = Answer(m.Failure("denied", *denied))
        return self._logged(who, request, answer)

    def following(self) -> Steps[None]:
        """Complete what a disk held up; move up what must follow its call; erase what is due.

        In steps; each move and each erasure is in the log before it is begun.
        """
        begun = partial(self._write_down, STORAGED, result="begun")
        for steps in (self._eraser.catching_up(), self._mover.following(begun),
                      self._retention.sweeping(begun)):  # fmt: skip
            try:
                yield from steps
            except Exception:  # recording must go on, whatever this stumbled over
                log.exception("What storaged does by itself failed by a fault of ours")

    def converting(self) -> Paced:
        """Make search rows of erased calls go, in steps."""
        try:
            yield from self._eraser.converter.converting()
        except lmdb.PanicError:
            raise
        except Exception:  # recording must go on, whatever this stumbled over
            log.exception("Search rows of erased calls stay by a fault of ours")

    def retiring(self) -> Steps[None]:
        """Replace and destroy ingest keys that are due, in steps."""
        try:
            yield from self._retirer.retiring()
        except lmdb.PanicError:
            raise
        except Exception:  # recording must go on, whatever this stumbled over
            log.exception("Ingest keys of erased calls stay by a fault of ours")

    def refuse(self, who: Identity, error: str) -> Answer:
        """The answer to a message that could not be read."""
        failure = m.Failure("invalid", error, "Both ends must run the same version of spanvault.")
        return self._logged(who, None, Answer(failure))

    def sync_log(self, *, ending: bool = False) -> None:
        """Make the log's lines durable that did not have to be at once; tell replicas of it."""
        try:
            self._access.sync()
            if not ending:
                self._access.make_room()
        except OSError as error:
            log.error("The access log cannot be synced", extra={"FAULT": str(error)})
        else:
            self._witness.tick(now=ending)

    def busy(self, who: Identity, request: Any, most: int) -> Answer:
        """The answer to one request too many: no client may fill the waiting room."""
        failure = m.Failure(
            "unavailable",
            f"{most} requests of this client are under way already",
            "Wait for their replies, or give each program a certificate of its own.",
        )
        return self._logged(who, request, Answer(failure))

    def take_health(self, who: Identity, health: m.Health) -> None:
        """Keep a daemon's account of itself. It speaks for the identity that sent it.

        Raises ValueError for one that is too long.
        """
        size = len(health.daemon) + len(health.state) + len(_encode(health.fields))
        if size > _HEALTH_MAX:
            raise ValueError(f"an account of {size} bytes, at most {_HEALTH_MAX} are kept")
        self._health[str(who)] = (health, self._clock_ns())
        if who.role == "capture":
            self._retirer.holding.hear(who.name, health)

    def can_wait(self, who: Identity, request: Any) -> bool:
        """Whether this is a Feed that has nothing to tell yet, and would wait."""
        return (
            isinstance(request, m.Feed)
            and policy.may_ask(who.role, request)
            and request.wait_ms > 0
            and request.position >= self._index.position
            and not (who.role == "replicator" and self._mender.wants(target_of(who, request)))
        )

    def _carry_out(self, who: Identity, request: Any, bulk: list[Any]) -> Steps[Answer]:
        try:
            if isinstance(request, m.Erase):
                return Answer((yield from self._eraser.erasing(str(who), request)))
            if isinstance(request, m.Move):
                return Answer((yield from self._mover.moving(str(who), request)))
            if isinstance(request, m.Verify):
                return Answer((yield from self._mender.checking(request.id)))
            if isinstance(request, m.Check):
                return Answer((yield from self._checks.answering(request)))
            if isinstance(request, m.Mend):
                return Answer((yield from self._mending(request)))
            if isinstance(request, m.Return):
                return Answer((yield from self._returned(who, request, bulk)))
            if isinstance(request, m.Feed):
                self._receipts.meet(who, request)
                return Answer(self._source.feed(who, request))
            if isinstance(request, m.Search):
                return Answer((yield from self._lookup.searching(request)))
            if isinstance(request, m.Fetch):
                page, media = yield from self._lookup.fetching(request)
                return Answer(page, media=media)
            if isinstance(request, m.Health):
                return self._take_health(who, request)
            if isinstance(request, m.Receipt | m.ErasureReceipt):
                return self._take_receipt(who, request)
            if handler := self.custody.handlers.get(type(request)):
                reply = handler(request)
                if isinstance(request, m.Unlock | m.OfferShare):
                    yield from self._eraser.finishing()
                return Answer(reply)
            return self._handlers[type(request)](request, bulk)
        except Fault as fault:
            if isinstance(fault, DamagedRow):
                self._index.hurt.tell(fault)
            return Answer(m.Failure(fault.code, fault.error, fault.hint))
        except (OSError, lmdb.Error) as error:
            return Answer(m.Failure("unavailable", explain(error)))
        except Exception:  # recording must go on, whatever a request stumbled over
            log.exception("A request failed by a fault of ours")
            hint = "Look at the journal of spanvault-storaged, and report it."
            return Answer(m.Failure("unavailable", "a fault of storaged itself", hint))

    def _noted(self, who: Identity, request: Any) -> Answer | None:
        """What must be in the log before it is begun is; else the answer why it is not done."""
        if type(request) not in policy.BEFOREHAND:
            return None
        try:
            self._write_down(who, request, "begun")
        except OSError as error:
            return Answer(m.Failure("full", f"access log: {error.strerror}", UNLOGGED))
        return None

    def _write_down(self, who: Identity | str, request: Any, result: str) -> None:
        kind = type(request)
        entry = {
            "at_ns": self._clock_ns(),
            "who": str(who),
            "kind": kind.__name__.lower() if request is not None else "unreadable",
            **subjects.subject_of(request),
            **(self._tokens(request) if isinstance(request, m.Search) else {}),
            "result": result,
        }
        self._access.append(entry, sync=kind in policy.REVEALING)

    def _logged(self, who: Identity, request: Any, answer: Answer) -> Answer:
        kind = type(request)
        result = answer.reply.code if isinstance(answer.reply, m.Failure) else "ok"
        try:
            self._write_down(who, request, result)
        except OSError as error:
            if kind in policy.WITHOUT_LOG:
                return answer
            return Answer(m.Failure("full", f"access log: {error.strerror}", UNLOGGED))
        return answer

    def _tokens(self, request: m.Search) -> dict[str, str]:
        """What was searched for. Nothing while base is locked: such a search finds nothing."""
        if self._vaults.base.locked:
            return {}
        key = self._vaults.base.keyring.index_key
        # A prefix, too: somebody may type a number where an id belongs.
        asked = {"number": (record.NUMBER, request.number),
                 "call_id": (record.CALL_ID, request.call_id),
                 "id_prefix": (record.ID_PREFIX, request.id_prefix)}  # fmt: skip
        return {
            name: record.token(key, kind, text).hex()
            for name, (kind, text) in asked.items() if text is not None
        }  # fmt: skip

    # --- one handler a message -----------------------------------------------------------------

    def _status(self, _: m.Status, __: list[Any]) -> Answer:
        state, fields = self._state()
        now_ns = self._clock_ns()
        daemons = [
            {
                "daemon": health.daemon, "identity": who, "state": health.state,
                "fields": health.fields, "age_s": round((now_ns - at_ns) / 1e9, 1),
            }
            for who, (health, at_ns) in sorted(self._health.items())
        ]  # fmt: skip
        return Answer(m.StatusReply(self._store.store_id.hex(), state, fields, daemons))

    def _take_health(self, who: Identity, health: m.Health) -> Answer:
        try:
            self.take_health(who, health)
        except ValueError as error:
            raise Fault("invalid", str(error), "Send fewer fields.") from None
        return Answer(m.Done())

    def _take_receipt(self, who: Identity, request: m.Receipt | m.ErasureReceipt) -> Answer:
        if isinstance(request, m.Receipt):
            self._receipts.copied(who, request)
        else:
            self._receipts.erased(who, request)
        return Answer(m.Done())

    def _mending(self, request: m.Mend) -> Steps[m.MendReply]:
        if len(request.ids) > SEVERAL_MAX:
            raise Fault("invalid", f"{len(request.ids)} ids", f"Name {SEVERAL_MAX} at most.")
        return (yield from self._mender.asking(request))

    def _returned(self, who: Identity, request: m.Return, bulk: list[Any]) -> Steps[m.Done]:
        """What takes a recording's place is in the log before it does."""
        self._receipts.check(who, request.target)
        yield from self._mender.taking(
            request, bytes(bulk[0]) if bulk else b"",
            lambda: self._write_down(who, request, "replacing"),
        )  # fmt: skip
        return m.Done()

    def _read_object(self, request: m.ReadObject, _: list[Any]) -> Answer:
        total, part = self._source.read_object(request)
        return Answer(m.ReadObjectReply(total), [part])

    def _erasures(self, request: m.Erasures, _: list[Any]) -> Answer:
        with self._index.reading() as view:
            return Answer(certifying.listed(view, request))

    def _certify(self, request: m.Certify, _: list[Any]) -> Answer:
        with self._index.reading() as view:
            text = certifying.certify(view, request.id, self._vaults.base.keyring, self._clock_ns())
        return Answer(m.CertifyReply(text))

    def _import(self, request: m.Import, bulk: list[Any]) -> Answer:
        self._restorer.take(request, bytes(bulk[0]) if bulk else b"")
        return Answer(m.Done())
