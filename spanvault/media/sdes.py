"""SRTP keys as SDP tells them: the a=crypto attribute.

Sources: RFC 4568 §4, §6, §9.2 (syntax), RFC 6188 §4, RFC 7714 §14.2 (suites).
Read by capture.signalling.sdp; used by spanvault.media.srtp, to open at export what was recorded
sealed.
"""

import base64
import binascii
from typing import Final, NamedTuple

from spanvault.messages import MediaKey


class Suite(NamedTuple):
    """Bytes of master key, master salt and authentication tag."""

    key: int
    salt: int
    tag: int


SUITES: Final = {
    "AES_CM_128_HMAC_SHA1_80": Suite(16, 14, 10),
    "AES_CM_128_HMAC_SHA1_32": Suite(16, 14, 4),
    "F8_128_HMAC_SHA1_80": Suite(16, 14, 10),
    "AES_192_CM_HMAC_SHA1_80": Suite(24, 14, 10),
    "AES_192_CM_HMAC_SHA1_32": Suite(24, 14, 4),
    "AES_256_CM_HMAC_SHA1_80": Suite(32, 14, 10),
    "AES_256_CM_HMAC_SHA1_32": Suite(32, 14, 4),
    "AEAD_AES_128_GCM": Suite(16, 12, 16),
    "AEAD_AES_256_GCM": Suite(32, 12, 16),
}
# Names that are in use for the same suites, though no RFC has them.
ALIASES: Final = {
    f"AES_CM_{bits}_HMAC_SHA1_{tag}": f"AES_{bits}_CM_HMAC_SHA1_{tag}"
    for bits in (192, 256)
    for tag in (80, 32)
}
MAX_MKI: Final = 128
# Session parameters with which nothing could be opened for sure: a tag tells whether a key fits.
REFUSED: Final = ("UNAUTHENTICATED_SRTP", "FEC_KEY=")
MAX_RATE: Final = 24  # of two's powers: RFC 4568 §6.3.1


def parse(value: str) -> list[MediaKey]:
    """The keys of one attribute: `1 AES_CM_128_HMAC_SHA1_80 inline:KEY|2^31|1:4 …`.

    Raises ValueError for a suite or session parameter that spanvault.media.srtp cannot open, and
    for a key that does not fit its suite.
    """
    fields = value.split()
    if len(fields) < 3:
        raise ValueError("crypto attribute without tag, suite or key")
    name = ALIASES.get(fields[1].upper(), fields[1].upper())
    if name not in SUITES:
        raise ValueError(f"unknown SRTP suite {fields[1][:40]!r}")
    encrypted, rate = _session(name, [field.upper() for field in fields[3:]])
    return [_key(name, text, encrypted, rate) for text in fields[2].split(";") if text]


def _session(suite: str, parameters: list[str]) -> tuple[bool, int]:
    """Whether RTP is encrypted, and packets between key derivations: RFC 4568 §6.3.1, §6.3.2."""
    encrypted, rate = True, 0
    for parameter in parameters:
        power = parameter.removeprefix("KDR=")
        if parameter == "UNENCRYPTED_SRTP":
            encrypted = False
        elif power != parameter and power.isascii() and power.isdigit():
            rate = 1 << int(power[:3]) if 0 < int(power[:3]) <= MAX_RATE else 0
        known = (encrypted and not rate) or not suite.startswith("AEAD")  # RFC 7714 has neither
        if parameter.startswith(REFUSED) or not known:
            raise ValueError(f"SRTP session parameter {parameter[:40]!r} is not supported")
    return encrypted, rate


def _key(suite: str, text: str, encrypted: bool, rate: int) -> MediaKey:
    method, _, rest = text.partition(":")
    if method.lower() != "inline":
        raise ValueError(f"unknown SRTP key method {method[:40]!r}")
    encoded, *options = rest.split("|")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        raise ValueError("SRTP key is not base64") from None
    wanted = SUITES[suite].key + SUITES[suite].salt
    if len(key) != wanted:
        raise ValueError(f"SRTP key and salt are {len(key)} bytes, {suite} has {wanted}")
    return MediaKey(suite, key, _mki(options), encrypted, rate)


def _mki(options: list[str]) -> int:
    """Bytes of master key identifier in each packet, 0 where there is none; a lifetime is none."""
    for option in options:
        _, colon, size = option.partition(":")
        if colon and size.isascii() and size.isdigit() and 0 < int(size[:4]) <= MAX_MKI:
            return int(size[:4])
    return 0
