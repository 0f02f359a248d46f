"""What must be there before storaged can run: keys, pools, and that replicas hear of them.

A pool is set up by the settings, or because base's root names it (a store that was restored). Where
a volume is not mounted nothing is made in its place. What is open afterwards: storaged.daemon.
"""

import contextlib
import errno
import logging
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Final

from spanvault.daemon.config import PoolConfig, StoragedConfig
from spanvault.daemon.rules import POOLS, TIERS
from spanvault.keys import keyfile, protected
from storaged import diskfaults
from storaged.faults import Fault
from storaged.index import rows, toldkeys
from storaged.index.environment import Index
from storaged.keys.intakekeys import IntakeKeys
from storaged.keys.keyring import Keyring
from storaged.keys.slot import TokenSlot
from storaged.pools import vaults
from storaged.pools.intake import Intake
from storaged.pools.layout import Store
from storaged.pools.pool import Pool
from storaged.pools.vaults import BASE, Vault, Vaults

log = logging.getLogger(__name__)
_FEW_FILES: Final = 128  # with fewer open files storaged cannot serve its clients


class Opener:
    """Opens the pools of a store. base: the vault that all() made."""

    def __init__(
        self, settings: StoragedConfig, store: Store, tables: Index, intake_keys: IntakeKeys
    ) -> None:
        self._settings, self._store, self._tables = settings, store, tables
        self._intake_keys = intake_keys
        self._max_open = _files_of_a_pool(_raise_file_limit())

    def all(self, ring: Keyring | None, why_locked: str = "") -> Vaults:
        """Every pool there is; those of the settings are made. ring: base's; None: it is locked.

        Raises Fault, ValueError.
        """
        self.vaults = Vaults(self._vault(BASE, ring))
        self.vaults.base.why_locked = why_locked
        if ring is None:
            for name in POOLS[1:]:
                if name in self._settings.pools or TIERS[name] in self._intake_keys.tiers:
                    self._intake_keys.of(TIERS[name])  # without a key nothing could be recorded
                    self.vaults.add(self._vault(name, None))
        else:
            self.open_others()
        return self.vaults

    def open_others(self, private_key: bytes | None = None) -> None:
        """Once base is open: the other pools, made if they are new, unlocked if a key opens them.

        private_key: what base was unlocked with. Raises Fault, ValueError, OSError.
        """
        base = self.vaults.base.keyring
        for name in POOLS[1:]:
            if name in self._settings.pools or base.intake_key(TIERS[name]):
                if self.vaults.has(name):
                    vaults.try_keys(self.vaults.named(name), self._keys_of(name, private_key))
                else:
                    self.vaults.add(self.pool(name))
        self.keep_intake_keys()

    def pool(self, name: str) -> Vault:
        """A pool other than base: made if it is new, unlocked if a key at hand opens it."""
        about = self._settings.pools.get(name, PoolConfig())  # type: ignore[call-overload]
        recipients = [keyfile.load_public(path) for path in about.recipients]
        pool, base = self._open(name), self.vaults.base.keyring
        vaults.make(self._store, base, pool, recipients or base.recipients)
        self.keep_intake_keys()
        vault = vaults.open_vault(
            self._store,
            base,
            pool,
            self._keys_of(name),
            self._told(pool.tier),
            slot_of(self._settings),
            unindexed=self._is_unindexed(name),
        )
        toldkeys.announce_at_start(self._tables, vault.keys, vault.key_files())
        return vault

    def keep_intake_keys(self) -> None:
        """See to it that what base's root says of ingest keys is known without it. OSError."""
        base = self.vaults.base.keyring
        keys = {TIERS[BASE]: base.ingest_public}
        for tier in TIERS.values():
            if key := base.intake_key(tier):
                keys[tier] = key
        self._intake_keys.keep(base.store_id, keys)

    def _vault(self, name: str, ring: Keyring | None) -> Vault:
        keys = self._store.keys if name == BASE else self._store.keys / name
        intake = Intake(self._store.intake / name)
        vault = Vault(
            self._open(name), keys, intake, self._told(TIERS[name]), ring, slot_of(self._settings)
        )
        vault.unindexed = self._is_unindexed(name)
        return vault

    def _is_unindexed(self, name: str) -> bool:
        with self._tables.reading() as view:
            # One that cannot be read is as good as set: locked it records, and loses nothing.
            return (view.get(b"meta", rows.UNINDEXED + name.encode()) or bytes(8)) != bytes(8)

    def _told(self, tier: int) -> Callable[[], bytes]:
        return lambda: self._intake_keys.of(tier)

    def _keys_of(self, name: str, private_key: bytes | None = None) -> list[bytes]:
        """The private keys that may open a pool other than base: its own, and what opens base."""
        about = self._settings.pools.get(name)  # type: ignore[call-overload]
        own = [about.unlock_key] if about and about.unlock_key else []
        found = []
        for path in (*own, self._settings.unlock_key):
            try:
                found.append(unlock_key(path))
            except Fault as fault:  # the pool records all the same
                log.warning("A key is not at hand", extra={"POOL": name, "FAULT": fault.error})
        return found if private_key is None else [*found, private_key]

    def _open(self, name: str) -> Pool:
        """A pool's folder, made if there is nothing of it yet. Raises Fault if it is gone."""
        about = self._settings.pools.get(name)  # type: ignore[call-overload]
        folder: Path = (about and about.path) or self._store.pool(name)
        # An unmounted volume leaves an empty folder behind: recordings must not begin to fill it.
        # In a restore the pool's keys come first.
        with self._tables.reading() as view:
            new = not view.number(rows.reserved(TIERS[name])) or view.number(rows.IMPORTING)
            place = view.ledger(TIERS[name])
        try:
            if not new and not (folder / "objects").is_dir():
                raise FileNotFoundError(errno.ENOENT, "missing, and there are recordings")
            pool = Pool(name, folder, TIERS[name], self._max_open)
            pool.ledger.recover(place)
            return pool
        except OSError as error:
            raise Fault(
                "unavailable",
                f"{error.filename or folder / 'objects'}: the pool cannot be opened "
                f"({error.strerror})",
                diskfaults.remedy(
                    error,
                    "Mount the pool's volume, or put the folder back with its owner. If it is "
                    "lost, make its folder `objects` anew (mkdir -m 700) and restore the store "
                    "from a replica.",
                ),
            ) from None


def base_keys(
    settings: StoragedConfig, store: Store, intake_keys: IntakeKeys
) -> tuple[Keyring | None, str]:
    """The opened keys of base; or, if no key at hand opens them, none and why: it records locked.

    So it does where the root is damaged, which comes back from a replica
    (storaged.integrity.keymending). Raises Fault: nobody vouches for a key that it could record to.
    """
    try:
        key = unlock_key(settings.unlock_key)
        return Keyring(store.keys, key, slot=slot_of(settings)), ""
    except Fault as fault:
        vouched = TIERS[BASE] in intake_keys.tiers and intake_keys.store_id == store.store_id
        if fault.code not in ("locked", "corrupt") or not vouched:
            raise
        log.error("The store is locked, it records and is not heard", extra={"FAULT": str(fault)})
        return None, fault.error


def slot_of(settings: StoragedConfig) -> TokenSlot | None:
    """Where root keys are to be kept besides their files. Raises ValueError: no such URI."""
    if not settings.erasure_token:
        return None
    return TokenSlot(settings.erasure_token, settings.erasure_pin)


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
        recipients.append(keyfile.load_public(settings.recovery_public))
    return recipients


def _files_of_a_pool(most: int) -> int:
    """How many objects a pool may hold open where a process may have so many files.

    A part stays for what is no object: at the limit libzmq ends the process over a new connection.
    Raises Fault.
    """
    if most < _FEW_FILES:
        raise Fault(
            "invalid", f"storaged may open {most} files only",
            f"It needs {_FEW_FILES} at least: raise LimitNOFILE= of its unit (65536).",
        )  # fmt: skip
    return (most - max(most // 4, min(512, most // 2))) // len(POOLS)


def _raise_file_limit() -> int:
    """As many open files as the system lets us have: one a growing recording."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
