"""A damaged key page comes back from a replica's copy, if that is the page that the root names.

Nothing may come back with it that was destroyed: an older generation of the page holds DEKs that an
erasure dropped. So a copy counts only if it opens under the page key that the root names, for this
very number and generation: each of them sealed one page once, and the keys of older ones are gone.
A root is never taken back: its epoch alone tells what was destroyed, and a copy of it may be old.
FORMAT.md §9. Which pages are damaged: storaged.keycheck. Whom it is asked of: storaged.mending.
"""

import logging
from collections.abc import Iterator
from typing import Final

from spanvault import messages as m
from spanvault.rules import POOLS
from storaged import damage, keypage
from storaged import index as tables
from storaged.faults import Fault
from storaged.index import Index, View
from storaged.pagefiles import of_name
from storaged.vaults import Vaults

log = logging.getLogger(__name__)
PREFIX: Final = b"keys/"  # and a key file's name: what stands for it where recordings have an id


def wanted(view: View) -> Iterator[tuple[bytes, tuple[m.Change, str]]]:
    """Damaged key pages as targets are asked for them, and what is wrong with each."""
    for name, found in damage.files(view, damage.KEYS):
        pool, _, own = name.rpartition("/")
        if of_name(own):
            change = m.Change(0, "keys", pool=pool or POOLS[0], name=name, size=keypage.PAGE_BYTES)
            yield PREFIX + name.encode(), (change, found.faults[0])


def put_back(index: Index, vaults: Vaults, given: m.Return, data: bytes) -> None:
    """Put a copy of a page in place. Raises Fault: damaged, older, not wanted; OSError."""
    change = given.change
    pool, _, own = change.name.rpartition("/")
    found = of_name(own)
    if not found or given.offset:
        raise Fault("invalid", f"{change.name[:64]!r} is no key page, whole", "Send it as one.")
    vault = vaults.named(pool or POOLS[0])
    with vault.held:  # an erasure re-keys pages
        vault.keyring.put_back(*found, data)
        name = change.name.encode()
        # Targets whose copy was damaged too, or that were not fed the damaged one, get it.
        index.write(lambda writing: writing.announce(tables.KEYS_CHANGED, name))
    damage.clear_file(index, damage.KEYS, change.name)
    log.warning(
        "A damaged key page was repaired",
        extra={"KEY_FILE": change.name, "TARGET": given.target},
    )
