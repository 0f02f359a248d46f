"""The life of a call attempt as a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.signalling.dialog import (
    LOGIN_NS,
    NO_REPLY_NS,
    RINGING_NS,
    TRANSITIONS,
    Dialog,
    Event,
    State,
    outcome_of,
)

SECOND = 1_000_000_000


def after(*events: Event | tuple[Event, int]) -> Dialog:
    """A dialog after events that came a second apart; a tuple gives the status."""
    dialog = Dialog()
    for number, event in enumerate(events, 1):
        kind, status = event if isinstance(event, tuple) else (event, 0)
        dialog.receive(kind, number * SECOND, status)
    return dialog


def test_every_state_says_what_each_event_does():
    for state, row in TRANSITIONS.items():
        assert set(row) == (set() if state is State.TERMINATED else set(Event)), state


def test_an_answered_call():
    dialog = after(Event.INVITE, Event.PROVISIONAL, Event.ANSWER, Event.BYE)
    assert (dialog.outcome, dialog.end_reason) == ("answered", "bye")
    assert (dialog.answered_ns, dialog.ended_ns) == (3 * SECOND, 4 * SECOND)


def test_what_comes_after_the_end_changes_nothing():
    dialog = after(Event.INVITE, (Event.REFUSE, 486), Event.ANSWER, Event.BYE)
    assert (dialog.outcome, dialog.ended_ns) == ("busy", 2 * SECOND)


def test_a_refused_reinvite_does_not_end_the_call():
    dialog = after(Event.INVITE, Event.ANSWER, Event.INVITE, (Event.REFUSE, 488))
    assert dialog.state is State.CONFIRMED


@pytest.mark.parametrize(
    ("status", "cause", "outcome"),
    [
        (486, None, "busy"), (603, None, "declined"), (603, 19, "no_answer"), (503, 17, "busy"),
        (486, 19, "busy"), (404, None, "not_found"), (500, None, "failed"), (403, None, "failed"),
    ],
)  # fmt: skip
def test_what_a_refusal_means(status, cause, outcome):
    assert outcome_of(status, cause) == outcome


@pytest.mark.parametrize(
    ("status", "outcome"), [(487, "cancelled"), (486, "busy"), (500, "cancelled")]
)
def test_a_refusal_after_a_cancel(status, outcome):
    dialog = after(Event.INVITE, Event.CANCEL, (Event.REFUSE, status))
    assert (dialog.outcome, dialog.end_reason) == (outcome, "cancel")


@pytest.mark.parametrize(
    ("events", "wait_ns", "outcome"),
    [
        ([Event.INVITE], NO_REPLY_NS, "no_answer"),
        ([Event.INVITE, Event.PROVISIONAL], RINGING_NS, "no_answer"),
        ([Event.INVITE, Event.CANCEL], NO_REPLY_NS, "cancelled"),
        ([Event.INVITE, (Event.CHALLENGE, 401)], LOGIN_NS, "failed"),
    ],
)
def test_timers(events, wait_ns, outcome):
    dialog = after(*events)
    assert dialog.deadline_ns() == len(events) * SECOND + wait_ns
    dialog.receive(Event.EXPIRE, dialog.deadline_ns())
    assert dialog.outcome == outcome


def test_the_answer_was_missed():
    dialog = after(Event.INVITE, Event.PROVISIONAL, Event.BYE)
    assert (dialog.outcome, dialog.answered_ns, dialog.end_reason) == ("answered", None, "bye")


def test_the_capture_ends_first():
    dialog = after(Event.INVITE, Event.PROVISIONAL)
    dialog.stop(9 * SECOND, "capture_end")
    assert (dialog.outcome, dialog.end_reason) == ("in_progress", "capture_end")
    assert dialog.ended_ns == 9 * SECOND


@given(st.lists(st.tuples(st.sampled_from(Event), st.integers(100, 699))))
def test_an_end_has_a_time_a_reason_and_an_outcome(events):
    dialog = after(*events)
    if dialog.state is State.TERMINATED:
        assert dialog.ended_ns is not None
        assert dialog.end_reason is not None
        assert dialog.outcome not in ("in_progress", "unknown")
    else:
        assert dialog.ended_ns is None
