"""Key files of operators: FORMAT.md §5.6."""

import unicodedata
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from . import Fault


def open_keyfile(text: str, passphrase: str, oaep: Callable[[str, bytes], bytes]) -> bytes:
    """The key, 32 bytes. Raises Fault.

    oaep: has a token decrypt; is given the URI, and the ciphertext.
    """
    text = text.removeprefix("\ufeff")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 1:
        raise Fault("key")
    words = lines[0].split()
    if words[0] == "argon2id":
        return _of_passphrase(words, passphrase)
    if words[0].startswith("pkcs11:") and len(words) == 2:
        return _key(oaep(words[0], bytes.fromhex(words[1])))
    try:
        return _key(bytes.fromhex(words[0]) if len(words) == 1 else b"")
    except ValueError:
        raise Fault("key") from None


def _of_passphrase(words: list[str], passphrase: str) -> bytes:
    if len(words) != 7:
        raise Fault("key")
    memory, iterations, lanes = map(int, words[1:4])
    if not (8 * lanes <= memory <= 1 << 22 and 1 <= iterations <= 64 and 1 <= lanes <= 64):
        raise Fault("parameters")
    salt, nonce, sealed = map(bytes.fromhex, words[4:])
    kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
    try:
        normal = unicodedata.normalize("NFC", passphrase).encode()
        opened = AESGCM(kdf.derive(normal)).decrypt(nonce, sealed, " ".join(words[:6]).encode())
    except InvalidTag:
        raise Fault("passphrase") from None
    return _key(opened)


def _key(key: bytes) -> bytes:
    if len(key) != 32:
        raise Fault("key")
    return key
