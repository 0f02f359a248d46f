"""Where packets are placed. All times in the tests are milliseconds; the clock runs at 8 kHz."""

import numpy as np
import pytest

from spanvault.audio.clock import Clock, steps

TICKS = 8  # a millisecond


def place(clock: Clock, *packets: tuple[int, int, int]) -> list[int]:
    """packets: sequence, timestamp and arrival in ms. Gives places in ms."""
    sequence, timestamp, arrival = (np.array(column) for column in zip(*packets, strict=True))
    places = clock.place(
        sequence.astype(np.uint32),
        (timestamp * TICKS % (1 << 32)).astype(np.uint32),
        arrival.astype(np.int64) * TICKS,
    )
    return (places // TICKS).tolist()


def steady(first: int, count: int, timestamp: int, arrival: int) -> list[tuple[int, int, int]]:
    return [(first + n, timestamp + 20 * n, arrival + 20 * n) for n in range(count)]


def test_jitter_is_not_heard():
    clock = Clock(8000)
    assert place(clock, (1, 500, 0), (2, 520, 31), (3, 540, 44), (4, 560, 60)) == [0, 20, 40, 60]


def test_a_first_packet_that_waited_does_not_delay_the_rest():
    clock = Clock(8000)
    packets = [(n, 20 * n, 20 * n + (100 if n == 0 else 60)) for n in range(50)]
    assert place(clock, *packets) == [60 + 20 * n for n in range(50)]


def test_a_packet_that_was_sent_early_hurries_nothing():
    clock = Clock(8000)
    packets = [(n, 20 * n, 20 * n - (17 if n % 7 == 3 else 0)) for n in range(50)]
    assert place(clock, *packets) == [20 * n for n in range(50)]


def test_loss_leaves_its_gap():
    clock = Clock(8000)
    assert place(clock, (1, 0, 0), (5, 80, 80), (6, 100, 100)) == [0, 80, 100]


def test_a_late_packet_finds_its_place_in_the_next_chunk():
    clock = Clock(8000)
    assert place(clock, (1, 0, 0), (3, 40, 40)) == [0, 40]
    assert place(clock, (2, 20, 1400), (60, 1180, 1180)) == [20, 1180]


def test_a_stall_that_is_made_up_for_moves_nothing():
    clock = Clock(8000)
    burst = [(n, 20 * n, 2000 if n < 100 else 20 * n) for n in range(1, 120)]
    assert place(clock, (0, 0, 0), *burst) == [20 * n for n in range(120)]


def test_a_timestamp_that_stood_still_on_hold_goes_on_at_arrival():
    clock = Clock(8000)
    place(clock, *steady(0, 50, 0, 0))
    assert place(clock, *steady(50, 3, 1000, 4000)) == [4000, 4020, 4040]


@pytest.mark.parametrize("timestamp", [0, 123_456, (1 << 32) // TICKS - 10, 900])
def test_a_timestamp_begun_anew_goes_on_at_arrival(timestamp: int):
    clock = Clock(8000)
    place(clock, *steady(0, 50, 400_000, 0))
    assert place(clock, *steady(50, 2, timestamp, 1000)) == [1000, 1020]


def test_begun_anew_within_one_chunk():
    clock = Clock(8000)
    places = place(clock, *steady(0, 10, 7000, 0), *steady(10, 10, 90_000, 200))
    assert places == [20 * n for n in range(20)]


def test_a_wrapping_timestamp_is_no_break():
    clock = Clock(8000)
    assert place(clock, *steady(0, 50, (1 << 32) // TICKS - 500, 0)) == [20 * n for n in range(50)]


def test_clocks_that_drift_apart_are_kept_within_twenty_milliseconds():
    clock, worst = Clock(8000), 0
    for second in range(3600):
        sent = np.arange(50) * 20 + second * 1000
        arrival = np.rint(sent * 1.0001 * TICKS).astype(np.int64)
        places = clock.place(
            (sent // 20).astype(np.uint32), (sent * TICKS).astype(np.uint32), arrival
        )
        worst = max(worst, int(np.abs(places - arrival).max()))
    assert worst <= 20 * TICKS


def test_steps_unwrap_both_ways():
    timestamps = np.array([0xFFFFFFF0, 0x10, 0xFFFFFFFF], np.uint32)
    assert steps(timestamps, 0xFFFFFFE0).tolist() == [0x10, 0x30, 0x1F]
