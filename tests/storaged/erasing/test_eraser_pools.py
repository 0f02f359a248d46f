"""Erasure over several pools: each with its own root, one locked, media shared between them."""

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from spanvault import messages as m
from spanvault import spool
from spanvault.daemon.rules import POOLS, TIERS
from spanvault.keys import keyfile
from spanvault.media.chunk import NO_MEDIA
from storaged.erasing.eraser import Eraser
from storaged.faults import Fault
from storaged.format.walk import finish
from storaged.index import erasures
from storaged.index.binding import Binding
from storaged.keys.intakekeys import IntakeKeys
from storaged.pools import vaults
from storaged.pools.layout import Store
from storaged.pools.pool import Pool
from storaged.pools.vaults import Vault
from storaged.recordings.gathering import Group
from storaged.recordings.sorting import Sorter
from tests.support.desk import Counter
from tests.support.vault import Parts, call_id, make_call, make_media

BASE, CORE, SENSITIVE, OTHER = (call_id(number) for number in range(4))
SECRET = make_call(2, callee="sensitive")


class ThreePools:
    """base, core and sensitive, each on keys of its own; a call's callee names its pool."""

    def __init__(self, folder: Path, keys: dict[str, bytes] | None = None) -> None:
        self.parts = Parts(folder)
        self.keys = keys or {name: os.urandom(32) for name in POOLS[1:]}
        self.pools: dict[str, Vault] = {"base": self.parts.vaults.base}
        for name, key in self.keys.items():
            store = Store(folder)
            pool = Pool(name, store.pool(name), TIERS[name], 8)
            vaults.make(store, self.parts.keyring, pool, [keyfile.public_of(key)])
            self.parts.opener.keep_intake_keys()
            self.pools[name] = vaults.open_vault(
                store, self.parts.keyring, pool, [key], partial(self._told, TIERS[name])
            )
            self.parts.vaults.add(self.pools[name])
        self.sorter = Sorter(
            self.parts.index, self.parts.vaults, lambda: 1,
            lambda call: call.callee if call.callee in POOLS else "base", "base",
            Binding(self.parts.index, 1, lambda: 1),
        )  # fmt: skip
        self.counter = Counter(self.parts, self.sorter.forget)
        self.ask = self.counter.ask

    def _told(self, tier: int) -> bytes:
        """As storaged tells: base may have been locked, and opened anew, meanwhile."""
        return IntakeKeys(self.parts.folder / "intake" / "keys", b"secret").of(tier)

    def commit(self, *calls: m.Call, media: bool = True) -> None:
        group = Group()
        heard = make_media([(call.id, 1, 0) for call in calls]) if media else NO_MEDIA
        group.add(b"", m.Batch("test", 1, list(calls)), heard)
        self.sorter.commit(group)

    def unlock(self, name: str) -> None:
        assert self.ask(m.Unlock(name, self.keys[name])) == m.Done()
        while self.sorter.drain():
            pass

    def erase(self, *ids: bytes) -> m.EraseReply | m.Failure:
        return self.ask(m.Erase(list(ids), "asked for"))

    def key_of(self, call: bytes) -> tuple[str, int]:
        """A recording's pool and key id."""
        with self.parts.index.reading() as view:
            state = view.state(call)
        assert state is not None
        return POOLS[state.tier], state.key_id

    def opens(self, key: tuple[str, int]) -> bool:
        """Whether a DEK is there still."""
        try:
            return bool(self.pools[key[0]].dek(key[1]))
        except Fault as fault:
            return "destroyed" not in fault.error

    def close(self) -> None:
        self.counter.access.close()
        for vault in list(self.pools.values())[1:]:
            vault.pool.close()
        self.parts.close()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[ThreePools]:
    made = ThreePools(tmp_path / "store")
    yield made
    made.close()


def in_every_pool(three: ThreePools) -> None:
    """A call in each pool, and in each another that stays."""
    for at, name in enumerate(POOLS):
        three.commit(make_call(at, callee=name), make_call(10 + at, callee=name))


def objects(three: ThreePools) -> dict[str, int]:
    return {name: len([*vault.pool.objects.rglob("*.svr")]) for name, vault in three.pools.items()}


def test_batch_over_three_pools_gives_each_a_new_root_and_leaves_the_neighbours(three):
    in_every_pool(three)
    kept = [three.counter.fetch(call_id(10 + at)) for at in range(3)]
    keys = [three.key_of(one) for one in (BASE, CORE, SENSITIVE)]
    neighbours = [three.key_of(call_id(10 + at)) for at in range(3)]
    assert three.erase(BASE, CORE, SENSITIVE).erased == 3
    assert objects(three) == {"base": 1, "core": 1, "sensitive": 1}
    assert [three.counter.fetch(call_id(10 + at)) for at in range(3)] == kept
    assert not any(map(three.opens, keys))
    assert all(map(three.opens, neighbours))
    for one in (BASE, CORE, SENSITIVE):
        assert three.ask(m.Get(one)).code == "erased"
    (erasure,) = three.ask(m.Erasures()).erasures
    assert erasure.epochs == {"base": three.parts.keyring.epoch, "core": 2, "sensitive": 2}
    assert {(page.pool, page.before, page.after) for page in erasure.pages} == {
        (name, 0, 1) for name in POOLS
    }
    names = [change.name for change in three.ask(m.Feed(0)).changes if change.kind == "keys"]
    for name in ("page-000000.1", "core/page-000000.1", "sensitive/page-000000.1"):
        assert name in names
        assert name.replace(".1", ".0") not in names


def test_search_rows_go_pool_by_pool_and_a_lock_between_keeps_no_other(three):
    in_every_pool(three)
    assert three.erase(BASE, CORE, SENSITIVE).days == 3
    converter = three.counter.eraser.converter
    base, core = three.pools["base"], three.pools["core"]
    ring, base._ring = base._ring, None
    three.counter.convert()
    with three.parts.index.reading() as view:
        assert converter.fields(view)["state"] == "waits for base to be unlocked"
    base._ring = ring
    core.lock()
    three.counter.convert()
    with three.parts.index.reading() as view:
        told = converter.fields(view)
    assert (told["days_due"], told["state"]) == (1, "waits for core to be unlocked")
    three.unlock("core")
    three.pools["sensitive"].lock()  # its key is gone already
    three.counter.convert()
    (erasure,) = three.ask(m.Erasures()).erasures
    assert erasure.rows_gone_ns
    assert {page.pool: page.after for page in erasure.day_pages} == dict.fromkeys(POOLS, 2)


def test_locked_pool_refuses_the_whole_batch(three):
    in_every_pool(three)
    three.pools["sensitive"].lock()
    refused = three.erase(BASE, CORE, SENSITIVE)
    assert (refused.code, "pool sensitive is locked" in refused.error) == ("locked", True)
    assert "spanvault keys unlock sensitive" in refused.hint
    assert objects(three) == {"base": 2, "core": 2, "sensitive": 2}
    assert three.ask(m.Get(BASE)).pool == "base"
    assert three.erase(BASE, CORE).erased == 2  # what is open goes without it
    three.unlock("sensitive")
    assert three.erase(SENSITIVE).erased == 1


def test_call_that_waits_in_an_intake_is_not_taken_for_erased(three):
    three.pools["sensitive"].lock()
    three.commit(SECRET)
    refused = three.erase(SENSITIVE)
    assert (refused.code, "pool sensitive is locked" in refused.error) == ("locked", True)
    assert three.ask(m.Unlock("sensitive", three.keys["sensitive"])) == m.Done()
    refused = three.erase(SENSITIVE)  # open, and not taken yet
    assert (refused.code, "wait for pool sensitive" in refused.error) == ("unavailable", True)
    three.unlock("sensitive")
    assert three.erase(SENSITIVE).erased == 1
    assert objects(three)["sensitive"] == 0


def test_recording_of_which_more_waits_is_not_taken_for_erased(three):
    three.commit(make_call(2, callee="sensitive", final=False))
    three.pools["sensitive"].lock()
    three.commit(make_call(2, callee="sensitive", revision=2))
    assert three.ask(m.Unlock("sensitive", three.keys["sensitive"])) == m.Done()
    assert three.ask(m.Erase([SENSITIVE], "asked for", unfinished=True)).code == "unavailable"
    three.unlock("sensitive")
    assert three.erase(SENSITIVE).erased == 1


def test_what_comes_later_of_an_erased_call_enters_no_intake(three):
    three.commit(SECRET)
    three.erase(SENSITIVE)
    key = three.pools["sensitive"].keyring.ingest_private
    three.pools["sensitive"].lock()
    three.commit(make_call(2, callee="sensitive", revision=9), make_call(3, callee="sensitive"))
    waiting = (three.parts.folder / "intake/sensitive").iterdir()
    held = b"".join(spool.open_plain(path.read_bytes(), key) for path in waiting)
    assert (OTHER in held, SENSITIVE in held) == (True, False)
    with three.parts.index.reading() as view:
        assert view.placed(SENSITIVE) is None
        assert view.placed(OTHER) == 2
    three.unlock("sensitive")
    assert three.ask(m.Get(SENSITIVE)).code == "erased"
    assert objects(three)["sensitive"] == 1


def sharing(number: int, held_by: bytes, **changes) -> m.Call:
    stream = m.Stream(7, "callee", "audio", 1, "", "", {}, stored_in=held_by, stored_as=1)
    return make_call(number, streams=[stream], **changes)


@pytest.mark.parametrize("lock", [False, True])
def test_calls_that_share_media_over_pools_go_together(three, lock: bool):
    """lock: the other leg's pool, which is no reason to erase this one alone."""
    three.commit(make_call(0))
    three.commit(sharing(1, BASE, callee="core"), media=False)
    if lock:
        three.pools["core"].lock()
    assert CORE.hex() in three.erase(BASE).error
    if lock:
        assert three.erase(BASE, CORE).code == three.erase(CORE).code == "locked"
        assert three.counter.fetch(BASE)[0]
        three.unlock("core")
    assert BASE.hex() in three.erase(CORE).error
    assert three.erase(BASE, CORE).erased == 2
    assert objects(three)["base"] == 0


def test_media_shared_with_a_call_that_waits_in_an_intake_is_known_of(three):
    three.commit(make_call(0))
    three.pools["core"].lock()
    three.commit(sharing(1, BASE, callee="core"), media=False)
    assert CORE.hex() in three.erase(BASE).error
    assert three.erase(BASE, CORE).code == "locked"
    three.unlock("core")
    assert three.erase(BASE, CORE).erased == 2


def test_call_whose_media_waits_with_another_is_not_erased_alone(three):
    three.pools["core"].lock()
    three.commit(make_call(1, callee="core"))
    three.commit(sharing(0, CORE))
    assert CORE.hex() in three.erase(BASE).error
    three.unlock("core")
    assert three.erase(BASE, CORE).erased == 2


def test_call_goes_with_what_was_recorded_of_it_before_its_signalling(three):
    """The orphan has no number, so it is in base; the call that it was joined to is not."""
    orphan = make_call(
        0, call_ids=[], caller="", callee="", flags=["no_signalling"], end_reason="joined",
        related=[m.Related("joined", SECRET.call_ids[0])],
    )  # fmt: skip
    three.commit(orphan)
    joined = sharing(2, BASE, callee="sensitive", related=[m.Related("joined", BASE.hex())])
    three.commit(joined)
    refused = three.erase(SENSITIVE)
    assert (BASE.hex() in refused.error, "name both" in refused.hint) == (True, True)
    assert SENSITIVE.hex() in three.erase(BASE).error
    assert objects(three) == {"base": 1, "core": 0, "sensitive": 1}
    keys = [three.key_of(SENSITIVE), three.key_of(BASE)]
    assert three.erase(SENSITIVE, BASE).erased == 2
    assert objects(three) == {"base": 0, "core": 0, "sensitive": 0}
    assert not any(map(three.opens, keys))


def test_erasure_that_a_crash_left_in_a_pool_that_starts_locked_ends_when_it_is_unlocked(
    three, monkeypatch
):
    in_every_pool(three)
    gone, kept = three.key_of(SENSITIVE), three.key_of(call_id(12))

    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(three.pools["sensitive"].keyring, "drop", crash)
        with pytest.raises(Crash):
            three.erase(BASE, SENSITIVE)
    three.pools["sensitive"].lock()
    Eraser(
        three.counter.store, three.parts.index, three.parts.vaults, three.sorter.forget,
        time.time_ns,
    ).finish()  # fmt: skip
    assert three.erase(CORE).erased == 1
    with three.parts.index.reading() as view:
        assert len(erasures.unfinished(view)) == 1
    three.unlock("sensitive")
    with three.parts.index.reading() as view:
        assert erasures.unfinished(view) == []
    assert (three.opens(gone), three.opens(kept)) == (False, True)


# --- ingest keys ---------------------------------------------------------------------------------


def look(three: ThreePools) -> list[str]:
    """What storaged does by itself; what still waits then."""
    finish(three.counter.retirer.retiring())
    return three.counter.retirer.fields()


def ingest_keys(three: ThreePools) -> dict[str, list[str]]:
    return {name: vault.keyring.ingest_key_ids for name, vault in three.pools.items()}


def named(three: ThreePools, call: bytes) -> set[str]:
    """The pools whose ingest keys an erasure waits for."""
    (erasure,) = three.ask(m.Erasures(call)).erasures
    return {key.pool for key in erasure.ingest_keys}


def test_erasure_names_the_ingest_keys_of_base_and_of_the_pool_and_they_go(three):
    in_every_pool(three)
    before = ingest_keys(three)
    three.erase(SENSITIVE)
    assert named(three, SENSITIVE) == {"base", "sensitive"}
    assert look(three) == []
    after = ingest_keys(three)
    assert after["core"] == before["core"]
    for name in ("base", "sensitive"):
        assert (len(after[name]), after[name] == before[name]) == (1, False)
    (erasure,) = three.ask(m.Erasures(SENSITIVE)).erasures
    assert erasure.epochs == {
        name: three.pools[name].keyring.epoch for name in ("base", "sensitive")
    }
    assert erasure.spools_gone_ns


def test_call_that_was_moved_may_have_waited_for_every_pool_below(three):
    three.commit(make_call(1))
    assert three.ask(m.Move([CORE], "core", "why")).moved == 1
    while three.sorter.drain():
        pass
    assert named(three, CORE) == set()  # it lives on
    assert look(three) == []
    assert three.ask(m.Move([CORE], "sensitive", "why")).moved == 1
    while three.sorter.drain():
        pass
    assert three.ask(m.Lock("core")) == m.Done()  # nobody needs it for that
    three.erase(CORE)
    assert named(three, CORE) == set(POOLS)
    (waits,) = look(three)
    assert waits.endswith("waits for core to be unlocked")


def test_ingest_keys_of_a_locked_pool_wait_until_it_is_open(three):
    in_every_pool(three)
    (old,) = ingest_keys(three)["sensitive"]
    three.erase(SENSITIVE)
    assert three.ask(m.Lock("sensitive")) == m.Done()
    assert look(three) == [f"sensitive {old} waits for sensitive to be unlocked"]
    assert three.ask(m.Lock("base")) == m.Done()
    assert look(three) == [f"sensitive {old} waits for base to be unlocked"]
    key = keyfile.load(three.parts.folder / "unlock.key")
    assert three.ask(m.Unlock("base", key)) == m.Done()
    three.unlock("sensitive")
    assert look(three) == []
    assert old not in three.pools["sensitive"].keyring.ingest_key_ids


def test_pool_that_is_locked_again_once_its_key_is_gone_holds_up_nothing(three):
    in_every_pool(three)
    three.erase(CORE, SENSITIVE)
    assert three.ask(m.Lock("sensitive")) == m.Done()
    assert len(look(three)) == 1
    assert three.ask(m.Lock("core")) == m.Done()
    three.unlock("sensitive")
    assert (look(three), three.counter.retirer.fault) == ([], None)
    (erasure,) = three.ask(m.Erasures(CORE)).erasures
    assert erasure.spools_gone_ns
