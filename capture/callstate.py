"""Keep the call table across a restart of the capture, unreadable to whoever takes the disk.

It lies in the runtime folder, a tmpfs under systemd: it is written once a second by the loop that
empties the ring, which must never wait for a disk. A crash or restart finds it again, a reboot does
not. Where the folder is on a disk all the same, or is swapped to one, the table is sealed, though
its key lies beside it. The file is written beside and renamed, so it is always whole. What the
table holds: capture.calls.calls.
"""

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ASSOCIATED: Final = b"spanvault call table/1"


class CallState:
    """The sealed file and its key. Raises OSError where there is no room for them."""

    def __init__(self, runtime_dir: Path) -> None:
        runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = runtime_dir / "calls.sealed"
        self._cipher = AESGCM(_key(runtime_dir / "calls.key"))

    def save(self, table: bytes) -> None:
        """Replace what was saved before."""
        # A random nonce each time: 2^32 saves (136 years of one a second) keep it safe.
        nonce = os.urandom(12)
        part = self._path.with_suffix(".part")
        with part.open("wb") as file:  # not joined first: the table of 5,000 calls is 9 MB
            file.write(nonce)
            file.write(self._cipher.encrypt(nonce, table, ASSOCIATED))
        part.rename(self._path)

    def load(self) -> bytes | None:
        """The table as last saved; None if there is none that this key opens."""
        try:
            sealed = self._path.read_bytes()
            return self._cipher.decrypt(sealed[:12], sealed[12:], ASSOCIATED)
        except (FileNotFoundError, InvalidTag, ValueError):
            return None


def _key(path: Path) -> bytes:
    """The key of this boot, made on first use."""
    try:
        key = path.read_bytes()
        if len(key) == 32:
            return key
    except FileNotFoundError:
        pass
    key = os.urandom(32)
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
    part.rename(path)
    return key
