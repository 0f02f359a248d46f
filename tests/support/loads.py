"""What storaged is given while it is killed, and where it can be killed.

Killing it and looking at what is left: tests/support/crashing.py. The loads there are:
tests/support/crashloads.py.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from spanvault import messages as m
from tests.support.vault import call_id

if TYPE_CHECKING:
    from tests.support.forked import Forked

Chunks = Sequence[tuple[bytes, int, int]]


class Step(NamedTuple):
    """A place where storaged can be killed."""

    name: str
    nth: int = 1
    within: bool = False

    def __str__(self) -> str:
        number = f" ({self.nth})" if self.nth > 1 else ""
        return f"{'half of' if self.within else 'before'} {self.name}{number}"


class Sent(NamedTuple):
    """One message of a load, and what must be there once it is acknowledged."""

    message: (
        m.Batch | m.Import | m.Erase | m.Rotate | m.Recipients | m.Unlock | m.Move | m.Verify
        | m.Feed | m.Return | m.Receipt | m.Check
    )  # fmt: skip
    chunks: Chunks = ()
    bulk: tuple[bytes, ...] = ()


class Load(NamedTuple):
    """What storaged is given while it is killed.

    prepare: makes the store that it starts with.  sent: one after the other, each acknowledged
    before the next.  kept: what the store that it starts with was given.  locked: its unlock key is
    nowhere on the machine; what came meanwhile must be there once it is unlocked.  settings: lines
    of storaged.toml.  own: a pattern of the steps that are tried, each once, where other loads have
    the rest.  task: of storaged, in place of the daemon.  greets: a capture
    says meanwhile to which ingest key it seals.
    """

    prepare: Callable[["Forked"], None]
    sent: Sequence[Sent]
    kept: Sequence[Sent] = ()
    locked: bool = False
    settings: str = ""
    own: str = ""
    task: str = ""
    greets: bool = False

    def tries(self, step: Step) -> bool:
        """Whether storaged is killed at this step of it."""
        return not self.own or (step.nth == 1 and re.search(self.own, step.name) is not None)

    @property
    def sorts(self) -> bool:
        """Whether its end is not an answer, but an intake that is empty."""
        return bool(self.sent) and isinstance(self.sent[-1].message, m.Unlock | m.Move)

    @property
    def repairs(self) -> bool:
        """Whether a copy takes the place of what is damaged."""
        return any(isinstance(one.message, m.Return) for one in self.sent)

    @property
    def follows(self) -> bool:
        """Whether a move may begin by itself."""
        return "[[rules]]" in self.settings

    @property
    def moved(self) -> dict[bytes, str]:
        """The pools of the calls that it moves."""
        return {one: sent.message.pool for sent in self.sent if isinstance(sent.message, m.Move)
                for one in sent.message.ids}  # fmt: skip

    @property
    def erased(self) -> set[bytes]:
        """The calls that it erases."""
        return {one for sent in self.sent if isinstance(sent.message, m.Erase)
                for one in sent.message.ids}  # fmt: skip


# What comes next, whatever was killed: a call that nobody has heard of yet.
AFTERWARDS = Sent(m.Batch("test", 99), [(call_id(99), 1, 0)])
