"""The public keys that intakes are sealed to, as they are known while base's root is closed.

Base's root vouches for them, and nobody can ask it then. So they are kept beside the intakes, with
a MAC whose key is made of storaged's own CURVE secret: that lies with the host's settings and not
in the store, so whoever changes the store's disk cannot put his own key in, to which everything
would be sealed from then on. FORMAT.md §5.5. Source of the MAC: RFC 2104.
"""

import hmac
import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from spanvault.daemon.rules import POOLS
from storaged import files
from storaged.faults import Fault

log = logging.getLogger(__name__)
MAGIC: Final = b"SVRINTK1"
_CONTEXT: Final = b"spanvault intake keys/1"
_HEAD: Final = struct.Struct("<8s16sB")
_ROW: Final = struct.Struct("<B32s")
_MAC: Final = 32


def serialize(store_id: bytes, keys: Mapping[int, bytes], secret: bytes) -> bytes:
    """The file. keys: X25519, public, by tier.  secret: storaged's CURVE secret key, as Z85."""
    data = _HEAD.pack(MAGIC, store_id, len(keys))
    data += b"".join(_ROW.pack(tier, keys[tier]) for tier in sorted(keys))
    return data + hmac.digest(_mac_key(secret), data, "sha256")


def parse(data: bytes, secret: bytes) -> tuple[bytes, dict[int, bytes]]:
    """Store id, and the keys by tier. Raises ValueError: changed, or written by another host."""
    body, mac = data[:-_MAC], data[-_MAC:]
    if not hmac.compare_digest(hmac.digest(_mac_key(secret), body, "sha256"), mac):
        raise ValueError("was changed, or was written under another certificate of storaged")
    magic, store_id, count = _HEAD.unpack_from(body)
    if magic != MAGIC or len(body) != _HEAD.size + count * _ROW.size:
        raise ValueError("not a list of intake keys")
    return store_id, dict(_ROW.iter_unpack(body[_HEAD.size :]))


class IntakeKeys:
    """The file, and what it said when storaged started or wrote it last."""

    def __init__(self, path: Path, secret: bytes) -> None:
        self._path, self._secret = path, secret
        self.store_id, self._keys = self._read()

    def of(self, tier: int) -> bytes:
        """A pool's public ingest key. Raises Fault: nobody vouches for one."""
        try:
            return self._keys[tier]
        except KeyError:
            name = POOLS[tier] if 0 <= tier < len(POOLS) else str(tier)
            raise Fault(
                "locked",
                f"the store is locked, and there is no key that pool {name} could record to",
                "Start storaged once with the store's unlock key.",
            ) from None

    @property
    def tiers(self) -> frozenset[int]:
        """Of the pools whose keys are known; none if there is no file that this host wrote."""
        return frozenset(self._keys)

    def keep(self, store_id: bytes, keys: Mapping[int, bytes]) -> None:
        """Make it so for the next time that base is locked. Raises OSError."""
        if (store_id, keys) != (self.store_id, self._keys):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            files.replace(self._path, serialize(store_id, keys, self._secret))
            self.store_id, self._keys = store_id, dict(keys)

    def _read(self) -> tuple[bytes, dict[int, bytes]]:
        try:
            return parse(self._path.read_bytes(), self._secret)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("The intakes' keys are not used", extra={"FAULT": f"{self._path}: {error}"})
        return b"", {}


def _mac_key(secret: bytes) -> bytes:
    return hmac.digest(secret, _CONTEXT, "sha256")
