"""A vault for random acts, with what they need to send, to ask, and to wait; and a list of them.

The acts: tests/support/interplayacts.py, interplaybreaks.py. Rows of them: interplay.py.
"""

import time
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final

from spanvault import messages as m
from spanvault.media.chunk import EVENTS
from tests.support.interplayhouse import House, Wrong
from tests.support.vault import SECOND, call_id, make_call

DAY_NS: Final = 86_400 * SECOND
SIZES: Final = (320, 320, 320, 8000)  # bytes of a chunk: sound, and now and then a picture
PEOPLE: Final = tuple(f"+4930{number}" for number in range(6))  # numbers that calls share
OPEN_S: Final = 5.0

Act = Callable[["World", Random], None]
ACTS: dict[str, tuple[int, Act]] = {}  # by name: how often, and what


def act(weight: int) -> Callable[[Act], Act]:
    def add(function: Act) -> Act:
        ACTS[function.__name__] = weight, function
        return function

    return add


class World:
    """The vault, what must be in it, and how to ask after it."""

    def __init__(self, house: House) -> None:
        self.house, self.model = house, house.model
        self.made = 0  # calls
        self.expected: list[str] = []  # beginnings of lines that storaged's log may have
        self.sent: list[tuple[str, list[m.Call], list[tuple[bytes, int, int]], int]] = []

    # --- sending ---------------------------------------------------------------------------------

    def send(
        self, chance: Random, capture: str, calls: list[m.Call],
        chunks: list[tuple[bytes, int, int]], *, spools: bool = True,
    ) -> None:  # fmt: skip
        """A batch, acknowledged before anything else is done, unless nothing can take it."""
        size = chance.choice(SIZES)
        spooled = chance.random() < 0.08 and spools
        one = self.house.captures[capture]
        known = [told for told in map(self.model.calls.get, {c[0] for c in chunks}) if told]
        chunks = [  # a capture never sends two chunks of one place
            chunk for chunk in chunks
            if not any(chunk[1:] in told.chunks for told in known if told.id == chunk[0])
        ]  # fmt: skip
        one.send(calls, chunks, size, spooled=spooled)
        self.sent = [*self.sent[-20:], (capture, calls, chunks, size)]
        self.settle()

    def settle(self) -> None:
        """Wait for acknowledgements. Raises Died, Wrong."""
        for capture in self.house.captures.values():
            if "store" in self.model.full:
                capture.settle(0.3)
            elif not capture.settle():
                raise Wrong(f"not acknowledged: {sorted(capture.waiting)[:5]} of {capture.name}")

    # --- asking ----------------------------------------------------------------------------------

    def ask(self, request: Any, who: str = "operator") -> Any:
        return self.house.ask(request, who)[0]

    def hold(self, check: Callable[[], Iterable[str]], seconds: float = OPEN_S) -> None:
        """What a check finds must be nothing, soon: what waits is being taken in. Raises Wrong."""
        end = time.monotonic() + seconds
        while faults := list(check()):
            if time.monotonic() > end:
                raise Wrong("; ".join(faults[:6]))
            time.sleep(0.05)

    @property
    def pools(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(m.Status()).fields["pools"]
        return found

    def drained(self) -> bool:
        """Whether nothing waits for a pool that is open and takes writes."""
        shut = self.model.locked | self.model.full
        return not any(told["waiting"] for pool, told in self.pools.items() if pool not in shut)

    def new_id(self) -> bytes:
        self.made += 1
        return call_id(1_000_000 + self.made)

    def new_call(self, chance: Random, **changes: Any) -> m.Call:
        """A call of the last weeks, by a rule of some pool."""
        number = self.made + 1
        started_ns = time.time_ns() // DAY_NS * DAY_NS - chance.randrange(1, 40) * DAY_NS
        started_ns += chance.randrange(86_400) * SECOND
        callee = chance.choice(("core", "sensitive", *PEOPLE))
        if "id" not in changes:
            changes["id"] = self.new_id()
        return make_call(number, **{
            "callee": callee, "caller": chance.choice(PEOPLE), "started_ns": started_ns,
            "answered_ns": started_ns + 2 * SECOND, "ended_ns": started_ns + 62 * SECOND,
            "final": chance.random() < 0.7, **changes,
        })  # fmt: skip


def new_chunks(chance: Random, told_id: bytes, since: int = 0) -> list[tuple[bytes, int, int]]:
    """Some seconds of some streams, digits among them now and then."""
    streams = [*range(chance.randrange(1, 3)), *([EVENTS] if chance.random() < 0.3 else [])]
    return [(told_id, stream, since + second) for stream in streams
            for second in range(chance.randrange(1, 5))]  # fmt: skip
