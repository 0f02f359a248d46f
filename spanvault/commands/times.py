"""Moments as operators write them, and as they read them.

Accepted: ISO 8601 (local time unless it says otherwise), `-90m` before now, `today`, `yesterday`,
`now`. Printed: local time for people, UTC in JSON (callline.iso_utc).
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
ACCEPTED: Final = "Give 2026-11-22, 2026-11-22T14:30, -1h, -30m, -7d, today, yesterday or now."


def parse_moment(text: str, now: datetime) -> int:
    """Nanoseconds since 1970. now: in the local zone, or without one, which is this machine's.

    Without one, each moment has the offset that holds at that moment (summer time).
    Raises ValueError.
    """
    try:
        time_ns = int(_moment(text, now).timestamp() * 1_000_000) * 1000
    except (ValueError, OverflowError):
        raise ValueError(f"'{text}' is no time. {ACCEPTED}") from None
    if not -(1 << 63) <= time_ns < 1 << 63:
        raise ValueError(f"'{text}' is no time. Give one between the years 1678 and 2262.")
    return time_ns


def _moment(text: str, now: datetime) -> datetime:
    word = text.strip().lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    ago = re.fullmatch(r"-\s*(\d+(?:\.\d+)?)\s*([smhdw])", word)
    if word in named:
        moment = named[word]
    elif ago:
        # Over UTC: between the two, clocks may have been put back.
        moment = now.astimezone(UTC) - timedelta(seconds=float(ago[1]) * UNITS_S[ago[2]])
    else:
        moment = datetime.fromisoformat(text.strip())
    return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `2m`, `1h` as seconds. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text.lower())
    if not found:
        raise ValueError(f"'{text}' is no duration. Give 90, 90s, 2m or 1h.")
    return float(found[1]) * UNITS_S[found[2] or "s"]


def local_time(time_ns: int | None) -> str:
    """Local date and time to the second, or a dash."""
    if time_ns is None:
        return "–"
    return f"{datetime.fromtimestamp(time_ns / 1e9).astimezone():%Y-%m-%d %H:%M:%S}"


def duration(seconds: float | None) -> str:
    """`1:02:03`, `2:03` or a dash."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
