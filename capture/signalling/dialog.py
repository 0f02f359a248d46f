"""The life of one call attempt as a passive listener can follow it: a table of transitions.

A call attempt is an INVITE, its retries after a challenge, and the dialogs its answers confirm.
Both ends know more than we do, so every state accepts what may have been missed before it.
Sources: RFC 3261 §12 (dialogs), §13 (INVITE), §15 (BYE), §17.1.1 and table 4 (timers), RFC 5407
(races). What is said about media: capture.signalling.offer_answer. The calls themselves:
capture.calls.calls.
"""

from enum import StrEnum
from typing import Final

import msgspec

from capture.signalling.sip import SipMessage
from spanvault.messages import Outcome


class State(StrEnum):
    """Where a call attempt stands."""

    CALLING = "calling"  # INVITE, no reply yet
    PROCEEDING = "proceeding"  # some 1xx
    CHALLENGED = "challenged"  # refused in a way that asks for another INVITE
    CANCELLING = "cancelling"  # CANCEL, and the final reply is awaited
    CONFIRMED = "confirmed"  # 2xx
    TERMINATED = "terminated"


class Event(StrEnum):
    """What happens to it."""

    INVITE = "invite"
    PROVISIONAL = "provisional"
    CHALLENGE = "challenge"
    ANSWER = "answer"
    REFUSE = "refuse"
    CANCEL = "cancel"
    BYE = "bye"
    EXPIRE = "expire"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.CALLING: {
        Event.INVITE: State.CALLING,
        Event.PROVISIONAL: State.PROCEEDING,
        Event.CHALLENGE: State.CHALLENGED,
        Event.ANSWER: State.CONFIRMED,
        Event.REFUSE: State.TERMINATED,
        Event.CANCEL: State.CANCELLING,
        Event.BYE: State.TERMINATED,
        Event.EXPIRE: State.TERMINATED,
    },
    State.PROCEEDING: {
        Event.INVITE: State.PROCEEDING,
        Event.PROVISIONAL: State.PROCEEDING,
        Event.CHALLENGE: State.CHALLENGED,
        Event.ANSWER: State.CONFIRMED,
        Event.REFUSE: State.TERMINATED,
        Event.CANCEL: State.CANCELLING,
        Event.BYE: State.TERMINATED,
        Event.EXPIRE: State.TERMINATED,
    },
    State.CHALLENGED: {
        Event.INVITE: State.CALLING,
        Event.PROVISIONAL: State.PROCEEDING,
        Event.CHALLENGE: State.CHALLENGED,
        Event.ANSWER: State.CONFIRMED,
        Event.REFUSE: State.TERMINATED,
        Event.CANCEL: State.CANCELLING,
        Event.BYE: State.TERMINATED,
        Event.EXPIRE: State.TERMINATED,
    },
    State.CANCELLING: {
        Event.INVITE: State.CANCELLING,
        Event.PROVISIONAL: State.CANCELLING,
        Event.CHALLENGE: State.TERMINATED,
        Event.ANSWER: State.CONFIRMED,  # RFC 5407 §3.1.2: the 200 crossed the CANCEL
        Event.REFUSE: State.TERMINATED,
        Event.CANCEL: State.CANCELLING,
        Event.BYE: State.TERMINATED,
        Event.EXPIRE: State.TERMINATED,
    },
    State.CONFIRMED: {
        Event.INVITE: State.CONFIRMED,
        Event.PROVISIONAL: State.CONFIRMED,
        Event.CHALLENGE: State.CONFIRMED,  # of another fork or a re-INVITE
        Event.ANSWER: State.CONFIRMED,
        Event.REFUSE: State.CONFIRMED,
        Event.CANCEL: State.CONFIRMED,
        Event.BYE: State.TERMINATED,
        Event.EXPIRE: State.TERMINATED,
    },
    State.TERMINATED: {},
}

# RFC 3261 §8.1.3.4–5, §22.2: the same call goes on with another INVITE of the same Call-ID.
RETRIED: Final = frozenset({401, 407, 413, 415, 416, 420, 421, 422, 488, 494})
NO_REPLY_NS: Final = 32_000_000_000  # timer B, 64·T1
LOGIN_NS: Final = 120_000_000_000  # somebody may have to type the password
RINGING_NS: Final = 185_000_000_000  # timer C is more than 3 minutes, renewed by each 1xx

OUTCOMES: Final[dict[int, Outcome]] = {
    403: "failed",  # a policy of the network, not a person who says no
    404: "not_found", 410: "not_found", 484: "not_found", 485: "not_found", 604: "not_found",
    408: "no_answer", 480: "no_answer",
    486: "busy", 600: "busy",
    487: "cancelled",
    603: "declined", 607: "declined", 608: "declined",
}  # fmt: skip
# ITU-T Q.850 causes in a Reason header say what a gateway's blunt 503 or 603 meant.
CAUSES: Final[dict[int, Outcome]] = {
    1: "not_found", 17: "busy", 18: "no_answer", 19: "no_answer",
}  # fmt: skip
VAGUE: Final = frozenset({500, 503, 603})


class Dialog(msgspec.Struct, array_like=True):
    """The state of one call attempt, and what is known about how it ended."""

    state: State = State.CALLING
    changed_ns: int = 0  # of the last event, for the timers
    answered_ns: int | None = None
    ended_ns: int | None = None
    outcome: Outcome = "in_progress"
    end_reason: str | None = None
    status: int | None = None  # of the last final refusal
    cancelled_ns: int | None = None

    def receive(
        self, event: Event, time_ns: int, status: int = 0, cause: int | None = None
    ) -> bool:
        """Let an event happen. Returns whether the state, outcome or end changed."""
        state = TRANSITIONS[self.state].get(event)
        if state is None:
            return False
        before, self.state = self.state, state
        if event is not Event.EXPIRE and not (before is State.CONFIRMED and event is not Event.BYE):
            self.changed_ns = time_ns
        if event is Event.CANCEL and state is State.CANCELLING and self.cancelled_ns is None:
            self.cancelled_ns = time_ns
        if event in (Event.CHALLENGE, Event.REFUSE) and before is not State.CONFIRMED:
            self.status = status
        if state is State.CONFIRMED and before is not State.CONFIRMED:
            self.answered_ns, self.outcome = time_ns, "answered"
        if state is State.TERMINATED:
            self._end(before, event, time_ns, cause)
        return state is not before

    def deadline_ns(self) -> int | None:
        """When signalling alone calls for an end; None once it is up to the media."""
        wait = {
            State.CALLING: NO_REPLY_NS,
            State.CHALLENGED: LOGIN_NS,
            State.CANCELLING: NO_REPLY_NS,
            State.PROCEEDING: RINGING_NS,
        }.get(self.state)
        return None if wait is None else self.changed_ns + wait

    def confirm(self, time_ns: int) -> None:
        """A message proves that the call was answered before we listened."""
        self.state, self.outcome = State.CONFIRMED, "answered"
        self.changed_ns = time_ns

    def stop(self, time_ns: int, reason: str) -> None:
        """The capture ends, or forgets the call, before the call does."""
        if self.state is State.TERMINATED:
            return
        if self.state in (State.CANCELLING, State.CHALLENGED):
            self._end(self.state, Event.EXPIRE, time_ns, None)  # nothing but the end was to come
        else:
            self.ended_ns, self.end_reason = time_ns, reason
        self.state = State.TERMINATED

    def _end(self, before: State, event: Event, time_ns: int, cause: int | None) -> None:
        self.ended_ns = time_ns
        if event is Event.BYE and before is not State.CANCELLING:
            # RFC 3261 §15 lets a caller end an early dialog so, but hardly any does: where the
            # answer was not heard, it was missed.
            self.outcome, self.end_reason = "answered", "bye"
        elif before is State.CONFIRMED:
            self.end_reason = "timeout"
        elif before is State.CANCELLING:
            # RFC 3261 §9.2 says 487; any other refusal crossed the CANCEL and tells its own story.
            refused = outcome_of(self.status or 0, cause) if event is Event.REFUSE else "failed"
            self.outcome = "cancelled" if refused == "failed" else refused
            self.end_reason = "cancel"
            if event is Event.EXPIRE and self.cancelled_ns is not None:
                self.ended_ns = self.cancelled_ns
        elif event is Event.REFUSE:
            self.outcome = outcome_of(self.status or 0, cause)
            self.end_reason = "cancel" if self.outcome == "cancelled" else "rejected"
        elif before is State.CHALLENGED:
            self.outcome, self.end_reason = "failed", "rejected"
            self.ended_ns = self.changed_ns
        else:
            known = self.outcome == "unknown"  # met in its midst: it may well have been answered
            self.outcome, self.end_reason = "unknown" if known else "no_answer", "timeout"


def outcome_of(status: int, cause: int | None = None) -> Outcome:
    """What a final refusal means for the call: RFC 3261 §21, RFC 3398 §8.2.6.1."""
    if status in VAGUE and cause in CAUSES:
        return CAUSES[cause]
    return OUTCOMES.get(status, "failed")


def event_of(message: SipMessage) -> Event | None:
    """What a message outside or inside the dialog means for the attempt; None: nothing."""
    if message.status is None:
        return _REQUESTS.get(message.method)
    if message.method == "INVITE":
        return _response_event(message.status)
    if message.method == "CANCEL" and 200 <= message.status < 300:
        return Event.CANCEL  # seen where only the callee's side is mirrored
    if message.method == "BYE" and message.status >= 200 and message.status not in RETRIED:
        return Event.BYE
    return None


_REQUESTS: Final = {"INVITE": Event.INVITE, "CANCEL": Event.CANCEL, "BYE": Event.BYE}


def _response_event(status: int) -> Event:
    if status < 200:
        return Event.PROVISIONAL
    if status < 300:
        return Event.ANSWER
    if status in RETRIED or status < 400:
        return Event.CHALLENGE
    return Event.REFUSE
