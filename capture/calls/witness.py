"""What the call table decides and why, told to whoever explains a capture.

The core tells a witness of every message and every decision, as it takes them. A live capture's is
silent: an empty call a decision, none a packet. Who listens: capture.explain. Logs say nothing of
this: they are for the daemon's health, not for what became of one call.
"""

from enum import StrEnum
from typing import Any

from capture.calls.livecall import LiveCall
from capture.model import Datagram
from capture.signalling.sip import SipMessage


class Decision(StrEnum):
    """What was decided; behind each, the facts that are told with it."""

    # Of the message heard last.
    NO_CALL = "no_call"  # why: "late", "call_id_abused", "no_dialog"
    BEGINS = "begins"  # mid_call: bool
    BELONGS = "belongs"  # it is this call's, or the call's that it has just begun
    MOVED = "moved"  # event, before, after: what it did to the dialog; before is after: nothing
    OTHER_BRANCH = "other_branch"  # one branch of a forking proxy failed, the call goes on
    OTHER_DIALOG = "other_dialog"  # one of several forks parted
    SDP_UNREADABLE = "sdp_unreadable"  # fault: str
    SDP_OUT_OF_PLACE = "sdp_out_of_place"  # such a message carries neither offer nor answer
    DESCRIBED = "described"  # side, role, reoffer, media: list[sdp.Media]
    BOUND = "bound"  # binding: Binding: a party receives there; new: bool
    NOT_BOUND = "not_bound"  # media: sdp.Media: nothing can be expected there
    UNBOUND = "unbound"  # binding: Binding: the other side refused the line
    HELD = "held"  # held: bool
    RELATED = "related"  # kind, call_id
    SIPREC = "siprec"  # told: Siprec: whom a recording client has recorded
    SIPREC_UNREADABLE = "siprec_unreadable"  # fault: str
    # Of a call, by time or want of room.
    EXPIRED = "expired"  # at_ns
    STOPPED = "stopped"  # reason
    AMBIGUOUS = "ambiguous"  # several streams could be its, none was taken
    # Of a stream.
    OPENED = "opened"  # stream: NewStream; attached: bool
    ATTACHED = "attached"  # row, match: Match
    SHARED = "shared"  # row, match: Match: of a second call that has part in it
    KEPT = "kept"  # row: nobody claimed it, and it is recorded all the same, without signalling
    JOINED = "joined"  # kept: LiveCall, match: Match: what was kept without signalling is this call
    CLOSED = "closed"  # row, at_ns, why: "ended", "taken", "recoded", "moved", "joined"
    REFUSED = "refused"  # row: the call has more streams than anybody's call
    UNCLAIMED = "unclaimed"  # row: nobody wanted it for as long as it is kept


class Witness:
    """Is told, and keeps silent."""

    def heard(self, datagram: Datagram, message: SipMessage) -> None:
        """A SIP message; decisions of it follow."""

    def unreadable(self, datagram: Datagram, fault: str) -> None:
        """What seemed a SIP message is none."""

    def decided(self, decision: Decision, call: LiveCall | None = None, **facts: Any) -> None:
        """A decision, of a call where there is one."""


SILENT = Witness()
