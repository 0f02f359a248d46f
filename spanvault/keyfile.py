"""Key files that operators keep: the unlock key, and the public half of a recovery key.

A text file: lines that begin with # are for people, the one other line is 64 hex digits: an X25519
private (unlock, recovery) or public key. The private ones are mode 0600 and never lie in a store.
Who uses them: storaged.keyring. Who makes them: `spanvault init`, private stores.
"""

import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from spanvault.config import credential

_PRIVATE: Final = (
    "# spanvault private key (X25519). Opens the store: keep a copy elsewhere, offline."
)
_PUBLIC: Final = "# spanvault public key (X25519). Seals a store's root key to its private half."


def create_private(path: Path) -> bytes:
    """Make a new key, write its private half to path (mode 0600), give the public half.

    Raises FileExistsError rather than replace a key, OSError if it cannot be written.
    """
    key = X25519PrivateKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text_of(key.private_bytes_raw()))
        file.flush()
        os.fsync(file.fileno())
    return key.public_key().public_bytes_raw()


def text_of(private_key: bytes) -> str:
    """The text of a plain private key's file."""
    return f"{_PRIVATE}\n{private_key.hex()}\n"


def write_public(path: Path, public_key: bytes) -> None:
    """Write the public half (32 bytes) to a file that may be shown to anyone."""
    path.write_text(f"{_PUBLIC}\n{public_key.hex()}\n", encoding="ascii")


def load(path: Path) -> bytes:
    """The 32 bytes of a key file, if systemd has it for us from there.

    Raises ValueError that names the file, the fault, the remedy.
    """
    path = credential(path)
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: key file cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a key file: one line of 64 hex digits is wanted") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    try:
        (key,) = (bytes.fromhex(line) for line in keys)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError(f"{path}: not a key file: one line of 64 hex digits is wanted")
    return key


def public_of(private_key: bytes) -> bytes:
    """The public half of a private key; 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()
