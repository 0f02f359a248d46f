"""Which key opens a store: given, found by the store's root file, or made."""

from pathlib import Path

import pytest

from spanvault.keys import keyfile, unlock


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def seal(store: Path, key: Path) -> None:
    """A root file names the public keys it is sealed to."""
    root = unlock.root_file(store)
    root.parent.mkdir(parents=True)
    root.write_bytes(b"SVRROOT1" + bytes(40) + keyfile.public_of(keyfile.load(key)) + bytes(48))


def test_a_new_store_gets_a_new_key_outside_of_it(tmp_path: Path, home: Path):
    key = unlock.choose(tmp_path / "store", None)
    assert key.made
    assert key.path.parent == home / "spanvault" / "unlock"
    assert key.path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "store").exists()


def test_a_store_that_was_moved_still_finds_its_key(tmp_path: Path):
    keys = [unlock.choose(tmp_path / "store", None).path for _ in range(3)]
    seal(tmp_path / "store", keys[1])
    (tmp_path / "store").rename(tmp_path / "moved")
    assert unlock.choose(tmp_path / "moved", None) == unlock.UnlockKey(keys[1], made=False)


def test_a_store_of_another_home_says_what_to_name(tmp_path: Path, home: Path):
    elsewhere = tmp_path / "elsewhere.key"
    keyfile.create_private(elsewhere)
    seal(tmp_path / "store", elsewhere)
    with pytest.raises(unlock.NoKey) as told:
        unlock.choose(tmp_path / "store", None)
    assert "--unlock-key FILE" in told.value.hint
    assert unlock.choose(tmp_path / "store", elsewhere).path == elsewhere


def test_a_key_that_was_named_is_made_only_for_a_new_store(tmp_path: Path):
    named = tmp_path / "safe" / "mine.key"
    assert unlock.choose(tmp_path / "store", named) == unlock.UnlockKey(named, made=True)
    seal(tmp_path / "store", named)
    with pytest.raises(ValueError, match="cannot be read"):
        unlock.choose(tmp_path / "store", tmp_path / "typo.key")


def test_what_is_no_key_file_is_passed_over(tmp_path: Path, home: Path):
    key = unlock.choose(tmp_path / "store", None).path
    (key.parent / "00-notes.key").write_text("not a key")
    seal(tmp_path / "store", key)
    assert unlock.choose(tmp_path / "store", None).path == key
