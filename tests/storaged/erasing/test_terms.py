"""How long a call stays, and when the host's clock is not believed."""

import pytest

from spanvault.daemon.config import PoolConfig
from storaged.erasing.terms import DAY_NS, ClockGuard, Terms

HOUR_NS = DAY_NS // 24
NOW = 1_700_000_000 * 1_000_000_000


@pytest.mark.parametrize(
    ("settings", "expires_days", "due_days"),
    [
        ({}, None, None),
        ({"keep_days": 30}, None, 30),
        ({"keep_days": 30}, 7, 7),
        ({"keep_days": 5}, 7, 5),
        ({}, 7, 7),
        ({"keep_at_least_days": 10}, None, None),
        ({"keep_at_least_days": 10}, 7, 10),
        ({"keep_at_least_days": 10, "keep_days": 10}, 7, 10),
    ],
)
def test_a_call_goes_by_the_earlier_of_its_terms_and_never_before_it_may(
    settings, expires_days, due_days
):
    expires_ns = None if expires_days is None else NOW + expires_days * DAY_NS
    due_ns = Terms.of(PoolConfig(**settings)).due_ns(NOW, expires_ns)
    assert due_ns == (None if due_days is None else NOW + due_days * DAY_NS)


def test_terms_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="keep_at_least_days = 31 is more than keep_days = 30"):
        PoolConfig(keep_days=30, keep_at_least_days=31)


def test_a_clock_that_goes_with_the_monotonic_one_is_believed():
    guard = ClockGuard(NOW, 0)
    assert [guard.wait_ns(NOW + day * DAY_NS, day * DAY_NS) for day in range(5)] == [0] * 5


def test_a_jump_ahead_has_to_stand_for_a_day():
    guard = ClockGuard(NOW, 0)
    wrong = NOW + 3650 * DAY_NS
    assert guard.wait_ns(wrong, HOUR_NS) == DAY_NS
    assert guard.wait_ns(wrong + 5 * HOUR_NS, 6 * HOUR_NS) == DAY_NS - 5 * HOUR_NS
    assert guard.wait_ns(wrong + DAY_NS, HOUR_NS + DAY_NS) == 0
    assert guard.wait_ns(wrong + 2 * DAY_NS, HOUR_NS + 2 * DAY_NS) == 0


def test_a_clock_that_is_put_right_meanwhile_is_believed_at_once_and_the_next_jump_waits_anew():
    guard = ClockGuard(NOW, 0)
    assert guard.wait_ns(NOW + 3650 * DAY_NS, HOUR_NS) == DAY_NS
    assert guard.wait_ns(NOW + 2 * HOUR_NS, 2 * HOUR_NS) == 0
    assert guard.wait_ns(NOW + 3650 * DAY_NS, 25 * HOUR_NS) == DAY_NS


def test_a_clock_that_goes_back_erases_nothing_and_its_return_has_to_stand():
    guard = ClockGuard(NOW, 0)
    assert guard.wait_ns(0, HOUR_NS) == 0
    assert guard.wait_ns(NOW + 2 * HOUR_NS, 2 * HOUR_NS) == DAY_NS


def test_a_store_that_was_never_swept_believes_its_host():
    assert ClockGuard(None, 0).wait_ns(NOW, 0) == 0
