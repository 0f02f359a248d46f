"""A pool's root file on disk: opened, written anew with one secret more, or under a new root key.

A root that is replaced waits under a second name until it is overwritten, so that a crash leaves
either the old root or the new one, and a trace of what is still to be destroyed. With a token
(storaged.keys.slot) the secret of the root that went is destroyed there, too. FORMAT.md §5.1, §5.3,
§5.8. Bytes: storaged.format.keypage. What the secrets are for: storaged.keys.keyring.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from spanvault.certificate import OVERWRITTEN
from spanvault.daemon import disks
from storaged import files
from storaged.faults import Fault
from storaged.format import keypage
from storaged.format.keypage import SIGNING_KEY, Name, Root
from storaged.keys.slot import GRADE, TokenSlot

ROOT: Final = "root"
ROOT_OLD: Final = "root.old"  # the root that a new root key replaced, until it is overwritten


class RootFile:
    """The opened root of a pool. For one thread at a time; storaged.keys.keyring sees to it.

    slot: where root keys are kept from the next one on; None: in their file.
    """

    def __init__(self, folder: Path, private_key: bytes, slot: TokenSlot | None = None) -> None:
        """Raises as open()."""
        self._folder, self._private_key = folder, private_key
        self._slot, self._of_share = slot, slot.root_key if slot else _no_token
        self.open()

    def open(self) -> None:
        """Read it again. Raises Fault: missing, damaged, or sealed to other keys."""
        path = self._folder / ROOT
        try:
            self._data = path.read_bytes()
            self._root: Root = keypage.open_root(self._data, self._private_key, self._of_share)
        except OSError as error:
            raise Fault(
                "locked",
                f"{path}: the store's root key cannot be read ({error.strerror})",
                disks.remedy(error, path, "Restore the keys folder from a replica."),
            ) from None
        except LookupError:
            raise Fault(
                "locked",
                f"{path}: the unlock key is not one this store is sealed to",
                "Set unlock_key to the key this store was made with, or to its recovery key.",
            ) from None
        except ValueError as error:
            raise Fault(
                "corrupt", f"{path}: {error}", "Restore the keys folder from a replica."
            ) from None
        if Name(SIGNING_KEY, 0) not in self._root.secrets:
            raise Fault(
                "invalid",
                f"{path}: the root of a store of version 1, it has no key to sign with",
                "Use the spanvault that made it to export what must be kept.",
            )

    @property
    def store_id(self) -> bytes:
        """16 bytes."""
        return self._root.store_id

    @property
    def epoch(self) -> int:
        """It rises with each new root key."""
        return self._root.epoch

    @property
    def tier(self) -> int:
        """The pool's number."""
        return self._root.tier

    @property
    def recipients(self) -> list[bytes]:
        """The public keys that it is sealed to."""
        return list(self._root.recipients)

    @property
    def secrets(self) -> Mapping[Name, bytes]:
        """Everything that the root key wraps."""
        return self._root.secrets

    @property
    def slot_due(self) -> bool:
        """Whether the root key is not yet in the slot that was chosen: replace() puts it there."""
        return self._slot is not None and self._root.slot == keypage.FILE

    @property
    def grade(self) -> str:
        """How surely this root's key is gone once it is replaced, in words for a certificate."""
        return GRADE if self._root.slot == keypage.TOKEN else OVERWRITTEN

    def of_kind(self, kind: int) -> list[Name]:
        """The names of all secrets of a kind, sorted."""
        return sorted(name for name in self._root.secrets if name.kind == kind)

    def put_secret(self, name: Name, secret: bytes) -> None:
        """Write the file anew with one more secret, under the same root key. Raises OSError."""
        secrets = {**self._root.secrets, name: secret}
        data = keypage.replace_secrets(self._data, self._root, secrets, _nonces(len(secrets)))
        put(self._folder, data)
        files.destroy(self._folder, [ROOT_OLD])
        self._data, self._root = data, self._root._replace(secrets=secrets)

    def matches(self, data: bytes) -> bool:
        """Whether these are the bytes of the root as it is opened."""
        return data == self._data

    def rewrite(self) -> None:
        """Put the root as it is opened on disk, where that is damaged. Raises OSError."""
        put(self._folder, self._data)
        files.destroy(self._folder, [ROOT_OLD])

    def replace(self, secrets: Mapping[Name, bytes], recipients: list[bytes] | None = None) -> None:
        """Write the file under a new root key, sealed to the same or other public keys.

        The old one lies aside, and its secret in the token, until clear(). Raises Fault, OSError.
        """
        epoch, recipients = self.epoch + 1, recipients or self._root.recipients
        share = os.urandom(32)
        root = self._root._replace(
            epoch=epoch, root_key=self._root_key(epoch, share), secrets=dict(secrets),
            recipients=recipients, slot=keypage.TOKEN if self._slot else keypage.FILE,
        )  # fmt: skip
        data = keypage.serialize_root(
            self.store_id, epoch, root.tier, root.root_key, recipients, secrets,
            _nonces(len(secrets)), share if self._slot else None,
        )  # fmt: skip
        put(self._folder, data)
        self._data, self._root = data, root

    def clear(
        self, others: Iterable[str] = (), spans: Mapping[str, list[files.Span]] | None = None
    ) -> None:
        """Destroy the root that was replaced, and other files with it, as files.destroy() does."""
        self._clear_slot()
        files.destroy(self._folder, [*others, ROOT_OLD], spans or {})

    def settle(self) -> None:
        """Destroy a root that was replaced, if a crash or a failing disk left it."""
        _clear_aside(self._folder)
        self._clear_slot()

    def take(self, data: bytes, store_id: str) -> None:
        """Put another store's root in place, if the unlock key opens it. Raises Fault, OSError."""
        try:
            root = keypage.open_root(data, self._private_key, self._of_share)
        except LookupError:
            raise Fault(
                "locked",
                "the unlock key is not one that the replica's store is sealed to",
                "Restore with the unlock key of that store, or with its recovery key.",
            ) from None
        except ValueError as error:
            raise Fault("corrupt", str(error), "Restore from another replica.") from None
        if root.store_id.hex() != store_id:
            raise Fault("corrupt", "the root key is another store's")
        files.replace(self._folder / ROOT, data)
        self.open()

    def _root_key(self, epoch: int, share: bytes) -> bytes:
        """A new root key, of a share if a token is to keep the rest of it. Raises Fault."""
        if self._slot is None:
            return share
        self._slot.make(self.store_id, self.tier, epoch)
        return self._slot.root_key(self.store_id, self.tier, epoch, share)

    def _clear_slot(self) -> None:
        """Destroy in the token what other roots than the one in place needed. Raises Fault."""
        if self._slot is not None and self._root.slot == keypage.TOKEN:
            self._slot.keep_only(self.store_id, self.tier, self.epoch)


def put(folder: Path, data: bytes) -> None:
    """Put a root file in place; the old one stays as ROOT_OLD, to be overwritten. OSError."""
    path = folder / ROOT
    _clear_aside(folder)
    if path.exists():
        os.link(path, folder / ROOT_OLD)
    files.replace(path, data)


def _clear_aside(folder: Path) -> None:
    aside = folder / ROOT_OLD
    # Linked, and the new root not in place: it is the root, and must not be overwritten.
    if files.same(aside, folder / ROOT):
        aside.unlink()
    files.destroy(folder, [ROOT_OLD])


def create(
    folder: Path, store_id: bytes, tier: int, recipients: Iterable[bytes],
    secrets: Mapping[Name, bytes],
) -> None:  # fmt: skip
    """The first root file of a pool. recipients: public keys. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    data = keypage.serialize_root(
        store_id, 1, tier, os.urandom(32), list(recipients), secrets, _nonces(len(secrets))
    )
    files.replace(folder / ROOT, data)


def _no_token(*_: object) -> bytes:
    """In place of a token that the settings do not name."""
    raise Fault(
        "locked",
        "a part of the root key is in a token",
        "Set erasure_token in storaged.toml to the one that the store was given.",
    )


def _nonces(count: int) -> list[bytes]:
    return [os.urandom(12) for _ in range(count)]
