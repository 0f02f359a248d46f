"""A phone's side of SRTP: packets sealed as RFC 3711, 6188, 7714, 9335 say, for every SDES suite.

Written from the RFCs, apart from spanvault.media.srtp, so that each is the other's check; sessions
of libsrtp are used for nothing here. An SDP of RTP/SAVP and its a=crypto (RFC 4568).
"""

import base64
import hmac
import secrets
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.callgen import Phone, sdp

FIXED: Final = 12  # bytes of an RTP header without CSRCs and extension


class Sender:
    """Seals the packets of one stream, in order. suite: its name in a=crypto.

    cryptex: what is in their headers is encrypted too, if they have an extension (RFC 9335).
    key: master key with the salt behind it; else random ones.
    session: parameters of the crypto attribute: UNENCRYPTED_SRTP, KDR=n (RFC 4568 §6.3).
    identifier: of its key, in each packet (MKI, RFC 3711 §3.1).  after: whose rollover counter
    goes on with this key (RFC 3711 §8.1).
    """

    def __init__(
        self, suite: str, *, cryptex: bool = False, key: bytes = b"", session: str = "",
        identifier: bytes = b"", after: "Sender | None" = None,
    ) -> None:  # fmt: skip
        self.suite, self._cryptex = suite, cryptex
        words = suite.split("_")
        bits = next(int(word) for word in words if word in ("128", "192", "256"))
        self._gcm = words[0] == "AEAD"
        self._tag = int(words[-1]) // 8 if not self._gcm else 16
        size, salt = bits // 8, 12 if self._gcm else 14
        key = key or secrets.token_bytes(size + salt)
        self.key, self.salt = key[:size], key[size:]
        self._size, self._parameters = bits // 8, session
        self._every = next(
            (2 ** int(word[4:]) for word in session.split() if word.startswith("KDR=")), 0
        )
        self._derive_all(0)
        self._identifier, self._after = identifier, after
        self._rollovers, self._highest = 0, -1
        self._control, self._control_signing = self._derive(3, bits // 8), self._derive(4, 20)
        self._control_salt, self._reports = self._derive(5, len(self.salt)), 0

    @property
    def crypto(self) -> str:
        """The attribute that tells the key."""
        secret = base64.b64encode(self.key + self.salt).decode()
        size = len(self._identifier)
        named = f"|{int.from_bytes(self._identifier)}:{size}" if size else ""
        return f"a=crypto:1 {self.suite} inline:{secret}{named} {self._parameters}".rstrip()

    def seal(self, packet: bytes) -> bytes:
        """An RTP packet as SRTP."""
        sequence = int.from_bytes(packet[2:4], "big")
        if self._highest < 0 and self._after is not None:
            self._rollovers, self._highest = self._after._rollovers, self._after._highest
        if sequence < self._highest:
            self._rollovers += 1
        self._highest = sequence
        behind_csrcs = FIXED + 4 * (packet[0] % 16)
        behind = behind_csrcs
        if packet[0] & 0x10:
            behind += 4 + 4 * int.from_bytes(packet[behind + 2 : behind + 4], "big")
        head, said = packet[:behind], packet[behind:]
        if self._cryptex and packet[0] & 0x10:
            # RFC 9335 §5.1: the profile says so; §6.2: CSRCs and all but the extension's first
            # word are encrypted as if they stood before the payload.
            profile, words = head[behind_csrcs:][:2], head[behind_csrcs:][2:4]
            word = {b"\xbe\xde": b"\xc0\xde", b"\x10\0": b"\xc2\xde"}[profile] + words
            csrcs = head[FIXED:behind_csrcs]
            sealed, tag = self._sealed(
                head[:FIXED] + word, csrcs + head[behind_csrcs + 4 :] + said,
                lambda body: head[:FIXED] + body[: len(csrcs)] + word + body[len(csrcs) :],
            )  # fmt: skip
            return head[:FIXED] + sealed[: len(csrcs)] + word + sealed[len(csrcs) :] + tag
        sealed, tag = self._sealed(head, said, lambda body: head + body)
        if self._gcm:  # RFC 7714 §5.1: behind the tag
            return head + sealed + tag + self._identifier
        return head + sealed + self._identifier + tag

    def _sealed(
        self, clear: bytes, said: bytes, whole: Callable[[bytes], bytes]
    ) -> tuple[bytes, bytes]:
        """What is encrypted of a packet, and its tag.

        clear: what is not, fixed header first.  whole: the packet around what was encrypted.
        """
        index = self._rollovers << 16 | int.from_bytes(clear[2:4], "big")
        ssrc = int.from_bytes(clear[8:12], "big")
        if self._every:  # RFC 3711 §4.3.1: r = index DIV rate
            self._derive_all(index // self._every)
        if self._gcm:  # RFC 7714 §8.1
            mask = (ssrc << 48 | index).to_bytes(12, "big")
            nonce = bytes(a ^ b for a, b in zip(mask, self._session_salt, strict=True))
            body = AESGCM(self._session).encrypt(nonce, said, clear)
            return body[: len(said)], body[len(said) :]
        if "UNENCRYPTED_SRTP" in self._parameters:
            signed = whole(said) + self._rollovers.to_bytes(4, "big")
            return said, hmac.digest(self._signing, signed, "sha1")[: self._tag]
        body = self._f8(clear, said) if self.suite.startswith("F8") else self._counter(
            ssrc, index, said
        )  # fmt: skip
        signed = whole(body) + self._rollovers.to_bytes(4, "big")
        return body, hmac.digest(self._signing, signed, "sha1")[: self._tag]

    def seal_control(self, datagram: bytes) -> bytes:
        """RTCP as SRTCP: RFC 3711 §3.4; AES-GCM or counter mode."""
        self._reports += 1
        head, said = datagram[:8], datagram[8:]
        word = (1 << 31 | self._reports).to_bytes(4, "big")
        ssrc, salt = head[4:8], self._control_salt
        if self._gcm:  # RFC 7714 §9.1, §9.2
            mask = b"\0\0" + ssrc + b"\0\0" + self._reports.to_bytes(4, "big")
            nonce = bytes(a ^ b for a, b in zip(mask, salt, strict=True))
            return head + AESGCM(self._control).encrypt(nonce, said, head + word) + word
        mask = bytes(4) + ssrc + self._reports.to_bytes(6, "big") + b"\0\0"
        start = bytes(a ^ b for a, b in zip(mask, salt + b"\0\0", strict=True))
        stream = Cipher(algorithms.AES(self._control), modes.CTR(start)).encryptor()
        signed = head + stream.update(said) + word
        return signed + hmac.digest(self._control_signing, signed, "sha1")[:10]

    def _derive_all(self, turn: int) -> None:
        self._session = self._derive(0, self._size, turn)
        self._signing = self._derive(1, 20, turn)
        self._session_salt = self._derive(2, len(self.salt), turn)

    def _derive(self, label: int, size: int, turn: int = 0) -> bytes:
        # RFC 3711 §4.3.1: x = label ‖ r XOR salt, then ‖ two bytes of counter.
        start = bytearray(self.salt.ljust(14, b"\0"))
        start[7] ^= label
        start[8:] = bytes(a ^ b for a, b in zip(start[8:], turn.to_bytes(6, "big"), strict=True))
        stream = Cipher(algorithms.AES(self.key), modes.CTR(bytes(start) + b"\0\0"))
        return stream.encryptor().update(bytes(size))

    def _counter(self, ssrc: int, index: int, said: bytes) -> bytes:
        # §4.1.1: salt · 2^16 XOR ssrc · 2^64 XOR index · 2^16
        start = int.from_bytes(self._session_salt, "big") << 16 ^ ssrc << 64 ^ index << 16
        stream = Cipher(algorithms.AES(self._session), modes.CTR(start.to_bytes(16, "big")))
        return stream.encryptor().update(said)

    def _f8(self, head: bytes, said: bytes) -> bytes:
        # §4.1.2: S(j) = E(k, IV' XOR j XOR S(j-1)), IV' = E(k XOR m, IV)
        mask = self._session_salt + b"\x55" * (len(self._session) - len(self._session_salt))
        masked = bytes(a ^ b for a, b in zip(self._session, mask, strict=True))
        start = b"\0" + head[1:12] + self._rollovers.to_bytes(4, "big")
        first = _block(masked, start)
        stream, last = b"", bytes(16)
        for j in range(len(said) // 16 + 1):
            number = j.to_bytes(16, "big")
            last = _block(
                self._session, bytes(a ^ b ^ c for a, b, c in zip(first, number, last, strict=True))
            )
            stream += last
        return bytes(a ^ b for a, b in zip(said, stream, strict=False))


def _block(key: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(data)


def secure_sdp(phone: Phone, sender: Sender) -> str:
    """An offer or answer of PCMA under SRTP, with the key that this phone seals with."""
    return sdp(phone).replace("RTP/AVP", "RTP/SAVP") + sender.crypto + "\r\n"
