"""`spanvault replay`: capture files through the real capture into a store, as fast as it can.

A file may be a pipe: `mergecap -w - *.pcap | spanvault replay - --store DIR`. The calls of this
replay are printed in the order of their beginnings. Private daemons: access.py.
"""

import json as text
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from spanvault.callline import call_line
from spanvault.commands.access import JsonOption, NeededStore, UnlockOption, private
from spanvault.commands.exportable import exportable
from spanvault.commands.output import (
    FAILED,
    CommandFailed,
    complain,
    document,
    print_calls,
    progress,
    warn,
)
from spanvault.messages import Call
from spanvault.private import PrivateStore

DESCRIPTOR: Final = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")  # how a shell names <(command)


def replay(
    captures: Annotated[
        list[Path],
        typer.Argument(
            metavar="CAPTURE…",
            help="pcap or pcapng files, or folders of them, in any order; - is stdin.",
        ),
    ],
    store: NeededStore,
    unlock_key: UnlockOption = None,
    json: JsonOption = False,
) -> None:
    """Record capture files into a store; print each call attempt they held."""
    named = [Path("/dev/stdin") if str(path) == "-" else path for path in captures]
    readable = [path for path in named if _readable(path)]
    if not readable:
        raise typer.Exit(FAILED)
    with private(store, unlock_key) as running:
        process = _start(running, readable)
        found = _calls(running, process)
        if json:
            for call in found:
                document(call_line(call, exportable))
        else:
            print_calls(found)
        done = _end(running, process)
    if not done or len(readable) < len(captures):
        raise typer.Exit(FAILED)


def _readable(path: Path) -> bool:
    try:
        if path.is_fifo():  # opened and closed, it would be gone for whoever reads it next
            return True
        if path.is_dir():
            next(path.iterdir(), None)
            return True
        with path.open("rb"):
            return True
    except OSError as error:
        complain(f"{path}: {(error.strerror or 'cannot be read').lower()}")
        return False


def _start(running: PrivateStore, captures: list[Path]) -> "subprocess.Popen[bytes]":
    settings: dict[str, Any] = {
        **running.connection("capture"),
        "name": "replay",
        "state_dir": running.folder / "capture",
        "runtime_dir": running.folder / "capture-run",
    }
    files = [str(path.absolute()) for path in captures]
    handed = [int(found[1]) for file in files if (found := DESCRIPTOR.fullmatch(file))]
    return running.daemon(
        "capture",
        settings,
        ["--report", *files],
        stdout=subprocess.PIPE,
        stdin=None,  # ours: it may be one of the captures
        pass_fds=handed,
    )


def _calls(running: PrivateStore, process: "subprocess.Popen[bytes]") -> list[Call]:
    """The calls that capture reported, once each, by the time they began."""
    with progress("calls") as bar:
        task = bar.add_task("recording", total=None)
        ids: dict[bytes, None] = {}
        for one in _reported(process):
            ids[one] = None
            bar.update(task, completed=len(ids))
    process.wait()
    calls = list(running.client.several(list(ids)))
    found = {call.id for call in calls}
    # What is not there says why: its pool may be locked.
    calls += [running.client.get(one).call for one in ids if one not in found]
    return sorted(calls, key=lambda call: (call.started_ns, call.call_ids))


def _reported(process: "subprocess.Popen[bytes]") -> Iterator[bytes]:
    """Ids, from lines of JSON; a line without one is the report's end."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            told = text.loads(line)
            if "id" in told:
                yield bytes.fromhex(told["id"])
        except (ValueError, TypeError):
            raise CommandFailed(f"capture reported what is no call: {line[:80]!r}") from None


def _end(running: PrivateStore, process: "subprocess.Popen[bytes]") -> bool:
    """Pass the daemons' words on; whether capture did all that it was asked."""
    said = [*running.said("storaged"), *running.said("capture")]
    for one in said:
        if one.serious:
            complain(one.sentence, one.fields.get("HINT", ""))
        else:
            warn(one.sentence)
    if process.returncode and not any(one.serious for one in said):
        complain(f"capture ended with status {process.returncode}")
    return process.returncode == 0
