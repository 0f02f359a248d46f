"""The first bytes of each ledger's file, kept in the index: so one that is lost is missed.

Every tag of a file covers its head, so with that all of it would be lost; and nothing in a folder
tells that a file of last year is gone. A head is kept once the file was read back whole; its size
as soon as another file follows it, so that an end that was cut is missed, too. FORMAT.md §7. Who
reads them back: storaged.integrity.ledgercheck.
"""

import re
from typing import Final

from storaged.format.ledger import HEAD_BYTES
from storaged.index.environment import Index
from storaged.index.rows import LEDGER_SIZE, U64, damaged
from storaged.index.view import View
from storaged.index.writing import Writing

_NAME: Final = re.compile(r"[a-z]+/[0-9]{8}-[0-9]{6}\.svl")
_HEADS: Final = b"ledgerhead/"  # of table meta, and POOL/NAME


def known(view: View) -> dict[str, bytes]:
    """The heads by POOL/NAME of their files."""
    return _rows(view, _HEADS, HEAD_BYTES)


def sizes(view: View) -> dict[str, int]:
    """Bytes by POOL/NAME of the files that another follows."""
    return {name: U64.unpack(size)[0] for name, size in _rows(view, LEDGER_SIZE, U64.size).items()}


def keep(index: Index, name: str, head: bytes) -> None:
    """A file was read back whole. Raises lmdb.Error, OSError."""
    with index.reading() as view:
        if view.get(b"meta", _HEADS + name.encode()) == head:
            return
    index.write(lambda writing: writing.put(b"meta", _HEADS + name.encode(), head))


def keep_size(index: Index, name: str, size: int) -> None:
    """So many bytes a file has that another follows, and that was read back whole."""
    with index.reading() as view:
        if name in sizes(view):
            return
    index.write(lambda writing: writing.put(b"meta", LEDGER_SIZE + name.encode(), U64.pack(size)))


def forget(writing: Writing) -> None:
    """The store became another: its ledgers begin anew."""
    for name in {*known(writing), *sizes(writing)}:
        forget_one(writing, name)


def forget_one(writing: Writing, name: str) -> None:
    """A file is none of the ledger any more."""
    for rows in (_HEADS, LEDGER_SIZE):
        writing.delete(b"meta", rows + name.encode())


def _rows(view: View, begin: bytes, size: int) -> dict[str, bytes]:
    cursor, found = view.cursor(b"meta"), {}
    more = cursor.set_range(begin)
    while more and (key := bytes(cursor.key())).startswith(begin):
        with view.passing():
            name, value = key.removeprefix(begin).decode("latin-1"), bytes(cursor.value())
            if not _NAME.fullmatch(name) or len(value) != size:
                raise damaged(b"meta", "of no ledger's file")
            found[name] = value
        more = cursor.next()
    return found
