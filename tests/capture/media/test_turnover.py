"""A newer call names the ends of a stream: its packets tell from when on they are that call's."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.model import Contest
from tests.support.frames import EPOCH, SECOND
from tests.support.mediatalk import Conversation, of_recording
from tests.support.rtpstreams import Sent, steady

OLDER, NEWER = b"the older call's", b"the newer call's"
OFFERED, ANSWERED = 2.0, 3.0  # when the newer call named the ends
OTHER = 0x5678  # SSRC of the older call's other stream


class Contested(Conversation):
    """What is heard at first is the older call's; what opens by a decision, the newer one's."""

    def opened(self, new: list) -> None:
        self.new += new
        for stream in new:
            older = len(self.new) <= self.streams and stream.ssrc in (0x1234, OTHER)
            self.attach(stream, OLDER if older else NEWER)

    def __init__(self, streams: int = 1) -> None:
        super().__init__()
        self.streams = streams

    def contest(self, offered: float = OFFERED, answered: float = ANSWERED) -> None:
        for stream in self.new[: self.streams]:
            since, until = (EPOCH + round(at * SECOND) for at in (offered, answered))
            self.media.contest(Contest(stream.row, since, until))

    def decide(self) -> None:
        self.opened(self.media.contested())


def newer(sent: Sequence[Sent], streams: int = 1) -> list[int]:
    """The numbers that are the newer call's, all being heard before it is decided."""
    talk = Contested(streams)
    talk.hear(sent)
    talk.contest()
    talk.decide()
    talk.flush()
    return of_recording(talk.chunks, NEWER)


def paused(last: float, first: float, skip: int = 0) -> list[Sent]:
    """A voice that is silent from a time to another, and whose numbers skip so many there."""
    before = steady(range(round(last * 50)))
    behind = round((first - last) * 50) if skip < 0 else skip
    return before + steady(range(len(before) + behind, len(before) + behind + 100), begin=first)


def test_what_goes_on_through_the_set_up_is_the_older_calls() -> None:
    assert newer(steady(range(250))) == []


@pytest.mark.parametrize(
    ("last", "first", "taken"),
    [
        (2.5, 2.9, True),  # within the set-up
        (1.0, 2.1, True),  # silent before it
        (3.1, 9.0, True),  # spoke on for a moment behind it
        (1.0, 1.9, False),  # the pause was over before
        (3.5, 9.0, False),  # it went on behind the set-up: a pause like any other
        (2.5, 2.65, False),  # too short for one
    ],
)
def test_a_pause_tells_where_it_touches_the_set_up(last: float, first: float, taken: bool) -> None:
    sent = paused(last, first)
    behind = [each.sequence for each in sent if each.at >= first]
    assert newer(sent) == (behind if taken else [])


def test_what_was_lost_on_the_way_is_no_pause() -> None:
    assert newer(paused(2.4, 2.9, skip=-1)) == []


@pytest.mark.parametrize("jump", [20_000, 5_000, -5_000])
def test_numbers_that_begin_anew_tell_without_a_pause(jump: int) -> None:
    first = steady(range(10_000, 10_125))
    again = steady(range(10_000 + jump, 10_100 + jump), begin=2.5)
    assert newer(first + again) == [each.sequence for each in again]


def test_a_late_packet_is_no_new_beginning() -> None:
    sent = steady(range(250))
    sent[120], sent[125] = (
        sent[125]._replace(at=sent[120].at), sent[120]._replace(at=sent[125].at),
    )  # fmt: skip
    assert newer(sent) == []


def test_a_call_of_which_one_stream_goes_on_keeps_the_other_that_paused() -> None:
    going_on = [each._replace(ssrc=OTHER) for each in steady(range(250))]
    both = sorted([*paused(2.4, 2.9), *going_on], key=lambda each: each.at)
    assert newer(both, streams=2) == []
    assert newer(paused(2.4, 2.9)) != []


def test_it_waits_for_packets_behind_the_set_up_before_it_says_no() -> None:
    talk = Contested()
    talk.hear(steady(range(130)))
    talk.contest()
    talk.decide()
    assert len(talk.new) == 1
    talk.hear(steady(range(130, 230), begin=3.15))  # silent from 2.58 s on
    talk.decide()
    talk.flush()
    assert of_recording(talk.chunks, NEWER) == list(range(130, 230))


def test_a_pause_counts_from_what_has_left_already() -> None:
    sent = paused(1.0, 2.9)
    talk = Contested()
    talk.hear(sent[:50])
    assert len(talk.tick(2.8)) == 50
    talk.hear(sent[50:])
    talk.contest()
    talk.decide()
    talk.flush()
    assert of_recording(talk.chunks, NEWER) == newer(sent)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 220), max_size=8),
    st.sampled_from([(2.5, 2.9), (1.0, 2.1), (2.9, 4.0), (2.1, 2.2)]),
)
def test_it_is_the_same_however_the_packets_fall_into_seconds(
    cuts: list[int], silence: tuple[float, float]
) -> None:
    """Decided before each second leaves, with what has left before kept in mind."""
    sent = paused(*silence)
    talk = Contested()
    bounds = [0, *sorted(cut for cut in set(cuts) if cut < len(sent)), len(sent)]
    told = False
    for start, end in pairwise(bounds):
        part = sent[start:end]
        talk.hear(part)
        if not told and part[-1].at >= ANSWERED:
            talk.contest()
            told = True
        talk.decide()
        if told or part[-1].at < OFFERED - 1:
            talk.tick(part[-1].at)
    if not told:
        talk.contest()
        talk.decide()
    talk.flush()
    assert of_recording(talk.chunks, NEWER) == newer(sent)
