"""Key files are read back from the medium and checked: on one page hang thousands of calls.

Pages by their tag, under the page key that the root names, so that no listening right is needed and
no older generation passes; roots against what is opened in memory, of a locked pool by their own
SHA-256. What is found damaged: storaged.index.damage. The root of an open pool is written anew from
memory; all else comes back from a replica (storaged.integrity.keymending). When it runs:
storaged.integrity.scrub.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Final

from storaged.faults import Fault
from storaged.format import keypage
from storaged.index import damage, toldkeys
from storaged.index.environment import Index
from storaged.index.rows import KEYS_CHANGED
from storaged.integrity import medium
from storaged.keys.keyring import Keyring
from storaged.keys.rootfile import ROOT
from storaged.pools.vaults import Vault, Vaults

log = logging.getLogger(__name__)
_TRIES: Final = 3  # a file may be replaced between the look at its name and the read


class KeyCheck:
    """Checks the key files of all pools. For one thread.

    clock_ns: since 1970.
    """

    def __init__(self, index: Index, vaults: Vaults, clock_ns: Callable[[], int]) -> None:
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self.checked: list[str] = []  # in the last check: what was read
        self.unchecked: list[str] = []  # what nobody can tell while its pool is locked
        self.mended: list[str] = []  # roots that were written anew

    def checking(self) -> Iterator[int]:
        """Check all; gives how many bytes were read for each. Raises OSError, lmdb.Error."""
        self.checked, self.unchecked, self.mended = [], [], []
        for vault in list(self._vaults):
            named = set(vault.key_files())
            for name in sorted(named):
                yield self.check(vault, name)
            if not vault.locked:
                self._forget(vault, named)

    def checking_new(self) -> Iterator[int]:
        """Check the roots that changed since they were read last; gives bytes as checking()."""
        for vault in list(self._vaults):
            name = vault.key_files()[-1]
            with self._index.reading() as view:
                known = toldkeys.told(view, name)
            if known is None and not vault.locked:
                yield self.check(vault, name)

    def check(self, vault: Vault, name: str) -> int:
        """Check one, by its name in the feed; note what is found. Returns bytes read."""
        own = name.rpartition("/")[2]
        ring = _opened(vault)
        if ring is None and own != ROOT:
            self.unchecked.append(name)
            return 0
        self.checked.append(name)
        size, fault = _look_at(vault, own)
        if fault is None:
            changed = (KEYS_CHANGED, name.encode())
            damage.clear_file(self._index, damage.KEYS, name, changed)
            if own == ROOT:
                toldkeys.announce(self._index, vault.keys, [name])
        elif own == ROOT and ring is not None:
            self._write_anew(ring, name, fault)
        else:
            damage.note_file(self._index, damage.KEYS, name, fault, self._clock_ns())
        return size

    def _write_anew(self, ring: Keyring, name: str, fault: str) -> None:
        """The root that is opened in memory is put on disk in place of the damaged one."""
        ring.rewrite_root()
        self._index.write(lambda writing: writing.announce(KEYS_CHANGED, name.encode()))
        damage.clear_file(self._index, damage.KEYS, name)
        self.mended.append(name)
        log.warning(
            "A damaged root file was written anew from memory",
            extra={"KEY_FILE": name, "FAULT": fault},
        )

    def _forget(self, vault: Vault, named: set[str]) -> None:
        """Pages that the root has replaced meanwhile need no repair."""
        with self._index.reading() as view:
            known = damage.told_files(view, damage.KEYS)
        for name in known:
            if vault.owns(name) and name not in named:
                damage.clear_file(self._index, damage.KEYS, name)


def _opened(vault: Vault) -> Keyring | None:
    try:
        return vault.keyring
    except Fault:
        return None


def _look_at(vault: Vault, own: str) -> tuple[int, str | None]:
    """Bytes read of a key file, and what is wrong with it; nothing if it is named no more."""
    path, ring, size, fault = vault.keys / own, _opened(vault), 0, None
    for _ in range(_TRIES):
        try:
            with medium.opened(path, keypage.MOST_BYTES) as data:
                found = data[:]
            size += len(found)
            fault = vault.fault_of(own, found)
        except LookupError:
            return size, None
        except OSError as error:
            if error.errno in medium.OURS:
                raise
            if ring is not None and own not in ring.own_names():
                return size, None
            fault = f"it cannot be read ({error.strerror})"
        if fault is None:
            break
    return size, fault
