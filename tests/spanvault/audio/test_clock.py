"""Where packets are placed. All times in the tests are milliseconds; the clock runs at 8 kHz."""

from collections.abc import Sequence

import numpy as np
import pytest

from spanvault.audio.clock import Clock
from spanvault.audio.pace import Heard

TICKS = 8  # a millisecond
AHEAD_MS = 5000
Packet = tuple[int, float, float]  # sequence, timestamp and arrival


def heard(packets: Sequence[Packet]) -> Heard:
    sequence, timestamp, arrival = (np.array(column) for column in zip(*packets, strict=True))
    return Heard(
        sequence.astype(np.uint32),
        (np.rint(timestamp * TICKS).astype(np.int64) % (1 << 32)).astype(np.uint32),
        np.rint(arrival * TICKS).astype(np.int64),
    )


def place(clock: Clock, *packets: Packet) -> list[int]:
    """Places in ms of packets of which nothing more is known."""
    return (clock.place(heard(packets)) // TICKS).tolist()


def placed(packets: Sequence[Packet]) -> list[int]:
    """Places in ms of a whole stream, in chunks of 50 with the seconds that follow."""
    clock, places = Clock(8000), []
    for first in range(0, len(packets), 50):
        chunk, rest = packets[first : first + 50], packets[first + 50 :]
        ahead = [one for one in rest if abs(one[2] - chunk[0][2]) < AHEAD_MS]
        places += (clock.place(heard(chunk), heard(ahead) if ahead else None) // TICKS).tolist()
    return places


def by_arrival(packets: Sequence[Packet]) -> list[int]:
    """As placed(), in chunks of a second by arrival, as capture cuts them."""
    clock, places = Clock(8000), dict[int, int]()
    seconds: dict[int, list[Packet]] = {}
    for packet in packets:
        seconds.setdefault(int(packet[2] // 1000), []).append(packet)
    for second, chunk in sorted(seconds.items()):
        ahead = [one for later in range(1, 5) for one in seconds.get(second + later, [])]
        found = clock.place(heard(chunk), heard(sorted(ahead)) if ahead else None) // TICKS
        places |= dict(zip([one[0] for one in chunk], found.tolist(), strict=True))
    return [places[number] for number, *_ in packets]


def steady(first: int, count: int, timestamp: float, arrival: float) -> list[Packet]:
    return [(first + n, timestamp + 20 * n, arrival + 20 * n) for n in range(count)]


def test_jitter_is_not_heard():
    clock = Clock(8000)
    assert place(clock, (1, 500, 0), (2, 520, 31), (3, 540, 44), (4, 560, 60)) == [0, 20, 40, 60]


def test_a_first_packet_that_waited_does_not_delay_the_rest():
    clock = Clock(8000)
    packets = [(n, 20 * n, 20 * n + (100 if n == 0 else 60)) for n in range(50)]
    assert place(clock, *packets) == [60 + 20 * n for n in range(50)]


def test_a_first_second_that_waited_does_not_delay_the_rest():
    packets = [(n, 20 * n, 20 * n + max(0, 300 - 5 * n)) for n in range(200)]
    assert placed(packets) == [20 * n for n in range(200)]


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


@pytest.mark.parametrize("late", [60, 150, 700, 2900])
def test_one_packet_that_was_held_up_moves_nothing(late: int):
    packets = steady(0, 200, 0, 0)
    packets[70] = (70, 1400, 1400 + late)
    assert placed(packets) == [20 * n for n in range(200)]


@pytest.mark.parametrize("stall", [100, 400, 700, 2000, 4000])
def test_a_stall_that_is_made_up_for_moves_nothing(stall: int):
    burst = [(n, 20 * n, max(20 * n, 1000 + stall)) for n in range(51, 400)]
    assert placed([*steady(0, 51, 0, 0), *burst]) == [20 * n for n in range(400)]


@pytest.mark.parametrize(("late", "moved"), [(300, 0), (450, 0), (600, 600)])
def test_last_words_that_come_late_are_no_pause_unless_it_is_one(late: int, moved: int):
    """Nothing behind them tells whether they would have been made up for."""
    packets = [*steady(0, 100, 0, 0), *steady(100, 20, 2000, 2000 + late)]
    assert placed(packets)[100:] == [2000 + moved + 20 * n for n in range(20)]


@pytest.mark.parametrize("waited", [150, 450, 4000, 600_000])
def test_a_timestamp_that_stood_still_on_hold_goes_on_at_arrival(waited: int):
    packets = [*steady(0, 50, 0, 0), *steady(50, 150, 1000, 1000 + waited)]
    assert placed(packets)[50:] == [1000 + waited + 20 * n for n in range(150)]


def test_each_of_two_holds_counts_once():
    """Both within a second's packets."""
    packets = [*steady(0, 60, 0, 0), *steady(60, 20, 1200, 2000), *steady(80, 120, 1600, 3500)]
    assert placed(packets) == [round(arrival) for _, _, arrival in packets]


@pytest.mark.parametrize("timestamp", [0, 123_456, (1 << 32) // TICKS - 10, 900, 1250])
def test_a_timestamp_begun_anew_goes_on_at_arrival(timestamp: int):
    clock = Clock(8000)
    place(clock, *steady(0, 50, 400_000, 0))
    assert place(clock, *steady(50, 2, timestamp, 1000)) == [1000, 1020]


def test_begun_anew_by_a_packet_that_waited_goes_on_where_the_others_say():
    before = [(n, 20 * n, 20 * n + max(0, 20 * (n - 46))) for n in range(50)]  # 60 ms late at last
    anew = [(n, 7000 + 20 * n, 20 * n + (45 if n == 50 else 0)) for n in range(50, 150)]
    assert placed([*before, *anew]) == [20 * n for n in range(150)]


def test_begun_anew_within_one_chunk():
    clock = Clock(8000)
    places = place(clock, *steady(0, 10, 7000, 0), *steady(10, 10, 90_000, 200))
    assert places == [20 * n for n in range(20)]


def test_a_spell_of_other_timestamps_is_placed_as_it_was_heard():
    music = steady(60, 40, 90_000, 1200)
    packets = [*steady(0, 60, 0, 0), *music, *steady(100, 100, 2000, 2000)]
    assert placed(packets) == [20 * n for n in range(200)]


def test_a_wrapping_timestamp_is_no_break():
    clock = Clock(8000)
    assert place(clock, *steady(0, 50, (1 << 32) // TICKS - 500, 0)) == [20 * n for n in range(50)]


def test_a_sender_that_skipped_a_packets_time_is_followed():
    packets = [(n, 20 * n, 20 * n + (20 if n >= 250 else 0)) for n in range(600)]
    off = [place - one[2] for place, one in zip(placed(packets), packets, strict=True)]
    assert set(off) == {0}


@pytest.mark.parametrize("at", [401, 405, 407, 409])
@pytest.mark.parametrize("by", [10, -10])
def test_who_sends_later_or_earlier_for_good_is_moved_from_the_first_packet_on(at: int, by: int):
    """As a PBX that goes over to music: its packets stay 10 ms behind their timestamps."""
    packets = [*steady(0, at, 0, 0), *steady(at, 400, 20 * at, 20 * at + by)]
    assert np.flatnonzero(np.diff(placed(packets)) - 20).tolist() == [at - 1]


@pytest.mark.parametrize("step", [-200, -700, -4000])
def test_a_clock_set_back_costs_no_sound(step: int):
    packets = [(n, 20 * n, 20 * n + (step if n >= 120 else 0)) for n in range(600)]
    assert placed(packets) == [20 * n for n in range(600)]


@pytest.mark.parametrize("by", [-60, 60])
def test_amid_jitter_nothing_moves_before_who_sends_it_does(by: int):
    random = np.random.default_rng(2)
    late = random.uniform(0, 20, 900) + by * (np.arange(900) >= 600)
    packets = [(n, 20 * n, 20 * n + wait) for n, wait in enumerate(late.tolist())]
    off = np.array(by_arrival(packets)) - 20 * np.arange(900)
    assert np.ptp(off[:590]) <= 10
    assert np.ptp(off[700:]) <= 10
    assert abs(np.median(off[700:]) - np.median(off[:590]) - by) <= 15


@pytest.mark.parametrize("ppm", [-300, -100, 100, 300])
def test_clocks_that_drift_apart_are_kept_within_ten_milliseconds(ppm: int):
    random = np.random.default_rng(ppm + 1000)
    sent = np.arange(10 * 60 * 50) * 20.0
    true = sent * (1 + ppm / 1e6)
    late = true + random.exponential(4, len(sent)) * (random.random(len(sent)) < 0.6)
    packets = list(zip(range(len(sent)), sent, late.tolist(), strict=True))
    places = np.array(placed(packets))
    assert np.abs(places - true).max() <= 10


@pytest.mark.parametrize("ppm", [-300, 300])
@pytest.mark.parametrize("pauses", [False, True])
@pytest.mark.parametrize(("jitter", "within"), [("exponential", 25), ("uniform", 45)])
def test_clocks_that_drift_apart_are_told_from_strong_jitter(ppm, pauses, jitter, within):
    """50 ms on average, or anything up to 200 ms: packets overtake each other, and leap."""
    random = np.random.default_rng(4)
    count = 10 * 60 * 50
    said = np.ones(count, bool)
    if pauses:
        said = np.repeat(random.integers(0, 2, count // 100), 100).astype(bool)
        said[:100] = True
    sent = np.flatnonzero(said) * 20.0
    true = sent * (1 + ppm / 1e6)
    waits = {"exponential": (50.0,), "uniform": (0.0, 200.0)}
    late = true + getattr(random, jitter)(*waits[jitter], len(sent))
    packets = list(zip(range(len(sent)), sent, late.tolist(), strict=True))
    off = np.array(by_arrival(packets)) - true
    assert np.abs(off - np.median(off)).max() <= within


def test_after_a_long_silence_a_drifted_clock_is_right_at_once():
    talk = [(n, 20 * n, 20 * n) for n in range(100)]
    again = [(n, 20 * n + 1_800_000, 20 * n + 1_800_180) for n in range(100, 400)]  # 100 ppm
    assert placed([*talk, *again])[100:] == [1_800_180 + 20 * n for n in range(100, 400)]
