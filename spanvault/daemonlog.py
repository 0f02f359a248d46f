"""Read back what a private daemon wrote on its stderr, to tell it to the operator.

Writing these lines: spanvault.daemon.journal. Who reads them: the command, for the daemons it
started.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_VALUE: Final = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^ '\"=]+"
_FIELD: Final = re.compile(rf" ([A-Z][A-Z0-9_]*)=({_VALUE})")


class Said(NamedTuple):
    """One line. level: of LEVELS; error where a daemon wrote past its logger."""

    level: str
    message: str
    fields: dict[str, str]

    @property
    def sentence(self) -> str:
        """For people: the fault where one is named, else the message with its fields."""
        rest = {key: value for key, value in self.fields.items() if key not in ("FAULT", "HINT")}
        told = ", ".join(f"{key.lower()} {value}" for key, value in rest.items())
        whole = self.fields.get("FAULT", self.message)
        return f"{whole} ({told})" if told else whole

    @property
    def serious(self) -> bool:
        """An error, or worse."""
        return self.level in ("error", "critical")


def parse(line: str) -> Said:
    """One line of stderr. Raises nothing: what is not ours is an error's whole text."""
    level, colon, rest = line.partition(": ")
    if not colon or level not in LEVELS:
        return Said("error", line, {})
    found = list(_FIELD.finditer(rest))
    message = rest[: found[0].start()] if found else rest
    return Said(level, message, {one[1]: _unquoted(one[2]) for one in found})


def parse_all(lines: Iterable[str]) -> Iterator[Said]:
    """Lines that say something; those of a traceback but its last belong to no one."""
    return (
        parse(line) for line in lines if line.strip() and not line.startswith((" ", "Traceback"))
    )


def _unquoted(value: str) -> str:
    if value[0] not in "'\"":
        return value
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value
