"""Who can open which pool: unlock, lock, rotate, add and remove recipients.

The right to ask is the operator's certificate; to change who opens a pool one must besides show a
private key that opens it. What is on disk: storaged.keys.keyring. New ingest keys, and the end of
old ones: storaged.erasing.retiring. Requests: WIRE.md §6.
"""

import hmac
import logging
from collections.abc import Callable
from typing import Any, Final

from spanvault import messages as m
from spanvault.keys import keyfile
from spanvault.spool import key_id
from storaged.erasing.retiring import Retirer
from storaged.faults import Fault
from storaged.index.environment import Index
from storaged.index.rows import KEYS_CHANGED
from storaged.index.writing import Writing
from storaged.keys.sharing import Shareholders
from storaged.pools.opening import Opener
from storaged.pools.vaults import BASE, Vault, Vaults

log = logging.getLogger(__name__)
_KEY_BYTES: Final = 32


class Custody:
    """Carries out requests about keys. For the thread of requests."""

    def __init__(
        self, index: Index, vaults: Vaults, clock_ns: Callable[[], int], opener: Opener,
        retirer: Retirer,
    ) -> None:  # fmt: skip
        self._index, self._vaults, self._clock_ns = index, vaults, clock_ns
        self._opener, self._holders, self._retirer = opener, Shareholders(), retirer
        self.handlers: dict[type, Callable[[Any], m.Message]] = {
            m.Keys: self._keys,
            m.Unlock: self._unlock,
            m.OfferShare: self._offer_share,
            m.Lock: self._lock,
            m.Rotate: self._rotate,
            m.Recipients: self._recipients,
        }

    def settle(self) -> None:
        """Put root keys into the slot that the settings chose. Raises Fault, OSError."""
        for vault in self._vaults:
            with vault.held:
                if not vault.locked and vault.keyring.slot_due:
                    self._announce(vault.keyring.renew())
                    log.info("The root key is in the token now", extra={"POOL": vault.name})

    def _keys(self, _: m.Keys) -> m.KeysReply:
        return m.KeysReply([
            _about(vault, self._retirer.to_go(vault.name)) for vault in self._vaults
        ])  # fmt: skip

    def _unlock(self, request: m.Unlock) -> m.Done:
        vault = self._vaults.named(request.pool)
        _check_key(request.key)
        if request.drill:
            if not vault.sealed_to(request.key):
                raise _not_sealed(vault)
            return m.Done()
        if vault.name != BASE:
            self._vaults.base.require_open()  # it vouches for others
        was_locked = vault.locked
        vault.unlock(request.key)
        self._holders.forget(vault.name)
        self._announce(vault.key_files(), new_only=True)
        if vault.name == BASE and was_locked:
            self._opener.open_others(request.key)
        self.settle()
        self._vaults.hurry()
        return m.Done()

    def _offer_share(self, request: m.OfferShare) -> m.OfferShareReply:
        vault = self._vaults.named(request.pool)
        if not vault.locked:
            raise Fault("invalid", f"pool {vault.name} is open already", "No share is needed.")
        now_ns = self._clock_ns()
        given = self._holders.give(vault.name, request.share, vault.recipients, now_ns)
        if given.key is not None:
            self._unlock(m.Unlock(vault.name, given.key))
        return m.OfferShareReply(given.numbers, given.needed, given.key is not None)

    def _lock(self, request: m.Lock) -> m.Done:
        self._vaults.lock(request.pool)
        return m.Done()

    def _rotate(self, request: m.Rotate) -> m.Done:
        vault = self._vaults.named(request.pool)
        with vault.held:
            if request.what == "root":
                self._announce(vault.keyring.renew())
            else:
                self._retirer.rotate(vault)
        return m.Done()

    def _recipients(self, request: m.Recipients) -> m.Done:
        vault = self._vaults.named(request.pool)
        _check_key(request.key)
        for public_key in request.add:
            _check_key(public_key)
            if keyfile.public_of(public_key) in vault.recipients:
                raise Fault(
                    "invalid",
                    f"this is a private key of pool {vault.name}, which would lie in its root for "
                    "all to read",
                    "Name its public half (.pub).",
                )
        with vault.held:
            ring = vault.keyring
            # By the root that is opened: whoever can write to the disk could put another there.
            if keyfile.public_of(request.key) not in ring.recipients:
                raise _not_sealed(vault)
            gone = set(request.remove)
            if unknown := gone - {key_id(one) for one in ring.recipients}:
                raise Fault(
                    "not_found", f"pool {vault.name} is not sealed to a key {min(unknown)}",
                    "spanvault keys status lists them.",
                )  # fmt: skip
            kept = [one for one in ring.recipients if key_id(one) not in gone]
            kept += [one for one in request.add if one not in kept]
            if not kept:
                raise Fault("invalid", "nobody could open the pool any more", "Add a key first.")
            self._announce(ring.renew(kept))
        return m.Done()

    def _announce(self, names: list[str], *, new_only: bool = False) -> None:
        """Tell replicas of changed key files."""

        def announce(writing: Writing) -> None:
            for name in names:
                if not new_only or writing.get(b"fed", KEYS_CHANGED + name.encode()) is None:
                    writing.announce(KEYS_CHANGED, name.encode())

        self._index.write(announce)


def _about(vault: Vault, to_go: list[str]) -> m.PoolKeys:
    if vault.locked:
        recipients = [key_id(one) for one in vault.recipients]
        return m.PoolKeys(
            vault.name, True, 0, recipients, 0, len(vault.intake), to_go=to_go
        )  # fmt: skip
    ring = vault.keyring
    return m.PoolKeys(
        vault.name, False, ring.epoch, [key_id(one) for one in ring.recipients],
        ring.ingest_generations, len(vault.intake), ring.grade, to_go,
    )  # fmt: skip


def _check_key(key: bytes) -> None:
    """Raise Fault for what is no X25519 key."""
    # An all-zero key is none: it would make a shared secret that everybody knows.
    if len(key) != _KEY_BYTES or hmac.compare_digest(key, bytes(_KEY_BYTES)):
        raise Fault("invalid", "this is no key: 32 bytes are wanted")


def _not_sealed(vault: Vault) -> Fault:
    return Fault(
        "denied", f"pool {vault.name} is not sealed to this key",
        f"spanvault keys status says to which keys pool {vault.name} is sealed.",
    )  # fmt: skip
