"""So many frames a second of packet time, and who sends most is cut first."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capture.packets.allowance import Allowance

SECOND = 1_000_000_000


def chosen(
    allowance: Allowance, senders: list[int], times: list[float], cost: int = 1, beside: int = 0
) -> list[int]:
    columns = np.array(senders, np.uint64), np.array([int(at * SECOND) for at in times], np.int64)
    return allowance.choose(*columns, cost, beside).tolist()


def test_what_fits_passes_whole():
    assert chosen(Allowance(100), [1, 1, 2], [5, 5, 5]) == [0, 1, 2]


def test_a_second_earns_its_frames_and_a_quarter_is_saved():
    allowance = Allowance(100)
    assert len(chosen(allowance, [1] * 300, [5.0] * 300)) == 25
    assert len(chosen(allowance, [1] * 300, [5.1] * 300)) == 10
    assert len(chosen(allowance, [1] * 300, [60.0] * 300)) == 25
    assert len(chosen(allowance, [1] * 300, [60.0] * 299 + [61.0])) == 100


def test_the_one_who_floods_is_cut_and_the_others_are_not():
    senders = [7] * 50 + [1, 2, 3] + [7] * 50 + [1]
    assert chosen(Allowance(40), senders, [5.0] * len(senders)) == [
        0,
        1,
        2,
        3,
        4,
        5,
        50,
        51,
        52,
        103,
    ]


def test_costly_frames_use_it_up_sooner():
    assert len(chosen(Allowance(400), [1] * 300, [5.0] * 300, cost=20)) == 5


def test_plain_frames_come_first_but_never_leave_nothing():
    begun, later = [5.0] * 300, [6.0] * 299 + [7.0]
    for beside, passed in ((0, 125), (450, 75), (9_000, 20)):
        allowance = Allowance(100)
        chosen(allowance, [1] * 300, begun)
        assert len(chosen(allowance, [1] * 300, later, beside=beside)) == passed


def test_a_file_may_have_all_of_it():
    assert len(chosen(Allowance(None), [1] * 300, [5.0] * 300)) == 300


def test_a_clock_that_is_set_back_earns_nothing():
    allowance = Allowance(100)
    assert len(chosen(allowance, [1] * 300, [1000.0] * 300)) == 25
    assert chosen(allowance, [1] * 300, [5.0] * 300) == []
    assert len(chosen(allowance, [1] * 300, [5.2] * 300)) == 20


BLOCKS = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1), st.integers(1, 200)), max_size=20)


@given(BLOCKS)
def test_never_more_than_the_rate_whatever_the_blocks(blocks):
    allowance, now, passed, begin = Allowance(100), 1000.0, 0, None
    for pause, span, count in blocks:
        begin = now + pause if begin is None else begin
        times = np.linspace(now + pause, now + pause + span, count).tolist()
        passed += len(chosen(allowance, [1] * count, times))
        now += pause + span
    assert begin is None or passed <= 25 + 100 * (now - begin) + 1
