"""Key files: a flipped bit is found, a copy takes its place, nothing comes to life again."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault import messages as m
from storaged import files
from storaged.faults import Fault
from storaged.format import keypage
from storaged.format.keypage import SLOTS
from storaged.format.walk import finish
from storaged.index import erasures, toldkeys
from storaged.integrity import keymending
from storaged.integrity.keycheck import KeyCheck
from storaged.keys import pagefiles
from tests.storaged.integrity.test_mending import ONE, REPLICATOR, TWO, Mended
from tests.support.checked import Checked
from tests.support.vault import Parts, call_id, make_call

PAGE, NAME = "page-000000.0", b"keys/page-000000.0"


class Keys(Mended):
    """A desk whose store has two recordings, one key page, and a check of it."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.folder = parts.folder / "keys"
        self.sound = {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def check(self) -> list[str]:
        """Read all key files; gives those that are known to be damaged then."""
        list(KeyCheck(self.parts.index, self.parts.vaults, lambda: 1).checking())
        return self.damaged

    @property
    def damaged(self) -> list[str]:
        with self.parts.index.reading() as view:
            return [bytes(name).decode() for name, _ in view.cursor(b"damagedkey")]

    def flip(self, name: str = PAGE, at: int = 5000) -> bytes:
        """Damage a key file; gives its bytes since then."""
        data = bytearray((self.folder / name).read_bytes())
        data[at] ^= 1
        (self.folder / name).write_bytes(data)
        return bytes(data)

    def give(self, change: m.Change, data: bytes) -> m.Message:
        reply: m.Message = self.ask(m.Return("siteb", change), data, who=REPLICATOR)
        return reply

    def again(self) -> Parts:
        """The store with its keys read from disk anew: no page is at hand in memory."""
        return self.parts.again()


@pytest.fixture
def keys(parts: Parts) -> Iterator[Keys]:
    made = Keys(parts)
    yield made
    made.access.close()


def test_whole_key_files_are_read_and_nothing_is_told(keys):
    sizes = list(KeyCheck(keys.parts.index, keys.parts.vaults, lambda: 1).checking())
    assert sum(sizes) == sum(map(len, keys.sound.values()))
    assert keys.damaged == []


@pytest.mark.parametrize("at", [0, 9, 12, 20, 5000, keypage.PAGE_BYTES - 1])
def test_any_flipped_bit_of_a_page_is_found(keys, at):
    keys.flip(at=at)
    assert keys.check() == [PAGE]


def test_page_that_is_cut_or_gone_is_found_too(keys):
    os.truncate(keys.folder / PAGE, 70_000)
    assert keys.check() == [PAGE]
    (keys.folder / PAGE).unlink()
    assert keys.check() == [PAGE]


def test_rolling_check_tells_of_it_once_in_journal_and_status(keys, caplog):
    keys.flip()
    checked = Checked(keys.parts)
    for _ in range(2):
        assert checked.round()["damaged_keys"] == [PAGE]
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (error.KEY_FILE, error.FAULT) == (PAGE, "key page 0 does not authenticate")
    assert "spanvault repair" in error.REMEDY


def test_page_comes_back_from_a_replica_and_what_was_damaged_is_overwritten(keys, caplog):
    keys.flip()
    with (keys.folder / PAGE).open("rb") as old:
        keys.check()
        [change] = keys.feed()
        assert (change.kind, change.name, change.size) == ("keys", PAGE, keypage.PAGE_BYTES)
        assert keys.give(change, keys.sound[PAGE]) == m.Done()
        assert keys.sound[PAGE][1000:2000] not in old.read()
    assert (keys.folder / PAGE).read_bytes() == keys.sound[PAGE]
    assert sorted(path.name for path in keys.folder.iterdir()) == [PAGE, "root"]
    assert keys.check() == keys.feed() == []
    assert "A damaged key file was repaired" in caplog.messages
    assert keys.again().keyring.dek(0)


def test_damaged_copy_is_refused_and_said(keys):
    damaged = keys.flip()
    keys.check()
    [change] = keys.feed()
    answer = keys.give(change, damaged)
    assert (answer.code, answer.error) == (
        "corrupt", "its copy does not open: key page 0 does not authenticate"
    )  # fmt: skip
    [about] = keys.ask(m.Mend([], again=False)).recordings
    assert (about.id, about.state) == (NAME, "hopeless")
    assert keys.check() == [PAGE]


def test_older_generation_is_refused_and_what_was_erased_stays_so(keys, monkeypatch):
    """Whoever has an old copy of the page, under whatever name, brings no destroyed DEK back."""
    keys.parts.keyring.drop([0])
    newer = "page-000000.1"
    sound = (keys.folder / newer).read_bytes()
    keys.flip(newer)
    keys.check()
    [change] = keys.feed()
    old = keys.sound[PAGE]
    renumbered = old[:12] + (1).to_bytes(2, "little") + old[14:]
    for data, word in ((old, "0.0 lies where 0.1"), (renumbered, "does not authenticate")):
        keys.now_s += 10_000  # asked for again
        keys.feed()
        assert word in keys.give(change, data).error
    named = change.__class__(0, "keys", pool="base", name=PAGE, size=len(old))
    assert keys.give(named, old).code == "not_found"
    with pytest.raises(Fault, match="another generation"):
        keys.parts.keyring.put_back(0, 0, old)
    # Without the check the old one would be in place: that is what the refusals are worth.
    with monkeypatch.context() as spoilt:
        spoilt.setattr(pagefiles.keypage, "open_page", lambda *_: b"")
        keys.parts.keyring.put_back(0, 1, old)
        assert (keys.folder / newer).read_bytes() == old
    keys.parts.keyring.put_back(0, 1, sound)
    ring = keys.again().keyring
    assert ring.dek(1)
    with pytest.raises(Fault, match="was destroyed"):
        ring.dek(0)


def test_page_that_an_erasure_replaced_while_it_was_asked_back_is_not_put_back(keys):
    keys.flip()
    keys.check()
    [change] = keys.feed()
    keys.parts.keyring.drop([0])  # the page is at hand in memory
    assert keys.give(change, keys.sound[PAGE]).code in ("not_found", "corrupt")
    assert not (keys.folder / PAGE).exists()
    assert keys.check() == []


def test_damaged_page_never_reaches_a_replica_whose_sound_copy_it_would_replace(keys):
    def fed() -> list[str]:
        changes = keys.ask(m.Feed(0), who=REPLICATOR).changes
        return [change.name for change in changes if change.kind == "keys"]

    assert set(fed()) == {PAGE, "root"}
    keys.flip()
    assert fed() == ["root"]
    keys.check()
    [change] = keys.feed()
    keys.give(change, keys.sound[PAGE])
    assert set(fed()) == {PAGE, "root"}


def test_page_that_is_sound_again_by_itself_reaches_the_replica(keys):
    """Put there by hand, or a cable held: it was passed over while it was damaged."""
    keys.flip()
    assert keys.check() == [PAGE]
    position = keys.ask(m.Feed(0), who=REPLICATOR).position
    (keys.folder / PAGE).write_bytes(keys.sound[PAGE])
    assert keys.check() == []
    (change,) = keys.ask(m.Feed(position), who=REPLICATOR).changes
    assert (change.name, change.data) == (PAGE, keys.sound[PAGE])


def test_damaged_root_is_written_anew_from_memory_never_from_a_copy(keys, caplog):
    keys.flip("root", at=100)
    assert keys.feed() == []
    assert keys.check() == []
    assert (keys.folder / "root").read_bytes() == keys.sound["root"]
    assert "A damaged root file was written anew from memory" in caplog.messages
    assert sorted(path.name for path in keys.folder.iterdir()) == [PAGE, "root"]


def test_older_root_in_place_of_ours_is_found(keys):
    """It opens by itself, and would name pages that were destroyed."""
    keys.parts.keyring.renew()
    newer = (keys.folder / "root").read_bytes()
    (keys.folder / "root").write_bytes(keys.sound["root"])
    assert keys.check() == []
    assert (keys.folder / "root").read_bytes() == newer


@pytest.fixture
def locked(keys) -> Keys:
    """The same, its root known whole since the last check, and then locked."""
    assert keys.check() == []
    keys.parts.vaults.lock("base")
    return keys


def test_pages_of_a_locked_pool_are_nobodys_to_check(locked):
    locked.flip()
    assert locked.check() == []


@pytest.mark.parametrize("at", [8, 24, 100, -1])
def test_root_of_a_locked_pool_comes_back_from_a_replica(locked, caplog, at):
    locked.flip("root", at)
    with (locked.folder / "root").open("rb") as old:
        assert locked.check() == ["root"]
        [change] = locked.feed()
        sound = locked.sound["root"]
        digest = hashlib.sha256(sound).hexdigest()
        assert (change.name, change.size, change.sha256) == ("root", len(sound), digest)
        assert locked.give(change, sound) == m.Done()
        assert sound[200:300] not in old.read()
    assert (locked.folder / "root").read_bytes() == sound
    assert sorted(path.name for path in locked.folder.iterdir()) == [PAGE, "root"]
    assert locked.check() == locked.feed() == []
    assert "A damaged key file was repaired" in caplog.messages


def test_root_of_a_locked_pool_that_is_gone_comes_back_too(locked):
    (locked.folder / "root").unlink()
    assert locked.check() == ["root"]
    [change] = locked.feed()
    assert locked.give(change, locked.sound["root"]) == m.Done()
    assert locked.again().keyring.dek(0)


def test_damaged_root_of_a_locked_pool_never_reaches_a_replica(locked):
    before = locked.parts.index.position
    locked.flip("root", at=100)
    toldkeys.announce(locked.parts.index, locked.folder, ["root"])
    assert locked.parts.index.position == before
    locked.parts.index.write(lambda writing: writing.announce(b"k", b"root"))
    assert "root" not in [one.name for one in changes(locked)]
    toldkeys.announce(locked.parts.index, locked.folder, ["root"])
    assert "root" not in [one.name for one in changes(locked)]


def changes(keys: Keys) -> list[m.Change]:
    told: list[m.Change] = keys.ask(m.Feed(0, target="siteb"), who=REPLICATOR).changes
    return told


def test_older_root_never_takes_the_place_of_a_locked_pool_s(keys):
    """Whoever kept it, and its old pages, would bring back what was erased."""
    keys.check()
    keys.ask(m.Erase([ONE], "test"))
    newer = (keys.folder / "root").read_bytes()
    keys.parts.vaults.lock("base")  # no check came between: which root is whole nobody knows
    keys.flip("root", at=100)
    assert keys.check() == ["root"]
    assert keys.feed() == []
    change = m.Change(0, "keys", pool="base", name="root", size=len(newer))
    for copy in (keys.sound["root"], newer):
        with pytest.raises(Fault, match="not the root that replicas were told of"):
            keymending.put_back(
                keys.parts.index, keys.parts.vaults, m.Return("siteb", change, 0), copy
            )


def test_older_root_is_not_taken_where_a_crash_cut_off_the_end_of_a_day_s_key(keys, monkeypatch):
    keys.ask(m.Erase([ONE], "test"))
    keys.check()
    monkeypatch.setattr(erasures, "rows_gone", None)  # the keys are gone, and nobody is told
    with pytest.raises(TypeError):
        finish(keys.eraser.converter.converting())
    keys.parts.vaults.lock("base")
    keys.flip("root", at=100)
    assert keys.check() == ["root"]
    assert keys.feed() == []


def test_root_that_changed_is_known_within_a_minute(keys):
    check = KeyCheck(keys.parts.index, keys.parts.vaults, lambda: 1)
    assert keys.check() == []
    assert list(check.checking_new()) == []
    keys.ask(m.Erase([ONE], "test"))
    newer = (keys.folder / "root").read_bytes()
    assert list(check.checking_new()) == [len(newer)]
    assert list(check.checking_new()) == []
    keys.parts.vaults.lock("base")
    keys.flip("root", at=100)
    assert list(check.checking_new()) == []
    assert keys.check() == ["root"]
    assert [change.sha256 for change in keys.feed()] == [hashlib.sha256(newer).hexdigest()]


def test_crash_while_a_page_is_put_back_leaves_it_whole_or_damaged_not_gone(keys, monkeypatch):
    damaged = keys.flip()
    for step, left in (("replace", damaged), ("destroy", keys.sound[PAGE])):
        with monkeypatch.context() as dying:
            dying.setattr(files, step, _dies)
            with pytest.raises(KeyboardInterrupt):
                keys.parts.keyring.put_back(0, 0, keys.sound[PAGE])
        keys.again()
        assert (keys.folder / PAGE).read_bytes() == left
        assert sorted(path.name for path in keys.folder.iterdir()) == [PAGE, "root"]


def _dies(path: Path, what: object, *_: object) -> None:
    if isinstance(what, bytes) or any((path / name).exists() for name in what):
        raise KeyboardInterrupt


def test_recording_goes_on_with_the_next_page_and_both_are_checked(keys):
    keys.flip()
    parts = keys.again()
    parts.commit([(call_id(3), 1, 0)], [make_call(3)])
    with parts.index.reading() as view:
        assert view.state(call_id(3)).key_id == SLOTS
    check = KeyCheck(parts.index, parts.vaults, lambda: 1)
    assert len(list(check.checking())) == 3
    assert keys.damaged == [PAGE]


def test_erasure_waits_for_a_damaged_page_and_says_so(keys):
    keys.flip()
    keys.parts.keyring._pages.forget([0])
    answer = keys.ask(m.Erase([ONE], "wanted"))
    assert "key page 0 does not authenticate" in answer.error
    keys.check()
    [change] = keys.feed()
    keys.give(change, keys.sound[PAGE])
    assert keys.ask(m.Erase([ONE], "wanted")).erased == 1
    assert keys.ask(m.Get(TWO)).call.id == TWO


def test_files_that_are_no_pages_are_refused(keys, tmp_path: Path):
    for name in ("root", "../../etc/passwd", "page-000000.0/..", "page-1.0", ""):
        change = m.Change(0, "keys", name=name, size=1)
        assert keys.give(change, b"x").code in ("not_found", "invalid")


def test_asked_for_check_tells_of_all_key_files_and_writes_a_root_anew(keys):
    assert keys.ask(m.Check("keys")) == m.CheckReply(2)
    keys.flip()
    keys.flip("root", at=100)
    fault = "key page 0 does not authenticate"
    assert keys.ask(m.Check("keys")) == m.CheckReply(2, {PAGE: fault}, mended=["root"])
    keys.parts.vaults.lock("base")
    assert keys.ask(m.Check("keys")).unchecked == [PAGE]


def test_repair_of_all_that_is_damaged_finds_key_pages_first(keys):
    keys.flip()
    assert keys.damaged == []
    [about] = keys.ask(m.Mend([], again=True)).recordings
    assert about.id == NAME
    [change] = keys.feed()
    assert keys.give(change, keys.sound[PAGE]) == m.Done()
    assert keys.ask(m.Mend([], again=True)).recordings == []


def test_calls_of_a_damaged_page_are_left_out_of_a_search_the_others_found(keys, caplog):
    keys.flip()
    keys.parts.keyring._pages.forget([0])
    keys.parts.commit([(call_id(3), 1, 0)], [make_call(3)])
    found = keys.ask(m.Search())
    assert [call.id for call in found.calls] == [call_id(3)]
    assert "A call record cannot be opened" in caplog.messages
