"""SRTCP with keys from SDP: what was protected elsewhere is opened here, and nothing else."""

import hmac
import secrets

import pylibsrtp
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from spanvault.media import sdes, srtcp, srtp
from spanvault.messages import MediaKey
from tests.support.rtcpforge import Block, description, goodbye, receiver_report, sender_report

REPORT = sender_report(0x1234ABCD, [Block(2, lost=5)]) + description((0x1234ABCD, "a@b"))
SAID = [REPORT, receiver_report(0x1234ABCD), REPORT + goodbye(0x1234ABCD)]
LIBRARY = sorted(srtp.PROFILES)
OWN = sorted(set(sdes.SUITES) - set(LIBRARY))


def key_of(suite: str, mki: int = 0) -> MediaKey:
    sizes = sdes.SUITES[suite]
    return MediaKey(suite, secrets.token_bytes(sizes.key + sizes.salt), mki)


def by_library(key: MediaKey, said: list[bytes]) -> list[bytes]:
    policy = pylibsrtp.Policy(
        key.key, pylibsrtp.Policy.SSRC_ANY_OUTBOUND, srtp_profile=srtp.PROFILES[key.suite]
    )
    session = pylibsrtp.Session(policy)
    return [session.protect_rtcp(one) for one in said]


def opened(keys: list[MediaKey], sealed: list[bytes]) -> list[bytes | None]:
    opener = srtcp.Opener(keys)
    return [opener.open(one) for one in sealed]


@pytest.mark.parametrize("suite", LIBRARY)
def test_what_libsrtp_sealed_is_opened(suite: str):
    key = key_of(suite)
    assert opened([key_of(suite), key], by_library(key, SAID)) == SAID


@pytest.mark.parametrize("suite", OWN)
def test_the_suites_that_libsrtp_lacks(suite: str):
    """Counter mode and f8 are their own inverse: seal by opening, then sign."""
    key = key_of(suite)
    mode = srtcp._own(key)
    sealed = []
    for number, one in enumerate(SAID):
        word = (1 << 31 | number).to_bytes(4, "big")
        body = mode._decrypt(one[:8], 1 << 31 | number, one[8:])
        assert body != one[8:] or not body
        signed = one[:8] + body + word
        sealed.append(signed + hmac.digest(mode._authentication, signed, "sha1")[:10])
    assert opened([key], sealed) == SAID


@pytest.mark.parametrize("suite", LIBRARY)
def test_a_master_key_identifier_is_passed_over(suite: str):
    key = key_of(suite, mki=4)
    tag = 0 if "AEAD" in suite else 10
    sealed = [
        one[: len(one) - tag] + b"mki!" + one[len(one) - tag :]
        for one in by_library(MediaKey(key.suite, key.key), SAID)
    ]
    assert opened([key], sealed) == SAID


def test_what_is_only_authenticated_is_given_as_it_is():
    """RFC 3711 §3.4: the E bit is 0; RFC 7714 §9.3: nothing is encrypted, all authenticated."""
    plain, gcm = key_of("AES_CM_128_HMAC_SHA1_80"), key_of("AEAD_AES_128_GCM")
    word = bytes(4)
    mode = srtcp._own(plain)
    signed = REPORT + word
    tag = hmac.digest(mode._authentication, signed, "sha1")[:10]
    cipher: AESGCM = srtcp._own(gcm)._cipher
    nonce = srtcp._own(gcm)._salt ^ 0x1234ABCD << 48
    told = cipher.encrypt(nonce.to_bytes(12, "big"), b"", REPORT + word)
    assert opened([plain], [signed + tag]) == [REPORT]
    assert opened([gcm], [REPORT + told + word]) == [REPORT]


@pytest.mark.parametrize("suite", LIBRARY)
def test_what_was_changed_or_is_under_another_key_is_not_given(suite: str):
    key = key_of(suite)
    (sealed,) = by_library(key, [REPORT])
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert opened([key], [bytes(changed)]) == [None]
    assert opened([key_of(suite)], [sealed]) == [None]
    assert opened([], [sealed]) == [None]


@given(st.binary(max_size=80))
def test_whatever_comes_is_opened_or_not(datagram: bytes):
    keys = [MediaKey("AES_CM_128_HMAC_SHA1_80", bytes(30)), MediaKey("AEAD_AES_128_GCM", bytes(28))]
    assert opened(keys, [datagram]) == [None]
