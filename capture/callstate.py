"""Keep the call table across a restart of the capture, unreadable to whoever takes the disk.

It lies in the runtime folder, a tmpfs under systemd: it is written once a second by the loop that
empties the ring, which must never wait for a disk. A crash or restart finds it again, a reboot does
not. Where the folder is on a disk all the same, or is swapped to one, the table is sealed, though
its key lies beside it. The file is written beside and renamed, so it is always whole. What the
table holds: capture.calls.calls.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ASSOCIATED: Final = b"spanvault call table/1"


class CallState:
    """The sealed file and its key. A folder without room for them stops no recording."""

    def __init__(self, runtime_dir: Path) -> None:
        with contextlib.suppress(OSError):  # save() says so
            runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = runtime_dir / "calls.sealed"
        self._key: bytes | None = None

    @property
    def _cipher(self) -> AESGCM:
        if self._key is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._key = _key(self._path.with_name("calls.key"))
        return AESGCM(self._key)

    def save(self, table: bytes) -> None:
        """Replace what was saved before. Raises OSError; it may be tried again."""
        cipher = self._cipher
        # A random nonce each time: 2^32 saves (136 years of one a second) keep it safe.
        nonce = os.urandom(12)
        part = self._path.with_suffix(".part")
        with part.open("wb") as file:  # not joined first: the table of 5,000 calls is 9 MB
            file.write(nonce)
            file.write(cipher.encrypt(nonce, table, ASSOCIATED))
        part.rename(self._path)

    def load(self) -> bytes | None:
        """The table as last saved; None if there is none that this key opens."""
        try:
            sealed = self._path.read_bytes()
            return self._cipher.decrypt(sealed[:12], sealed[12:], ASSOCIATED)
        except (OSError, InvalidTag, ValueError):
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
