"""A damaged key file comes back from a replica's copy, if that is the very one that counts now.

Nothing may come back with it that was destroyed: an older generation of the page holds DEKs that an
erasure dropped. So a copy counts only if it opens under the page key that the root names, for this
very number and generation: each of them sealed one page once, and the keys of older ones are gone.
A root counts by its SHA-256 alone, as the feed was told of it last, and only while its pool is
locked: then nothing can have changed it since. That of an open pool is written anew from memory.
FORMAT.md §9. Which are damaged: storaged.integrity.keycheck. Whom it is asked of:
storaged.integrity.mending.
"""

import hashlib
import logging
from collections.abc import Iterator
from typing import Final

import msgspec

from spanvault import messages as m
from spanvault.daemon.rules import POOLS
from storaged import files
from storaged.faults import Fault
from storaged.format import keypage
from storaged.index import damage, toldkeys
from storaged.index import rows as tables
from storaged.index.environment import Index
from storaged.index.toldkeys import Told
from storaged.index.view import View
from storaged.keys import rootfile
from storaged.keys.pagefiles import of_name
from storaged.keys.rootfile import ROOT
from storaged.pools.vaults import Vault, Vaults

log = logging.getLogger(__name__)
PREFIX: Final = b"keys/"  # and a key file's name: what stands for it where recordings have an id


def wanted(view: View) -> Iterator[tuple[bytes, tuple[m.Change, str]]]:
    """Damaged key files as targets are asked for them, and what is wrong with each."""
    for name, found in damage.files(view, damage.KEYS):
        pool, _, own = name.rpartition("/")
        change = m.Change(0, "keys", pool=pool or POOLS[0], name=name, size=keypage.PAGE_BYTES)
        if own == ROOT:
            if (root := _root_wanted(view, name)) is None:
                continue
            change = msgspec.structs.replace(change, size=root.size, sha256=root.sha256.hex())
        yield PREFIX + name.encode(), (change, found.faults[0])


def _root_wanted(view: View, name: str) -> Told | None:
    """What a copy of a damaged root must be; None if an erasure that a crash cut off changed it."""
    return None if view.count(b"unfinished") else toldkeys.told(view, name)


def put_back(index: Index, vaults: Vaults, given: m.Return, data: bytes) -> None:
    """Put a copy of a key file in place. Raises Fault: damaged, older, not wanted; OSError."""
    change = given.change
    pool, _, own = change.name.rpartition("/")
    page = of_name(own)
    if not (page or own == ROOT) or given.offset:
        raise Fault("invalid", f"{change.name[:64]!r} is no key file, whole", "Send it as one.")
    vault = vaults.named(pool or POOLS[0])
    with vault.held:  # an erasure re-keys pages
        if page:
            vault.keyring.put_back(*page, data)
        else:
            _put_root_back(index, vault, change.name, data)
        name = change.name.encode()
        # Targets whose copy was damaged too, or that were not fed the damaged one, get it.
        index.write(lambda writing: writing.announce(tables.KEYS_CHANGED, name))
    damage.clear_file(index, damage.KEYS, change.name)
    log.warning(
        "A damaged key file was repaired",
        extra={"KEY_FILE": change.name, "TARGET": given.target},
    )


def _put_root_back(index: Index, vault: Vault, name: str, data: bytes) -> None:
    if not vault.locked:
        raise Fault("not_found", "its pool is open: it is written anew from memory")
    with index.reading() as view:
        wanted = _root_wanted(view, name)
    if wanted is None or hashlib.sha256(data).digest() != wanted.sha256:
        raise Fault("corrupt", "its copy is not the root that replicas were told of last")
    rootfile.put(vault.keys, data)
    files.destroy(vault.keys, [rootfile.ROOT_OLD])
    vault.why_locked = "its root was damaged, and is whole again: unlock it, or restart storaged"
