"""Reach storaged: the running one by the settings, or a private one on `--store DIR`.

The options that every command shares are here too. Private daemons: spanvault.private.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from spanvault.client import Client, RequestFailed
from spanvault.commands.output import UNAVAILABLE, USAGE, CommandFailed, say
from spanvault.daemon.config import FOLDER, OperatorConfig, load
from spanvault.keys import unlock
from spanvault.messages import Call, Search
from spanvault.private import PrivateStore, StoreUnavailable

CONFIG: Final = FOLDER / "spanvault.toml"

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="A store that no daemon is running on."),
]
NeededStore = Annotated[
    Path, typer.Option("--store", metavar="DIR", help="The store; made if there is none.")
]
PoolKeysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pool-key", metavar="POOL=FILE", help="The key of a pool that has one of its own."
    ),
]
UnlockOption = Annotated[
    Path | None,
    typer.Option(
        "--unlock-key",
        "--recovery-key",
        metavar="FILE",
        envvar=unlock.VARIABLE,
        help="The key that opens --store. Without: the one kept for it in your home.",
    ),
]
ConfigOption = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="How to reach the running daemons.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document a line on stdout.")]


@contextmanager
def reach(store: Path | None, unlock_key: Path | None, config: Path) -> Iterator[Client]:
    """A client of the running storaged, or of a private one on an existing store."""
    if store is None:
        with Client.of(_settings(config)) as client:
            yield client
        return
    if not unlock.root_file(store).exists():
        raise CommandFailed(
            f"there is no store at {store}",
            "spanvault replay and spanvault restore make one.",
            UNAVAILABLE,
        )
    with private(store, unlock_key) as running:
        yield running.client


@contextmanager
def private(store: Path, unlock_key: Path | None) -> Iterator[PrivateStore]:
    """Private daemons on a store, which is made if there is none."""
    try:
        key = unlock.choose(store, unlock_key)
    except unlock.NoKey as error:
        raise CommandFailed(error.error, error.hint, UNAVAILABLE) from None
    except OSError as error:
        raise CommandFailed(f"no unlock key could be made or read: {error}") from None
    if key.made:
        say(f"The new store's unlock key: {key.path}")
        say("Keep a copy of it elsewhere: without it nobody can ever hear these recordings.")
    try:
        with PrivateStore(store, key.path) as running:
            yield running
    except StoreUnavailable as error:
        raise CommandFailed(error.error, error.hint, UNAVAILABLE) from None


def _settings(config: Path) -> OperatorConfig:
    if not config.exists():
        raise CommandFailed(
            f"{config} is not there, so no daemon can be reached",
            "Name a store with --store DIR, or settings with --config FILE; "
            "spanvault init writes them.",
            UNAVAILABLE,
        )
    return load(config, OperatorConfig)


def find_call(client: Client, text: str) -> Call:
    """The call whose id begins with these hex digits. Raises CommandFailed: none, or several."""
    digits = text.strip().lower()
    if not digits or set(digits) - set("0123456789abcdef") or len(digits) > 32:
        raise CommandFailed(
            f"'{text}' is no call's id", "Ids are up to 32 hex digits: see spanvault calls.", USAGE
        )
    if len(digits) == 32:
        return _exactly(client, digits)
    found = list(client.search(Search(id_prefix=digits, limit=2)))
    if not found:
        raise CommandFailed(f"no call's id begins with {digits}", "See: spanvault calls")
    if len(found) > 1:
        raise CommandFailed(f"several calls' ids begin with {digits}", "Give more digits.")
    return found[0]


def find_id(client: Client, text: str) -> bytes:
    """The id of such a call, though its record be damaged. Raises as find_call()."""
    try:
        return find_call(client, text).id
    except RequestFailed as error:
        digits = text.strip()
        if error.code != "corrupt" or len(digits) < 32:
            raise
        return bytes.fromhex(digits)


def _exactly(client: Client, digits: str) -> Call:
    try:
        return client.get(bytes.fromhex(digits)).call
    except RequestFailed as error:
        if error.code != "not_found":
            raise
        raise CommandFailed(f"there is no call {digits}", "See: spanvault calls") from None
