"""The effaceable slot of the root keys in a PKCS#11 token: destroying its object is the erasure.

Without one a root is erased by overwriting its file, which flash and copy-on-write file systems may
outlive. With one, what the root's envelopes hold is only a share: the root key is its HMAC under a
secret that the token made, keeps, and never gives away. Each root key has a secret of its own. Once
that is destroyed, no old copy of key files opens any more, whoever has the unlock key.
FORMAT.md §5.8. PKCS#11 itself: spanvault.keys.token. When secrets come and go:
storaged.keys.keyring.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from spanvault.daemon.config import credential
from storaged.faults import Fault

GRADE: Final = "hsm: the key of the old root was destroyed in its token"
_HINT: Final = "Is the token there? Look at erasure_token and erasure_pin in storaged.toml."

R = TypeVar("R")


class TokenSlot:
    """Secrets of roots in one token. For any thread; one call at a time.

    uri: pkcs11:token=NAME?module-path=FILE.  pin: the file that holds the token's PIN.
    """

    def __init__(self, uri: str, pin: Path) -> None:
        """Raises ValueError: no such URI."""
        from spanvault.keys import token

        self._place, self._pin = token.parse_uri(uri, with_object=False), pin

    def make(self, store_id: bytes, tier: int, epoch: int) -> None:
        """A new secret for a root; one that a crash left of the same is replaced. Raises Fault."""
        from spanvault.keys import token

        label = _label(store_id, tier, epoch)
        self._do(lambda pin: token.make_secret(self._place, pin, label))

    def root_key(self, store_id: bytes, tier: int, epoch: int, share: bytes) -> bytes:
        """The root key of a share, 32 bytes. Raises Fault: no such secret, or the token is away."""
        from spanvault.keys import token

        label = _label(store_id, tier, epoch)
        return self._do(lambda pin: token.hmac_sha256(self._place, pin, label, share))

    def keep_only(self, store_id: bytes, tier: int, epoch: int) -> None:
        """Destroy the secrets of all other roots of a pool. Raises Fault."""
        from spanvault.keys import token

        prefix, kept = _label(store_id, tier), _label(store_id, tier, epoch)
        self._do(lambda pin: token.destroy_secrets(self._place, pin, prefix, kept))

    def _do(self, act: Callable[[str], R]) -> R:
        """Have the token do something. act: is given the PIN. Raises Fault."""
        try:
            pin = credential(self._pin).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise Fault("locked", f"{self._pin}: the token's PIN cannot be read", _HINT) from None
        try:
            return act(pin)
        except ValueError as error:
            raise Fault("locked", str(error), _HINT) from None


def _label(store_id: bytes, tier: int, epoch: int | None = None) -> str:
    """What a secret is called in the token; without an epoch, how all of a pool begin."""
    return f"spanvault {store_id.hex()} {tier} {'' if epoch is None else epoch}"
