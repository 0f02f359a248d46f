"""AAC payloads: lengths that fit give units, all others a ValueError."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.audio.aac import MODES, configuration, generic, latm


def test_units_behind_their_headers():
    payload = bytes([0, 32, 3 << 3 >> 8, 3 << 3, 0, 2 << 3]) + b"abcde"
    assert list(generic(payload, "aac-hbr")) == [b"abc", b"de"]


def test_units_behind_their_lengths():
    long = bytes(300)
    assert list(latm(b"\x03abc" + b"\xff\x2d" + long)) == [b"abc", long]


@pytest.mark.parametrize("payload", [b"", b"\0\x10\0\x18ab", b"\0\x10\0\x08ab", b"\0\x10\0\x09a"])
def test_headers_that_do_not_fit(payload: bytes):
    with pytest.raises(ValueError, match="AAC"):
        list(generic(payload, "aac-hbr"))


@pytest.mark.parametrize("payload", [b"\x02a", b"\xff", b"\xff\xff"])
def test_lengths_that_do_not_fit(payload: bytes):
    with pytest.raises(ValueError, match="longer than its packet"):
        list(latm(payload))


def test_a_configuration_within_another():
    # By hand: 15 bits of the multiplex, then AAC-LC (00010) at 7350 Hz (1100) in mono (0001).
    assert configuration("40002C103FC0", mux=True)[:2] == b"\x16\x08"
    with pytest.raises(ValueError, match="several"):
        configuration("400024203fc0"[::-1], mux=True)


@given(st.binary(max_size=80))
def test_any_bytes_raise_only_value_error(payload: bytes):
    for split in (latm, *(lambda data, mode=mode: generic(data, mode) for mode in MODES)):
        try:
            assert len(b"".join(split(payload))) <= len(payload)
        except ValueError:
            continue


@given(st.text(max_size=20), st.booleans())
def test_any_configuration_raises_only_value_error(text: str, mux: bool):
    try:
        configuration(text, mux=mux)
    except ValueError:
        return
