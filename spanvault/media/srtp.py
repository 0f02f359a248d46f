"""Open SRTP whose keys were told in SDP (SDES): payloads as heard to payloads as sent.

libsrtp opens what it knows; the suites it has not, streams that were heard from the middle on
(it takes a rollover counter of 0), and packets whose header is encrypted too, are opened here, on
`cryptography`. A packet is authenticated with its header, which is kept where it is more than its
twelve bytes; extensions that are encrypted by themselves (RFC 6904) stay so. A payload is given
only if its authentication tag fits, so several keys may be tried on one packet: those of an offer
of which nobody heard the answer, or the old and the new one about a re-keying.
Sources: RFC 3711 (§3.3 index, §4.1 ciphers, §4.2 tag, §4.3 keys), RFC 4568 (SDES, suites), RFC 6188
(192 and 256 bits), RFC 7714 (AES-GCM), RFC 9335 (encrypted headers). Where keys come from:
spanvault.media.sdes.
"""

import hmac
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pylibsrtp
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from spanvault.media import rtp
from spanvault.media.chunk import MARKER, WHOLE, Chunk, with_payloads
from spanvault.media.inclear import within
from spanvault.media.rtp import CSRC_COUNT, EXTENSION, header_length, without_padding
from spanvault.media.sdes import SUITES, Suite
from spanvault.messages import MediaKey, Span

HEADER: Final = struct.Struct(">BBHII")  # RFC 3550 §5.1, without CSRC and extension
ENCRYPTED_HEADERS: Final = (b"\xc0\xde", b"\xc2\xde")  # profiles of extensions: RFC 9335 §5.1
VERSION_2: Final = 0x80
ENCRYPTION, AUTHENTICATION, SALT = 0, 1, 2  # labels, RFC 3711 §4.3.1
AUTHENTICATION_KEY: Final = 20
ROLLOVERS: Final = 64  # counters that are tried: 24 hours of 20 ms packets
PATIENCE: Final = 100  # packets of a key that do not open before its counter is sought no more
SEARCHES: Final = 20_000  # for a counter, in one call: some seconds, whatever its SDP named


_POLICY = pylibsrtp.Policy
PROFILES: Final = {
    "AES_CM_128_HMAC_SHA1_80": _POLICY.SRTP_PROFILE_AES128_CM_SHA1_80,
    "AES_CM_128_HMAC_SHA1_32": _POLICY.SRTP_PROFILE_AES128_CM_SHA1_32,
    "AEAD_AES_128_GCM": _POLICY.SRTP_PROFILE_AEAD_AES_128_GCM,
    "AEAD_AES_256_GCM": _POLICY.SRTP_PROFILE_AEAD_AES_256_GCM,
}


class Opening:
    """The streams of one call, opened chunk by chunk. warnings: packets that no key opens.

    keys: all that SDP was heard to name in the call, oldest first; what opens a stream shows in
    its tags. in_clear: when packets that no key opens are taken as they are
    (spanvault.media.inclear).
    """

    def __init__(self, keys: Sequence[MediaKey], in_clear: Sequence[Span] = ()) -> None:
        self.warnings: Counter[str] = Counter()
        self._in_clear = in_clear
        self._keys = keys
        self._effort = Effort()
        self._streams: dict[tuple[int, int], Stream] = {}

    def open(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Chunks as sent. What no key opens is empty."""
        return map(self._chunk, chunks)

    def _chunk(self, chunk: Chunk) -> Chunk:
        number, ssrc = int(chunk.header["stream"]), int(chunk.header["ssrc"])
        if (number, ssrc) not in self._streams:
            self._streams[number, ssrc] = Stream(ssrc, self._keys, self._effort)
        sealed = [bytes(payload) for payload in chunk.payloads()]
        opened = self._streams[number, ssrc].open(chunk.frames, sealed)
        clear = within(self._in_clear, chunk.frames["arrival_ns"])
        for row in np.flatnonzero(clear).tolist():
            if opened[row] is None:
                opened[row] = rtp.payload(sealed[row], int(chunk.frames["flags"][row]))
        if shut := sum(payload is None for payload in opened):
            self.warnings["SRTP packets open with no key that was heard: silence"] += shut
        return with_payloads(chunk, [payload or b"" for payload in opened])


@dataclass
class Effort:
    """What is left to be spent on one call's rollover counters, by all of its streams and keys."""

    searches: int = SEARCHES


class Stream:
    """One stream, opened packet by packet in the order of its sequence.

    keys: oldest first; as spanvault.media.sdes reads them, else KeyError or ValueError.
    """

    def __init__(self, ssrc: int, keys: Sequence[MediaKey], effort: Effort | None = None) -> None:
        self._ssrc = ssrc
        effort = effort or Effort()
        self._openers = [_Opener(ssrc, key, effort) for key in reversed(keys)]

    def open(self, frames: NDArray[np.void], payloads: Sequence[bytes]) -> list[bytes | None]:
        """The payloads as sent; None where no key opens one.

        frames: FRAME[n].  payloads: what they hold, whole packets where they say so.
        """
        columns = zip(
            *(frames[name].tolist() for name in ("sequence", "timestamp", "payload_type", "flags")),
            payloads,
            strict=True,
        )
        return [self._open(*column) for column in columns]

    def _open(self, number: int, timestamp: int, kind: int, flags: int, sealed: bytes) -> Any:
        if flags & WHOLE:
            size = header_length(sealed)
            header, sealed = sealed[:size], sealed[size:]
        else:
            second = kind | (0x80 if flags & MARKER else 0)
            header = HEADER.pack(VERSION_2, second, number & 0xFFFF, timestamp, self._ssrc)
        if len(header) < HEADER.size:
            return None
        for place, opener in enumerate(self._openers):
            payload = opener.open(header, number, sealed)
            if payload is not None:
                # What opened this one opens the next, most likely.
                self._openers.insert(0, self._openers.pop(place))
                return without_padding(payload, header[0])
        return None


class _Opener:
    """One key of one stream: libsrtp, and what it cannot do."""

    def __init__(self, ssrc: int, key: MediaKey, effort: Effort) -> None:
        suite = SUITES[key.suite]
        self._effort = effort
        self._mki = key.mki
        self._tag = suite.tag
        alone = key.rate or not key.encrypted  # libsrtp never derives keys anew
        self._library = _session(ssrc, key) if key.suite in PROFILES and not alone else None
        self._own = _own(key)
        self._before: int | None = None  # rollovers the sender had before what we count
        self._failed = 0

    def open(self, header: bytes, number: int, sealed: bytes) -> bytes | None:
        """number: extended, as in chunk.FRAME: 65536 + what is in the header at the beginning."""
        if len(sealed) < self._tag + self._mki:
            return None
        sealed = self._without_mki(sealed)
        if self._library is not None and self._before is None and not _hidden(header)[0]:
            try:
                return bytes(self._library.unprotect(header + sealed)[len(header) :])
            except pylibsrtp.Error:
                pass
        return self._with_rollover(header, number, sealed)

    def _without_mki(self, sealed: bytes) -> bytes:
        """RFC 3711 §3.1: it stands before the tag; GCM's tag stands before it (RFC 7714 §5.1)."""
        if not self._mki:
            return sealed
        if isinstance(self._own, _Gcm):
            return sealed[: -self._mki]
        end = len(sealed) - self._tag
        return sealed[: end - self._mki] + sealed[end:]

    def _with_rollover(self, header: bytes, number: int, sealed: bytes) -> bytes | None:
        heard = (number >> 16) - 1
        if self._before is not None:
            payload = self._own.open(header, (heard + self._before) % (1 << 32), sealed)
            if payload is not None:
                return payload
        if self._failed >= PATIENCE or not self._effort.searches:
            return None
        for rollovers in range(ROLLOVERS):
            payload = self._own.open(header, rollovers, sealed)
            if payload is not None:
                self._before = rollovers - heard
                return payload
        self._failed += 1
        self._effort.searches -= 1
        return None


def _session(ssrc: int, key: MediaKey) -> pylibsrtp.Session:
    profile = PROFILES[key.suite]
    policy = _POLICY(key.key, _POLICY.SSRC_SPECIFIC, ssrc, srtp_profile=profile)
    policy.window_size = 0x4000
    policy.allow_repeat_tx = True
    return pylibsrtp.Session(policy)


class _CounterMode:
    """AES in counter mode with HMAC-SHA1: RFC 3711 §4.1.1, §4.2.1; RFC 6188 §2."""

    def __init__(self, key: MediaKey, suite: Suite) -> None:
        self._suite, self._tag = suite, suite.tag
        self._master, self._master_salt = key.key[: suite.key], key.key[suite.key :]
        self._encrypted, self._rate = key.encrypted, key.rate
        self._derive(0)

    def _derive(self, turn: int) -> None:
        """Session keys. turn: how often the packets of a derivation's rate have gone by."""
        master, salt, self._turn = self._master, self._master_salt, turn
        self._key = derive(master, salt, ENCRYPTION, self._suite.key, turn)
        self._cipher = algorithms.AES(self._key)
        self._authentication = derive(master, salt, AUTHENTICATION, AUTHENTICATION_KEY, turn)
        self._salt = derive(master, salt, SALT, self._suite.salt, turn)

    def open(self, header: bytes, rollovers: int, sealed: bytes) -> bytes | None:
        if self._rate and self._turn != (turn := _index(header, rollovers) // self._rate):
            self._derive(turn)
        cut = len(sealed) - self._tag
        signed = header + sealed[:cut] + rollovers.to_bytes(4, "big")
        tag = hmac.digest(self._authentication, signed, "sha1")[: self._tag]
        if not hmac.compare_digest(tag, sealed[cut:]):
            return None
        if not self._encrypted:
            return sealed[:cut]
        hidden, _ = _hidden(header)
        return self._decrypt(header, rollovers, hidden + sealed[:cut])[len(hidden) :]

    def _decrypt(self, header: bytes, rollovers: int, sealed: bytes) -> bytes:
        start = int.from_bytes(self._salt, "big") ^ int.from_bytes(header[8:12], "big") << 48
        return keystream(self._cipher, (start ^ _index(header, rollovers)) << 16, sealed)


class _F8(_CounterMode):
    """AES in f8 mode with HMAC-SHA1: RFC 3711 §4.1.2."""

    def _decrypt(self, header: bytes, rollovers: int, sealed: bytes) -> bytes:
        start = b"\0" + header[1:12] + rollovers.to_bytes(4, "big")
        return f8(self._key, self._salt, start, sealed)


class _Gcm:
    """AES-GCM: RFC 7714 §8.1 (nonce), §9.2 (what is authenticated)."""

    def __init__(self, key: MediaKey, suite: Suite) -> None:
        master, salt = key.key[: suite.key], key.key[suite.key :]
        padded = salt.ljust(14, b"\0")  # §11: as if two bytes longer
        self._cipher = AESGCM(derive(master, padded, ENCRYPTION, suite.key))
        self._salt = int.from_bytes(derive(master, padded, SALT, suite.salt), "big")

    def open(self, header: bytes, rollovers: int, sealed: bytes) -> bytes | None:
        index = int.from_bytes(header[8:12], "big") << 48 | _index(header, rollovers)
        nonce = self._salt ^ index
        hidden, clear = _hidden(header)
        try:
            opened = self._cipher.decrypt(nonce.to_bytes(12, "big"), hidden + sealed, clear)
        except InvalidTag:
            return None
        return opened[len(hidden) :]


def _index(header: bytes, rollovers: int) -> int:
    """The packet's: RFC 3711 §3.3.1."""
    return rollovers << 16 | int.from_bytes(header[2:4], "big")


def _hidden(header: bytes) -> tuple[bytes, bytes]:
    """What of a header is encrypted, as if it stood before the payload, and what is not.

    CSRCs and the extension but for its first four bytes: RFC 9335 §5.2, §6.2. Mostly nothing is.
    """
    at = HEADER.size + 4 * (header[0] & CSRC_COUNT)
    if not header[0] & EXTENSION or header[at : at + 2] not in ENCRYPTED_HEADERS:
        return b"", header
    clear = header[: HEADER.size] + header[at : at + 4]
    return header[HEADER.size : at] + header[at + 4 :], clear


def _own(key: MediaKey) -> _CounterMode | _Gcm:
    suite = SUITES[key.suite]
    if key.suite.startswith("AEAD"):
        return _Gcm(key, suite)
    return (_F8 if key.suite.startswith("F8") else _CounterMode)(key, suite)


def derive(master: bytes, salt: bytes, label: int, size: int, turn: int = 0) -> bytes:
    """A session key of `size` bytes: RFC 3711 §4.3.1, §4.3.3. turn: index DIV derivation rate."""
    start = (int.from_bytes(salt, "big") ^ (label << 48 | turn)) << 16
    return keystream(algorithms.AES(master), start, bytes(size))


def f8(key: bytes, salt: bytes, start: bytes, data: bytes) -> bytes:
    """AES in f8 mode, its own inverse: RFC 3711 §4.1.2. start: the 16 bytes that it calls IV."""
    cipher = algorithms.AES(key)
    first = _block(algorithms.AES(_xor(key, salt.ljust(len(key), b"\x55"))), start)
    out = b""
    previous = bytes(16)
    for number in range(-(-len(data) // 16)):
        block = _xor(_xor(first, number.to_bytes(16, "big")), previous)
        previous = _block(cipher, block)
        out += _xor(data[16 * number : 16 * number + 16], previous)
    return out


def keystream(cipher: algorithms.AES, start: int, data: bytes) -> bytes:
    """Data under AES in counter mode, its own inverse. start: the first block's counter."""
    return Cipher(cipher, modes.CTR(start.to_bytes(16, "big"))).encryptor().update(data)


def _block(cipher: algorithms.AES, data: bytes) -> bytes:
    # One block: what f8 is built of.
    return Cipher(cipher, modes.ECB()).encryptor().update(data)  # noqa: S305


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(left, right, strict=False))
