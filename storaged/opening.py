"""What must be there before storaged can run: keys, pools, and that replicas hear of them.

A pool is set up by the settings, or because base's root names it (a store that was restored). Where
a volume is not mounted nothing is made in its place. What is open afterwards: storaged.daemon.
"""

import contextlib
import errno
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from spanvault import keyfile, protected
from spanvault.config import PoolConfig, StoragedConfig
from spanvault.rules import POOLS, TIERS
from storaged import index, vaults
from storaged.faults import Fault
from storaged.index import KEYS_CHANGED, Index
from storaged.intake import Intake
from storaged.keyring import Keyring
from storaged.layout import Store
from storaged.pool import Pool
from storaged.vaults import BASE, Vault, Vaults

_SPARE_FILES: Final = 512  # descriptors kept for everything that is no object


class Opener:
    """Opens the pools of a store."""

    def __init__(
        self, settings: StoragedConfig, store: Store, ring: Keyring, tables: Index
    ) -> None:
        self._settings, self._store, self._ring, self._tables = settings, store, ring, tables
        self._max_open = max(64, (_raise_file_limit() - _SPARE_FILES) // len(POOLS))

    def all(self) -> Vaults:
        """Every pool there is; those of the settings are made. Raises Fault, ValueError."""
        base = Vault(
            self._open(BASE), self._store.keys, Intake(self._store.intake / BASE),
            lambda: self._ring.ingest_public, self._ring,
        )  # fmt: skip
        found = Vaults(base)
        for name in POOLS[1:]:
            if name in self._settings.pools or self._ring.intake_key(TIERS[name]):
                found.add(self.pool(name))
        return found

    def pool(self, name: str) -> Vault:
        """A pool other than base: made if it is new, unlocked if a key at hand opens it."""
        about = self._settings.pools.get(name, PoolConfig())  # type: ignore[call-overload]
        recipients = [keyfile.load(path) for path in about.recipients]
        pool = self._open(name)
        vaults.make(self._store, self._ring, pool, recipients or recipients_of(self._settings))
        paths = [about.unlock_key] if about.unlock_key else []
        keys = [unlock_key(path) for path in (*paths, self._settings.unlock_key)]
        vault = vaults.open_vault(self._store, self._ring, pool, keys)
        announce_keys(self._tables, vault.key_files())
        return vault

    def _open(self, name: str) -> Pool:
        """A pool's folder, made if there is nothing of it yet. Raises Fault if it is gone."""
        about = self._settings.pools.get(name)  # type: ignore[call-overload]
        folder: Path = (about and about.path) or self._store.pool(name)
        # An unmounted volume leaves an empty folder behind: recordings must not begin to fill it.
        # In a restore the pool's keys come first.
        with self._tables.reading() as view:
            new = not view.number(index.reserved(TIERS[name])) or view.number(index.IMPORTING)
        try:
            if not new and not (folder / "objects").is_dir():
                raise FileNotFoundError(errno.ENOENT, "missing, and there are recordings")
            return Pool(name, folder, TIERS[name], self._max_open)
        except OSError as error:
            raise Fault(
                "unavailable",
                f"{error.filename or folder / 'objects'}: the pool cannot be opened "
                f"({error.strerror})",
                "Mount the pool's volume, or put the folder back with its owner. If it is lost, "
                "make its folder `objects` anew (mkdir -m 700) and restore the store from a "
                "replica.",
            ) from None


def unlock_key(path: Path) -> bytes:
    """Read an unlock key. Raises Fault: without it nothing can be opened."""
    try:
        return protected.load(path)
    except ValueError as error:
        hint = (
            "Set unlock_key in storaged.toml to the store's unlock key; `spanvault init` makes one."
        )
        raise Fault("locked", str(error), hint) from None


def recipients_of(settings: StoragedConfig) -> list[bytes]:
    """The public keys that a new store, or a pool without any of its own, is sealed to."""
    recipients = [keyfile.public_of(unlock_key(settings.unlock_key))]
    if settings.recovery_public is not None:
        recipients.append(keyfile.load(settings.recovery_public))
    return recipients


def announce_keys(tables: Index, names: Iterable[str]) -> None:
    """Tell the feed of key files that it does not know: those of a new store, or of a crash."""
    wanted = list(names)

    def announce(writing: index.Writing) -> None:
        for name in wanted:
            if writing.get(b"fed", KEYS_CHANGED + name.encode()) is None:
                writing.announce(KEYS_CHANGED, name.encode())

    with tables.reading() as view:
        known = all(view.get(b"fed", KEYS_CHANGED + name.encode()) for name in wanted)
    if not known:
        tables.write(announce)


def _raise_file_limit() -> int:
    """As many open files as the system lets us have: one a growing recording."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
