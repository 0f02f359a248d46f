"""`spanvault verify`, `spanvault check`: is what was kept, and what was set, as it should be?

How the daemons are: health.py.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

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
    progress,
    say,
)
from spanvault.daemon.config import FILES, FOLDER, StoragedConfig, load
from spanvault.keys import keyfile
from spanvault.messages import CheckReply

_REMEDY: Final = {
    "key files": "A page comes back from a replica: spanvault repair --all.",
    "files of ledgers": "Keep the index: mend its damaged records first (spanvault repair).",
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
            unsound += _check_all("files of ledgers", client.check_ledgers(), json)
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
        settings = load(path, FILES[path.name])
    except ValueError as error:
        complain(str(error))
        return False
    return not isinstance(settings, StoragedConfig) or _finds_public_keys(path, settings)


def _finds_public_keys(path: Path, settings: StoragedConfig) -> bool:
    """Whether the keys that a new pool will be sealed to are there: without them it is not made."""
    named = {f"pools.{name}.recipients": one.recipients for name, one in settings.pools.items()}
    if settings.recovery_public is not None:
        named["recovery_public"] = [settings.recovery_public]
    sound = True
    for setting, paths in named.items():
        for one in paths:
            try:
                keyfile.load_public(one)
            except ValueError as error:
                complain(f"{path}: {setting}: {error}")
                sound = False
    return sound


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
