"""`spanvault reindex`: the store's index made anew from its recordings, while storaged is stopped.

The work is done by `python -m storaged reindex`, which has the keys; this tells how far it is.
"""

import json as text
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from spanvault.commands.access import PoolKeysOption, UnlockOption
from spanvault.commands.output import FAILED, UNAVAILABLE, CommandFailed, complain, progress, say
from spanvault.daemon.config import FOLDER
from spanvault.daemonlog import parse_all
from spanvault.keys import unlock
from spanvault.private import toml


def reindex(
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="A store that has no storaged.toml."),
    ] = None,
    unlock_key: UnlockOption = None,
    pool_keys: PoolKeysOption = None,
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="storaged.toml of the store.")
    ] = FOLDER / "storaged.toml",
) -> None:
    """Make the index anew from what lies on disk, and name what cannot be read. Stop storaged."""
    with tempfile.TemporaryDirectory(prefix="spanvault-") as folder:
        if store is not None:
            config = _settings(Path(folder), store.absolute(), unlock_key)
        elif not config.exists():
            hint = "Name a store with --store DIR, or its storaged.toml with --config FILE."
            raise CommandFailed(f"{config} is not there", hint, UNAVAILABLE)
        keys = [word for each in pool_keys or [] for word in ("--pool-key", each)]
        command = [sys.executable, "-m", "storaged", "--config", str(config), *keys, "reindex"]
        done, code = _run(command, Path(folder) / "said")
    say(f"{done.get('calls', 0):,} calls are in the index again", "red" if code else "green")
    if code:
        raise typer.Exit(FAILED)


def _settings(folder: Path, store: Path, unlock_key: Path | None) -> Path:
    """Settings for a store without any."""
    root = unlock.root_file(store)
    if not root.exists():
        raise CommandFailed(f"there is no store at {store}", "Name its folder.", UNAVAILABLE)
    try:
        key = unlock_key or unlock.find(root)
    except unlock.NoKey as error:
        raise CommandFailed(error.error, error.hint, UNAVAILABLE) from None
    path, nowhere = folder / "storaged.toml", f"ipc://{folder}/none"
    path.write_text(
        toml(
            {"store": store, "unlock_key": key.absolute(), "ingest": nowhere, "requests": nowhere}
        ),
        encoding="utf-8",
    )
    return path


def _run(command: list[str], said: Path) -> tuple[dict[str, Any], int]:
    """Run it; its last line, and its exit code. Raises CommandFailed if nothing was rebuilt."""
    done: dict[str, Any] = {}
    with said.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, "JOURNAL_STREAM": ""}
        )
    with progress("") as bar:
        task = bar.add_task("reading", total=None)
        for done in _told(process):
            bar.update(task, description=done.get("phase", ""), completed=done.get("done", 0))
    code = process.wait()
    lines = said.read_text(encoding="utf-8", errors="replace").splitlines()
    serious = [one for one in parse_all(lines) if one.level not in ("debug", "info")]
    if "calls" not in done:
        last = serious[-1] if serious else None
        error = last.sentence if last else f"storaged ended with status {code}"
        raise CommandFailed(error, last.fields.get("HINT", "") if last else "", UNAVAILABLE)
    for one in serious:
        complain(one.sentence, one.fields.get("HINT", ""))
    return done, code


def _told(process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """The lines of progress, and the last one."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            yield text.loads(line)
        except ValueError:
            continue
