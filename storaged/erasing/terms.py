"""How long a call stays: the times that the settings and its own record set. Pure.

Both of a pool's times count from the call's beginning, and hold for whatever lies in the pool now.
`expires_ns` of a record (RTP without signalling) holds for that recording alone. Nothing ever goes
before `keep_at_least_days` have passed, whoever asks. Who looks for what is due:
storaged.erasing.retention.
"""

from typing import Final, NamedTuple

from spanvault.daemon.config import PoolConfig

DAY_NS: Final = 86_400 * 1_000_000_000
UNFINISHED_NS: Final = 7 * DAY_NS  # a call whose end never came is let go so much later
_MOST_AHEAD_NS: Final = 3 * DAY_NS
_PROOF_NS: Final = DAY_NS


class Terms(NamedTuple):
    """What is set for one pool, in ns. keep_ns: None keeps for ever."""

    keep_ns: int | None = None
    at_least_ns: int = 0

    @classmethod
    def of(cls, pool: PoolConfig) -> "Terms":
        """The terms in a pool's settings."""
        keep = None if pool.keep_days is None else pool.keep_days * DAY_NS
        return cls(keep, (pool.keep_at_least_days or 0) * DAY_NS)

    def due_ns(self, started_ns: int, expires_ns: int | None = None) -> int | None:
        """When a call goes by itself; None: never."""
        ends = [] if self.keep_ns is None else [started_ns + self.keep_ns]
        if expires_ns is not None:
            ends.append(expires_ns)
        return max(min(ends), self.protected_ns(started_ns)) if ends else None

    def protected_ns(self, started_ns: int) -> int:
        """Until when nobody may erase it."""
        return started_ns + self.at_least_ns


class ClockGuard:
    """Whether the host's time of day may decide that calls are old: a wrong one would erase all.

    known_ns: the time of day that was last relied upon. A time that is days ahead of where it
    should be by then has to stand for a day of a clock that nobody sets, the monotonic one, before
    anything is erased by it. After days without power it looks the same, and waits as well.
    """

    def __init__(self, known_ns: int | None, monotonic_ns: int) -> None:
        self._known_ns, self._at_ns = known_ns, monotonic_ns
        self._ahead_since_ns: int | None = None

    def wait_ns(self, now_ns: int, monotonic_ns: int) -> int:
        """How long it has yet to stand; 0: it is relied upon, and becomes what is known."""
        if self._known_ns is not None:
            ahead_ns = now_ns - self._known_ns - (monotonic_ns - self._at_ns)
            if ahead_ns > _MOST_AHEAD_NS:
                if self._ahead_since_ns is None:
                    self._ahead_since_ns = monotonic_ns
                left_ns = self._ahead_since_ns + _PROOF_NS - monotonic_ns
                if left_ns > 0:
                    return left_ns
        self._known_ns, self._at_ns, self._ahead_since_ns = now_ns, monotonic_ns, None
        return 0
