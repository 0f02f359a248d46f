"""Who may send what where: the offers and answers of one call, over all its dialogs.

Which SDP is an offer and which an answer follows from the transaction that carries it, so a
listener who missed half still knows whose media a description is. Fed with descriptions, it tells
what each party now has; that is turned into bindings elsewhere (capture.calls.association).
Sources: RFC 3264; RFC 6337 table 1 (where offers and answers may ride); RFC 3261 §13.2.1 (delayed
offer), RFC 3262 §5 (PRACK), RFC 3311 §5 (UPDATE); forks: RFC 3261 §13.2.2.4.
"""

from typing import Final, Literal

import msgspec

from capture.signalling.sdp import Description, Media
from capture.signalling.sip import SipMessage

Side = Literal["caller", "callee"]
Role = Literal["offer", "answer"]
MAX_FORKS: Final = 32

# May this kind of message carry an offer, and may it carry an answer? RFC 6337 table 1.
CARRIES: Final[dict[tuple[str, str], tuple[bool, bool]]] = {
    ("INVITE", "request"): (True, False),
    ("INVITE", "provisional"): (True, True),
    ("INVITE", "success"): (True, True),
    ("ACK", "request"): (False, True),
    ("PRACK", "request"): (True, True),
    ("PRACK", "success"): (False, True),
    ("UPDATE", "request"): (True, False),
    ("UPDATE", "success"): (False, True),
}


class Pending(msgspec.Struct, array_like=True):
    """An offer that has no answer yet, or that further forks may still answer."""

    side: Side
    method: str
    cseq: int
    description: Description
    reoffer: bool = False  # the session existed before
    reply: bool = False  # a response brought it


class Change(msgspec.Struct):
    """What one message changed: whose media, in which role, and what it refused of the other's."""

    side: Side
    role: Role
    media: list[Media]
    rejected: list[Media]  # of the other side, by an answer with port 0
    reoffer: bool  # the session existed before
    agreed: bool = True  # both sides have spoken


class Session(msgspec.Struct, array_like=True):
    """One fork: what each side last said, and the offer under way."""

    caller: Description | None = None
    callee: Description | None = None
    pending: Pending | None = None

    def of(self, side: Side) -> Description | None:
        """One side's current description."""
        return self.caller if side == "caller" else self.callee

    def put(self, side: Side, description: Description) -> None:
        """Make a description the current one of its side."""
        if side == "caller":
            self.caller = description
        else:
            self.callee = description

    @property
    def held(self) -> bool:
        """Whether one side has put the other on hold, as far as sound goes."""
        sides = [side for side in (self.caller, self.callee) if side is not None]
        return any(
            media.held
            for side in sides
            for media in side.media
            if media.kind == "audio" and media.accepted
        )


class OfferAnswer(msgspec.Struct, array_like=True):
    """The sessions of one call, by the callee's tag ("" until it is known)."""

    sessions: dict[str, Session] = {}
    offer: Pending | None = None  # of the first INVITE: every fork answers it
    delayed: bool = False  # the first offer came from the callee

    def receive(
        self, message: SipMessage, side: Side, tag: str, description: Description
    ) -> Change | None:
        """Take in the description a message carries. None: this message may carry none.

        side: who sent it.  tag: the callee's.
        """
        offers, answers = CARRIES.get((message.method, _class(message)), (False, False))
        if not (offers or answers):
            return None
        session = self._session(tag)
        if session is None:
            return None
        if message.is_request and (late := self._overtaken(message, side, description)):
            return late
        pending = session.pending or self.offer
        if answers and self._answers(pending, message, side):
            return self._answer(session, side, description, pending)
        return self._offer(session, message, side, description, offers)

    def refuse(self, tag: str, cseq: int) -> None:
        """The INVITE or UPDATE with this number failed: its offer is void, RFC 3261 §14.1."""
        session = self.sessions.get(tag)
        if session is not None and session.pending is not None and session.pending.cseq == cseq:
            session.pending = None

    def fax_lines(self) -> list[Media]:
        """Where both sides of a session receive T.38 now."""
        found: list[Media] = []
        for session in self.sessions.values():
            sides = [side.media for side in (session.caller, session.callee) if side is not None]
            for lines in zip(*sides, strict=False):
                if len(lines) == 2 and all(_is_udptl(line) for line in lines):
                    found += lines
        return found

    @property
    def held(self) -> bool:
        """Whether no session has sound both ways and one is on hold."""
        held = [session.held for session in self.sessions.values() if session.callee]
        return bool(held) and all(held)

    def _session(self, tag: str) -> Session | None:
        session = self.sessions.get(tag)
        if session is None:
            if len(self.sessions) >= MAX_FORKS:
                return None
            self.sessions.pop("", None)  # the offer without a dialog lives on in self.offer
            session = self.sessions[tag] = Session()
            if self.offer is not None and self.offer.side == "caller":
                session.caller = self.offer.description
        return session

    def _overtaken(
        self, message: SipMessage, side: Side, description: Description
    ) -> Change | None:
        """An offer that is heard behind its answer, as where each way is tapped on its own.

        The answer was taken for an offer that a response brings.
        """
        change = None
        for session in self.sessions.values():
            reply = session.pending
            if reply is None or not reply.reply or reply.side == side:
                continue
            if (reply.method, reply.cseq) != (message.method, message.cseq):
                continue
            session.pending, self.delayed = None, False
            session.put(side, description)
            refused = _refused(description, reply.description)
            change = Change(side, "offer", description.media, refused, reply.reoffer)
        if change is not None and not change.reoffer and side == "caller":
            self.offer = Pending(side, message.method, message.cseq, description)
        return change

    @staticmethod
    def _answers(pending: Pending | None, message: SipMessage, side: Side) -> bool:
        if pending is None:
            # An answer whose offer was never heard, or the delayed offer of a 1xx or 2xx.
            return message.method in ("ACK", "PRACK") and message.is_request
        if pending.side == side:
            return False
        if message.is_request:
            return message.method in ("ACK", "PRACK")
        return pending.cseq == message.cseq or message.method != pending.method

    def _answer(
        self, session: Session, side: Side, description: Description, pending: Pending | None
    ) -> Change:
        # An answer that comes again, or first early and then finally, changes nothing anew.
        reoffer = pending.reoffer if pending is not None else session.of(side) is not None
        if pending is not None:
            session.put(pending.side, pending.description)
        session.put(side, description)
        rejected = _refused(pending.description, description) if pending is not None else []
        return Change(side, "answer", description.media, rejected, reoffer)

    def _offer(
        self,
        session: Session,
        message: SipMessage,
        side: Side,
        description: Description,
        offers: bool,
    ) -> Change:
        reoffer = session.caller is not None and session.callee is not None
        reply = not message.is_request
        pending = Pending(side, message.method, message.cseq, description, reoffer, reply)
        if not message.is_request and not reoffer and session.caller is None and offers:
            self.delayed = True
        if message.is_request and not reoffer and message.method == "INVITE" and side == "caller":
            self.offer = pending
        session.pending = pending
        if session.of(side) is None or not message.is_request:
            session.put(side, description)
        return Change(side, "offer", description.media, [], reoffer, agreed=False)


def _refused(offer: Description, answer: Description) -> list[Media]:
    """The lines of an offer that its answer rejects, by their place."""
    return [
        theirs
        for theirs, ours in zip(offer.media, answer.media, strict=False)
        if theirs.accepted and not ours.accepted
    ]


def _is_udptl(line: Media) -> bool:
    return line.kind == "image" and line.accepted and not line.rtp


def _class(message: SipMessage) -> str:
    if message.status is None:
        return "request"
    if message.status < 200:
        return "provisional"
    return "success" if message.status < 300 else "failure"


def signalled_flags(state: OfferAnswer) -> set[str]:
    """What the descriptions say about the media that was agreed: docs/calls.md, "flags"."""
    flags: set[str] = set()
    for session in state.sessions.values():
        sides = [side.media for side in (session.caller, session.callee) if side is not None]
        for lines in zip(*sides, strict=False):
            if lines and all(line.accepted for line in lines):
                flags |= _line_flags(lines)
    return flags


def answered_flags(change: Change) -> set[str]:
    """What an answer alone says of encryption: it takes up no a=crypto that was not offered.

    So where a proxy's media relay encrypts on one hop only: the offer that we remember may be the
    other hop's. Source: RFC 4568 §5.1.2, RFC 5763 §5.
    """
    lines = [line for line in change.media if line.accepted]
    if change.role != "answer":
        return set()
    found = {
        "srtp_sdes": any(line.crypto for line in lines),
        "srtp_dtls": any(line.fingerprint for line in lines),
    }
    return {flag for flag, holds in found.items() if holds}


def _line_flags(lines: tuple[Media, ...]) -> set[str]:
    """Of one m= line, as both sides wrote it, or the one that was heard."""
    line = lines[0]
    if not (line.crypto or line.fingerprint or line.zrtp or line.kind == "image"):
        return set()  # as of most, and asked for with every record
    found = {
        "srtp_sdes": all(line.crypto for line in lines),
        "srtp_dtls": all(line.fingerprint for line in lines),
        "zrtp": all(line.zrtp for line in lines),
        "fax": all(line.kind == "image" for line in lines),
    }
    return {flag for flag, holds in found.items() if holds}
