"""Open SRTCP whose keys were told in SDP (SDES): datagrams as heard to datagrams as sent.

Each datagram carries its own index, so nothing has to be remembered from one to the next. What is
not encrypted (its E bit says so) is authenticated all the same. A datagram is given only if its tag
fits, so all keys of a call may be tried.
Sources: RFC 3711 §3.4 (packet), §4.1 (ciphers), §4.3.2 (keys), RFC 4568 §6.2 and RFC 6188 §4 (a tag
of 80 bits whatever the suite's for RTP), RFC 7714 §9 (AES-GCM). RTP: spanvault.media.srtp.
"""

import hmac
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spanvault.media.sdes import SUITES, Suite
from spanvault.media.srtp import AUTHENTICATION_KEY, derive, f8, keystream
from spanvault.messages import MediaKey

ENCRYPTION, AUTHENTICATION, SALT = 3, 4, 5  # labels, RFC 3711 §4.3.2
CLEAR: Final = 8  # bytes: the first header, and the sender's SSRC
WORD: Final = 4  # E bit and index
ENCRYPTED: Final = 1 << 31
TAG, GCM_TAG = 10, 16


class Opener:
    """All datagrams of a call. keys: those that SDP named, oldest first."""

    def __init__(self, keys: Sequence[MediaKey]) -> None:
        self._keys = [_own(key) for key in reversed(keys)]

    def open(self, sealed: bytes) -> bytes | None:
        """The datagram as sent; None where no key opens it."""
        for place, key in enumerate(self._keys):
            opened = key.open(sealed)
            if opened is not None:
                # What opened this one opens the next, most likely.
                self._keys.insert(0, self._keys.pop(place))
                return opened
        return None


class _CounterMode:
    """AES in counter mode with HMAC-SHA1: RFC 3711 §4.1.1, §4.2.1."""

    def __init__(self, key: MediaKey, suite: Suite) -> None:
        self._suite, self._mki, self._rate = suite, key.mki, key.rate
        self._master, self._master_salt = key.key[: suite.key], key.key[suite.key :]
        self._derive(0)

    def _derive(self, turn: int) -> None:
        """Session keys. turn: how often the datagrams of a derivation's rate have gone by."""
        master, salt, self._turn = self._master, self._master_salt, turn
        self._key = derive(master, salt, ENCRYPTION, self._suite.key, turn)
        self._authentication = derive(master, salt, AUTHENTICATION, AUTHENTICATION_KEY, turn)
        self._salt = derive(master, salt, SALT, self._suite.salt, turn)

    def open(self, sealed: bytes) -> bytes | None:
        end = len(sealed) - TAG - self._mki
        if end < CLEAR + WORD:
            return None
        index = int.from_bytes(sealed[end - WORD : end], "big") & ~ENCRYPTED
        if self._rate and self._turn != (turn := index // self._rate):
            self._derive(turn)
        tag = hmac.digest(self._authentication, sealed[:end], "sha1")[:TAG]
        if not hmac.compare_digest(tag, sealed[len(sealed) - TAG :]):
            return None
        word = int.from_bytes(sealed[end - WORD : end], "big")
        body = sealed[CLEAR : end - WORD]
        if word & ENCRYPTED:
            body = self._decrypt(sealed[:CLEAR], word, body)
        return sealed[:CLEAR] + body

    def _decrypt(self, clear: bytes, word: int, body: bytes) -> bytes:
        start = int.from_bytes(self._salt, "big") ^ int.from_bytes(clear[4:8], "big") << 48
        start ^= word & ~ENCRYPTED
        return keystream(algorithms.AES(self._key), start << 16, body)


class _F8(_CounterMode):
    """AES in f8 mode with HMAC-SHA1: RFC 3711 §4.1.2.3."""

    def _decrypt(self, clear: bytes, word: int, body: bytes) -> bytes:
        return f8(self._key, self._salt, bytes(4) + word.to_bytes(4, "big") + clear, body)


class _Gcm:
    """AES-GCM: RFC 7714 §9.1 (nonce), §9.2, §9.3 (what is authenticated)."""

    def __init__(self, key: MediaKey, suite: Suite) -> None:
        master, salt = key.key[: suite.key], key.key[suite.key :]
        padded = salt.ljust(14, b"\0")  # §11: as if two bytes longer
        self._mki = key.mki
        self._cipher = AESGCM(derive(master, padded, ENCRYPTION, suite.key))
        self._salt = int.from_bytes(derive(master, padded, SALT, suite.salt), "big")

    def open(self, sealed: bytes) -> bytes | None:
        end = len(sealed) - self._mki - WORD
        if end < CLEAR + GCM_TAG:
            return None
        clear, said, word = sealed[:CLEAR], sealed[CLEAR:end], sealed[end : end + WORD]
        number = int.from_bytes(word, "big")
        nonce = self._salt ^ (int.from_bytes(clear[4:8], "big") << 48 | number & ~ENCRYPTED)
        if not number & ENCRYPTED:  # all but the tag is authenticated only
            clear, said = sealed[: end - GCM_TAG], sealed[end - GCM_TAG : end]
        try:
            opened = self._cipher.decrypt(nonce.to_bytes(12, "big"), said, clear + word)
        except InvalidTag:
            return None
        return clear + opened


def _own(key: MediaKey) -> _CounterMode | _Gcm:
    suite = SUITES[key.suite]
    if key.suite.startswith("AEAD"):
        return _Gcm(key, suite)
    return (_F8 if key.suite.startswith("F8") else _CounterMode)(key, suite)
