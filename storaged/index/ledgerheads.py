"""The first bytes of each ledger's file, kept in the index: so one that is lost is missed.

Every tag of a file covers its head, so with that all of it would be lost; and nothing in a folder
tells that a file of last year is gone. A head is kept once the file was read back whole. FORMAT.md
§7. Who reads them back: storaged.integrity.ledgercheck.
"""

from typing import Final

from storaged.format.ledger import HEAD_BYTES
from storaged.index.environment import Index
from storaged.index.view import View
from storaged.index.writing import Writing

_HEADS: Final = b"ledgerhead/"  # of table meta, and POOL/NAME


def known(view: View) -> dict[str, bytes]:
    """The heads by POOL/NAME of their files."""
    cursor, found = view.cursor(b"meta"), {}
    more = cursor.set_range(_HEADS)
    while more and (key := bytes(cursor.key())).startswith(_HEADS):
        if len(head := bytes(cursor.value())) == HEAD_BYTES:
            found[key.removeprefix(_HEADS).decode()] = head
        more = cursor.next()
    return found


def keep(index: Index, name: str, head: bytes) -> None:
    """A file was read back whole. Raises lmdb.Error, OSError."""
    with index.reading() as view:
        if view.get(b"meta", _HEADS + name.encode()) == head:
            return
    index.write(lambda writing: writing.put(b"meta", _HEADS + name.encode(), head))


def forget(writing: Writing) -> None:
    """The store became another: its ledgers begin anew."""
    for name in known(writing):
        writing.delete(b"meta", _HEADS + name.encode())
