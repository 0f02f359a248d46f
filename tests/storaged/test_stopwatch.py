"""A disk that is slow, or hangs, is named with its figure while that lasts."""

from pathlib import Path

import pytest

from storaged import stopwatch
from storaged.stopwatch import Stopwatch, Watched


@pytest.fixture
def clock(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now_s[0])
    return now_s


def test_a_slow_disk_is_told_of_until_it_is_quick_again(clock):
    one, watched = Stopwatch(), Watched(late_s=1.0)
    watched.add(Path("/none"), one)
    for taken_s, told in [
        (0.9, []),
        (4.0, ["/none (disk /) is SLOW: 4.0 s until what was written is safe"]),
        (0.1, []),
    ]:
        with one.running():
            clock[0] += taken_s
        assert watched.lines == told


def test_a_disk_that_hangs_is_told_of_meanwhile(clock):
    one, watched = Stopwatch(), Watched(late_s=1.0)
    watched.add(Path("/none"), one)
    with one.running():
        clock[0] += 5
        assert watched.lines == ["/none (disk /) is SLOW: 5.0 s until what was written is safe"]
        clock[0] += 70
        assert watched.lines == [
            "/none (disk /) HANGS for 75 s, nothing is acknowledged: look at dmesg"
        ]
    assert "is SLOW: 75.0 s" in watched.lines[0]


def test_a_sync_that_failed_is_over_too(clock):
    one = Stopwatch()
    with pytest.raises(OSError, match="broken"), one.running():
        raise OSError("broken")
    clock[0] += 70
    assert (one.under_way_s, one.taken_s) == (0.0, 0.0)
