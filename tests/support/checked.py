"""A store with recordings and its rolling check, turned by hand at a clock of its own."""

from typing import Any

from storaged.integrity.scrub import Scrub
from tests.support.vault import START, Parts


class Checked:
    """A scrub whose clock passes only by its own waits."""

    def __init__(self, parts: Parts, days: float = 30, ceiling: float = 20e6) -> None:
        self.parts, self.now_s, self.days, self.ceiling = parts, 0.0, days, ceiling
        self.again()

    def again(self) -> None:
        """As after a restart."""
        self.scrub = Scrub(
            self.parts.index, self.parts.vaults, self.days, self.ceiling,
            lambda: START + int(self.now_s * 1e9), lambda: self.now_s,
        )  # fmt: skip
        self.turns = self.scrub.turning()

    def turn(self) -> None:
        wait_s = next(self.turns)  # apart: the clock may also pass within
        self.now_s += wait_s

    def until(self, **wanted: Any) -> dict[str, Any]:
        """Turn until its fields are such. Gives them all."""
        for _ in range(100_000):
            self.turn()
            if (fields := self.fields).items() >= wanted.items():
                return fields
        raise AssertionError(f"{self.fields} never became {wanted}")

    @property
    def fields(self) -> dict[str, Any]:
        with self.parts.index.reading() as view:
            return self.scrub.fields(view)

    def round(self) -> dict[str, Any]:
        """The next whole round."""
        if self.fields["state"] == "rests":
            self.until(state="checks")
        return self.until(state="rests")
