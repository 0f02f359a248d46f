"""Moments and durations as operators write them."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from spanvault.commands.times import duration, parse_moment, parse_seconds

NOW = datetime(2026, 11, 22, 14, 30, 15, 250_000, tzinfo=timezone(timedelta(hours=1)))


def moment(text: str) -> str:
    return datetime.fromtimestamp(parse_moment(text, NOW) / 1e9, UTC).isoformat()


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("now", "2026-11-22T13:30:15.250000+00:00"),
        ("today", "2026-11-21T23:00:00+00:00"),
        ("Yesterday", "2026-11-20T23:00:00+00:00"),
        ("-1h", "2026-11-22T12:30:15.250000+00:00"),
        ("-1.5d", "2026-11-21T01:30:15.250000+00:00"),
        ("2026-11-22", "2026-11-21T23:00:00+00:00"),
        ("2026-11-22T08:15", "2026-11-22T07:15:00+00:00"),
        ("2026-11-22 08:15:30.5", "2026-11-22T07:15:30.500000+00:00"),
        ("2026-11-22T08:15:00Z", "2026-11-22T08:15:00+00:00"),
        ("2026-11-22T08:15:00.123456Z", "2026-11-22T08:15:00.123456+00:00"),
    ],
)
def test_moments(text: str, utc: str):
    assert moment(text) == utc


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-07-01T12:00", "2026-07-01T10:00:00+00:00"),
        ("2026-12-01T12:00", "2026-12-01T11:00:00+00:00"),
        ("-1h", "2026-10-25T00:30:00+00:00"),  # it was half past two the first time
        ("today", "2026-10-24T22:00:00+00:00"),
    ],
)
def test_local_times_are_those_of_their_own_season(
    monkeypatch: pytest.MonkeyPatch, text: str, utc: str
):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        now = datetime(2026, 10, 25, 2, 30, fold=1)  # the second half past two
        found = parse_moment(text, now)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert datetime.fromtimestamp(found / 1e9, UTC).isoformat() == utc


@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31", "-999999999999w", "-9000000w"])
def test_a_moment_that_no_call_can_have(text: str):
    with pytest.raises(ValueError, match="is no time"):
        parse_moment(text, NOW)


@pytest.mark.parametrize("text", ["", "soon", "-1", "-1y", "1h", "2026-13-01", "--1h"])
def test_what_is_no_moment_says_what_is(text: str):
    with pytest.raises(ValueError, match=r"is no time\. Give 2026-11-22"):
        parse_moment(text, NOW)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("3 s", 3)])
def test_durations(text: str, seconds: float):
    assert parse_seconds(text) == seconds


def test_what_is_no_duration_says_what_is():
    with pytest.raises(ValueError, match=r"is no duration\. Give 90"):
        parse_seconds("long")


def test_durations_for_people():
    shown = [duration(s) for s in (None, 0, 59.6, 61, 3600)]
    assert shown == ["–", "0:00", "1:00", "1:01", "1:00:00"]
