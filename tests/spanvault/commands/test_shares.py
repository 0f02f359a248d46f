"""Shares typed at `spanvault keys`: in any order and form; what does not belong is named and asked
for again; nothing is left of what was broken off."""

import io
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spanvault import cli
from spanvault.cli import application
from spanvault.keys import keyfile, shares

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def papers(key: bytes = KEY, threshold: int = 2) -> list[str]:
    """Shares as they are printed: a line for people, three of letters."""
    return [shares.write(share) for share in shares.split(key, threshold, 3)]


def on_one_line(paper: str) -> str:
    return "".join(paper.splitlines()[1:])


def make(folder: Path, *typed: str) -> tuple[int, str]:
    """`keys make again.key --shares`: gives the exit code, and what was said."""
    done = CliRunner().invoke(
        application(["keys"]), ["keys", "make", str(folder / "again.key"), "--shares"],
        input="".join(typed),
    )  # fmt: skip
    return done.exit_code, " ".join((done.output + str(done.exception or "")).split())


def test_any_order_any_form(tmp_path):
    one, two, three = papers(threshold=3)
    spelled = on_one_line(two).lower().replace("0", "o").replace("1", "l").replace("  ", " - ")
    code, said = make(tmp_path, three, "\n", f"  {spelled}\r\n", on_one_line(one) + "\n")
    assert code == 0, said
    assert keyfile.load(tmp_path / "again.key") == KEY


def test_what_does_not_belong_is_named_and_asked_for_again(tmp_path):
    one, two, _ = papers()
    foreign, other_cut = papers(OTHER)[0], papers(threshold=3)[1]
    wrong = on_one_line(two)[:-1] + ("0" if two.rstrip()[-1] != "0" else "2")
    typed = [one, one, foreign, other_cut, wrong + "\n", "nonsense\n", two]
    code, said = make(tmp_path, *typed)
    assert code == 0, said
    assert keyfile.load(tmp_path / "again.key") == KEY
    names = [shares.parse(one).set_name, shares.parse(foreign).set_name]
    assert f"of set {names[1]} (2 of 3), what was typed before is of {names[0]} (2 of 3)" in said
    assert f"of set {names[0]} (3 of 3), what was typed before is of {names[0]} (2 of 3)" in said
    assert "a letter of this share is wrong" in said
    assert said.count("share 1 of 3, 2 are needed") == 2  # twice the same is one


def test_the_same_share_again_and_again_makes_no_key(tmp_path):
    one, *_ = papers()
    code, said = make(tmp_path, one, one, one)
    assert code != 0
    assert "nothing came" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--shares"], ["--passphrase"]])
@pytest.mark.parametrize("broken", [KeyboardInterrupt, EOFError])
def test_what_is_broken_off_leaves_nothing(tmp_path, monkeypatch, words, broken):
    def ask(_: str) -> str:
        raise broken

    monkeypatch.setattr("getpass.getpass", ask)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    code = cli.run(["keys", "make", str(tmp_path / "new.key"), *words])
    assert code == (130 if broken is KeyboardInterrupt else 2)
    assert list(tmp_path.iterdir()) == []


def test_shares_that_cannot_be_printed_leave_no_public_half(tmp_path, monkeypatch):
    """A pool that was sealed to it could be opened by nobody."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    public = tmp_path / "p.pub"
    words = ["keys", "shares", "--threshold", "2", "--count", "3", "--pub", str(public)]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Full())
        patched.setattr(cli, "_drop_output", lambda: None)
        assert cli.run(words) == 1
    assert not public.exists()
    done = CliRunner().invoke(application(["keys"]), words)
    assert done.exit_code == 0
    printed = re.findall(r"# spanvault share .*\n(?:.+\n)+", done.stdout)
    key = shares.combine([shares.parse(paper) for paper in printed[:2]])
    assert keyfile.public_of(key) == keyfile.load_public(public)
