"""What storaged tells a caller when it cannot do what was asked: a code, the fault, the remedy."""

from typing import Literal

Code = Literal[
    "invalid", "denied", "not_found", "erased", "corrupt", "locked", "full", "unavailable"
]


class Fault(Exception):
    """A request, or the start of the daemon, that cannot be carried out.

    code: as in messages.Failure.  hint: what the operator can do, one sentence.
    """

    def __init__(self, code: Code, error: str, hint: str = "") -> None:
        super().__init__(f"{error}. {hint}" if hint else error)
        self.code: Code = code
        self.error = error
        self.hint = hint
