"""`spanvault`, the operator's command: what can be asked is in spanvault.commands.

Documents and tables go to stdout, all else to stderr. It holds no key to a recording: storaged
opens them, by the daemons that run or by private ones (--store).
"""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Final

import typer

from spanvault import __version__
from spanvault.client import RequestFailed
from spanvault.commands.output import (
    FAILED,
    INTERRUPTED,
    UNAVAILABLE,
    USAGE,
    CommandFailed,
    complain,
)
from spanvault.daemon import memory

EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 failed, or done in part, or faults were found; 2 wrong usage or "
    "settings; 69 no storaged answers, or the store cannot be opened; 130 interrupted."
)

# Command → its module: only that of the one that is asked for is imported, for all of them together
# take longer than most commands do.
COMMANDS: Final = {
    "replay": "replay", "calls": "listing", "show": "showing", "export": "sound",
    "explain": "explain", "verify": "care", "repair": "repairing", "status": "health",
    "restore": "restore", "reindex": "reindex", "check": "care", "init": "install",
    "erase": "erasing", "move": "erasing", "erasures": "erasing", "log": "auditing",
    "certificate": "erasing", "keys": "keys",
}  # fmt: skip


def application(arguments: Sequence[str]) -> typer.Typer:
    """The command line, as far as these arguments need it: all of it unless they name a command."""
    app = typer.Typer(
        name="spanvault",
        help="Records telephone calls from a mirrored switch port; this command asks for them.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_spanvault)
    asked = next((word for word in arguments if not word.startswith("-")), "")
    for name in [asked] if asked in COMMANDS else COMMANDS:
        command = getattr(import_module(f"spanvault.commands.{COMMANDS[name]}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command()(command)
    return app


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"spanvault {__version__}\n")
        raise typer.Exit


def _spanvault(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Which spanvault this is."
    ),
) -> None:
    """Records telephone calls from a mirrored switch port; this command asks for them."""


def main() -> None:
    """Run the command; exit with its code."""
    memory.keep_private()
    signal.signal(signal.SIGTERM, _end)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One command. Gives the exit code; every fault has been told on stderr."""
    code = _run(arguments)
    try:
        sys.stdout.flush()  # here, where a reader that has left can still be dealt with
    except OSError as error:
        if code == 0:
            return _output_failed(error)
        _drop_output()
    return code


def _run(arguments: list[str]) -> int:
    try:
        with memory.loading():
            app = application(arguments)
        app(arguments, prog_name="spanvault")
    except CommandFailed as error:
        complain(error.error, error.hint)
        return error.code
    except RequestFailed as error:
        complain(error.error, error.hint)
        return UNAVAILABLE if error.code in ("unavailable", "locked") else FAILED
    except ValueError as error:  # settings, certificates, key files: each says what to do
        complain(str(error))
        return USAGE
    except OSError as error:  # of a disk, or of where stdout goes
        return _output_failed(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else FAILED
    return 0


def _output_failed(error: OSError) -> int:
    """Say so, unless it was a reader that has left: he wants no word. Gives the exit code."""
    _drop_output()
    if not isinstance(error, BrokenPipeError):
        complain(f"{error.filename or 'output'}: {(error.strerror or str(error)).lower()}")
    return FAILED


def _drop_output() -> None:
    """What is still buffered goes nowhere: else the flush at exit would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """SIGTERM ends us as Ctrl-C does: private daemons are stopped, temporary files removed."""
    raise SystemExit(128 + number)
