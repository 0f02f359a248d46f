"""Key files that need something else to be opened: a passphrase, or a key in a PKCS#11 token.

A private key is plain (spanvault.keys.keyfile), or one line that begins with how it is protected:

    argon2id MEMORY_KIB ITERATIONS LANES SALT NONCE CIPHERTEXT
    pkcs11 URI CIPHERTEXT

FORMAT.md §5.6 specifies both. Source: RFC 9106 (Argon2id), RFC 8017 §7.1 (RSA-OAEP), RFC 7512
(pkcs11: URIs). What a token does: spanvault.keys.token.
"""

import logging
import os
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from spanvault.daemon.config import credential
from spanvault.keys import keyfile

log = logging.getLogger(__name__)
Ask = Callable[[str], str]  # a question → what somebody types; not shown
MEMORY_KIB: Final = 256 << 10  # about a second on one core
ITERATIONS: Final = 3
LANES: Final = 4
_BOUNDS: Final = (range(8, (4 << 20) + 1), range(1, 65), range(1, 65))
_HEAD: Final = "# spanvault private key (X25519), protected. Opens the store: keep a copy, offline."


def load(path: Path, ask: Ask | None = None) -> bytes:
    """The private key of a file, 32 bytes. ask: for a passphrase or PIN.

    A daemon gives none: it finds what it needs in the credential PATH's name + `.secret`.
    Raises ValueError that names the file, the fault, the remedy.
    """
    words = _words(path)
    _tell_if_open(credential(path))
    if words is None:
        return keyfile.load(path)
    secret = ask or (lambda question: _credential(path, question))
    try:
        if words[0] == "argon2id":
            return _open_passphrase(words, secret(f"Passphrase of {path}: "))
        from spanvault.keys import token

        return token.unwrap(words[1], bytes.fromhex(words[2]), secret(f"PIN for {words[1]}: "))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: {error}") from None


def is_protected(path: Path) -> bool:
    """Whether a passphrase or PIN is asked for. Raises nothing."""
    return _words(path) is not None


def with_passphrase(private_key: bytes, passphrase: str) -> str:
    """The text of a key file that a passphrase opens."""
    salt, nonce = os.urandom(16), os.urandom(12)
    head = f"argon2id {MEMORY_KIB} {ITERATIONS} {LANES} {salt.hex()} {nonce.hex()}"
    key = _derive(passphrase, salt, MEMORY_KIB, ITERATIONS, LANES)
    sealed = AESGCM(key).encrypt(nonce, private_key, head.encode())
    return f"{_HEAD}\n{head} {sealed.hex()}\n"


def with_token(private_key: bytes, uri: str) -> str:
    """The text of a key file that a token's private key opens. Raises ValueError."""
    from spanvault.keys import token

    return f"{_HEAD}\n{token.canonical(uri)} {token.wrap(uri, private_key).hex()}\n"


def write(path: Path, text: str) -> None:
    """Put a key file in place, mode 0600. Raises FileExistsError rather than replace one."""
    keyfile.write_new(path, text)


def _words(path: Path) -> list[str] | None:
    """The line of a protected key file; None for any other."""
    try:
        lines = credential(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return None  # keyfile says what is wrong with it
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if len(rows) != 1 or len(rows[0]) < 2:
        return None
    if rows[0][0].startswith("pkcs11:"):
        return ["pkcs11", *rows[0]]
    return rows[0] if rows[0][0] == "argon2id" else None


def _tell_if_open(path: Path) -> None:
    """It is used all the same: a store that did not start would record nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # keyfile says what is wrong with it
    if mode & (stat.S_IROTH | stat.S_IWOTH):  # of a group: systemd's credentials show that, too
        log.warning("The file of a private key is open to everybody",
                    extra={"FILE": str(path), "REMEDY": f"chmod 600 {path}"})  # fmt: skip


def _credential(path: Path, question: str) -> str:
    given = credential(path.with_name(path.name + ".secret"))
    try:
        # A PIN with a line end at its back would cost one of the few tries that a token gives.
        secret = given.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise ValueError(
            f"{question.rstrip(': ')} is needed. Hand it over as credential {given.name} "
            "(LoadCredentialEncrypted= in a drop-in of the unit)"
        ) from None
    if not secret:
        raise ValueError(f"{question.rstrip(': ')} is needed, and credential {given.name} is empty")
    return secret


def _open_passphrase(words: list[str], passphrase: str) -> bytes:
    """Raises ValueError."""
    if len(words) != 7:
        raise ValueError("not a key file with a passphrase: 7 words are wanted")
    memory, iterations, lanes = (int(word) for word in words[1:4])
    # Bounded: a file that somebody changed must not ask for all memory there is.
    for value, allowed in zip((memory, iterations, lanes), _BOUNDS, strict=True):
        if value not in allowed:
            raise ValueError("the key file's Argon2id parameters are out of bounds")
    if memory < 8 * lanes:  # RFC 9106 §3.1
        raise ValueError("the key file's Argon2id parameters are out of bounds")
    salt, nonce, sealed = (bytes.fromhex(word) for word in words[4:])
    key = _derive(passphrase, salt, memory, iterations, lanes)
    try:
        private_key = AESGCM(key).decrypt(nonce, sealed, " ".join(words[:6]).encode())
    except InvalidTag:
        raise ValueError("the passphrase is wrong") from None
    if len(private_key) != 32:
        raise ValueError("the key file holds no key")
    return private_key


def _derive(passphrase: str, salt: bytes, memory: int, iterations: int, lanes: int) -> bytes:
    kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
    # What one keyboard sends as a letter and another as a letter and its accent is the same.
    try:
        return kdf.derive(unicodedata.normalize("NFC", passphrase).encode())
    except MemoryError:
        raise ValueError(f"{memory:,} KiB of memory are needed, and are not there") from None
