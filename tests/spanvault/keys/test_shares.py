"""Shares: any M of N give the key, and what is typed wrong is said."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.keys import shares

KEY = bytes(range(32))
# Vectors: written down once, so that paper of today opens in twenty years.
ONE = "07QDV2 1X081G 3C9B50 YSE9AY 9ZQQ91 98ST7T KZW7KN AG78PF SQDAVA K625F1 FSXT0F 13PQDS"
TWO = "07QDV2 1X081G 4RJNAS Z24HDP JV3F45 2CH444 2T1Z16 E34YD0 M6676Z Z21YC0 HVEJP8 RQ6BQK"
THREE = "07QDV2 1X081G 7MVZFH 0B2SFE VRGRZ6 VF9E5E D658GQ DJ5KVT F90WDK 4Y0QD0 453Q7V S319AC"


@pytest.mark.parametrize("pair", [*combinations((ONE, TWO, THREE), 2)])
def test_vectors_give_the_key(pair):
    assert shares.combine(map(shares.parse, pair)) == KEY


@pytest.mark.parametrize(("threshold", "total"), [(2, 2), (3, 5), (16, 16)])
def test_any_threshold_of_them_give_the_key(threshold, total):
    made = shares.split(KEY, threshold, total)
    for some in (made[:threshold], made[-threshold:], made):
        assert shares.combine(some) == KEY
    with pytest.raises(ValueError, match=f"needs {threshold} different shares"):
        shares.combine(made[: threshold - 1] * 2)


@pytest.mark.parametrize(("threshold", "total"), [(1, 3), (4, 3), (2, 17), (0, 0)])
def test_impossible_numbers(threshold, total):
    with pytest.raises(ValueError, match="shares cannot be"):
        shares.split(KEY, threshold, total)


def test_what_is_printed_is_what_is_typed():
    for share in shares.split(KEY, 3, 4):
        text = shares.write(share)
        assert shares.parse(text) == share
        assert shares.parse(text.lower().replace("  ", "-").replace("0", "o")) == share


@given(st.integers(0, 71), st.sampled_from(sorted(set("23456789ABCDEFGH"))))
def test_one_wrong_letter_is_found(at, letter):
    letters = ONE.replace(" ", "")
    typed = letters[:at] + letter + letters[at + 1 :]
    if typed != letters:
        with pytest.raises(ValueError, match="a letter of this share is wrong"):
            shares.parse(typed)


def test_a_share_may_be_typed_line_by_line_as_it_is_printed():
    typed, goes_on = "", []
    for line in ["", *shares.write(shares.parse(ONE)).splitlines()]:
        typed += line + "\n"
        goes_on.append(shares.goes_on(typed))
    assert goes_on == [True, True, True, True, False]
    assert shares.parse(typed) == shares.parse(ONE)
    assert not shares.goes_on(ONE[:-7])  # a group is missing: that is said at once


def test_a_missing_group_and_a_strange_letter_are_named():
    with pytest.raises(ValueError, match="72 letters in 12 groups, 66 were typed"):
        shares.parse(ONE[:-7])
    with pytest.raises(ValueError, match="a share has no 'U'"):
        shares.parse("U" + ONE[1:])


def test_shares_of_two_sets_are_not_joined():
    other = shares.split(bytes(reversed(KEY)), 2, 3)[1]
    with pytest.raises(ValueError, match="of several sets"):
        shares.combine([shares.parse(ONE), other])


def test_a_forged_share_gives_no_key():
    forged = shares.parse(TWO)._replace(share=bytes(32))
    with pytest.raises(ValueError, match="do not give the key of set EEDD883D"):
        shares.combine([shares.parse(ONE), forged])


@given(st.text(max_size=90))
def test_arbitrary_text_raises_only_value_error(text):
    for typed in (text, text + ONE):
        try:
            shares.parse(typed)
        except ValueError:
            continue


# --- read by FORMAT.md alone ----------------------------------------------------------------------


def product(a: int, b: int) -> int:
    """In GF(2^128) modulo x^128 + x^7 + x^2 + x + 1."""
    result = 0
    while b:
        result ^= a if b & 1 else 0
        a = (a << 1) ^ (((1 << 128) | 0x87) if a >> 127 else 0)
        b >>= 1
    return result


def inverse(a: int) -> int:
    result, power = 1, a
    for _ in range(127):
        power = product(power, power)
        result = product(result, power)
    return result


def test_shares_are_what_the_specification_says():
    points = [shares.parse(text) for text in (ONE, THREE)]
    key = b""
    for at in (0, 16):
        values = [int.from_bytes(point.share[at : at + 16], "big") for point in points]
        x = [point.number for point in points]
        weights = [product(x[1], inverse(x[0] ^ x[1])), product(x[0], inverse(x[0] ^ x[1]))]
        half = product(values[0], weights[0]) ^ product(values[1], weights[1])
        key += half.to_bytes(16, "big")
    assert key == KEY
