"""Calls that belong together: transfers, replaced dialogs, the legs behind a B2BUA, its forks.

Nothing on the wire says that two Call-IDs are one conversation; this collects what comes close:
REFER, Replaces and Join name the other dialog, and a B2BUA that was called calls on, for the same
caller or in what it says is the same session: at once, or when its menu or queue has done with him.
Two legs that share a stream are found where streams are attached.
Sources: RFC 3515, 3891, 5589 (transfer), 3911 (Join), 7092 (B2BUA taxonomy).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from capture.calls.identity import same_number, sessions, tail
from capture.calls.livecall import LiveCall, Referral
from capture.calls.witness import SILENT, Decision, Witness
from capture.model import Datagram, Endpoint
from capture.signalling.dialog import VAGUE, State
from capture.signalling.sip import SipMessage
from spanvault.messages import Outcome

REFERRAL_NS: Final = 40_000_000_000  # a referee calls at once, or after its user agreed
CALL_ON_NS: Final = 30_000_000_000  # a B2BUA calls on while its caller waits
REPLACES: Final = "replaces "  # in front of a Call-ID; no user has a space in it
MAX_REFERRALS: Final = 8  # of one call
MAX_REMEMBERED: Final = 10_000
MAX_WAITING: Final = 64  # calls of one caller at one host

Place = tuple[bytes, str]
Waiting = OrderedDict[bytes, tuple[Endpoint, LiveCall]]


class Relations:
    """What is remembered to find them. Calls are compared, never changed but for `related`."""

    def __init__(
        self, lookup: Callable[[bytes], LiveCall | None], witness: Witness = SILENT
    ) -> None:
        self._lookup, self._witness = lookup, witness
        self.changed: set[bytes] = set()
        self._referrals: OrderedDict[tuple[bytes, str], tuple[LiveCall, Referral]] = OrderedDict()
        # By the host that was called and the caller's last digits; then by id, oldest first.
        self._waiting: dict[Place, Waiting] = {}
        self._places: dict[bytes, Place] = {}  # of each call
        self._sessions: OrderedDict[str, tuple[Endpoint, LiveCall]] = OrderedDict()  # who began it
        self._named: dict[bytes, list[str]] = {}  # the sessions that a call began

    def referred(
        self, call: LiveCall, message: SipMessage, datagram: Datagram, replaced: LiveCall | None
    ) -> None:
        """A REFER in this call. replaced: the call it wants taken over, if we know it."""
        target, replaces = message.refer_to, message.refer_replaces
        if target is None or len(call.referrals) >= MAX_REFERRALS:
            return
        referral = Referral(
            time_ns=datagram.time_ns,
            referee=datagram.destination.address,
            target=target.user,
            replaces=replaces.call_id if replaces else None,
        )
        if any(_places(known) == _places(referral) for known in call.referrals):
            return  # sent again
        call.referrals.append(referral)
        call.flags.add("transferred")
        if replaces is not None:
            self._relate("transfer", call, replaces.call_id, replaced)
        for place in _places(referral):
            self._referrals[place] = (call, referral)
        while len(self._referrals) > MAX_REMEMBERED:
            self._referrals.popitem(last=False)

    def named(self, kind: str, call: LiveCall, call_id: str, other: LiveCall | None) -> None:
        """The INVITE that began a call names another one. other: that, if we know it."""
        self._relate(kind, call, call_id, other)

    def invited(self, call: LiveCall, message: SipMessage, datagram: Datagram) -> None:
        """A call began."""
        found = self._referrals.get((datagram.source.address, call.callee))
        if found is None and message.replaces is not None:
            taken = REPLACES + message.replaces.call_id
            found = self._referrals.get((datagram.source.address, taken))
        if found is not None and 0 <= datagram.time_ns - found[1].time_ns <= REFERRAL_NS:
            self._relate("transfer", call, found[0].call_id, found[0])
        ending = tail(call.caller)
        waiting = self._waiting.get((datagram.source.address, ending))
        before = waiting and self._called_on(call, datagram, waiting)
        before = before or self._in_session(call, message, datagram)
        if before:
            self._behind(call, before)
        place = self._places[call.id] = (datagram.destination.address, ending)
        waiting = self._waiting.setdefault(place, OrderedDict())
        waiting[call.id] = datagram.source, call
        if len(waiting) > MAX_WAITING:
            waiting.popitem(last=False)

    def forget(self, call: LiveCall) -> None:
        """The call is gone."""
        place = self._places.pop(call.id, None)
        if place is not None and (waiting := self._waiting.get(place)) is not None:
            waiting.pop(call.id, None)
            if not waiting:
                del self._waiting[place]
        for name in self._named.pop(call.id, ()):
            if name in self._sessions and self._sessions[name][1] is call:
                del self._sessions[name]
        for referral in call.referrals:
            for place in _places(referral):
                if place in self._referrals and self._referrals[place][0] is call:
                    del self._referrals[place]

    def _called_on(self, call: LiveCall, datagram: Datagram, there: Waiting) -> LiveCall | None:
        """The call by which the same caller had called the host that calls here.

        there: those that did.
        """
        callers = [
            (source, other)
            for source, other in reversed(there.values())
            if source != datagram.source and same_number(other.caller, call.caller)
        ]
        waiting = [other for source, other in callers if _waits(other, source, datagram)]
        # A company may show one number in all its calls: then whom they are for tells.
        meant = [other for other in waiting if same_number(other.callee, call.callee)]
        if waiting:
            return (meant or waiting)[0]
        alone = [other for _, other in callers if self._alone(other)]
        return alone[0] if len(alone) == 1 else None

    def _alone(self, call: LiveCall) -> bool:
        """Whether a PBX has answered a call itself, with a menu or a queue, and nobody else has."""
        legs = [leg for leg in map(self._lookup, call.legs) if leg is not None]
        answered = call.dialog.state is State.CONFIRMED
        return answered and all(leg.over for leg in legs) and not _shares(call)

    def _in_session(
        self, call: LiveCall, message: SipMessage, datagram: Datagram
    ) -> LiveCall | None:
        """The call that began the session which this one is said to be part of."""
        found = None
        for name in sessions(message):
            source, other = self._sessions.get(name, (datagram.source, call))
            if _waits(other, source, datagram):
                found = other
            elif other is call or other.over:
                self._sessions[name] = datagram.source, call
                self._named.setdefault(call.id, []).append(name)
        while len(self._sessions) > MAX_REMEMBERED:
            self._sessions.popitem(last=False)
        return found

    def _behind(self, call: LiveCall, before: LiveCall) -> None:
        """A call is a leg that a B2BUA made for the call before."""
        self._relate("b2bua", call, before.call_id, before)
        for sibling in map(self._lookup, before.legs):
            if sibling is not None and sibling.caller_host == call.caller_host:
                self._relate("fork", call, sibling.call_id, sibling)
        before.legs.append(call.id)

    def ended(self, call: LiveCall) -> None:
        """A call is over: of one that was refused, the legs behind it may say why."""
        if call.dialog.end_reason == "rejected":
            legs = [leg for leg in map(self._lookup, call.legs) if leg is not None]
            meant = _outcome_behind(call.dialog.status or 0, legs)
            call.dialog.outcome = meant or call.dialog.outcome

    def _relate(self, kind: str, call: LiveCall, call_id: str, other: LiveCall | None) -> None:
        if other is call or (other is None and call_id == call.name):
            return
        if call.relate(kind, call_id):
            self.changed.add(call.id)
            self._witness.decided(Decision.RELATED, call, kind=kind, call_id=call_id)
        if other is not None and other.relate(kind, call.call_id):
            self.changed.add(other.id)


def _places(referral: Referral) -> list[Place]:
    """Where the call that a REFER asks for will be known by: its callee, or what it replaces.

    The one who refers may name a host only, and whom to replace there (RFC 5589 §7).
    """
    places = [(referral.referee, referral.target)]
    if referral.replaces:
        places.append((referral.referee, REPLACES + referral.replaces))
    return places


def _shares(call: LiveCall) -> bool:
    """Whether another leg of a call is known that it was not the first of."""
    return any(other.kind == "b2bua" for other in call.related) and not call.legs


def _waits(other: LiveCall, source: Endpoint, datagram: Datagram) -> bool:
    """Whether a call from `source` may be what a B2BUA now calls on for. It is not answered yet."""
    return (
        not other.over
        and other.dialog.state is not State.CONFIRMED
        and source != datagram.source
        and 0 <= datagram.time_ns - other.started_ns <= CALL_ON_NS
    )


def _outcome_behind(status: int, legs: list[LiveCall]) -> Outcome | None:
    """What a B2BUA's vague refusal meant, by what became of the legs behind it.

    None where that does not say more. A leg that the B2BUA itself gave up had not been answered.
    """
    if status not in VAGUE or not legs:
        return None
    fates: set[Outcome] = {
        "cancelled" if leg.dialog.state is State.CANCELLING else leg.dialog.outcome for leg in legs
    }
    if fates == {"cancelled"}:
        return "no_answer"
    if len(fates) == 1 and fates <= {"busy", "declined", "not_found", "no_answer"}:
        return fates.pop()
    return None
