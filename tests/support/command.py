"""The `spanvault` command as an operator runs it: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

SPANVAULT: Final = Path(sys.executable).with_name("spanvault")


def start(
    *arguments: object,
    home: Path | None = None,
    variables: dict[str, str] | None = None,
    **more: Any,
) -> "subprocess.CompletedProcess[Any]":
    """Run it to its end, with what it says as bytes; text=True in more: as text.

    home: where it keeps unlock keys; None: where whoever runs the tests does.
    """
    own = {} if home is None else {"XDG_DATA_HOME": str(home)}
    return subprocess.run(
        [SPANVAULT, *map(str, arguments)],
        env={**os.environ, **own, **(variables or {})},
        **{"capture_output": True, "timeout": 300, "check": False, **more},
    )


def spanvault(
    *arguments: object, home: Path | None = None, columns: int = 160, **more: Any
) -> "subprocess.CompletedProcess[str]":
    """The same, as text, on a terminal of so many columns."""
    return start(*arguments, home=home, variables={"COLUMNS": str(columns)}, text=True, **more)
