"""Key files that operators keep: the unlock key, and the public half of a recovery key.

A text file: lines that begin with # are for people, the one other line is 64 hex digits: an X25519
private (unlock, recovery) or public key. The private ones are mode 0600 and never lie in a store.
Who uses them: storaged.keys.keyring. Who makes them: `spanvault init`, private stores.
"""

import errno
import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from spanvault.daemon import disks
from spanvault.daemon.config import credential
from spanvault.daemon.durable import sync_folder

_PRIVATE: Final = (
    "# spanvault private key (X25519). Opens the store: keep a copy elsewhere, offline."
)
_PUBLIC: Final = "# spanvault public key (X25519). Seals a store's root key to its private half."
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def create_private(path: Path) -> bytes:
    """Make a new key, write its private half to path (mode 0600), give the public half.

    Raises FileExistsError rather than replace a key, OSError if it cannot be written.
    """
    key = X25519PrivateKey.generate()
    write_new(path, text_of(key.private_bytes_raw()))
    return key.public_key().public_bytes_raw()


def write_new(path: Path, text: str) -> None:
    """Put a private key file in place, mode 0600: whole and durable, or not at all.

    Raises FileExistsError rather than replace a key, OSError if it cannot be written.
    """
    part = _written_aside(path, text, 0o600)
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS or path.exists():
            raise
        part.rename(path)  # a stick's file system has no second names
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def clear_unfinished(path: Path) -> None:
    """Remove what a crash left of a key file that was being made."""
    _aside(path).unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _written_aside(path: Path, text: str, mode: int) -> Path:
    part = _aside(path)
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return part


def text_of(private_key: bytes) -> str:
    """The text of a plain private key's file."""
    return f"{_PRIVATE}\n{private_key.hex()}\n"


def write_public(path: Path, public_key: bytes) -> None:
    """Write the public half (32 bytes) to a file that may be shown to anyone."""
    _written_aside(path, f"{_PUBLIC}\n{public_key.hex()}\n", 0o644).rename(path)
    sync_folder(path.parent)


def load(path: Path) -> bytes:
    """The 32 bytes of a private key's file, if systemd has it for us from there.

    Raises ValueError that names the file, the fault, the remedy.
    """
    key, says = _read(path)
    if "public" in says:
        raise ValueError(
            f"{path}: this is a public key, which opens nothing: name its private half"
        )
    return key


def load_public(path: Path) -> bytes:
    """The 32 bytes of a public key's file. Raises ValueError, for a private key as well.

    What a root is sealed to stands in it in the clear.
    """
    key, says = _read(path)
    if "private" in says:
        raise ValueError(
            f"{path}: this is a private key, which would lie in the store for all to read: name "
            "its public half (.pub)"
        )
    return key


def _read(path: Path) -> tuple[bytes, set[str]]:
    """The key, and of which kind its file says that it is, if it does. Raises ValueError."""
    path = credential(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        hint = f". {disks.give_back(path)}" if error.errno in disks.DENIED else ""
        raise ValueError(f"{path}: key file cannot be read ({error.strerror}){hint}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a key file: one line of 64 hex digits is wanted") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    try:
        (key,) = (bytes.fromhex(line) for line in keys)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError(f"{path}: not a key file: one line of 64 hex digits is wanted")
    return key, {kind for kind in ("private", "public") if any(_says(line, kind) for line in lines)}


def _says(line: str, kind: str) -> bool:
    return line.startswith(f"# spanvault {kind} key")


def public_of(private_key: bytes) -> bytes:
    """The public half of a private key; 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()
