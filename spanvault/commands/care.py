"""`spanvault verify`, `spanvault status`, `spanvault check`: is all well?"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import filesize
from rich.table import Table
from rich.text import Text

from spanvault.client import Client, RequestFailed
from spanvault.commands.access import (
    CONFIG,
    ConfigOption,
    JsonOption,
    StoreOption,
    UnlockOption,
    find_call,
    reach,
)
from spanvault.commands.output import (
    FAILED,
    USAGE,
    CommandFailed,
    complain,
    document,
    fields_table,
    people,
    progress,
    say,
)
from spanvault.config import FILES, FOLDER, load
from spanvault.messages import CheckReply, StatusReply

_REMEDY: Final = {
    "key files": "A page comes back from a replica: spanvault repair --all.",
    "call records": "Neither its recording nor the ledger has it: spanvault repair --all.",
}


def verify(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID…]", help="Ids, or their beginnings.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every recording, call record and key file of the store.")
    ] = False,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """Read recordings back and check every byte of them; says what is damaged, and where.

    With --all key files and call records too.
    """
    if every == bool(ids):
        raise CommandFailed("say which recordings", "Name ids, or give --all.", USAGE)
    checked = damaged = unsound = 0
    with reach(store, unlock_key, config) as client, progress("recordings") as bar:
        if every:  # keys first: without them nothing else opens
            unsound += _check_all("key files", [client.check_keys()], json)
            unsound += _check_all("call records", client.check_records(), json)
        task = bar.add_task("verifying", total=None)
        for one in _recordings(client, ids or []):
            if (result := _check(client, one, named=not every)) is None:
                continue
            checked, damaged = checked + 1, damaged + bool(result["faults"])
            _report(result, json)
            bar.update(task, completed=checked)
    say(f"{checked} recordings checked, {damaged} damaged", "red" if damaged else "green")
    if damaged or unsound:
        raise typer.Exit(FAILED)


def status(
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """How the store and the daemons are."""
    with reach(store, unlock_key, config) as client:
        reply = client.status()
    if json:
        document(_status_document(reply))
        return
    console = people()
    rows = [("store", reply.store_id), ("state", reply.state)]
    console.print(fields_table([*rows, *_pairs(reply.fields)]))
    for daemon in reply.daemons:
        console.print(_daemon(daemon))


def check(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Where the settings are.")
    ] = FOLDER,
) -> None:
    """Check the settings of all daemons; every fault is named with its file and line."""
    present = [name for name in FILES if (folder / name).exists()]
    if not present:
        raise CommandFailed(
            f"{folder} holds none of {', '.join(FILES)}",
            "spanvault init writes commented ones.",
            USAGE,
        )
    faults = sum(not _sound(folder / name) for name in present)
    strangers = {path.name for path in folder.glob("*.toml")} - set(FILES)
    for name in sorted(strangers):
        complain(f"{folder / name}: no daemon reads this file", f"Known: {', '.join(FILES)}.")
    if faults or strangers:
        raise typer.Exit(USAGE)
    say(f"{', '.join(present)}: well", "green")


def _sound(path: Path) -> bool:
    try:
        load(path, FILES[path.name])
    except ValueError as error:
        complain(str(error))
        return False
    return True


def _recordings(client: Client, ids: list[str]) -> Iterator[bytes]:
    """All that there are, whatever the call records say; or those that are named."""
    if ids:
        for one in ids:
            yield find_call(client, one).id
        return
    for page in client.recordings():
        yield from page.recordings


def _check(client: Client, recording_id: bytes, *, named: bool) -> dict[str, Any] | None:
    try:
        reply = client.verify(recording_id)
    except RequestFailed as error:
        if error.code == "unavailable":
            raise
        if not named and error.code in ("not_found", "erased"):
            return None  # erased meanwhile
        return {"id": recording_id.hex(), "faults": [error.error]}
    return {
        "id": recording_id.hex(),
        "sealed": reply.sealed,
        "frames": reply.frames,
        "size": reply.size,
        "sha256": reply.sha256,
        "faults": reply.faults,
    }


def _check_all(what: str, pages: Iterable[CheckReply], json: bool) -> int:
    """Report a check of all key files or call records; how many are damaged and stay so."""
    checked, faults, mended, unchecked = 0, dict[str, str](), list[str](), list[str]()
    for page in pages:
        checked += page.checked
        faults |= page.faults
        mended += page.mended
        unchecked = page.unchecked
    if json and (faults or mended):
        document({"checked": what, "faults": faults, "mended": mended})
    for name, fault in faults.items():
        complain(f"{name}: {fault}", _REMEDY[what])
    brought = f", {len(mended)} brought back" if mended else ""
    say(f"{checked} {what} checked, {len(faults)} damaged{brought}", "red" if faults else "green")
    if unchecked:
        say(f"Not checked, their pool is locked: {what} of {', '.join(unchecked)}", "yellow")
    return len(faults)


def _report(result: dict[str, Any], json: bool) -> None:
    if json:
        document(result)
    for fault in result["faults"]:
        complain(f"{result['id']}: {fault}", "Restore it from a replica: spanvault restore.")


def _status_document(reply: StatusReply) -> dict[str, Any]:
    return {
        "store_id": reply.store_id,
        "state": reply.state,
        "fields": reply.fields,
        "daemons": reply.daemons,
    }


def _pairs(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A row for each field; one that holds others is told in a row of its own, or several."""
    for name, value in fields.items():
        if not isinstance(value, dict):
            yield name.replace("_", " "), _shown(name, value)
        elif any(isinstance(inner, dict) for inner in value.values()):
            yield from _pairs({f"{name} {key}": inner for key, inner in value.items()})
        else:
            yield name.replace("_", " "), _counts(value) or "–"


def _counts(fields: dict[str, Any]) -> str:
    """What there is to say: a count of nothing, and what is not known, are left out."""
    told = {key: value for key, value in fields.items() if value not in (0, None, "", [])}
    return ", ".join(f"{key.replace('_', ' ')} {_shown(key, value)}" for key, value in told.items())


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and name.endswith("bytes"):
        return filesize.decimal(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _daemon(health: dict[str, Any]) -> Table:
    title = Text(f"\n{health.get('daemon', '?')}", style="bold")
    fields = {key: value for key, value in health.items() if key not in ("daemon", "fields")}
    counts = health.get("fields", {})
    inner = {key: value for key, value in counts.items() if isinstance(value, dict)}
    plain = {key: value for key, value in counts.items() if key not in inner}
    table = fields_table(_pairs({**fields, "counts": plain, **inner}))
    table.title, table.title_justify = title, "left"
    return table
