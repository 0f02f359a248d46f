"""Pictures that are sent in another order than they are shown: when each is decoded."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spanvault.audio.sending import DEPTH, Ahead, Sending, unwrapped
from spanvault.media.chunk import FRAME


def stamps(*times: int) -> np.ndarray:
    return np.array(times, np.int64).astype(np.uint32)


def frames(first: int, *times: int) -> np.ndarray:
    """Packets with rising sequence numbers."""
    rows = np.zeros(len(times), FRAME)
    rows["sequence"], rows["timestamp"] = np.arange(first, first + len(times)), stamps(*times)
    return rows


def test_pictures_are_decoded_in_the_order_in_which_they_are_sent():
    assert Sending().taken(stamps(0, 4, 2, 1, 3, 8, 6, 5, 7), 9).tolist() == [*range(9)]


def test_a_picture_of_several_packets_is_one():
    assert Sending().taken(stamps(0, 0, 0, 2, 2, 1), 6).tolist() == [0, 0, 0, 1, 1, 2]


def test_what_rises_is_left_as_it_is():
    assert Sending().taken(stamps(0, 3, 3, 90), 4).tolist() == [0, 3, 3, 90]


def test_timestamps_that_begin_anew_do_so_when_decoded_too():
    anew = [*range(0, 400, 10), *range(-900_000, -899_600, 10)]
    assert Sending().taken(stamps(*anew), 80).tolist() == stamps(*anew).tolist()
    turned = [one + 10 * (-1) ** place for place, one in enumerate(anew)]
    in_turn = stamps(*sorted(turned[:40]), *sorted(turned[40:]))
    assert Sending().taken(stamps(*turned), 80).tolist() == in_turn.tolist()


@given(
    order=st.lists(st.floats(0, DEPTH), min_size=1, max_size=200),
    copies=st.integers(1, 3),
    cuts=st.lists(st.integers(1, 40), min_size=1),
    begins=st.integers(0, (1 << 32) - 1),
)
def test_any_order_in_any_chunks_is_told(
    order: list[float], copies: int, cuts: list[int], begins: int
):
    """Wherever chunks are cut, in mid-picture too, and where 32 bits wrap."""
    shown = sorted(range(len(order)), key=lambda number: number + order[number])
    sent = stamps(*(begins + 3000 * number for number in shown for _ in range(copies)))
    sending, at, found = Sending(), 0, []
    for cut in cuts * len(sent):
        if at < len(sent):
            found += sending.taken(sent[at:], min(cut, len(sent) - at))[:cut].tolist()
            at += cut
    wanted = stamps(*(begins + 3000 * place for place in range(len(order)) for _ in range(copies)))
    assert found == wanted.tolist()


def test_how_far_ahead_a_picture_is_sent():
    ahead = Ahead()
    ahead.receive(frames(0, 0, 4, 2))
    assert ahead.ticks == 2
    ahead.receive(frames(3, 1, 3, 8))
    assert ahead.ticks == 3
    ahead.receive(frames(2, 2))  # late
    ahead.receive(frames(9, -900_000, -899_990, -899_994))  # begins anew
    assert ahead.ticks == 4


def test_timestamps_unwrap_both_ways():
    assert unwrapped(stamps(0xFFFFFFF0, 0x10, 0xFFFFFFFF), 0xFFFFFFE0).tolist() == [
        0x10, 0x30, 0x1F
    ]  # fmt: skip
