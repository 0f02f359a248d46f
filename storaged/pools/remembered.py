"""Which stores were open on this host, so that an empty mount point is not taken for a new store.

A volume that is not mounted at a start leaves an empty folder behind. A store made there would
have new keys, fill another disk, and hide behind the volume once that is back. So the folder of
each store that was opened is written down outside of it, in $STATE_DIRECTORY/stores.json (of
systemd.exec(5), by default /var/lib/spanvault, whose own volume the unit waits for). Without
systemd nothing is remembered. Pools elsewhere: storaged.pools.opening.
"""

import json
import logging
import os
from pathlib import Path

from spanvault.daemon import durable
from storaged.faults import Fault

log = logging.getLogger(__name__)


def place() -> Path | None:
    """The file; None where systemd gave no folder for it."""
    folder = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(folder) / "stores.json" if folder else None


def refuse_empty(folder: Path) -> None:
    """Raise Fault if nothing is left of a store that was open here before."""
    path = place()
    known = _read(path).get(str(folder.absolute())) if path else None
    if known and not (folder / "format.json").exists() and not (folder / "keys").exists():
        raise Fault(
            "unavailable",
            f"{folder}: there is no store, and there was one (id {known})",
            f"Mount its volume. If it is lost, or a new one is wanted here, remove {path}.",
        )


def remember(folder: Path, store_id: bytes) -> None:
    """Write down that a store is open here. A disk that does not take it stops no recording."""
    path = place()
    if path is None:
        return
    known, name = _read(path), str(folder.absolute())
    if known.get(name) == store_id.hex():
        return
    try:
        durable.replace(path, json.dumps({**known, name: store_id.hex()}).encode() + b"\n")
    except OSError as error:
        log.warning("Which store is here cannot be remembered",
                    extra={"FILE": str(path), "FAULT": error.strerror})  # fmt: skip


def _read(path: Path) -> dict[str, str]:
    """Folders and the ids of their stores; empty if the file is not there, or is none of ours."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
