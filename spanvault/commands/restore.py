"""`spanvault restore`: a replica's recordings into an empty store.

The key files of a replica are sealed, so the store's unlock or recovery key is needed: given, or
the one that is kept for it here. Who reads the replica: `python -m replicator restore`.
"""

import json as text
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from spanvault.commands.access import NeededStore, PoolKeysOption, UnlockOption
from spanvault.commands.output import (
    FAILED,
    UNAVAILABLE,
    USAGE,
    CommandFailed,
    complain,
    progress,
    say,
)
from spanvault.daemon.config import FOLDER, ReplicatorConfig, TargetConfig, load
from spanvault.daemon.rules import POOLS
from spanvault.keys import keyfile, unlock
from spanvault.private import PrivateStore, StoreUnavailable


def restore(
    store: NeededStore,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A replica's directory.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="A target of replicator.toml.")
    ] = None,
    unlock_key: UnlockOption = None,
    pool_keys: PoolKeysOption = None,
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="replicator.toml, for --target.")
    ] = FOLDER / "replicator.toml",
) -> None:
    """Bring a replica's recordings and keys into an empty store; what is there is verified."""
    replica = _replica(source, target, config)
    key = _key(replica.path, unlock_key)
    try:
        with PrivateStore(store, key, _pool_keys(pool_keys or [])) as running:
            done = _run(running, replica)
            _complain_of_locked(running)
    except StoreUnavailable as error:
        raise CommandFailed(error.error, error.hint, UNAVAILABLE) from None
    if not done:
        raise typer.Exit(FAILED)
    with_key = f" --unlock-key {unlock_key}" if unlock_key else ""
    say(f"Restored into {store}. See: spanvault calls --store {store}{with_key}", "green")


def _replica(source: Path | None, target: str | None, config: Path) -> TargetConfig:
    if (source is None) == (target is None):
        raise CommandFailed("say where from", "Either --from DIR or --target NAME.", USAGE)
    if source is not None:
        return TargetConfig("replica", "directory", source.absolute())
    targets = {one.name: one for one in load(config, ReplicatorConfig).targets}
    if target not in targets:
        raise CommandFailed(
            f"{config} has no target '{target}'",
            f"It has: {', '.join(targets) or 'none'}.",
            USAGE,
        )
    return targets[str(target)]


def _key(replica: Path, given: Path | None) -> Path:
    """The private key that opens the replica's keys."""
    if given is not None:
        keyfile.load(given)
        return given
    root = unlock.root_file(replica)
    if not root.exists():
        raise CommandFailed(
            f"{replica} holds no replica: there is no {root.relative_to(replica)}",
            "Name the directory that the replicator copies to.",
        )
    try:
        return unlock.find(root)
    except unlock.NoKey as error:
        raise CommandFailed(error.error, error.hint, UNAVAILABLE) from None


def _pool_keys(given: list[str]) -> dict[str, Path]:
    """POOL=FILE, as often as given. Raises CommandFailed, ValueError (no plain key file)."""
    found = {}
    for each in given:
        pool, _, file = each.partition("=")
        if pool not in POOLS[1:] or not file:
            names = " or ".join(POOLS[1:])
            raise CommandFailed(f"--pool-key {each}", f"Give POOL=FILE, POOL is {names}.", USAGE)
        try:
            keyfile.load(Path(file))
        except ValueError as error:
            hint = "If the file is protected: spanvault keys make PLAIN --from FILE"
            raise CommandFailed(str(error), hint, UNAVAILABLE) from None
        found[pool] = Path(file)
    return found


def _complain_of_locked(running: PrivateStore) -> None:
    """Of each pool whose keys came, and nothing at hand opens."""
    for pool in running.client.keys().pools:
        if pool.locked:
            complain(
                f"pool {pool.pool} stays locked: its calls are not restored",
                f"It is sealed to {' or '.join(pool.recipients)}. Run this again with "
                f"--pool-key {pool.pool}=FILE; what is restored already stays.",
            )


def _run(running: PrivateStore, replica: TargetConfig) -> bool:
    settings: dict[str, Any] = {
        **running.connection("operator"),
        "state_dir": running.folder / "replicator",
        "targets": [{"name": replica.name, "kind": replica.kind, "path": replica.path}],
    }
    process = running.daemon(
        "replicator", settings, ["--target", replica.name], stdout=subprocess.PIPE
    )
    with progress("") as bar:
        task = bar.add_task("restoring", total=None)
        for told in _told(process):
            bar.update(
                task,
                description=told.get("phase", "restoring"),
                completed=told.get("done", 0),
                total=told.get("of"),
            )
    process.wait()
    said = [one for one in running.said("replicator") if one.serious]
    for one in said:
        complain(one.sentence, one.fields.get("HINT", ""))
    if process.returncode and not said:
        complain(f"the replicator ended with status {process.returncode}")
    return process.returncode == 0


def _told(process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """The replicator's lines of progress."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            yield text.loads(line)
        except ValueError:
            continue
