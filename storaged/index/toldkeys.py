"""Which key files the feed was told of, and which bytes a root had then.

A page's name changes with its bytes, a root's does not, and nothing in a root tells whether an
erasure came after it. So its SHA-256 is kept with the position that it was announced at: once it
was announced again, by whatever changed it, that row counts no more, until the root was read back
whole. By it replicas hear of a root whose announcement a crash prevented, and a damaged one comes
back while its pool is locked (storaged.integrity.keymending). FORMAT.md §7, §9.
"""

import hashlib
import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from storaged.diskfaults import line
from storaged.format import keypage
from storaged.index.environment import Index
from storaged.index.rows import KEYS_CHANGED
from storaged.index.view import View
from storaged.index.writing import Writing
from storaged.keys.rootfile import ROOT

log = logging.getLogger(__name__)
_TOLD: Final = b"told/"  # of table meta, and a root's name as in the feed
_ROW: Final = struct.Struct("<32sQQ")  # SHA-256, size, position in the feed


class Told(NamedTuple):
    """A root as the feed was told of it. size: bytes."""

    sha256: bytes
    size: int

    @classmethod
    def of(cls, data: bytes) -> "Told":
        """Raises ValueError: these bytes are no whole root."""
        keypage.check_root(data)
        return cls(hashlib.sha256(data).digest(), len(data))


def told(view: View, name: str) -> Told | None:
    """The root of this name, as the feed was told of it; None if it may be another by now."""
    row = view.get(b"meta", _TOLD + name.encode())
    if row is None or len(row) != _ROW.size:
        return None
    sha256, size, position = _ROW.unpack(row)
    return Told(sha256, size) if position == _position(view, name) else None


def announce(index: Index, folder: Path, names: Sequence[str]) -> None:
    """Tell the feed of key files that it does not know, and of roots that are others by now.

    A damaged root is not told of: it would replace the sound copy of a replica.
    folder: of the pool.  names: as in the feed. Raises lmdb.Error, OSError.
    """
    roots = {name: _root_of(folder / ROOT) for name in names if Path(name).name == ROOT}
    wanted = [name for name in names if name not in roots or roots[name]]

    def is_told(view: View, name: str) -> bool:
        if name in roots:
            return told(view, name) == roots[name]
        return _position(view, name) > 0

    def tell(writing: Writing) -> None:
        for name in wanted:
            if not is_told(writing, name):
                writing.announce(KEYS_CHANGED, name.encode())
                if root := roots.get(name):
                    row = _ROW.pack(*root, _position(writing, name))
                    writing.put(b"meta", _TOLD + name.encode(), row)

    with index.reading() as view:
        if all(is_told(view, name) for name in wanted):
            return
    index.write(tell)


def announce_at_start(index: Index, folder: Path, names: Sequence[str]) -> None:
    """announce(), where a disk that is full must not keep storaged from starting.

    Roots are told of when they are next read, all else at the next start.
    """
    try:
        announce(index, folder, names)
    except lmdb.PanicError:
        raise
    except (lmdb.Error, OSError) as error:
        log.error("Replicas are told of key files later", extra={"FAULT": line(error)})


def _root_of(path: Path) -> Told | None:
    """A root file; None if it is missing or damaged: storaged.integrity.keycheck says so."""
    try:
        return Told.of(path.read_bytes())
    except (OSError, ValueError):
        return None


def _position(view: View, name: str) -> int:
    """Where a key file stands in the feed; 0 if it does not."""
    return int.from_bytes(view.get(b"fed", KEYS_CHANGED + name.encode()) or b"", "big")
