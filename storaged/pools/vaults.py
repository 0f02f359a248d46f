"""The pools with their keys: which there are, which are open, which are locked.

A pool other than base has a root of its own under keys/POOL, sealed to its own recipients. While it
is locked nothing of it can be read, yet it records: its public ingest key stands in base's root,
and what comes is sealed to that (storaged.pools.intake). While base is locked all are, and the keys
stand beside the intakes (storaged.keys.intakekeys). FORMAT.md §5.4, §5.5.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from spanvault.daemon.rules import POOLS, TIERS
from storaged.faults import Fault
from storaged.format import keypage
from storaged.format.ledger import Entry, Place
from storaged.format.walk import Steps
from storaged.index.environment import Index
from storaged.index.labels import Labels
from storaged.index.rows import KEYS_CHANGED
from storaged.index.writing import Writing
from storaged.keys import keyring
from storaged.keys.keyring import Keyring
from storaged.keys.rootfile import ROOT
from storaged.keys.slot import TokenSlot
from storaged.pools.intake import Intake
from storaged.pools.layout import Store
from storaged.pools.pool import Pool

log = logging.getLogger(__name__)
BASE: Final = "base"
_TURN_S: Final = 0.01  # at waiting for a commit to end before other requests get their turn
_PATIENCE_S: Final = 10.0  # for a commit to end before a pool is locked


class Vault:
    """One pool and its keys. A thread that writes holds `held`, so that keys do not go meanwhile.

    keys: the folder of its key files.  public_key: X25519, what its intake is sealed to.
    """

    def __init__(
        self, pool: Pool, keys: Path, intake: Intake, public_key: Callable[[], bytes],
        ring: Keyring | None = None, slot: TokenSlot | None = None,
    ) -> None:  # fmt: skip
        self.pool, self.name, self.tier = pool, pool.name, pool.tier
        self.intake, self.keys, self._public_key, self._ring = intake, keys, public_key, ring
        self._slot = slot
        self.why_locked = ""  # since the start: what kept the keys at hand from opening it
        self._labels: Labels | None = None
        self.unindexed = False  # its calls are not in the index: it was locked when that was made
        self.fault: str | None = None  # one line, while the pool's own disk takes nothing
        self.held = threading.RLock()

    @property
    def locked(self) -> bool:
        """Whether its keys are not here."""
        return self._ring is None

    @property
    def keyring(self) -> Keyring:
        """Its keys. Raises Fault while it is locked."""
        ring = self._ring
        if ring is None:
            raise Fault(
                "locked",
                f"pool {self.name} is locked",
                f"Its key holders unlock it: spanvault keys unlock {self.name}",
            )
        return ring

    @property
    def labels(self) -> Labels:
        """Its search rows, for the thread of requests. Raises Fault while it is locked."""
        ring, known = self.keyring, self._labels
        if known is None or known.ring is not ring:
            known = self._labels = Labels(self.tier, ring)
        return known

    def dek(self, key_id: int) -> bytes:
        """The DEK in a slot of this pool. Raises Fault: locked, destroyed, unknown, damaged."""
        return self.keyring.dek(key_id)

    def take_key(self, index: Index) -> int:
        """A slot of this pool that nobody has had, told to replicas. Raises Fault, OSError."""
        with self.held:
            key_id, changed = self.keyring.take(
                lambda: index.reserved_keys(self.tier),
                lambda number: index.reserve_keys(number, self.tier),
            )
            if changed:
                index.write(lambda writing: _announce(writing, changed))
        return key_id

    @property
    def intake_key(self) -> bytes:
        """The public key that its intake is sealed to."""
        return self._public_key()

    def unlock(self, private_key: bytes) -> None:
        """Open the pool's keys.

        Raises Fault: the root is not sealed to this key, or damaged, or its calls are not indexed.
        """
        with self._quiet():
            if self.unindexed:
                raise Fault(
                    "locked", f"pool {self.name} was locked when the index was made anew",
                    f"Stop storaged and run: spanvault reindex --pool-key {self.name}=FILE",
                )  # fmt: skip
            if self._ring is None:
                self._ring = self._opened(private_key)
                self.why_locked = ""
            elif not self.sealed_to(private_key):
                raise Fault("denied", f"pool {self.name} is open, and not sealed to this key")

    def _opened(self, private_key: bytes) -> Keyring:
        prefix = "" if self.name == BASE else f"{self.name}/"
        ring = Keyring(self.keys, private_key, prefix, self._slot)
        if not ring.has_ingest_key(self.intake_key):
            # Whoever changed the disk: what is sealed to a stranger's key must not go on.
            raise Fault(
                "corrupt",
                f"{self.keys / ROOT}: not the root whose key the intake is sealed to",
                "Restore the keys folder from a replica.",
            )
        return ring

    def sealed_to(self, private_key: bytes) -> bool:
        """Whether this key opens the pool's root as it lies on disk. Raises Fault: damaged."""
        try:
            keypage.open_envelope((self.keys / ROOT).read_bytes(), private_key)
        except LookupError:
            return False
        except (OSError, ValueError) as error:
            raise Fault("corrupt", f"{self.keys / ROOT}: {error}") from None
        return True

    @property
    def recipients(self) -> list[bytes]:
        """The public keys that the pool is sealed to, by what its root file says."""
        try:
            return keypage.recipients_of((self.keys / ROOT).read_bytes())
        except (OSError, ValueError):
            return []

    def lock(self) -> None:
        """Let the keys go. Raises Fault while a commit does not end."""
        with self._quiet():
            self._ring, self._labels, self.why_locked = None, None, ""

    def require_open(self) -> None:
        """Raise Fault if the pool is locked; it says who can unlock it."""
        _ = self.keyring

    @contextlib.contextmanager
    def noting(self, entries: Sequence[Entry], now_ns: int) -> Iterator[Place]:
        """Entries of the pool's ledger, synced; they count once the index has the place given.

        If what is done meanwhile fails they are taken back. Raises Fault, OSError.
        """
        with self.held:
            self.pool.check_place()
            ledger, ring = self.pool.ledger, self.keyring
            try:
                place = ledger.append(entries, ring.store_id, ring.ledger_key, now_ns)
                ledger.sync()
                yield place
            except BaseException:
                with contextlib.suppress(OSError):  # tried again before anything else is written
                    ledger.cut_back()
                raise
            ledger.committed(place)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """While nothing is written. Raises Fault if a commit does not end."""
        if not self.held.acquire(timeout=_PATIENCE_S):
            raise Fault("unavailable", "a commit is under way and does not end", "Try again.")
        try:
            yield
        finally:
            self.held.release()

    def fault_of(self, name: str, data: bytes) -> str | None:
        """What is wrong with these bytes of a key file, by its name in the folder; None: nothing.

        Of a locked pool its root alone can be told. Raises LookupError: it is named no more.
        """
        if (ring := self._ring) is not None:
            return ring.fault_of(name, data)
        try:
            if name == ROOT:
                keypage.check_root(data)
        except ValueError as error:
            return str(error)
        return None

    def owns(self, key_file: str) -> bool:
        """Whether a key file is this pool's, by its name in the feed."""
        return key_file.rpartition("/")[0] == ("" if self.name == BASE else self.name)

    def generation(self, page: int) -> int:
        """How often a key page was re-keyed, be the pool open or locked."""
        if self._ring is not None:
            return self._ring.generation(page)
        return max((int(path.suffix[1:]) for path in self.keys.glob(f"page-{page:06d}.*[0-9]")),
                   default=0)  # fmt: skip

    def key_files(self) -> list[str]:
        """Names of its key files as the feed tells them, pages before the root."""
        if self._ring is not None:
            return self._ring.names()
        pages = sorted(path.name for path in self.keys.glob("page-??????.*[0-9]"))
        prefix = "" if self.name == BASE else f"{self.name}/"
        return [f"{prefix}{name}" for name in (*pages, ROOT)]


class Vaults:
    """All pools of a store. of() may be asked from any thread.

    hurry: called when an intake can be emptied from now on; who empties it sets this.
    """

    def __init__(self, base: Vault) -> None:
        self.base = base
        self.hurry: Callable[[], None] = lambda: None
        self._by_tier = {base.tier: base}

    def __iter__(self) -> Iterator[Vault]:
        return iter(sorted(self._by_tier.values(), key=lambda vault: vault.tier))

    def __len__(self) -> int:
        return len(self._by_tier)

    def add(self, vault: Vault) -> None:
        """Take another pool in."""
        self._by_tier = {**self._by_tier, vault.tier: vault}

    def has(self, name: str) -> bool:
        """Whether the store has a pool of this name."""
        return TIERS.get(name, -1) in self._by_tier

    def of(self, tier: int) -> Vault:
        """The pool with a number. Raises Fault if the store has none."""
        try:
            return self._by_tier[tier]
        except KeyError:
            name = POOLS[tier] if 0 <= tier < len(POOLS) else "of that name"
            raise Fault(
                "locked",
                f"pool {name} is not set up here",
                f"Put [pools.{name}] into storaged.toml, with its folder, and restart storaged.",
            ) from None

    def named(self, name: str) -> Vault:
        """The pool of a name. Raises Fault."""
        return self.of(TIERS.get(name, -1))

    def holding(self, held: contextlib.ExitStack) -> Steps[None]:
        """Keep the committer from all pools until `held` ends; in steps, while a commit goes on."""
        for vault in self:
            while not vault.held.acquire(timeout=_TURN_S):
                yield
            held.callback(vault.held.release)

    def lock(self, name: str) -> None:
        """Let a pool's keys go; with base's all: its root vouches for the others. Raises Fault."""
        vault = self.named(name)
        for one in self if vault is self.base else [vault]:
            one.lock()

    def key_file(self, name: str) -> bytes | None:
        """A key file's bytes by its name in the feed; None: it is gone, or damaged.

        A damaged one must not reach a replica, whose sound copy it would replace. Raises OSError.
        """
        pool, _, own = name.rpartition("/")
        vault = self.named(pool or BASE)
        try:
            data = (vault.keys / own).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return data if vault.fault_of(own, data) is None else None
        except LookupError:  # not named: an import's, whose root comes later
            return data

    @property
    def locked(self) -> list[str]:
        """Names of the pools whose keys are not here."""
        return [vault.name for vault in self if vault.locked]

    def close(self) -> None:
        """Close the pools' files."""
        for vault in self:
            vault.pool.close()


def _announce(writing: Writing, names: Iterable[str]) -> None:
    for name in names:
        writing.announce(KEYS_CHANGED, name.encode())


def make(store: Store, base: Keyring, pool: Pool, recipients: Iterable[bytes]) -> list[str]:
    """Make a pool's keys, unless base's root vouches for them already.

    A root that it does not vouch for is what a crash left of this. Returns changed key files.
    """
    if base.intake_key(pool.tier) is not None:
        return []
    folder = store.keys / pool.name
    public = keyring.create(folder, base.store_id, recipients, pool.tier)
    log.info("A pool was made", extra={"POOL": pool.name})
    return [f"{pool.name}/{ROOT}", *base.vouch(pool.tier, public)]


def open_vault(
    store: Store, base: Keyring, pool: Pool, private_keys: Iterable[bytes],
    public_key: Callable[[], bytes] | None = None, slot: TokenSlot | None = None, *,
    unindexed: bool = False,
) -> Vault:  # fmt: skip
    """A pool other than base, unlocked if one of these keys opens it, and it is indexed.

    public_key: what its intake is sealed to, where something else than base's root is to say it.
    """
    told = public_key or (lambda: vouched(base, pool))
    intake = Intake(store.intake / pool.name)
    vault = Vault(pool, store.keys / pool.name, intake, told, slot=slot)
    vault.unindexed = unindexed
    try_keys(vault, private_keys)
    return vault


def vouched(base: Keyring, pool: Pool) -> bytes:
    """The public ingest key of another pool, by base's root. Raises Fault: it names none."""
    key = base.intake_key(pool.tier)
    if key is None:
        raise Fault(
            "corrupt",
            f"base's root vouches for no pool {pool.name}",
            "Restore the keys folder from a replica.",
        )
    return key


def try_keys(vault: Vault, private_keys: Iterable[bytes]) -> None:
    """Unlock a pool with the first key that fits; it stays locked if none does, and says why."""
    for private_key in private_keys:
        try:
            vault.unlock(private_key)
        except Fault as fault:
            vault.why_locked = fault.error
        else:
            return
    extra = {"POOL": vault.name, "FAULT": vault.why_locked or "no key of it is at hand"}
    log.warning("A pool is locked", extra=extra)
