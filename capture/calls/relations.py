"""Calls that belong together: transfers, replaced dialogs, the legs behind a B2BUA, its forks.

Nothing on the wire says that two Call-IDs are one conversation; this collects what comes close:
REFER and Replaces name the other dialog, and a B2BUA that was called calls on at once, for the
same caller. Two legs that share a stream are found where streams are attached.
Sources: RFC 3515, 3891, 5589 (transfer), 7092 (B2BUA taxonomy).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from capture.calls.livecall import LiveCall, Referral
from capture.calls.witness import SILENT, Decision, Witness
from capture.model import Datagram, Endpoint
from capture.signalling.dialog import VAGUE, State
from capture.signalling.sip import SipMessage
from spanvault.messages import Outcome

REFERRAL_NS: Final = 40_000_000_000  # a referee calls at once, or after its user agreed
CALL_ON_NS: Final = 30_000_000_000  # a B2BUA calls on while its caller waits
MAX_REFERRALS: Final = 8  # of one call
MAX_REMEMBERED: Final = 10_000
MAX_WAITING: Final = 512  # callers that wait at one host


class Relations:
    """What is remembered to find them. Calls are compared, never changed but for `related`."""

    def __init__(
        self, lookup: Callable[[bytes], LiveCall | None], witness: Witness = SILENT
    ) -> None:
        self._lookup, self._witness = lookup, witness
        self.changed: set[bytes] = set()
        self._referrals: OrderedDict[tuple[bytes, str], tuple[LiveCall, Referral]] = OrderedDict()
        # By the host that was called, then by id, oldest first.
        self._waiting: dict[bytes, OrderedDict[bytes, tuple[Endpoint, LiveCall]]] = {}

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
        if any(known.target == referral.target for known in call.referrals):
            return  # sent again
        call.referrals.append(referral)
        call.flags.add("transferred")
        if replaces is not None:
            self._relate("transfer", call, replaces.call_id, replaced)
        self._referrals[referral.referee, referral.target] = (call, referral)
        if len(self._referrals) > MAX_REMEMBERED:
            self._referrals.popitem(last=False)

    def invited(
        self, call: LiveCall, message: SipMessage, datagram: Datagram, replaced: LiveCall | None
    ) -> None:
        """A call began. replaced: the call its Replaces header names, if we know it."""
        if message.replaces is not None:
            self._relate("replaces", call, message.replaces.call_id, replaced)
        found = self._referrals.get((datagram.source.address, call.callee))
        if found is not None and 0 <= datagram.time_ns - found[1].time_ns <= REFERRAL_NS:
            self._relate("transfer", call, found[0].call_id, found[0])
        self._called_on(call, datagram)
        waiting = self._waiting.setdefault(datagram.destination.address, OrderedDict())
        waiting[call.id] = datagram.source, call
        if len(waiting) > MAX_WAITING:
            waiting.popitem(last=False)

    def forget(self, call: LiveCall) -> None:
        """The call is gone."""
        if (waiting := self._waiting.get(call.invite_target)) is not None:
            waiting.pop(call.id, None)
            if not waiting:
                del self._waiting[call.invite_target]
        for referral in call.referrals:
            key = (referral.referee, referral.target)
            if key in self._referrals and self._referrals[key][0] is call:
                del self._referrals[key]

    def _called_on(self, call: LiveCall, datagram: Datagram) -> None:
        """Whether the host that calls here was itself called a moment ago, by the same caller."""
        waiting = self._waiting.get(datagram.source.address, OrderedDict())
        for source, other in reversed(waiting.values()):
            if (
                other.caller == call.caller
                and not other.over
                and other.dialog.state is not State.CONFIRMED
                and source != datagram.source
                and other.call_id != call.call_id
                and 0 <= datagram.time_ns - other.started_ns <= CALL_ON_NS
            ):
                self._relate("b2bua", call, other.call_id, other)
                for sibling in map(self._lookup, other.legs):
                    if sibling is not None:
                        self._relate("fork", call, sibling.call_id, sibling)
                other.legs.append(call.id)
                return

    def ended(self, call: LiveCall) -> None:
        """A call is over: of one that was refused, the legs behind it may say why."""
        if call.dialog.end_reason == "rejected":
            legs = [leg for leg in map(self._lookup, call.legs) if leg is not None]
            meant = _outcome_behind(call.dialog.status or 0, legs)
            call.dialog.outcome = meant or call.dialog.outcome

    def _relate(self, kind: str, call: LiveCall, call_id: str, other: LiveCall | None) -> None:
        if call.relate(kind, call_id):
            self.changed.add(call.id)
            self._witness.decided(Decision.RELATED, call, kind=kind, call_id=call_id)
        if other is not None and other.relate(kind, call.call_id):
            self.changed.add(other.id)


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
