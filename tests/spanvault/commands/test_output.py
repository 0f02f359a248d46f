"""What people are shown: nothing in it may steer their terminal or pass for something else."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from spanvault.commands.output import calls_table, complain, fields_table
from spanvault.messages import Call

EVIL = "\x1b]0;owned\x07\x1b[2J99\x9b31m\x00\u202e\nfake row"


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def harmless(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text)


def test_a_caller_s_name_cannot_steer_the_terminal_nor_forge_a_row():
    call = Call(bytes(16), "c", [EVIL], EVIL, EVIL, 0, flags=[EVIL])
    text = shown(calls_table([call], 300))
    assert harmless(text)
    assert len(text.splitlines()) == 2
    assert r"\x1b[2J99\x9b31m\x00\u202e\nfake row" in text


def test_letters_of_all_scripts_stay():
    name = "+49 30 Zoë 電話"
    assert name in shown(calls_table([Call(bytes(16), "c", [], name, "", 0)], 300))


def test_fields_neither():
    assert harmless(shown(fields_table([(EVIL, EVIL)])))


def test_faults_neither(capsys: pytest.CaptureFixture[str]):
    complain(EVIL, EVIL)
    assert harmless(capsys.readouterr().err)
