"""Bring something back to the store that is damaged there, from one target's copy.

The store names it by its SHA-256 (spanvault/WIRE.md §6, `wanted`). The copy is checked on its
way: the last part leaves only once all of it is known to be right, so a copy that is damaged itself
never becomes whole in the store; the store is told, and asks another target.
"""

import hashlib
import logging
from collections.abc import Iterator
from typing import Final

from replicator import layout
from replicator.replica import Replica
from replicator.source import Refused, Source
from replicator.targets import Missing, TargetError
from spanvault.messages import Change, Return

log = logging.getLogger(__name__)
NO_COPY: Final = "it has no copy"


def bring_back(replica: Replica, source: Source, target: str, change: Change) -> None:
    """Send a target's copy, or why there is none.

    Raises TargetError if all of the target is away, StoreError, Stopped.
    """
    try:
        offset = 0
        for part in _parts(replica, change):
            source.give_back(Return(target, change, offset), part)
            offset += len(part)
    except Refused as error:  # it is whole again, or gone: the store knows
        log.warning(
            "The store took no copy back",
            extra={"TARGET": target, **_named(change), "FAULT": str(error)},
        )
    except (Missing, ValueError) as error:
        _tell(source, target, change, NO_COPY if isinstance(error, Missing) else str(error))
    except TargetError as error:
        _tell(source, target, change, str(error))
        replica.label()  # raises if it is not this file, but all of the target


def _named(change: Change) -> dict[str, str]:
    """What it is, for the journal."""
    is_key = change.kind == "keys"
    return {"KEY_FILE": change.name} if is_key else {"RECORDING_ID": change.id.hex()}


def _tell(source: Source, target: str, change: Change, fault: str) -> None:
    log.warning(
        "Nothing to bring back to the store",
        extra={"TARGET": target, **_named(change), "FAULT": fault},
    )
    try:
        source.give_back(Return(target, change, fault=fault))
    except Refused:
        return  # nothing is asked back any more


def _parts(replica: Replica, change: Change) -> Iterator[bytes]:
    """What of a copy goes on the wire; a key file or record at once: the store alone can check it.

    Raises TargetError; ValueError if it is not that copy.
    """
    if change.kind == "object":
        return _sound(replica.target.read(layout.object_name(change.id)), change)
    if change.kind == "record":
        return iter((_record(replica, change),))
    data = replica.read(layout.keys_name(change.name))
    if len(data) != change.size:
        raise ValueError(f"its copy is damaged: {len(data)} bytes instead of {change.size}")
    if change.sha256 and hashlib.sha256(data).hexdigest() != change.sha256:
        raise ValueError("its copy is damaged, or older: its SHA-256 is another")
    return iter((data,))


def _record(replica: Replica, change: Change) -> bytes:
    """What the feed said of a call at the position that the store names; any bundle may have it.

    Raises TargetError; ValueError if none does that is whole.
    """
    wanted, fault = (change.position, "record", change.id), NO_COPY
    for one in replica.bundles():
        if not one.positions.first <= change.position <= one.positions.last:
            continue
        try:
            for each in replica.load_bundle(one.name):
                if (each.position, each.kind, each.id) == wanted:
                    return each.data
        except ValueError as error:
            fault = f"its copy is damaged: {one.name}: {error}"
    raise ValueError(fault)


def _sound(parts: Iterator[bytes], change: Change) -> Iterator[bytes]:
    """The parts of a copy. Raises ValueError in place of the last one if it is not that copy."""
    digest, size, waiting = hashlib.sha256(), 0, b""
    for part in parts:
        if waiting:
            yield waiting
        digest.update(part)
        size += len(part)
        waiting = part
        if size > change.size:
            break
    if size != change.size:
        raise ValueError(f"its copy is damaged: {size} bytes or more instead of {change.size}")
    if digest.hexdigest() != change.sha256:
        raise ValueError("its copy is damaged: its SHA-256 is another")
    yield waiting
