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
MOST_BYTES: Final = 1 << 30  # of bundles read for one record: the feed waits meanwhile


def bring_back(replica: Replica, source: Source, target: str, change: Change) -> None:
    """Send a target's copy, or why there is none.

    Raises TargetError if all of the target is away, StoreError, Stopped.
    """
    try:
        if change.kind == "record":
            _bring_record(replica, source, target, change)
            return
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
    """What of a copy goes on the wire; a key file at once: the store alone can check it.

    Raises TargetError; ValueError if it is not that copy.
    """
    if change.kind == "object":
        return _sound(replica.target.read(layout.object_name(change.id)), change)
    data = replica.read(layout.keys_name(change.name))
    if len(data) != change.size:
        raise ValueError(f"its copy is damaged: {len(data)} bytes instead of {change.size}")
    if change.sha256 and hashlib.sha256(data).hexdigest() != change.sha256:
        raise ValueError("its copy is damaged, or older: its SHA-256 is another")
    return iter((data,))


def _bring_record(replica: Replica, source: Source, target: str, change: Change) -> None:
    """Send what bundles have of a call's record until one is right: the store alone can open it.

    Raises TargetError, StoreError; ValueError if none is.
    """
    fault = NO_COPY
    for found in _records(replica, change):
        if isinstance(found, str):
            fault = f"its copy is damaged: {found}"
            continue
        try:
            source.give_back(Return(target, change, more=True), found)
        except Refused as error:
            if error.code != "corrupt":
                raise
            fault = str(error)
        else:
            return
    raise ValueError(fault)


def _records(replica: Replica, change: Change) -> Iterator[bytes | str]:
    """The records of a call, each once; in place of a bundle that cannot be read what is wrong.

    First those of bundles that should have it at the position that the store names. A damaged one
    may lie there, that the store gave before anybody knew: then the same revision may lie at
    another position; from the newest bundle back, MOST_BYTES of them.
    """
    bundles = replica.bundles()
    here = [one for one in bundles if one.positions.first <= change.position <= one.positions.last]
    rest, read, seen = [one for one in reversed(bundles) if one not in here], 0, set[bytes]()
    for one in (*here, *rest):
        if one not in here and (read := read + one.size) > MOST_BYTES:
            return
        try:
            changes = replica.load_bundle(one.name)
        except ValueError as error:
            yield f"{one.name}: {error}"
            continue
        # What the store named goes first; LAYOUT.md: positions only rise.
        its = [each for each in changes if (each.kind, each.id) == ("record", change.id)]
        for each in sorted(its, key=lambda each: each.position != change.position):
            if each.data not in seen:
                seen.add(each.data)
                yield each.data


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
