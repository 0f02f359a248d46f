"""Key files: whatever editor wrote them, and never one half of a key taken for the other."""

from pathlib import Path

import pytest

from spanvault.keys import keyfile

KEY = bytes(range(32))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    private = tmp_path / "unlock.key"
    keyfile.write_new(private, keyfile.text_of(KEY))
    keyfile.write_public(private.with_suffix(".pub"), keyfile.public_of(KEY))
    return private, private.with_suffix(".pub")


def test_each_half_is_read_as_itself(pair):
    private, public = pair
    assert keyfile.load(private) == KEY
    assert keyfile.load_public(public) == keyfile.public_of(KEY)


def test_one_half_is_not_taken_for_the_other(pair):
    """A root is sealed to what is named so, and names it in the clear."""
    private, public = pair
    with pytest.raises(ValueError, match=r"unlock.key: this is a private key.*public half"):
        keyfile.load_public(private)
    with pytest.raises(ValueError, match=r"unlock.pub: this is a public key.*private half"):
        keyfile.load(public)


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        f"{KEY.hex().upper()}\r\n",
        f"# of the vault\r\n\r\n{KEY.hex()}\r\n",
        f"\ufeff# from an editor that marks its files\n{KEY.hex()}",
    ],
)
def test_file_that_does_not_say_is_either(tmp_path, text):
    (tmp_path / "a.key").write_bytes(text.encode())
    assert keyfile.load(tmp_path / "a.key") == keyfile.load_public(tmp_path / "a.key") == KEY


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\r\n",
        b"# nothing\n",
        KEY,
        KEY.hex().encode()[:-1],
        KEY.hex().encode("utf-16"),
        f"{KEY.hex()}\n{KEY.hex()}".encode(),
    ],
)
def test_what_is_none_is_told(tmp_path, text):
    (tmp_path / "a.key").write_bytes(text)
    with pytest.raises(ValueError, match=r"a.key: not a key file: one line of 64 hex digits"):
        keyfile.load(tmp_path / "a.key")
