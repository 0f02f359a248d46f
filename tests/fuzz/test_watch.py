"""What a fuzzing run fails on besides an exception: memory that grows, an input that takes long."""

from contextlib import suppress
from pathlib import Path

import pytest

from tests.fuzz import __main__ as fuzzing
from tests.fuzz import watch
from tests.fuzz.targets import TARGETS, Target


def notes(*samples: tuple[float, int]) -> watch.Notes:
    """A run with a sample after each ten runs."""
    made = [watch.Sample(10 * at, rss, blocks) for at, (rss, blocks) in enumerate(samples, 1)]
    return watch.Notes(runs=10 * len(made), samples=made)


def test_memory_that_stays_when_all_is_warm_has_not_grown():
    assert notes((50, 1), (120, 900_000), *[(150, 900_000)] * 10).grown() == ""


def test_memory_that_goes_on_growing_is_told_of():
    told = notes(*[(100 + 5 * at, 1) for at in range(12)]).grown()
    assert told == "memory grew from 110 to 155 MB in 90 runs"


def test_so_is_a_heap_of_small_things():
    told = notes(*[(100, 100_000 * at) for at in range(12)]).grown()
    assert told == "Python's blocks grew from 200000 to 1100000 in 90 runs"


def test_what_is_left_behind_is_measured_and_garbage_is_not():
    leak: list[bytes] = []
    watch.memory(0)  # what the measuring itself takes
    before = watch.memory(0)
    for _ in range(60):
        cycle: list[object] = [bytearray(1 << 20)]
        cycle.append(cycle)
    garbage = watch.memory(60)
    leak.extend(b"x" * (1 << 20) for _ in range(60))
    after = watch.memory(120)
    assert garbage.rss_mb - before.rss_mb < 10
    assert after.rss_mb - garbage.rss_mb > 55


def test_the_slowest_input_and_all_runs_are_in_the_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(watch.time, "process_time", lambda: now_s)
    told = watch.Watch(tmp_path / "notes")
    for data, taken_s in ((b"quick", 0.5), (b"slow", 2.0), (b"quick", 0.5)):
        begun_s, now_s = now_s, now_s + taken_s
        assert told.ran(data, begun_s) == taken_s
    kept = watch.read(tmp_path / "notes")
    assert (kept.runs, kept.slowest[-1]) == (3, (2.0, b"slow"))


def test_what_no_run_wrote_is_empty(tmp_path: Path) -> None:
    assert watch.read(tmp_path / "none").runs == 0


def test_an_input_is_timed_where_nothing_is_instrumented(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(data: bytes) -> None:
        sum(range(20_000 * len(data)))

    monkeypatch.setitem(TARGETS, "counting", Target(count, lambda: [b"x"]))
    assert fuzzing.unhurried("counting", b"x") < fuzzing.unhurried("counting", b"x" * 9)


def spin() -> None:
    while True:
        pass


def test_an_input_that_never_ends_is_ended_and_one_that_does_is_not() -> None:
    alarm = watch.Alarm(0.08)
    try:
        alarm.begin()
        with suppress(OSError):
            spin()
        with pytest.raises(TimeoutError, match="hangs"):  # what caught it is rung again
            spin()
        alarm.end()
        sum(range(10_000_000))
    finally:
        alarm.stop()


def test_runs_add_up_and_the_greatest_memory_is_kept(tmp_path: Path) -> None:
    sums = tmp_path / "sums.json"
    run = {"cpu_s": 5.0, "runs": 10, "slowest_ms": 3.0, "warm_mb": 90, "end_mb": 95, "faults": []}
    fuzzing.add(sums, "sip", run)
    fuzzing.add(sums, "sip", {**run, "slowest_ms": 2.0, "end_mb": 99, "faults": ["grew"]})
    assert fuzzing.json.loads(sums.read_text()) == {
        "sip": {
            "cpu_s": 10.0,
            "runs": 20,
            "broke": 1,
            "slowest_ms": 3.0,
            "warm_mb": 90,
            "end_mb": 99,
        }
    }


def test_sums_of_several_files_take_the_place_of_the_table(tmp_path: Path) -> None:
    readme, one, other = tmp_path / "README.md", tmp_path / "1.json", tmp_path / "2.json"
    run = {"cpu_s": 900.4, "runs": 1000, "faults": []}
    fuzzing.add(one, "sip", run)
    fuzzing.add(other, "sip", {**run, "faults": ["grew"]})
    for name in ("red", "sdp"):
        fuzzing.add(other, name, run)
    readme.write_text(f"before\n{fuzzing.TABLE}| sip | 1 | 1 | 0 |\n\nbehind\n")
    for _ in range(2):
        fuzzing.tell([one, other], readme)
        assert readme.read_text() == (
            f"before\n{fuzzing.TABLE}"
            "| **signalling** | 2,701 | 3,000 | 1 |\n| sdp | 900 | 1,000 | 0 |\n"
            "| sip | 1,801 | 2,000 | 1 |\n"
            "| **media** | 900 | 1,000 | 0 |\n| red | 900 | 1,000 | 0 |\n\nbehind\n"
        )
