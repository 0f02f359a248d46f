"""Shares given one at a time: what is wrong is said, what is enough opens, nothing stays behind."""

import pytest

from spanvault.keys import keyfile, shares
from storaged.faults import Fault
from storaged.keys.sharing import HOLD_NS, Given, Shareholders

KEY, RECOVERY = b"k" * 32, b"r" * 32
TO = [keyfile.public_of(KEY), keyfile.public_of(RECOVERY)]
ONE, TWO, THREE = (shares.write(one) for one in shares.split(KEY, 2, 3))


def give(holders: Shareholders, text: str, now_ns: int = 0, pool: str = "sensitive") -> Given:
    return holders.give(pool, text, TO, now_ns)


def test_last_share_that_is_needed_gives_the_key_in_any_order():
    holders = Shareholders()
    assert give(holders, THREE) == Given([3], 2)
    assert give(holders, ONE) == Given([1, 3], 2, KEY)
    assert give(holders, TWO) == Given([2], 2)  # nothing of those stayed


def test_same_share_twice_is_one():
    holders = Shareholders()
    assert give(holders, ONE) == give(holders, ONE.lower()) == Given([1], 2)


def test_share_that_was_typed_wrong_is_said_and_the_others_stay():
    holders = Shareholders()
    give(holders, ONE)
    with pytest.raises(Fault, match="72 letters"):
        give(holders, TWO.rstrip()[:-1])
    assert give(holders, TWO).key == KEY


def test_share_of_another_set_is_refused_and_the_sets_are_named():
    stranger = shares.write(shares.split(b"x" * 32, 2, 2)[0])
    with pytest.raises(Fault, match=rf"sealed to keys of .*{shares.set_of(TO[0]).hex().upper()}"):
        give(Shareholders(), stranger)


def test_sets_of_two_keys_and_two_pools_are_kept_apart():
    holders, paper = Shareholders(), shares.write(shares.split(RECOVERY, 2, 2)[1])
    give(holders, ONE)
    assert give(holders, paper) == Given([2], 2)
    assert give(holders, TWO, pool="core") == Given([2], 2)
    assert give(holders, TWO).key == KEY


def test_forged_share_opens_nothing_and_all_are_given_again():
    holders, share = Shareholders(), shares.parse(TWO)
    give(holders, ONE)
    with pytest.raises(Fault, match="do not give the key"):
        give(holders, shares.write(share._replace(share=bytes(32))))
    assert give(holders, TWO) == Given([2], 2)


def test_shares_made_at_another_time_of_the_same_key_do_not_mix():
    holders, other = Shareholders(), shares.write(shares.split(KEY, 3, 4)[1])
    give(holders, ONE)
    assert give(holders, other) == Given([2], 3)
    assert give(holders, THREE).key == KEY


@pytest.mark.parametrize("later_ns", [HOLD_NS, -1])
def test_after_an_hour_or_a_clock_set_back_they_are_forgotten(later_ns):
    holders = Shareholders()
    give(holders, ONE)
    assert give(holders, TWO, later_ns) == Given([2], 2)


def test_pool_that_is_open_needs_none():
    holders = Shareholders()
    give(holders, ONE)
    holders.forget("sensitive")
    assert give(holders, TWO) == Given([2], 2)
