"""Shares of a key, given one at a time: each holder at a terminal of his own, none sees another's.

They are kept in memory alone, for an hour, until enough are there to unlock the pool; a restart
forgets them, and each reply tells which ones are there. A share of a key that the pool is not
sealed to is refused at once. Shares themselves: spanvault.keys.shares. Requests: WIRE.md §6. Pure.
"""

from typing import Final, NamedTuple

from spanvault.keys import shares
from spanvault.keys.shares import Share
from storaged.faults import Fault

HOLD_NS: Final = 3600 * 10**9  # from the first of a set


class Given(NamedTuple):
    """How far a set is. key: the private key, once all that are needed are there."""

    numbers: list[int]
    needed: int
    key: bytes | None = None


class _Set:
    def __init__(self, since_ns: int) -> None:
        self.since_ns, self.shares = since_ns, dict[int, Share]()


class Shareholders:
    """What was given so far, by pool and set. For one thread."""

    def __init__(self) -> None:
        self._sets: dict[tuple[str, tuple[object, ...]], _Set] = {}

    def give(self, pool: str, text: str, recipients: list[bytes], now_ns: int) -> Given:
        """Take a share. recipients: the public keys that the pool is sealed to. Raises Fault."""
        self._forget_old(now_ns)
        try:
            share = shares.parse(text)
        except ValueError as error:
            raise Fault("invalid", str(error), "Nothing of it was kept: type it again.") from None
        _check_set(pool, share, recipients)
        key = pool, share[:3]  # the same key may have been printed twice, M of N another time
        held = self._sets.setdefault(key, _Set(now_ns))
        held.shares[share.number] = share
        numbers = sorted(held.shares)
        if len(numbers) < share.threshold:
            return Given(numbers, share.threshold)
        del self._sets[key]
        try:
            return Given(numbers, share.threshold, shares.combine(held.shares.values()))
        except ValueError as error:  # one was forged: nobody can say which
            raise Fault("invalid", str(error), "All must be given again.") from None

    def forget(self, pool: str) -> None:
        """The pool is open: nothing more is needed."""
        for key in [key for key in self._sets if key[0] == pool]:
            del self._sets[key]

    def _forget_old(self, now_ns: int) -> None:
        for key, held in list(self._sets.items()):
            if not 0 <= now_ns - held.since_ns < HOLD_NS:
                del self._sets[key]


def _check_set(pool: str, share: Share, recipients: list[bytes]) -> None:
    """Raise Fault for a share of a key that does not open the pool."""
    sets = {shares.set_of(public) for public in recipients}
    if share.set_id not in sets:
        known = ", ".join(sorted(one.hex().upper() for one in sets))
        raise Fault(
            "denied",
            f"this share is of set {share.set_name}, pool {pool} is sealed to keys of {known}",
            "Give a share of the pool's own key, or of the recovery key.",
        )
