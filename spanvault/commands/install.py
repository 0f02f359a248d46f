"""`spanvault init`: what a new installation lacks. The work: spanvault.init."""

from pathlib import Path
from typing import Annotated

import typer

from spanvault import init as installation
from spanvault.commands.output import CommandFailed, say
from spanvault.daemon.config import FOLDER


def init(
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Where settings go.")
    ] = FOLDER,
    target: Annotated[
        Path | None, typer.Option("--target", metavar="DIR", help="A folder for the first replica.")
    ] = None,
) -> None:
    """Make certificates, keys and commented settings; what is there is never replaced."""
    try:
        made = installation.initialise(folder, target)
    except OSError as error:
        raise CommandFailed(
            f"{error.filename or folder}: {(error.strerror or str(error)).lower()}",
            "Run it as root, or name another folder: --folder DIR.",
        ) from None
    for line in made or [f"{folder}: all is there already"]:
        say(line)
