"""Where each thing lies at a target. LAYOUT.md, beside this file, is the specification.

Names only, no I/O. What the files hold: LAYOUT.md; the records' bundles: replicator.bundle.
"""

import re
import struct
from typing import Final, NamedTuple

from replicator.targets.base import check_name

STORE: Final = "store.json"
OBJECTS: Final = "objects"
RECORDS: Final = "records"
KEYS: Final = "keys"
ROOT: Final = "root"  # the key file that all others hang on: storaged/FORMAT.md
VERSION: Final = 1

_ROOT_EPOCH: Final = struct.Struct("<8s16sI")  # magic, store id, epoch: FORMAT.md §5.1
_OBJECT: Final = re.compile(rf"{OBJECTS}/([0-9a-f]{{2}})/([0-9a-f]{{30}}\1)\.svr")
_BUNDLE: Final = re.compile(rf"{RECORDS}/(\d+)-(\d+)\.bundle")


class Positions(NamedTuple):
    """The feed positions that a bundle covers, both included."""

    first: int
    last: int


def object_name(recording_id: bytes) -> str:
    """The name of a sealed recording. Raises ValueError unless its id has 16 bytes."""
    if len(recording_id) != 16:
        raise ValueError(f"a recording's id has 16 bytes, not {len(recording_id)}")
    text = recording_id.hex()
    return f"{OBJECTS}/{text[-2:]}/{text}.svr"


def recording_id(name: str) -> bytes | None:
    """The id in an object's name; None for a file that is none."""
    found = _OBJECT.fullmatch(name)
    return bytes.fromhex(found[2]) if found else None


def root_epoch(data: bytes) -> int:
    """The epoch in a root key file's clear head; 0 for one that is cut or none."""
    if len(data) < _ROOT_EPOCH.size or not data.startswith(b"SVRROOT1"):
        return 0
    return int(_ROOT_EPOCH.unpack_from(data)[2])


def bundle_name(positions: Positions) -> str:
    """The name of a bundle of changes. Zero-filled, so that names sort as positions do."""
    return f"{RECORDS}/{positions.first:016d}-{positions.last:016d}.bundle"


def bundle_positions(name: str) -> Positions | None:
    """The positions in a bundle's name; None for a file that is none."""
    found = _BUNDLE.fullmatch(name)
    return Positions(int(found[1]), int(found[2])) if found else None


def keys_name(name: str) -> str:
    """The name of a file of sealed keys. Raises ValueError for one that leaves the folder."""
    return check_name(f"{KEYS}/{name}")
