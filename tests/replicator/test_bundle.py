"""Bundles: bytes as LAYOUT.md has them, and one fault a test."""

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator import bundle
from spanvault.messages import Change

RECORD = Change(7, "record", id=b"i" * 16, data=b"sealed record")
OBJECT = Change(8, "object", id=b"i" * 16, pool="base", size=99, sha256="ab" * 32)
KEYS = Change(9, "keys", name="page-000001", data=b"sealed page")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def resealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def test_a_record_lies_in_it_whole_the_others_by_name_size_and_digest() -> None:
    record, recording, keys = bundle.parse(bundle.serialize([RECORD, OBJECT, KEYS]))
    assert (record.id, record.data) == (RECORD.id, RECORD.data)
    assert recording == OBJECT
    assert (keys.name, keys.size, keys.sha256) == (KEYS.name, 11, digest(KEYS.data))
    assert keys.data == b""


def test_it_begins_with_magic_version_and_count_and_ends_with_its_digest() -> None:
    data = bundle.serialize([RECORD, OBJECT])
    assert data[:16] == b"SVBUNDLE\x01\x00\x00\x00\x02\x00\x00\x00"
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "bundle cut: 0 bytes"),
        (bundle.serialize([RECORD])[:-1], "its SHA-256 is another"),
        (b"\x00" * 100, "not a bundle"),
        (b"SVBUNDLE\x02\x00" + bytes(40), "version 2, this program reads 1"),
        (
            resealed(b"SVBUNDLE\x01\x00\x00\x00\x02\x00\x00\x00"),
            "names 2 changes, 0 are there",
        ),
        (resealed(b"SVBUNDLE\x01\x00\x00\x00\x01\x00\x00\x00\x01"), "entry 0 cut"),
        (
            resealed(b"SVBUNDLE\x01\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff"),
            "4294967295 bytes, 0 left",
        ),
        (
            resealed(b"SVBUNDLE\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\xc0"),
            "entry 0: Expected `object`",
        ),
    ],
)
def test_a_damaged_bundle_is_named(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        bundle.parse(data)


def test_any_flipped_bit_is_noticed() -> None:
    data = bundle.serialize([RECORD, KEYS])
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ValueError, match=r"bundle|SHA-256"):
            bundle.parse(flipped)


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_raise_only_value_error(data: bytes, sealed: bool) -> None:
    head = b"SVBUNDLE\x01\x00\x00\x00\x01\x00\x00\x00"
    with suppress(ValueError):
        bundle.parse(resealed(head + data) if sealed else data)
