"""After an erasure the ingest keys go that its calls may have been spooled under.

What is written down: FORMAT.md §12, 6. Who says what of keys: WIRE.md §5.
"""

import os

import pytest

from spanvault import messages as m
from spanvault import spool
from storaged.erasing.retiring import PAUSE_NS
from storaged.index import erasures, ingestkeys
from storaged.index import rows as tables
from storaged.keys.keyring import Keyring
from storaged.pools.opening import Opener
from tests.support.desk import GRACE_NS
from tests.support.retiring import DAY_NS, ONE, TWO, House
from tests.support.vault import START, call_id, make_call


class Crash(BaseException):
    """As if the process were killed."""


def full(*_: object) -> None:
    """In place of what writes to a disk."""
    raise OSError(28, "No space left on device")


def test_copy_of_a_spool_opens_no_more_once_captures_seal_to_another_key(house):
    copy, (old,) = house.spooled(1), house.keys
    house.say(old)
    assert house.opens(copy)
    assert house.erase(1).ingest_keys == 1
    assert house.facts() == {"keys": [{"pool": "base", "key": old}], "gone_at": None}
    house.look()
    assert (len(house.keys), house.keys[0], house.gone()) == (2, old, False)
    house.say(*house.keys)  # it has met the new key, and still holds something under the old one
    house.look()
    assert house.opens(copy)
    house.say(house.keys[1])
    house.look()
    assert (len(house.keys), house.gone(), house.opens(copy)) == (1, True, False)
    assert house.state == []


def test_several_erasures_of_an_hour_share_one_new_key(house):
    house.say(house.keys[0])
    house.erase(1)
    house.look()
    house.say(house.keys[1])
    house.look()
    (second,) = house.keys
    for number in (12, 13):
        house.store(number)
        house.erase(number)
    house.look()
    assert house.keys == [second]
    assert house.state[0].startswith("is replaced at ")
    house.now_ns += PAUSE_NS
    house.look()
    house.say(house.keys[1])
    house.look()
    assert house.gone(call_id(12))
    assert house.gone(call_id(13))
    assert second not in house.keys


def test_call_that_is_older_than_the_newest_key_does_not_change_it(alone):
    """Else the daily erasure of calls whose time is up would change keys each day."""
    alone.erase(1)
    alone.look()
    alone.look()
    (new,) = alone.keys
    assert alone.erase(2).ingest_keys == 0
    assert alone.gone(TWO)
    alone.counter.parts.commit(calls=[make_call(3, revision=1, end_reason="late")])
    assert alone.erase(3).ingest_keys == 1  # something of it came since
    assert alone.facts(call_id(3))["keys"] == [{"pool": "base", "key": new}]


@pytest.mark.parametrize("late", [DAY_NS // 2, DAY_NS * 2])
def test_call_of_the_day_before_the_newest_key_may_lie_under_it(alone, late):
    alone.erase(1)
    alone.now_ns = START + late
    alone.look()
    assert alone.erase(2).ingest_keys == (1 if late < DAY_NS else 0)


def test_call_that_goes_on_may_yet_be_spooled(alone):
    alone.erase(1)
    alone.look()
    alone.look()
    alone.counter.parts.commit([(call_id(9), 1, 0)], [make_call(9, final=False)])
    with alone.counter.parts.index.reading() as view:
        born = ingestkeys.birth(view, "base", alone.keys[0])
        assert born is not None
        state = view.state(call_id(9))
        late = born._replace(at_ns=born.at_ns + DAY_NS, position=1 << 40)
        assert not ingestkeys.came_before(view, make_call(9), state, late)
        assert ingestkeys.came_before(view, make_call(2), view.state(TWO), born)
        assert not ingestkeys.came_before(view, None, view.state(TWO), born)
        assert not ingestkeys.came_before(view, make_call(2), view.state(TWO), None)


def test_rows_and_spools_go_in_any_order_and_replicas_follow_both(alone):
    index = alone.counter.parts.index
    index.write(lambda writing: writing.put(b"target", b"house", b""))
    for number, first, then in ((1, alone.counter.convert, alone.look),
                                (2, alone.look, alone.counter.convert)):  # fmt: skip
        alone.now_ns += 2 * DAY_NS
        alone.counter.parts.commit(calls=[make_call(number, revision=1, end_reason="late")])
        alone.erase(number)
        for each in (first, then):
            confirm(alone, number)
            each()
            each()
            found = next(iter(alone.counter.ask(m.Erasures(call_id(number))).erasures))
            assert found.pending == ["house"]  # told of again
        assert found.rows_gone_ns
        assert found.spools_gone_ns
        assert found.epochs == {"base": alone.counter.parts.keyring.epoch}


def confirm(house: House, number: int) -> None:
    erasure = next(iter(house.counter.ask(m.Erasures(call_id(number))).erasures)).id
    receipt = m.ErasureReceipt(erasure, "house", 1, "overwritten")
    house.counter.parts.index.write(lambda writing: erasures.confirm(writing, receipt))


@pytest.mark.parametrize(
    ("place", "step"),
    [(ingestkeys, "put_birth"), (Keyring, "retire_ingest_keys"), (erasures, "tell_again")],
)
def test_crash_at_a_step_is_made_good_by_the_next_start(alone, monkeypatch, place, step):
    copy = alone.spooled(1)
    alone.erase(1)

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(place, step, crash)
        with pytest.raises(Crash):
            alone.look()
    alone.again()
    for _ in range(2):
        alone.look()
        alone.now_ns += PAUSE_NS
    assert alone.gone()
    assert not alone.opens(copy)
    assert len(alone.keys) == 1


def test_disk_that_fails_is_told_and_tried_again(alone, monkeypatch):
    alone.erase(1)
    with monkeypatch.context() as patch:
        patch.setattr(Keyring, "add_ingest_key", full)
        alone.look()
    assert "CANNOT GO" in alone.counter.retirer.words()
    alone.now_ns += 61 * 10**9
    alone.look()
    alone.look()
    assert (alone.gone(), alone.counter.retirer.words()) == (True, "")


@pytest.mark.parametrize("place", [(Keyring, "vouch"), (Opener, "keep_intake_keys")])
def test_no_key_goes_while_a_pool_still_seals_to_it(alone, monkeypatch, place):
    """The disk became full between a new key and its first use."""
    parts, opener = alone.counter.parts, alone.counter.retirer._opener
    core = parts.open_pool("core")
    parts.vaults.add(core)
    opener.keep_intake_keys()
    core._public_key = opener._told(core.tier)
    alone.erase(1)
    (erasure,) = alone.counter.ask(m.Erasures(ONE)).erasures
    row = bytes((core.tier,)) + bytes.fromhex(core.keyring.ingest_key_id) + erasure.id
    parts.index.write(lambda writing: writing.put(b"spooled", row, b""))
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(*place, full)
            alone.look()
        assert "CANNOT GO" in alone.counter.retirer.words()
        assert core.keyring.has_ingest_key(core.intake_key)
        alone.now_ns += 61 * 10**9
    alone.look()
    assert core.keyring.ingest_public == core.intake_key == parts.keyring.intake_key(core.tier)
    alone.look()
    assert (len(core.keyring.ingest_key_ids), alone.counter.retirer.words()) == (1, "")


def test_key_that_an_intake_needs_stays_whoever_says_what(alone):
    intake, ring = alone.counter.parts.vaults.base.intake, alone.counter.parts.keyring
    alone.erase(1)
    intake.put([make_call(8)], [], ring.ingest_public)
    alone.look()
    alone.now_ns += 2 * GRACE_NS
    alone.look()
    assert (alone.state, len(alone.keys)) == (["batches wait in the intake of base"], 2)
    path, *_ = intake.open_first(ring.ingest_key)
    intake.remove(path)
    alone.look()
    assert alone.gone()


def test_key_that_a_move_has_sealed_to_stays_until_that_is_done(alone):
    intake, ring = alone.counter.parts.vaults.base.intake, alone.counter.parts.keyring
    alone.erase(1)
    intake.put_moving(bytes(16), [make_call(8)], None, ring.ingest_public)
    alone.look()
    alone.look()
    assert len(alone.keys) == 2
    intake.drop_moving()
    alone.look()
    assert alone.gone()


def test_refused_batches_can_still_be_looked_at_afterwards(alone):
    refused, foreign = alone.counter.store.refused, os.urandom(500)
    (refused / "7-00.sealed").write_bytes(alone.spooled(3))
    (refused / "8-00.sealed").write_bytes(foreign)
    before = alone.spooled(3)
    alone.erase(1)
    alone.look()
    alone.look()
    assert alone.gone()
    assert not alone.opens(before)
    assert alone.opens((refused / "7-00.sealed").read_bytes())
    assert (refused / "8-00.sealed").read_bytes() == foreign


def test_wrong_clock_ends_no_grace(house):
    house.say(house.keys[0])
    house.erase(1)
    house.look()
    began_ns = house.now_ns
    house.counter.retirer._monotonic_ns = lambda: began_ns
    house.now_ns += 3650 * DAY_NS
    house.look()
    assert len(house.keys) == 2
    house.now_ns = began_ns
    house.look()
    house.now_ns -= 3650 * DAY_NS  # set back: the grace begins anew
    house.look()
    assert len(house.keys) == 2
    with house.counter.parts.index.reading() as view:
        assert ingestkeys.replaced_ns(view, "base", house.keys[0]) == house.now_ns


def test_grace_begins_anew_where_a_host_began_with_the_clock_of_long_ago(house):
    """Without a battery it is 1970 until the network tells; what that clock noted is no age."""
    house.say(house.keys[0])
    house.erase(1)
    house.look()
    began_ns, since_ns = house.now_ns, 0
    house.counter.retirer._monotonic_ns = lambda: began_ns + since_ns
    house.now_ns = DAY_NS
    house.look()
    for since_ns in (0, DAY_NS, DAY_NS, 2 * DAY_NS):
        house.now_ns = began_ns + since_ns
        house.look()
        assert len(house.keys) == 2
    since_ns += GRACE_NS
    house.now_ns += GRACE_NS
    house.look()
    assert len(house.keys) == 1


def test_store_of_before_told_by_pool_when_its_key_was_replaced(house):
    ring, since_ns = house.counter.parts.keyring, house.now_ns - GRACE_NS + DAY_NS
    ring.add_ingest_key()
    index = house.counter.parts.index
    index.write(lambda writing: writing.set_number(b"rotated/base", since_ns))
    house.look()
    assert len(house.keys) == 2
    with index.reading() as view:
        assert view.get(b"meta", b"rotated/base") is None
    house.now_ns += DAY_NS
    house.look()
    assert len(house.keys) == 1


def test_keys_that_pile_up_are_made_more_rarely(house):
    """One that was never heard of holds up all; the root must not grow with each hour."""
    house.greet()
    for _ in range(16):
        house.counter.retirer.rotate(house.counter.parts.vaults.base)
    house.store(12)
    house.erase(12)
    house.now_ns += PAUSE_NS
    house.look()
    assert len(house.keys) == 17
    house.now_ns += GRACE_NS // 16
    house.look()
    assert len(house.keys) == 18
    house.say(house.keys[-1])
    house.look()
    assert len(house.keys) == 1


def test_copies_of_a_restored_store_wait_for_the_end_of_the_import(alone):
    alone.erase(1)
    index = alone.counter.parts.index
    index.write(lambda writing: writing.set_number(tables.IMPORTING, tables.KEYS_WELCOME))
    alone.look()
    assert len(alone.keys) == 1
    index.write(lambda writing: writing.set_number(tables.IMPORTING, 0))
    alone.look()
    alone.look()
    assert alone.gone()


def test_row_that_cannot_be_read_has_nobody_told_that_its_key_is_gone(house):
    house.say(house.keys[0])
    house.greet()
    house.erase(1)
    house.look()
    house.look()
    house.store(12)
    (one, two), index = house.keys, house.counter.parts.index
    house.erase(12)  # it waits for both
    (erasure,) = house.counter.ask(m.Erasures(call_id(12))).erasures
    assert {key.key_id for key in erasure.ingest_keys} == {one, two}
    row = bytes(1) + bytes.fromhex(one) + erasure.id
    index.write(lambda writing: writing.put(b"spooled", row, b"flipped"))
    house.now_ns += PAUSE_NS
    house.look()
    house.say(one, house.keys[-1])
    house.look()
    assert (two in house.keys, one in house.keys) == (False, True)
    assert not house.gone(call_id(12))


def test_key_that_base_still_names_after_a_crash_in_a_rotation_is_not_destroyed(alone):
    parts = alone.counter.parts
    core = parts.open_pool("core")
    parts.vaults.add(core)
    core.keyring.add_ingest_key()  # and there it was killed
    named = core.intake_key
    core = parts.open_pool("core")  # as at the next start
    parts.vaults.add(core)
    assert core.intake_key == named != core.keyring.ingest_public
    for _ in range(2):
        assert not any(key.pool == "core" and key.key_id == spool.key_id(core.intake_key)
                       for key in alone.counter.retirer._can_go())  # fmt: skip
        alone.look()
        assert core.keyring.has_ingest_key(core.intake_key)
        assert core.intake_key == core.keyring.ingest_public  # the rotation is completed
        alone.now_ns += 40 * 86400 * 10**9
