"""SRTP with keys from SDP: what was protected elsewhere is opened here, and nothing else."""

import base64
import secrets

import numpy as np
import pylibsrtp
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from spanvault.media import sdes, srtp
from spanvault.media.chunk import CHUNK, FRAME, MARKER, Chunk
from spanvault.messages import MediaKey

SSRC = 0x1234ABCD
LIBRARY = sorted(srtp.PROFILES)
OWN = sorted(set(sdes.SUITES) - set(LIBRARY))


def key_of(suite: str, mki: int = 0) -> MediaKey:
    sizes = sdes.SUITES[suite]
    return MediaKey(suite, secrets.token_bytes(sizes.key + sizes.salt), mki)


def heard(first: int, count: int):
    """Frames of a stream that begins with a sequence number, and what was said in each."""
    frames = np.zeros(count, FRAME)
    frames["sequence"] = 65536 + first + np.arange(count)
    frames["timestamp"] = 160 * np.arange(count)
    frames["payload_type"] = 8
    frames["flags"][0] = MARKER
    return frames, [bytes([n % 256]) * 160 for n in range(count)]


def header(frame: np.void) -> bytes:
    second = int(frame["payload_type"]) | (0x80 if frame["flags"] & MARKER else 0)
    number, timestamp = int(frame["sequence"]) & 0xFFFF, int(frame["timestamp"])
    return srtp.HEADER.pack(0x80, second, number, timestamp, SSRC)


def by_library(key: MediaKey, frames, payloads) -> list[bytes]:
    policy = pylibsrtp.Policy(
        key.key, pylibsrtp.Policy.SSRC_ANY_OUTBOUND, srtp_profile=srtp.PROFILES[key.suite]
    )
    session = pylibsrtp.Session(policy)
    packets = (header(frame) + payload for frame, payload in zip(frames, payloads, strict=True))
    return [session.protect(packet)[12:] for packet in packets]


def by_us(key: MediaKey, frames, payloads, rollovers: int) -> list[bytes]:
    """Counter mode and f8 are their own inverse: seal by opening, then sign."""
    mode = srtp._own(key)
    sealed = []
    for frame, payload in zip(frames, payloads, strict=True):
        head, count = header(frame), rollovers + (int(frame["sequence"]) >> 16) - 1
        cipher = mode._decrypt(head, count, payload)
        tag = srtp.hmac.digest(
            mode._authentication, head + cipher + count.to_bytes(4, "big"), "sha1"
        )
        sealed.append(cipher + tag[: sdes.SUITES[key.suite].tag])
    return sealed


@pytest.mark.parametrize("suite", LIBRARY)
def test_what_libsrtp_sealed_is_opened_across_a_rollover(suite):
    frames, payloads = heard(65500, 100)
    key = key_of(suite)
    stream = srtp.Stream(SSRC, [key_of(suite), key])
    assert stream.open(frames, by_library(key, frames, payloads)) == payloads


@pytest.mark.parametrize("suite", LIBRARY)
def test_our_own_opens_what_libsrtp_sealed(suite):
    """The independent check of key derivation, counter mode, tag and nonce."""
    frames, payloads = heard(65500, 100)
    key = key_of(suite)
    mode = srtp._own(key)
    for frame, payload, sealed in zip(
        frames, payloads, by_library(key, frames, payloads), strict=True
    ):
        rollovers = (int(frame["sequence"]) >> 16) - 1
        assert mode.open(header(frame), rollovers, sealed) == payload


@pytest.mark.parametrize("suite", [name for name in OWN + LIBRARY if "AEAD" not in name])
@pytest.mark.parametrize("rollovers", [0, 5, srtp.ROLLOVERS - 1])
def test_a_stream_heard_from_its_middle_is_opened(suite, rollovers):
    frames, payloads = heard(65500, 100)
    key = key_of(suite)
    stream = srtp.Stream(SSRC, [key])
    assert stream.open(frames, by_us(key, frames, payloads, rollovers)) == payloads


def test_gcm_heard_from_its_middle_is_opened():
    frames, payloads = heard(7, 3)
    key = key_of("AEAD_AES_256_GCM")
    cipher: AESGCM = srtp._own(key)._cipher
    salt = srtp._own(key)._salt
    sealed = []
    for frame, payload in zip(frames, payloads, strict=True):
        index = 9 << 16 | int(frame["sequence"]) & 0xFFFF
        nonce = (salt ^ (SSRC << 48 | index)).to_bytes(12, "big")
        sealed.append(cipher.encrypt(nonce, payload, header(frame)))
    assert srtp.Stream(SSRC, [key]).open(frames, sealed) == payloads


def test_key_derivation_is_that_of_rfc_3711():
    """RFC 3711 §B.3."""
    master = bytes.fromhex("E1F97A0D3E018BE0D64FA32C06DE4139")
    salt = bytes.fromhex("0EC675AD498AFEEBB6960B3AABE6")
    assert srtp.derive(master, salt, 0, 16).hex().upper() == "C61E7A93744F39EE10734AFE3FF7A087"
    assert srtp.derive(master, salt, 2, 14).hex().upper() == "30CBBC08863D8C85D49DB34A9AE1"
    assert (
        srtp.derive(master, salt, 1, 94)[:20].hex().upper()
        == "CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4"
    )


def test_keys_of_192_and_256_bits_are_derived_as_in_rfc_6188():
    """RFC 6188 §7.2, §7.1."""
    master = bytes.fromhex("f0f04914b513f2763a1b1fa130f10e2998f6f6e43e4309d1e622a0e332b9f1b6")
    salt = bytes.fromhex("3b04803de51ee7c96423ab5b78d2")
    assert (
        srtp.derive(master, salt, 0, 32).hex()
        == "5ba1064e30ec51613cad926c5a28ef731ec7fb397f70a960653caf06554cd8c4"
    )
    assert srtp.derive(master, salt, 2, 14).hex() == "fa31791685ca444a9e07c6c64e93"


def test_f8_is_that_of_rfc_3711():
    """Its appendix B.2."""
    sealed = srtp.f8(
        bytes.fromhex("234829008467be186c3de14aae72d62c"),
        bytes.fromhex("32f2870d"),
        bytes.fromhex("006e5cba50681de55c621599d462564a"),
        b"pseudorandomness is the next best thing",
    )
    assert sealed.hex() == (
        "019ce7a26e7854014a6366aa95d4eefd1ad4172a14f9faf455b7f1d4b62bd08f562c0eef7c4802"
    )


def test_a_call_that_changes_its_key_is_opened_on_both_sides_of_the_change():
    old, new = key_of(LIBRARY[0]), key_of(LIBRARY[1])
    frames, payloads = heard(100, 100)
    sealed = by_library(old, frames[:50], payloads[:50]) + by_library(
        new, frames[50:], payloads[50:]
    )
    assert srtp.Stream(SSRC, [old, new]).open(frames, sealed) == payloads


@pytest.mark.parametrize("suite", LIBRARY)
def test_a_master_key_identifier_is_passed_over(suite):
    key = key_of(suite, mki=4)
    frames, payloads = heard(1, 20)
    tag = 0 if "AEAD" in suite else sdes.SUITES[suite].tag
    sealed = [
        one[: len(one) - tag] + b"mki!" + one[len(one) - tag :]
        for one in by_library(MediaKey(key.suite, key.key), frames, payloads)
    ]
    assert srtp.Stream(SSRC, [key]).open(frames, sealed) == payloads


@pytest.mark.parametrize("counts_on", [True, False])
@pytest.mark.parametrize("sizes", [(0, 0), (4, 4), (0, 4), (2, 8)])
def test_a_sender_that_goes_on_under_another_key_behind_a_rollover(sizes, counts_on):
    """Some keep the rollover counter where the key changes (RFC 3711 §8.1), others begin anew.

    sizes: of the identifiers of both keys; after a re-INVITE there is mostly none.
    """
    old, new = (key_of("AES_CM_128_HMAC_SHA1_80", mki=size) for size in sizes)
    frames, payloads = heard(65_500, 120)
    before, behind = slice(0, 60), slice(60, 120)
    anew = by_library(MediaKey(new.suite, new.key), frames[behind], payloads[behind])
    sealed = [
        *by_library(MediaKey(old.suite, old.key), frames[before], payloads[before]),
        *(by_us(new, frames[behind], payloads[behind], 0) if counts_on else anew),
    ]
    named = [
        one[:-10] + bytes([1 + (number >= 60)]) * (new if number >= 60 else old).mki + one[-10:]
        for number, one in enumerate(sealed)
    ]
    assert srtp.Stream(SSRC, [old, new]).open(frames, named) == payloads


def test_without_the_key_nothing_is_given():
    frames, payloads = heard(1, 5)
    sealed = by_library(key_of(LIBRARY[0]), frames, payloads)
    assert srtp.Stream(SSRC, [key_of(LIBRARY[0])]).open(frames, sealed) == [None] * 5
    assert srtp.Stream(SSRC, [key_of(LIBRARY[0])]).open(frames, [b""] * 5) == [None] * 5


def test_keys_that_open_nothing_cost_a_call_no_more_than_its_effort():
    suite, effort = "AES_CM_128_HMAC_SHA1_80", srtp.Effort(searches=30)
    frames, payloads = heard(0, 20)
    sealed = by_library(key_of(suite), frames, payloads)
    for ssrc in range(5):
        srtp.Stream(ssrc, [key_of(suite)], effort).open(frames, sealed)
    assert effort.searches == 0


def test_a_packet_that_was_changed_is_empty_and_told():
    key = key_of(LIBRARY[0])
    frames, payloads = heard(1, 5)
    sealed = by_library(key, frames, payloads)
    sealed[2] = bytes([sealed[2][0] ^ 1]) + sealed[2][1:]
    frames["length"] = [len(each) for each in sealed]
    table = np.zeros(1, CHUNK)
    table["ssrc"], table["frames"] = SSRC, 5
    opening = srtp.Opening([key])
    (chunk,) = opening.open([Chunk(table[0], frames, memoryview(b"".join(sealed)))])
    assert [bytes(each) for each in chunk.payloads()] == [*payloads[:2], b"", *payloads[3:]]
    assert sum(opening.warnings.values()) == 1


@given(st.binary(max_size=60), st.integers(0, 1 << 31))
def test_whatever_comes_is_opened_or_not(payload, number):
    frames = np.zeros(1, FRAME)
    frames["sequence"] = number
    stream = srtp.Stream(SSRC, [MediaKey("AES_CM_128_HMAC_SHA1_32", bytes(30))])
    assert stream.open(frames, [payload]) == [None]


def test_the_crypto_attribute_is_read():
    """RFC 4568 §9.1, the example of §4."""
    key = sdes.parse(
        "1 AES_CM_128_HMAC_SHA1_80 "
        "inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR|2^20|1:4 FEC_ORDER=FEC_SRTP"
    )
    secret = base64.b64decode("PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR")
    assert key == [MediaKey("AES_CM_128_HMAC_SHA1_80", secret, 4)]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("", "without tag"),
        ("1 AES_CM_128_HMAC_SHA1_80", "without tag"),
        ("1 NULL_HMAC inline:AAAA", "unknown SRTP suite"),
        ("1 AES_CM_128_HMAC_SHA1_80 inline:AAAA", "3 bytes"),
        ("1 AES_CM_128_HMAC_SHA1_80 inline:*", "not base64"),
        ("1 AES_CM_128_HMAC_SHA1_80 uri:x", "key method"),
        ("1 AES_CM_128_HMAC_SHA1_80 inline:AAAA UNAUTHENTICATED_SRTP", "not supported"),
        ("1 AES_CM_128_HMAC_SHA1_80 inline:AAAA FEC_KEY=inline:BBBB", "not supported"),
        ("1 AEAD_AES_128_GCM inline:AAAA KDR=1", "'KDR=1' is not supported"),
        ("1 AEAD_AES_128_GCM inline:AAAA WSH=64 UNENCRYPTED_SRTP", "SRTP' is not supported"),
    ],
)
def test_an_attribute_that_cannot_be_used_says_why(value, fault):
    with pytest.raises(ValueError, match=fault):
        sdes.parse(value)


@given(st.text())
def test_any_text_is_read_or_refused(value):
    try:
        sdes.parse(value)
    except ValueError:
        return
