"""Which recordings and key files are known to be damaged: a row each, to be told of once.

Nothing else is changed by it: what still opens of a damaged recording is given out as before.
FORMAT.md §7. Who finds damage: storaged.scrub, storaged.keycheck. Who finds that it is gone: a
Verify as well.
"""

import logging
from collections.abc import Iterator
from typing import Final

import msgspec

from storaged.index import Index, State, View, Writing

log = logging.getLogger(__name__)
TOLD: Final = 20  # ids in a status
_FAULTS_KEPT: Final = 5
REMEDY: Final = "it is restored from a replica if one has it: see spanvault repair"


_KEYS: Final = b"damagedkey"
KEY_REMEDY: Final = (
    "a page is restored from a replica if one has it: see spanvault repair --all. The root of a "
    "locked pool: unlock it from another copy of the keys folder, or restore the store"
)


class Damage(msgspec.Struct, frozen=True):
    """What was found first of a damaged recording."""

    found_ns: int
    faults: list[str]


def note(
    index: Index, recording_id: bytes, state: State, faults: list[str], now_ns: int
) -> bool:  # fmt: skip
    """Remember that a recording is damaged; say so in the journal if that is new.

    state: its row when it was read. False, and nothing is noted, if it has changed or gone since.
    Raises lmdb.Error, OSError.
    """

    def put(writing: Writing) -> tuple[bool, bool]:
        if writing.state(recording_id) != state:
            return False, False
        if writing.get(b"damaged", recording_id) is not None:
            return True, False
        found = Damage(now_ns, faults[:_FAULTS_KEPT])
        writing.put(b"damaged", recording_id, msgspec.msgpack.encode(found))
        return True, True

    with index.reading() as view:  # a write costs a sync: not for what is known already
        if view.state(recording_id) == state and known(view, recording_id):
            return True
    is_so, is_new = index.write(put)
    if is_new:
        log.error(
            "A recording is damaged",
            extra={"RECORDING_ID": recording_id.hex(), "FAULT": faults[0], "REMEDY": REMEDY},
        )
    return is_so


def clear(index: Index, recording_id: bytes) -> None:
    """A recording was found whole. Raises lmdb.Error, OSError."""
    with index.reading() as view:
        if not known(view, recording_id):
            return
    index.write(lambda writing: writing.delete(b"damaged", recording_id))
    log.info("A damaged recording is whole again", extra={"RECORDING_ID": recording_id.hex()})


def known(view: View, recording_id: bytes) -> bool:
    """Whether it is known to be damaged."""
    return view.get(b"damaged", recording_id) is not None


def told(view: View) -> list[str]:
    """Ids of damaged recordings, the oldest calls first, TOLD at most."""
    ids = []
    for key in view.cursor(b"damaged").iternext(values=False):
        ids.append(bytes(key).hex())
        if len(ids) == TOLD:
            break
    return ids


def note_key(index: Index, name: str, fault: str, now_ns: int) -> None:
    """Remember that a key file is damaged, by its name in the feed; say so if that is new."""
    with index.reading() as view:
        if view.get(_KEYS, name.encode()) is not None:
            return
    found = msgspec.msgpack.encode(Damage(now_ns, [fault]))
    index.write(lambda writing: writing.put(_KEYS, name.encode(), found))
    log.error("A key file is damaged",
              extra={"KEY_FILE": name, "FAULT": fault, "REMEDY": KEY_REMEDY})  # fmt: skip


def clear_key(index: Index, name: str) -> None:
    """A key file was found whole, or is needed no more. Raises lmdb.Error, OSError."""
    with index.reading() as view:
        if view.get(_KEYS, name.encode()) is None:
            return
    index.write(lambda writing: writing.delete(_KEYS, name.encode()))
    log.info("A damaged key file is whole again, or gone", extra={"KEY_FILE": name})


def keys(view: View) -> Iterator[tuple[str, Damage]]:
    """Key files that are known to be damaged, by name."""
    for name, value in view.cursor(_KEYS):
        yield bytes(name).decode(), msgspec.msgpack.decode(value, type=Damage)


def told_keys(view: View) -> list[str]:
    """Their names."""
    return [name for name, _ in keys(view)]
