"""Which pool a call enters: the rules of etc/storaged.toml, and how one fits a call.

The first rule that fits decides; a call that none fits goes to the default pool. Within a rule
every condition that is given must hold, and of a condition's values any may. Pure.
Who asks, and when: storaged.recordings.sorting. Where a call's hosts and headers come from:
capture.calls.calls.
"""

import ipaddress
import re
import zoneinfo
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple

import msgspec

from spanvault.messages import Call

PoolName = Literal["base", "core", "sensitive"]
TIERS: Final[dict[str, int]] = {"base": 0, "core": 1, "sensitive": 2}  # a call only ever moves up
POOLS: Final[tuple[str, ...]] = tuple(TIERS)
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS: Final = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)-([01]?\d|2[0-4]):([0-5]\d)")
_SEPARATORS: Final = str.maketrans("", "", " -./()")
_NATIONAL: Final = re.compile(r"\+\s*\d[\d\s]*\(0\)")  # as people print it, and nobody dials it
_TOKEN: Final = re.compile(r"[A-Za-z0-9.!%*_+`'~-]{2,}")  # RFC 3261 §25.1, and no compact form
_MINUTES: Final = 24 * 60


class Hours(NamedTuple):
    """A row of a schedule: on these days (0 is Monday), from one minute of the day to another.

    Where `until` is not later than `since`, it is the next day's.
    """

    days: frozenset[int]
    since: int
    until: int

    def hold(self, moment: datetime) -> bool:
        """Whether a local moment lies within."""
        minute, day = moment.hour * 60 + moment.minute, moment.weekday()
        if self.since < self.until:
            return day in self.days and self.since <= minute < self.until
        yesterday = (day - 1) % 7
        return (day in self.days and minute >= self.since) or (
            yesterday in self.days and minute < self.until
        )


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One [[rules]] of etc/storaged.toml, as it is written there."""

    pool: PoolName
    number: list[str] = []  # caller or callee; `*` at the end: all that begin so
    did: list[str] = []  # what was dialled: the callee's number, or that of the Request-URI
    trunk: list[str] = []  # an address or network that one of the first INVITE's two ends is in
    header: dict[str, str] = {}  # of the first INVITE: a pattern with * and ?, any case
    schedule: list[str] = []  # "mon-fri 08:00-18:00", when the call began
    timezone: str = ""  # of the schedule; without: this machine's

    def __post_init__(self) -> None:
        """Raise ValueError for a value that could never fit, naming key and value."""
        if not (self.number or self.did or self.trunk or self.header or self.schedule):
            raise ValueError("a rule without a condition: set `default_pool` for all other calls")
        for number in (*self.number, *self.did):
            if not _bare(number).rstrip("*") or "*" in number[:-1]:
                raise ValueError(f"'{number}' is no number, nor the beginning of one with a *")
            if _NATIONAL.match(number):
                raise ValueError(
                    f"'{number}' has a (0) that is dialled within the country: omit it"
                )
        for text in self.trunk:
            _network(text)
        for name in self.header:
            check_header(name)
        for text in self.schedule:
            hours(text)
        _zone(self.timezone)

    def fits(self, call: Call) -> bool:
        """Whether every condition holds for a call."""
        return (
            (not self.number or _any_number(self.number, (call.caller, call.callee)))
            and (not self.did or _any_number(self.did, (call.callee, call.dialled)))
            and (not self.trunk or _any_host(self.trunk, call.hosts))
            and all(_header_fits(call, *wanted) for wanted in self.header.items())
            and (not self.schedule or self._in_hours(call.started_ns))
        )

    def _in_hours(self, started_ns: int) -> bool:
        try:
            moment = datetime.fromtimestamp(started_ns / 1e9, _zone(self.timezone))
        except (ValueError, OverflowError, OSError):  # a time that no calendar has
            return False
        return any(hours(text).hold(moment) for text in self.schedule)


def place(call: Call, rules: Iterable[Rule], default: str) -> str:
    """The name of the pool that a call enters."""
    return next((rule.pool for rule in rules if rule.fits(call)), default)


def check_header(name: str) -> None:
    """Raise ValueError for what is no name of a SIP header, or a compact form of one."""
    if not _TOKEN.fullmatch(name):
        raise ValueError(
            f"'{name}' is no header's name. Write it as 'X-Class', without the colon; a compact "
            "form as its long one: 'Subject', not 's'"
        )


def hours(text: str) -> Hours:
    """A schedule's row: `mon-fri 08:00-18:00`, `sat,sun 00:00-24:00`. Raises ValueError."""
    days, _, span = text.strip().lower().partition(" ")
    found = _HOURS.fullmatch(span.strip())
    if not found:
        raise ValueError(f"'{text}' is no schedule. Write it as 'mon-fri 08:00-18:00'")
    since, until = (int(found[at]) * 60 + int(found[at + 1]) for at in (1, 3))
    if since >= _MINUTES or until > _MINUTES:
        raise ValueError(f"'{text}' names an hour that no day has")
    return Hours(frozenset(_days(days, text)), since, until)


def _days(days: str, text: str) -> set[int]:
    found: set[int] = set()
    for part in days.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"'{text}' names no day. Days are {', '.join(DAYS)}")
        begin = DAYS.index(first)
        end = DAYS.index(last) if dash else begin
        found |= {day % 7 for day in range(begin, end + 1 if end >= begin else end + 8)}
    return found


def _any_number(wanted: Sequence[str], numbers: Sequence[str]) -> bool:
    bare = [_bare(number) for number in numbers if number]
    for each in map(_bare, wanted):
        if each.endswith("*"):
            if any(number.startswith(each[:-1]) for number in bare):
                return True
        elif each in bare:
            return True
    return False


def _bare(number: str) -> str:
    """A telephone number without what only parts its digits; anything else as it is."""
    bare = number.translate(_SEPARATORS)
    return bare if re.fullmatch(r"\+?\d+\*?", bare) else number.strip().lower()


def _any_host(wanted: Sequence[str], hosts: Sequence[str]) -> bool:
    try:
        addresses = [ipaddress.ip_address(host) for host in hosts]
    except ValueError:  # of a capture that says nonsense
        return False
    return any(address in _network(text) for text in wanted for address in addresses)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"'{text}' is no address and no network") from None


def _header_fits(call: Call, name: str, pattern: str) -> bool:
    plain = pattern.lower().replace("[", "[[]")  # a bracket is one: * and ? alone mean more
    return any(fnmatchcase(value.lower(), plain) for value in call.headers.get(name.lower(), ()))


def _zone(name: str) -> tzinfo | None:
    """None is this machine's own."""
    try:
        return zoneinfo.ZoneInfo(name) if name else None
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"'{name}' is no time zone. Write it as 'Europe/Berlin'") from None
