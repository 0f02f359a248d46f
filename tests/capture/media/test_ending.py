"""Where streams end, what is held of them goes on as the streams behind."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.media.arena import Arena
from capture.media.ending import part
from capture.media.held import NOBODY, Held
from capture.media.streams import StreamTable
from capture.model import Close
from tests.support.frames import EPOCH, SECOND
from tests.support.mediatalk import Conversation, of_recording
from tests.support.rtpstreams import Sent, Truth, packets, steady

CLAIMED = (0, 2, 4)  # of the streams of conversation()


def test_a_stream_closed_in_advance_is_another_one_afterwards() -> None:
    talk = Conversation()
    talk.hear(steady(range(10)))
    talk.close(talk.new[0], at=0.5)
    talk.hear(steady(range(10, 20), begin=0.31))
    talk.hear(steady(range(100, 110), begin=0.6))
    assert len(talk.new) == 2
    assert talk.new[1].time_ns == EPOCH + 600_000_000
    talk.flush()
    assert talk.counted(0) == Truth(20, 0, 0, 0)
    assert talk.counted(1) == Truth(10, 0, 0, 0)


def test_closing_a_stream_whose_packets_have_gone_opens_none() -> None:
    talk = Conversation(attach=False)
    talk.hear(steady(range(10)))
    talk.media.release(talk.new[0].row)
    talk.close(talk.new[0], at=0.05)
    assert len(talk.new) == 1
    talk.flush()
    assert not talk.chunks


def test_calls_that_use_one_address_and_ssrc_in_turn_are_told_apart_within_a_block() -> None:
    """SIPp does so; in a file all of them may come in one block, known only afterwards."""
    talk = Conversation(attach=False)
    calls = [steady(range(50), begin=10.0 * call) for call in range(4)]
    talk.hear([each for call in calls for each in call])
    for call in range(4):
        assert len(talk.new) == call + 1
        assert talk.new[call].time_ns == calls[call][0].time_ns
        talk.attach(talk.new[call], recording=bytes([call]) * 16)
        talk.close(talk.new[call], at=10.0 * call + 5)
    talk.flush()
    for call in range(4):
        assert talk.counted(call) == Truth(50, 0, 0, 0)
        assert of_recording(talk.chunks, bytes([call]) * 16) == list(range(50))
        totals = talk.media.totals(talk.new[call].row)
        assert (totals.first_ns, totals.last_ns) == (
            calls[call][0].time_ns, calls[call][-1].time_ns,
        )  # fmt: skip


def test_closing_what_waits_unclaimed_splits_it_too() -> None:
    talk = Conversation(attach=False)
    for second in range(6):
        talk.hear(steady(range(50 * second, 50 * second + 50), begin=float(second)))
        talk.tick(second + 0.98)
    talk.attach(talk.new[0], recording=b"1" * 16)
    talk.close(talk.new[0], at=2.99)
    talk.attach(talk.new[1], recording=b"2" * 16)
    talk.flush()
    assert of_recording(talk.chunks, b"1" * 16) == list(range(150))
    assert of_recording(talk.chunks, b"2" * 16) == list(range(150, 300))


def test_closing_behind_the_last_packet_opens_nothing() -> None:
    talk = Conversation()
    talk.hear(steady(range(10)))
    talk.flush()
    talk.close(talk.new[0], at=1.0)
    talk.close(talk.new[0], at=0.05)  # what was later has left already
    talk.hear(steady([2], begin=0.04))  # a copy that comes late is still its
    assert len(talk.new) == 1
    talk.hear(steady(range(10, 20), begin=2.0))
    assert len(talk.new) == 2


def test_a_released_stream_still_gives_what_is_held_of_it() -> None:
    talk = Conversation()
    talk.hear(steady(range(10)))
    talk.media.release(talk.new[0].row)
    talk.hear(steady(range(10, 20), begin=0.5))
    assert len(talk.new) == 2
    assert sorted(talk.flush()) == list(range(20))
    assert talk.media.totals(talk.new[0].row).packets == 0


def test_slots_are_used_again_and_old_numbers_mean_nothing() -> None:
    talk = Conversation()
    for turn in range(3000):
        talk.hear([Sent(turn, turn * 0.1, ssrc=turn)])
        talk.media.release(talk.new[-1].row)
        talk.tick(turn * 0.1)
    assert talk.media.streams.capacity == 1024
    assert len({stream.row for stream in talk.new}) == 3000
    talk.attach(talk.new[0])
    assert talk.media.counters["attached_too_late"] == 1
    talk.flush()
    heard = {payload for *_, payload in talk.frames()}
    assert heard == {f"packet {number}".encode() for number in range(3000)}
    assert len(talk.frames()) == 3000


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 400)), max_size=8),
    left=st.integers(0, 3),
)
def test_streams_that_end_together_are_cut_where_each_ends(
    ends: list[tuple[int, int]], left: int
) -> None:
    """ends: streams, and when they end, in 10 ms: every other time is a packet's."""
    talk = conversation(left)
    closes = [Close(talk.new[stream].row, EPOCH + at * SECOND // 100) for stream, at in ends]
    talk.opened(talk.media.close(closes))
    expected = []
    for stream in range(5):
        gone = 50 * max(0, left - 1) if stream in CLAIMED else 0
        own = [at for ended, at in ends if ended == stream]
        expected += [(stream, piece) for piece in cut(own, gone)]
    assert told(talk) == sorted(expected)


def cut(ends: list[int], gone: int) -> list[list[int]]:
    """A stream's numbers, cut at its ends. gone: so many have left, and nobody gets them back."""
    first, *others = [list(range(200))]
    for end in ends:
        if behind := [number for number in first if 2 * number > end and number >= gone]:
            first = [number for number in first if number not in behind]
            others.append(behind)
    return [first, *others]


def test_what_nobody_wants_any_more_goes_to_no_stream() -> None:
    held, streams = Held(Arena()), StreamTable(capacity=1)
    held.append(packets(steady(range(2))), np.array([NOBODY, 0], np.int32))
    ends = part([held], streams, *(np.array([each]) for each in (0, EPOCH - 1, 7)))
    assert held.batch().slot.tolist() == [NOBODY, 7]
    assert ends.from_ns.tolist() == [EPOCH + SECOND // 50]


def conversation(left: int) -> Conversation:
    """Five streams of four seconds, some claimed by a call.

    left: seconds after which what was due has left, or waits for a call to claim it.
    """
    talk = Conversation(attach=False)
    for second in range(4):
        talk.hear(
            [
                each._replace(ssrc=stream)
                for each in steady(range(50 * second, 50 * second + 50), begin=float(second))
                for stream in range(5)
            ]
        )
        for number in () if second else CLAIMED:
            talk.attach(talk.new[number], recording=bytes([number]) * 16)
        if second < left:
            talk.tick(second + 0.98)
    return talk


def told(talk: Conversation) -> list[tuple[int, list[int]]]:
    """The SSRC of each stream that there is, and what leaves of it, once calls claim them all."""
    for place, new in enumerate(talk.new):
        talk.attach(new, recording=bytes([100 + place]) * 16)
    last_ns = [talk.media.totals(new.row).last_ns for new in talk.new]
    talk.flush()
    streams = []
    for place, new in enumerate(talk.new):
        earlier = of_recording(talk.chunks, bytes([place]) * 16)
        numbers = earlier + of_recording(talk.chunks, bytes([100 + place]) * 16)
        streams.append((new.ssrc, numbers))
        if numbers:
            assert place < 5 or new.time_ns == EPOCH + numbers[0] * SECOND // 50
            assert last_ns[place] == EPOCH + numbers[-1] * SECOND // 50
    return sorted(streams)
