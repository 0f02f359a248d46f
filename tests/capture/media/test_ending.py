"""Where streams end, what is held of them goes on as the streams behind."""

from hypothesis import given, settings
from hypothesis import strategies as st

from capture.model import Close
from tests.support.frames import EPOCH, SECOND
from tests.support.mediatalk import Conversation, of_recording
from tests.support.rtpstreams import Sent, Truth, steady


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
    ends=st.lists(st.tuples(st.integers(0, 4), st.floats(0, 4)), max_size=8),
    left=st.integers(0, 3),
)
def test_streams_that_end_together_end_as_one_after_the_other(
    ends: list[tuple[int, float]], left: int
) -> None:
    """left: seconds after which what was due has left, or waits for a call to claim it."""
    one_by_one, together = conversation(left), conversation(left)
    for stream, at in ends:
        one_by_one.close(one_by_one.new[stream], at)
    whole = [Close(together.new[stream].row, EPOCH + round(at * SECOND)) for stream, at in ends]
    together.opened(together.media.close(whole))
    assert told(one_by_one) == told(together)


def conversation(left: int) -> Conversation:
    """Five streams of four seconds, every other one claimed by a call."""
    talk = Conversation(attach=False)
    for second in range(4):
        talk.hear(
            [
                each._replace(ssrc=stream)
                for each in steady(range(50 * second, 50 * second + 50), begin=float(second))
                for stream in range(5)
            ]
        )
        for stream in talk.new[0 if second else 5 :: 2]:
            talk.attach(stream, recording=bytes([stream.ssrc]) * 16)
        if second < left:
            talk.tick(second + 0.98)
    return talk


def told(talk: Conversation) -> list[object]:
    """Which streams there are, and what left of each when a call had claimed them all."""
    streams = sorted((new.ssrc, new.time_ns, number) for number, new in enumerate(talk.new))
    for place, (_, _, number) in enumerate(streams):
        talk.attach(talk.new[number], recording=bytes([100 + place]) * 16)
    talk.flush()
    left = [of_recording(talk.chunks, bytes([each]) * 16) for each in range(100 + len(streams))]
    return [[each[:2] for each in streams], left]
