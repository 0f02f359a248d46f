"""Timestamps of another pace than their clock's are known, and no others."""

from collections.abc import Callable

import numpy as np
import pytest

from spanvault.audio.clock import Clock
from spanvault.audio.pace import Heard, Pace

SECONDS = 6
Stamp = Callable[[int], int]


def heard(
    stamp: Stamp, rate: int = 8000, packet_ms: int = 20, jitter_ms: float = 0, lost: int = 0
) -> Heard:
    """Packets for some seconds. lost: every so many-th."""
    random = np.random.default_rng(7)
    number = np.arange(SECONDS * 1000 // packet_ms)
    arrival = number * packet_ms * rate // 1000
    arrival = arrival + (random.uniform(0, jitter_ms, len(number)) * rate / 1000).astype(np.int64)
    stamps = np.array([stamp(n) & 0xFFFFFFFF for n in number.tolist()], np.uint32)
    kept = number % lost != 1 if lost else np.ones(len(number), bool)
    return Heard(number[kept], stamps[kept], arrival[kept])


def step(packets: Heard, rate: int = 8000) -> int:
    pace = Pace(rate)
    pace.judge(packets)
    return pace.step


WRONG: dict[str, Stamp] = {
    "twice too fast": lambda n: 320 * n,
    "half as fast": lambda n: 80 * n,
    "milliseconds": lambda n: 20 * n,
    "standing still": lambda n: 5,
    "backwards": lambda n: -160 * n,
    "any": lambda n: (n + 7) ** 3 * 2_654_435_761,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pace_is_replaced_by_how_packets_come(name: str) -> None:
    assert step(heard(WRONG[name])) == 160
    assert step(heard(WRONG[name], jitter_ms=15)) == 160
    assert step(heard(WRONG[name], lost=7)) == 160
    assert step(heard(lambda n: WRONG[name](3 * n), packet_ms=60)) == 480


RIGHT: dict[str, Stamp] = {
    "even": lambda n: 160 * n,
    "wrapping": lambda n: (1 << 32) - 8000 + 160 * n,
    "begun anew each second": lambda n: 160 * n + n // 50 * 123_456_789,
    "begun anew each second, at nothing": lambda n: 160 * (n % 50),
    "a little fast": lambda n: 160 * n + n // 100,
    "two frames under one timestamp": lambda n: 320 * (n // 2),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pace_is_left(name: str) -> None:
    for jitter_ms in (0, 15, 100):
        assert step(heard(RIGHT[name], jitter_ms=jitter_ms)) == 0
    assert step(heard(RIGHT[name], lost=7)) == 0


def test_opus_that_is_counted_by_its_samples() -> None:
    assert step(heard(lambda n: 160 * n, 48_000), 48_000) == 960
    assert step(heard(lambda n: 960 * n, 48_000), 48_000) == 0


def test_pauses_and_bursts_are_no_pace() -> None:
    """Arrival that is not even tells nothing: what was said stands."""
    steady = heard(lambda n: 320 * n)
    burst = steady._replace(arrival=steady.arrival // 8000 * 8000)
    assert step(burst._replace(arrival=burst.arrival // 24_000 * 24_000)) == 0
    assert step(steady._replace(arrival=steady.arrival * 0)) == 0
    talk = heard(lambda n: 160 * n + n // 40 * 8000)  # silence is not sent
    assert step(talk._replace(arrival=talk.arrival + talk.sequence // 40 * 8000)) == 0


def test_a_sender_that_starves_is_slow_and_not_wrong() -> None:
    """20 ms of sound every 30 ms, as a telephone without a sound card sends."""
    assert step(heard(lambda n: 160 * n, packet_ms=30, jitter_ms=15)) == 0


def test_pictures_share_timestamps_and_are_left_alone() -> None:
    assert step(heard(lambda n: 0, 90_000), 90_000) == 0


def test_too_few_packets_change_nothing() -> None:
    wrong = heard(WRONG["standing still"])
    pace = Pace(8000)
    pace.judge(Heard(*(column[:30] for column in wrong)))
    assert pace.step == 0
    pace.judge(wrong)
    pace.judge(Heard(*(column[:30] for column in heard(RIGHT["even"]))))
    assert pace.step == 160


def test_packets_of_a_wrong_pace_lie_one_behind_the_other() -> None:
    packets = heard(WRONG["twice too fast"], jitter_ms=5)
    clock = Clock(8000)
    first, rest = (
        Heard(*(column[part] for column in packets)) for part in (slice(50), slice(50, None))
    )
    places = np.concatenate([clock.place(first, rest), clock.place(rest)])
    assert set(np.diff(places).tolist()) <= {160}


@pytest.mark.parametrize(("came_ms", "ticks"), [
    (20.4, 160),  # a sender whose clock is slow means 20 ms all the same
    (19.6, 160),
    (17.1, 140),  # 17.5, of 2.5 each
    (21.35, 171),  # none that is usual: as it comes
])  # fmt: skip
def test_a_pace_is_that_of_usual_packets_where_it_is_near_one(came_ms: float, ticks: int) -> None:
    number = np.arange(300)
    arrival = np.round(number * came_ms * 8).astype(np.int64)
    assert step(Heard(number, (5 + 0 * number).astype(np.uint32), arrival)) == ticks
