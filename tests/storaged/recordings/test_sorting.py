"""Calls to their pools; a pool that is locked or full records all the same."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault import messages as m
from spanvault.keys import keyfile
from spanvault.media.chunk import NO_MEDIA
from storaged.faults import Fault
from storaged.index.binding import Binding
from storaged.keys import keyring
from storaged.pools import vaults
from storaged.pools.layout import Store
from storaged.pools.pool import Pool
from storaged.pools.vaults import Vault
from storaged.recordings.gathering import Group
from storaged.recordings.reading import Reader
from storaged.recordings.sorting import Sorter
from tests.support.vault import Parts, call_id, chunk_keys, make_call, make_media

PLAIN, SECRET = call_id(1), call_id(2)
SECRET_CALL = make_call(2, final=False, callee="secret")
BOTH = [(PLAIN, 1, 0), (SECRET, 1, 0)]


class TwoPools:
    """A store with base and sensitive; calls to `secret` are sensitive's."""

    def __init__(self, folder: Path) -> None:
        self.parts, self.key = Parts(folder), os.urandom(32)
        self.start()

    def start(self) -> None:
        """As storaged starts: sensitive is locked, its key is nowhere on the machine."""
        store = Store(self.parts.folder)
        pool = Pool("sensitive", store.pool("sensitive"), 2, 8)
        vaults.make(store, self.parts.keyring, pool, [keyfile.public_of(self.key)])
        self.secret = vaults.open_vault(store, self.parts.keyring, pool, [])
        self.parts.vaults.add(self.secret)
        self.sorter = Sorter(
            self.parts.index, self.parts.vaults, lambda: 1,
            lambda call: "sensitive" if call.callee == "secret" else "base", "base",
            Binding(self.parts.index, 1, lambda: 1),
        )  # fmt: skip
        self.reader = Reader(self.parts.index, self.parts.vaults)

    def restart(self) -> None:
        self.secret.pool.close()
        self.parts.again()
        self.start()

    def commit(self, chunks: list[tuple[bytes, int, int]], calls: list[m.Call]) -> None:
        group = Group()
        group.add(b"", m.Batch("test", 1, calls), make_media(chunks) if chunks else NO_MEDIA)
        self.sorter.commit(group)

    def stored(self, recording: bytes) -> list[tuple[int, int]]:
        """(stream, second) of what is heard of a recording."""
        page = self.reader.fetch(make_call(0, id=recording), 0)
        assert not page.damaged
        keys = [key[:3] for key in chunk_keys(page.media)]
        assert not keys or chunk_keys(page.media) == chunk_keys(make_media(keys))
        return [key[1:] for key in keys]

    def tier(self, recording: bytes) -> int | None:
        with self.parts.index.reading() as view:
            state = view.state(recording)
        return None if state is None else state.tier

    def files(self, vault: Vault) -> list[str]:
        return sorted(path.name for path in vault.pool.objects.rglob("*.svr"))

    def drain(self) -> None:
        while self.sorter.drain():
            pass


@pytest.fixture
def two(tmp_path: Path) -> Iterator[TwoPools]:
    made = TwoPools(tmp_path / "store")
    yield made
    made.secret.pool.close()
    made.parts.close()


def test_calls_of_one_group_go_to_their_pools(two):
    two.secret.unlock(two.key)
    two.commit(BOTH, [make_call(1, final=False), SECRET_CALL])
    assert two.files(two.parts.vaults.base) == [f"{PLAIN.hex()}.svr"]
    assert two.files(two.secret) == [f"{SECRET.hex()}.svr"]
    assert (two.tier(PLAIN), two.tier(SECRET)) == (0, 2)
    assert two.stored(PLAIN) == two.stored(SECRET) == [(1, 0)]


def test_pool_is_decided_once_also_over_a_restart(two):
    two.secret.unlock(two.key)
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    two.commit([(SECRET, 1, 1)], [make_call(2, final=False, callee="other", revision=1)])
    two.restart()
    two.secret.unlock(two.key)
    two.commit([(SECRET, 1, 2)], [])
    assert two.stored(SECRET) == [(1, 0), (1, 1), (1, 2)]
    assert two.files(two.parts.vaults.base) == []


def test_locked_pool_records_over_a_restart_and_becomes_normal(two):
    two.commit(BOTH, [make_call(1, final=False), SECRET_CALL])
    assert two.stored(PLAIN) == [(1, 0)]
    two.restart()
    two.commit([(SECRET, 1, 1)], [])  # nothing in this group says whose it is
    two.commit([], [make_call(2, callee="secret", revision=1)])
    assert (two.tier(SECRET), two.files(two.secret)) == (None, [])
    assert two.files(two.parts.vaults.base) == [f"{PLAIN.hex()}.svr"]
    assert len(two.secret.intake) == 4
    two.drain()  # it is locked: nothing happens
    two.restart()
    two.secret.unlock(two.key)
    two.drain()
    assert len(two.secret.intake) == 0
    assert two.stored(SECRET) == [(1, 0), (1, 1)]
    assert two.reader.verify(SECRET).sealed
    assert two.reader.verify(SECRET).faults == []
    with two.parts.index.reading() as view:
        assert view.count(b"placed") == 0


def test_recording_that_grows_when_its_pool_is_locked_goes_on(two):
    two.secret.unlock(two.key)
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    two.secret.lock()
    with pytest.raises(Fault, match="pool sensitive is locked"):
        two.stored(SECRET)
    two.commit([(SECRET, 1, 1)], [])
    assert len(two.secret.intake) == 1
    two.secret.unlock(two.key)
    two.commit([(SECRET, 1, 2)], [make_call(2, callee="secret", revision=1)])
    assert two.stored(SECRET) == [(1, 0), (1, 1), (1, 2)]


def test_intake_that_was_taken_and_not_removed_is_taken_again_without_harm(two):
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    (path,) = [*two.parts.folder.glob("intake/sensitive/*")][1:]
    sealed = path.read_bytes()
    two.secret.unlock(two.key)
    two.drain()
    path.write_bytes(sealed)  # as if killed between the commit and the removal
    two.restart()
    two.secret.unlock(two.key)
    two.drain()
    assert two.stored(SECRET) == [(1, 0)]


def test_intake_whose_removal_a_kill_cut_off_is_not_taken_for_damaged(two):
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    path = sorted(two.parts.folder.glob("intake/sensitive/*.sealed"))[-1]
    sealed = path.read_bytes()
    two.secret.unlock(two.key)
    two.drain()
    path.write_bytes(bytes(32) + sealed[32:])  # as spool.shred leaves it before the name goes
    two.restart()
    two.secret.unlock(two.key)
    two.drain()
    assert not [*two.parts.folder.glob("intake/sensitive/*")]
    assert two.stored(SECRET) == [(1, 0)]


def test_what_comes_while_anything_waits_waits_behind_it(two, monkeypatch):
    """It would be sealed before what came first."""
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    two.secret.unlock(two.key)
    with monkeypatch.context() as busy:
        busy.setattr(two.sorter, "drain", lambda: True)
        two.commit([(SECRET, 1, 1)], [make_call(2, callee="secret", revision=1)])
    assert (two.files(two.secret), len(two.secret.intake)) == ([], 4)
    two.drain()
    assert two.stored(SECRET) == [(1, 0), (1, 1)]


def test_damaged_intake_is_set_aside_and_the_rest_goes_on(two):
    for second in range(3):
        two.commit([(SECRET, 1, second)], [SECRET_CALL] if second == 0 else [])
    path = sorted(two.parts.folder.glob("intake/sensitive/*.sealed"))[2]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))
    two.secret.unlock(two.key)
    two.drain()
    assert two.stored(SECRET) == [(1, 0), (1, 2)]
    assert len([*two.parts.folder.glob("intake/sensitive/*.damaged")]) == 1


def test_intake_holds_nothing_in_the_clear(two):
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    written = b"".join(path.read_bytes() for path in two.parts.folder.rglob("*") if path.is_file())
    payload = bytes(next(make_media([(SECRET, 1, 0)]).chunks()).payload)
    assert payload not in written
    for text in (SECRET_CALL.caller, SECRET_CALL.call_ids[0]):
        assert text.encode() not in written


def test_pool_whose_own_disk_is_full_waits_and_resumes_by_itself(two, monkeypatch):
    two.secret.unlock(two.key)
    monkeypatch.setattr(Pool, "device", property(lambda pool: pool.tier + 1_000_000))

    def full(recording_id: bytes, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(two.secret.pool, "append", full)
        two.commit(BOTH, [make_call(1, final=False), SECRET_CALL])
        two.commit([(PLAIN, 1, 1), (SECRET, 1, 1)], [])
        assert two.stored(PLAIN) == [(1, 0), (1, 1)]
        assert two.secret.fault is not None
        assert two.secret.fault.startswith("takes no writes, its calls wait: No space left on")
    two.drain()
    assert two.secret.fault is None
    assert two.stored(SECRET) == [(1, 0), (1, 1)]


def test_a_quota_of_one_pool_s_folder_stops_that_pool_alone(two, monkeypatch):
    """Its intake lies on the same file system, and not in that folder."""
    two.secret.unlock(two.key)

    def exceeded(recording_id: bytes, data: bytes) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(two.secret.pool.objects / "x"))

    with monkeypatch.context() as patch:
        patch.setattr(two.secret.pool, "append", exceeded)
        two.commit(BOTH, [make_call(1, final=False), SECRET_CALL])
        assert two.stored(PLAIN) == [(1, 0)]
        assert "Disk quota exceeded. Raise the quota of" in (two.secret.fault or "")
    two.drain()
    assert (two.secret.fault, two.stored(SECRET)) == (None, [(1, 0)])


def test_another_key_unlocks_nothing(two):
    with pytest.raises(Fault, match="the unlock key is not one this store is sealed to"):
        two.secret.unlock(os.urandom(32))
    assert two.secret.locked


def test_root_that_base_does_not_vouch_for_is_not_unlocked(two):
    other = os.urandom(32)
    keyring.create(
        two.parts.folder / "keys/sensitive", two.parts.keyring.store_id,
        [keyfile.public_of(other)], 2,
    )  # fmt: skip
    with pytest.raises(Fault, match="not the root whose key the intake is sealed to"):
        two.secret.unlock(other)


def test_media_of_a_call_nobody_told_of_enters_the_default_pool(two):
    two.commit([(SECRET, 1, 0)], [])
    assert two.tier(SECRET) == 0
