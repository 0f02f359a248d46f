"""Which SIP message begins a call, which one only proves that there is one, and what it tells.

Sources: RFC 3261 §12.1 (dialog ids), §16.6 and §17.1.1.2 (branches), §22.2 (challenges). What
later messages mean: capture.calls.signalling. Which call they are of: capture.calls.calltable.
"""

from collections.abc import Iterable
from typing import Final

from capture.calls.identity import asserted, hidden
from capture.calls.livecall import LiveCall
from capture.model import Datagram
from capture.signalling.dialog import RETRIED, Dialog
from capture.signalling.offer_answer import OfferAnswer
from capture.signalling.sip import COMPACT, SipMessage

MAX_INVITES: Final = 64  # transactions remembered of one call
MAX_KEPT: Final = 8  # values of one header that are kept with a call
STAYS_NS: Final = 5_000_000_000  # T4: no message stays longer in the network
RETRANSMITTED_NS: Final = 32_000_000_000  # 64·T1: no copy of a message comes later
# Responses to these, and the requests themselves, can be of a call whose INVITE was missed.
# CANCEL alone is no such: what it cancels never had media, and its 487 will tell.
OF_A_CALL: Final = frozenset({"INVITE", "BYE", "PRACK", "UPDATE", "INFO", "ACK"})


def begins_call(message: SipMessage) -> bool:
    """Whether this is an INVITE outside any dialog."""
    return message.is_request and message.method == "INVITE" and not message.to.tag


def reveals_call(message: SipMessage) -> bool:
    """Whether a message we know no call for proves that there is one."""
    if message.method not in OF_A_CALL:
        return False
    if message.is_request:
        return bool(message.to.tag)
    if message.method == "INVITE":
        return True
    return message.status is not None and 200 <= message.status < 300


def begins_anew(call: LiveCall, message: SipMessage, datagram: Datagram) -> bool:
    """Whether an INVITE under a known Call-ID and tag is another call, not a copy or a retry."""
    numbers = [int(key.partition(" ")[0]) for key in call.invites]
    if call.over:
        late = datagram.time_ns - (call.ended_ns or 0) > RETRANSMITTED_NS
        retried = call.dialog.status in RETRIED and message.cseq not in numbers
        copy = message.cseq in numbers and not _another_branch(call, message, datagram)
        return not retried and (late or not copy)
    if call.dialog.answered_ns is None or message.cseq <= max(numbers, default=0xFFFFFFFF):
        return False
    return datagram.time_ns - call.dialog.answered_ns > RETRANSMITTED_NS


def overtaken(call: LiveCall, message: SipMessage, datagram: Datagram) -> bool:
    """Whether an INVITE is the one that began a call of which replies were heard before it.

    So where each direction has a tap, or an agent, of its own: no two are equally fast.
    """
    midway = "started_mid_call" in call.flags and not call.invites
    return midway and begins_call(message) and datagram.time_ns - call.started_ns <= STAYS_NS


def begun(call: LiveCall, message: SipMessage, datagram: Datagram, headers: Iterable[str]) -> None:
    """Note what the INVITE that began a call tells of it, heard behind its first reply."""
    call.flags.discard("started_mid_call")
    call.caller_host, call.callee_host = datagram.source.address, datagram.destination.address
    call.invite_target = datagram.destination.address
    call.dialled, call.headers = message.request_user, _kept(message, headers)
    if call.dialog.outcome == "unknown":
        call.dialog.outcome = "in_progress"


def new_call(
    message: SipMessage, datagram: Datagram, call_id: bytes, headers: Iterable[str]
) -> LiveCall:
    """What the first message heard of a call tells of it.

    call_id: its id.  headers: names of those that are kept, for storaged's rules.
    """
    ends = (datagram.source.address, datagram.destination.address)
    caller, callee = ends if message.is_request else ends[::-1]
    dialog = Dialog(changed_ns=datagram.time_ns)
    if message.is_request and message.method != "INVITE":
        dialog.outcome = "unknown"  # it may or may not have been answered before we listened
    call = LiveCall(
        id=call_id,
        call_id=message.call_id,
        caller_tag=message.from_.tag,
        caller=message.from_.user,
        callee=message.to.user,
        started_ns=datagram.time_ns,
        dialog=dialog,
        offer_answer=OfferAnswer(),
        caller_host=caller,
        callee_host=callee,
        invite_target=callee,
        dialled=message.request_user,
        headers=_kept(message, headers),
    )
    unmask(call, message)
    return call


def unmask(call: LiveCall, message: SipMessage) -> bool:
    """Name a caller who asked not to be shown, if the network says who it is; returns whether.

    A phone's INVITE does not say yet, the copy behind its proxy does.
    """
    if not hidden(message):
        return False
    call.flags.add("anonymous")
    caller = asserted(message)
    known, call.caller = call.caller, caller or call.caller
    return call.caller != known


def _kept(message: SipMessage, names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        long = COMPACT.get(name.lower(), name.lower())
        if values := message.headers.get(long):
            found[long] = values[:MAX_KEPT]
    return found


def _another_branch(call: LiveCall, message: SipMessage, datagram: Datagram) -> bool:
    """Whether an INVITE that bears the number of an earlier one is another transaction.

    Each hop's copy has a branch of its own, too (RFC 3261 §16.6), but comes at once.
    """
    if f"{message.cseq} {message.branch}" in call.invites or len(call.invites) >= MAX_INVITES:
        return False
    return datagram.time_ns - call.started_ns > STAYS_NS
