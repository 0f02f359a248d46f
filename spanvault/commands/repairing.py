"""`spanvault repair`: have damaged recordings brought back from the replicas.

storaged asks for them by itself; this asks at once, waits, and says what came of it. How a copy is
checked and put in place: storaged.integrity.mending.
"""

import time
from typing import Annotated, Any, Final

import typer

from spanvault.client import Client
from spanvault.commands.access import (
    CONFIG,
    ConfigOption,
    JsonOption,
    StoreOption,
    UnlockOption,
    find_id,
    reach,
)
from spanvault.commands.output import FAILED, USAGE, CommandFailed, complain, document, say
from spanvault.messages import Mending

_TURN_S: Final = 0.5
_HINT: Final = {
    "hopeless": "No target can bring it back. What still opens can be heard; look for a backup.",
    "asked": "Ask again later, or see spanvault status: is the replicator running?",
}


def repair(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID…]", help="Ids, or their beginnings.")
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="All that is known to be damaged, key pages and records too."),
    ] = False,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for the replicas.")
    ] = 60.0,
    store: StoreOption = None,
    unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:
    """Check recordings, and bring back from a replica what is damaged."""
    if every == bool(ids):
        raise CommandFailed("say which recordings", "Name ids, or give --all.", USAGE)
    with reach(store, unlock_key, config) as client:
        wanted = [find_id(client, one) for one in ids or []]
        found = _until_settled(client, wanted, time.monotonic() + wait)
    for one in found:
        _report(one, json)
    left = sum(one.state != "whole" for one in found)
    whole = len(found) - left
    say(f"{whole} whole, {left} damaged", "red" if left else "green")
    if left:
        raise typer.Exit(FAILED)


def _until_settled(client: Client, ids: list[bytes], until_s: float) -> list[Mending]:
    """How it stands once nothing more is asked back, or the time is over."""
    found = client.mend(ids, again=True)
    known = {one.id: one for one in found}
    while any(one.state == "asked" for one in found) and time.monotonic() < until_s:
        time.sleep(_TURN_S)
        found = client.mend(list(known), again=False)
        known |= {one.id: one for one in found}
    return list(known.values())


def _named(key: bytes) -> str:
    """A recording's id for people; of a key file or a call record its name."""
    return key.decode() if key.startswith((b"keys/", b"records/")) else key.hex()


def _report(one: Mending, json: bool) -> None:
    told = {target or "–": text for target, text in one.told.items()}
    if json:
        about: dict[str, Any] = {"id": _named(one.id), "state": one.state}
        document({**about, "fault": one.fault, "targets": told})
    if one.state == "whole":
        return
    reasons = "; ".join(f"{target}: {text}" for target, text in told.items())
    what = "cannot be repaired" if one.state == "hopeless" else "is not repaired yet"
    complain(f"{_named(one.id)} {what}: {one.fault} ({reasons})", _HINT[one.state])
