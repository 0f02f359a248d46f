"""What one SIP message means for the call it belongs to.

Which call that is and when it is over: capture.calls.calls. Here the message moves the dialog
(capture.signalling.dialog), its description moves the session (capture.signalling.offer_answer),
and what the session says about addresses becomes bindings (capture.calls.association).
Sources: RFC 3261 §12.1 (dialog ids), §9 (CANCEL), §13.2.2.4 (forks), §17.1.1.2 (branches).
"""

from collections.abc import Callable
from typing import Final

from capture.calls.association import Association
from capture.calls.attachment import Attachments
from capture.calls.beginning import MAX_INVITES, unmask
from capture.calls.livecall import Binding, LiveCall
from capture.calls.witness import SILENT, Decision, Witness
from capture.model import Datagram, Endpoint
from capture.signalling import sdp, siprec
from capture.signalling.dialog import Event, State, event_of
from capture.signalling.offer_answer import Change, Side, answered_flags
from capture.signalling.sip import SipMessage
from spanvault.messages import MediaKind

MAX_DIALOGS: Final = 64
KINDS: Final[dict[str, MediaKind]] = {
    "audio": "audio", "video": "video", "text": "text", "image": "fax",
}  # fmt: skip


def sender(call: LiveCall, message: SipMessage, datagram: Datagram) -> Side:
    """Which party sent it: From names the sender of the request, RFC 3261 §8.1.1.3."""
    if message.from_.tag == call.caller_tag:
        caller = message.is_request
    elif message.to.tag == call.caller_tag:
        caller = not message.is_request
    else:
        # Damaged tags: the address is the next best witness.
        caller = datagram.source.address == call.caller_host
    return "caller" if caller else "callee"


class Signalling:
    """Applies messages to calls."""

    def __init__(
        self,
        association: Association,
        attachments: Attachments,
        count: Callable[[str], None],
        witness: Witness = SILENT,
    ) -> None:
        self._association, self._attachments, self._count = association, attachments, count
        self._witness = witness

    def receive(self, call: LiveCall, message: SipMessage, datagram: Datagram) -> bool:
        """Apply a message. Returns whether the call began, was answered or ended by it."""
        call.heard_ns = datagram.time_ns
        side = sender(call, message, datagram)
        tag = _callee_tag(call, message)
        if message.secure:
            call.flags.add("sip_tls")
        if message.cut:
            call.flags.add("sip_cut")
        if message.focus:
            call.flags.add("conference")
        changed = False
        if message.is_request and message.method == "INVITE" and not message.to.tag:
            _note(call.invites, message)
            changed = unmask(call, message)
        if message.method == "BYE" and event_of(message) is Event.BYE:
            _remember_bye(call, message)
        changed |= self._move(call, message, datagram, tag)
        if message.recording_metadata is not None:
            changed |= self._recorded(call, message.recording_metadata)
        body = message.sdp
        if body is not None:
            self._describe(call, message, datagram, side, tag, body)
        elif message.status is not None and message.status >= 300:
            call.offer_answer.refuse(tag, message.cseq)
        if call.siprec is not None:
            call.labels |= siprec.labelled(call.offer_answer)
        return changed

    def _recorded(self, call: LiveCall, document: bytes) -> bool:
        """A recording client says whom it recorded. Returns whether it could be read."""
        try:
            told = siprec.parse(document)
        except ValueError as error:
            self._count("siprec_unreadable")
            self._witness.decided(Decision.SIPREC_UNREADABLE, call, fault=str(error))
            return False
        call.siprec = call.siprec or siprec.Metadata()
        call.siprec.merge(told)
        call.flags.add("siprec")
        self._witness.decided(Decision.SIPREC, call, told=call.siprec.told())
        return True

    # --- the dialog -------------------------------------------------------------------------

    def _move(self, call: LiveCall, message: SipMessage, datagram: Datagram, tag: str) -> bool:
        event = event_of(message)
        if event is None:
            return self._evidence(call, message, datagram)
        if event is Event.INVITE and message.to.tag:
            return self._reinvite(call, datagram, tag)
        if event is Event.CHALLENGE:
            _note(call.challenged, message)
        elif event in (Event.INVITE, Event.PROVISIONAL) and _key(message) in call.challenged:
            return False  # it was overtaken by what the transaction ended with, or is a copy
        if event in (Event.CANCEL, Event.REFUSE, Event.CHALLENGE) and not _first_hop(call, message):
            self._witness.decided(Decision.OTHER_BRANCH, call)
            return False  # one branch of a forking proxy failed; the caller hears of another
        if event is Event.ANSWER:
            _confirm(call, tag)
        if event is Event.PROVISIONAL and message.status == 100 and call.confirmed:
            return False
        if event is Event.BYE and not _last_dialog(call, tag):
            self._witness.decided(Decision.OTHER_DIALOG, call)
            return False
        return self._happen(call, event, datagram.time_ns, message.status or 0, message.cause)

    def _happen(
        self, call: LiveCall, event: Event, time_ns: int, status: int = 0, cause: int | None = None
    ) -> bool:
        before = call.dialog.state
        changed = call.dialog.receive(event, time_ns, status, cause)
        after = call.dialog.state
        self._witness.decided(Decision.MOVED, call, event=event, before=before, after=after)
        return changed

    def _evidence(self, call: LiveCall, message: SipMessage, datagram: Datagram) -> bool:
        """An ACK of a transaction of its own acknowledges a 2xx, RFC 3261 §13.2.2.4."""
        if message.method != "ACK" or not message.is_request or not call.invites:
            return False
        if call.dialog.state not in (State.CALLING, State.PROCEEDING) or not message.branch:
            return False
        if any(branch == message.branch for _, branch in _transactions(call)):
            return False
        _confirm(call, message.to.tag)
        return self._happen(call, Event.ANSWER, datagram.time_ns)

    def _reinvite(self, call: LiveCall, datagram: Datagram, tag: str) -> bool:
        """An INVITE inside a dialog: the call was answered, whether we heard it or not."""
        before = call.dialog.state
        if before in (State.CONFIRMED, State.TERMINATED):
            self._witness.decided(
                Decision.MOVED, call, event=Event.INVITE, before=before, after=before
            )
            return False
        _confirm(call, tag)
        call.dialog.confirm(datagram.time_ns)
        self._witness.decided(
            Decision.MOVED, call, event=Event.ANSWER, before=before, after=State.CONFIRMED
        )
        return True

    # --- the session ------------------------------------------------------------------------

    def _describe(
        self,
        call: LiveCall,
        message: SipMessage,
        datagram: Datagram,
        side: Side,
        tag: str,
        body: bytes,
    ) -> None:
        try:
            description = sdp.parse(body)
        except ValueError as error:
            self._count("sdp_unreadable")
            self._witness.decided(Decision.SDP_UNREADABLE, call, fault=str(error))
            return
        change = call.offer_answer.receive(message, side, tag, description)
        if change is None:
            self._witness.decided(Decision.SDP_OUT_OF_PLACE, call)
            return
        self._witness.decided(
            Decision.DESCRIBED,
            call,
            side=change.side,
            role=change.role,
            reoffer=change.reoffer,
            media=change.media,
        )
        for media in change.media:
            call.learn(media.keys)
            call.keyless |= media.accepted and media.crypto and not media.keys
        self._flag(call, change, datagram)
        for media in change.media:
            if not self._bind(call, side, tag, media, datagram):
                self._witness.decided(Decision.NOT_BOUND, call, media=media)
        for media in change.rejected:
            self._unbind(call, media, datagram.time_ns)
        if change.agreed:
            for media in call.offer_answer.fax_lines():
                self._unbind(call, media, datagram.time_ns)

    def _flag(self, call: LiveCall, change: Change, datagram: Datagram) -> None:
        if change.agreed:
            anew = change.reoffer or "started_mid_call" in call.flags
            hosts = sorted((datagram.source.address.hex(), datagram.destination.address.hex()))
            call.agree(datagram.time_ns, anew, "-".join(hosts), answered_flags(change))
        # A recording client only ever sends: to its server, sendonly is no hold.
        if change.agreed and change.reoffer and call.siprec is None:
            if call.held != call.offer_answer.held:
                self._witness.decided(Decision.HELD, call, held=call.offer_answer.held)
            call.held = call.offer_answer.held
            if call.held:
                call.flags.add("hold")
        if call.offer_answer.delayed and "started_mid_call" not in call.flags:
            call.flags.add("delayed_offer")
        tags = [tag for tag in call.offer_answer.sessions if tag]
        if len(tags) > 1:
            call.flags.add("forked")

    def _bind(
        self, call: LiveCall, side: Side, tag: str, media: sdp.Media, datagram: Datagram
    ) -> bool:
        """Note where a side receives. Returns whether it named any address."""
        if media.kind not in KINDS or not (media.accepted and media.rtp):
            return False
        named = bool(media.address) and not media.nowhere
        if named:
            self._bind_end(call, side, tag, media, (media.address or b"", media.port), datagram)
        for end in media.candidates:
            self._bind_end(call, side, tag, media, end, datagram, candidate=True)
        return named or bool(media.candidates)

    def _bind_end(
        self,
        call: LiveCall,
        side: Side,
        tag: str,
        media: sdp.Media,
        end: tuple[bytes, int],
        datagram: Datagram,
        candidate: bool = False,
    ) -> None:
        endpoint = Endpoint(*end)
        binding = Binding(
            endpoint, side, KINDS[media.kind], media.codecs, datagram.time_ns,
            datagram.source.address, rtcp_port=media.rtcp_port, candidate=candidate,
            orientation=media.orientation if media.kind == "video" else 0,
            tags=[tag] if tag and side == "callee" else [],
        )  # fmt: skip
        new = self._association.bind(call, binding)
        self._witness.decided(Decision.BOUND, call, binding=binding, new=new)
        if new:
            self._attachments.bound(call, endpoint, datagram.time_ns)

    def _unbind(self, call: LiveCall, media: sdp.Media, time_ns: int) -> None:
        """No RTP will be sent there: the line was refused (port 0), or T.38 takes its place.

        Half of all T.38 over UDPTL begins as RTP does: its first bits are a number.
        """
        ends = {(media.address, media.port), *media.candidates}
        for binding in call.bindings:
            same = (binding.endpoint.address, binding.endpoint.port) in ends
            if same and binding.until_ns is None and len(call.offer_answer.sessions) <= 2:
                binding.until_ns = time_ns
                self._witness.decided(Decision.UNBOUND, call, binding=binding)


def _callee_tag(call: LiveCall, message: SipMessage) -> str:
    if message.from_.tag == call.caller_tag:
        return message.to.tag
    return message.from_.tag


def _confirm(call: LiveCall, tag: str) -> None:
    if tag not in call.confirmed and len(call.confirmed) < MAX_DIALOGS:
        call.confirmed.append(tag)


def _key(message: SipMessage) -> str:
    """Of an INVITE and of all replies to it, on one hop: RFC 3261 §17.1.3."""
    return f"{message.cseq} {message.branch}"


def _note(transactions: list[str], message: SipMessage) -> None:
    key = _key(message)
    if key not in transactions and len(transactions) < MAX_INVITES:
        transactions.append(key)


def _remember_bye(call: LiveCall, message: SipMessage) -> None:
    if message.branch in call.byes or len(call.byes) < MAX_DIALOGS:
        call.byes[message.branch] = call.byes.get(message.branch, False) or not message.is_request


def _transactions(call: LiveCall) -> list[tuple[str, str]]:
    return [(number, branch) for number, _, branch in (key.partition(" ") for key in call.invites)]


def _first_hop(call: LiveCall, message: SipMessage) -> bool:
    """Whether a message is of the branch on which the call was first heard, or might be."""
    branches = [branch for number, branch in _transactions(call) if number == str(message.cseq)]
    return message.branch not in branches or message.branch == branches[0]


def _last_dialog(call: LiveCall, tag: str) -> bool:
    """Note that a dialog parted. Whether none is left: another fork may go on."""
    if tag not in call.confirmed:
        return True
    if tag not in call.parted:
        call.parted.append(tag)
    return all(other in call.parted for other in call.confirmed)
