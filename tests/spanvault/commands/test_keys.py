"""`spanvault keys` on a running store: status, lock, rotation, who can open a pool.

Shares, drills and unlocking by paper: tests/storaged/requests/test_custody.py.
"""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanvault import cli
from spanvault import messages as m
from spanvault.keys import keyfile
from spanvault.spool import key_id
from tests.support.vault import Rig, call_id, make_call, make_media


class Office:
    """storaged with base and a sensitive pool sealed to a key that is not on its machine."""

    def __init__(self, folder: Path) -> None:
        self.rig, self.folder = Rig(folder), folder
        self.own = self.key("own")
        with self.rig.config.open("a") as file:
            file.write(f"[pools.sensitive]\nrecipients = ['{folder}/own.pub']\n"
                       "[[rules]]\npool = 'sensitive'\nnumber = ['+49300000002']\n")  # fmt: skip
        self.rig.start()
        self.capture, self._sequence = self.rig.capture(), 0
        self.operator = self.rig.client("operator")
        (folder / "spanvault.toml").write_text(
            f"storaged = '{self.rig.requests}'\n"
            f"certificate = '{folder}/secret/operator.key_secret'\n"
            f"storaged_certificate = '{folder}/secret/storaged.key'\n"
        )

    def key(self, name: str) -> str:
        """A key in a file NAME.key and its public half in NAME.pub; gives its id."""
        public = keyfile.create_private(self.folder / f"{name}.key")
        keyfile.write_public(self.folder / f"{name}.pub", public)
        return key_id(public)

    def run(self, *words: str) -> tuple[int, str]:
        return self.command("keys", *words)

    def command(self, *words: str) -> tuple[int, str]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = cli.run([*words, "--config", str(self.folder / "spanvault.toml")])
        return code, " ".join(said.getvalue().split())

    def with_key(self, name: str, *words: str) -> tuple[int, str]:
        return self.run(*words, "--key", str(self.folder / f"{name}.key"))

    def status(self) -> dict[str, dict[str, Any]]:
        rows = map(json.loads, self.run("status", "--json")[1].replace("} {", "}\n{").splitlines())
        return {row["pool"]: row for row in rows}

    def record(self, second: int) -> None:
        """A second more of a call in each pool."""
        calls = [make_call(number, final=False) for number in (1, 2)] if second == 0 else []
        heard = make_media([(call_id(1), 1, second), (call_id(2), 1, second)])
        self._sequence += 1
        self.capture.send(m.Batch("test", self._sequence, calls), heard)
        assert self.capture.receive(lambda frames: frames) is not None

    def close(self) -> None:
        self.rig.close()
        shutil.rmtree(self.folder)


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office(Path(tempfile.mkdtemp(prefix="sv-")))
    yield made
    made.close()


def test_keys_are_looked_at_rotated_added_removed_and_let_go_while_all_records(office):
    office.record(0)
    before = office.status()
    assert (before["base"]["state"], before["sensitive"]["state"]) == ("open", "locked")
    assert before["sensitive"]["sealed_to"] == office.own
    assert before["sensitive"]["waiting"] > 0
    for words in (("rotate", "root", "sensitive"), ("rotate", "ingest", "sensitive")):
        code, said = office.run(*words)
        assert (code != 0, "pool sensitive is locked" in said) == (True, True)
    assert office.with_key("own", "unlock", "sensitive") == (0, "pool sensitive is open")

    for pool in ("base", "sensitive"):
        old = office.status()[pool]
        assert office.run("rotate", "root", pool) == (0, f"pool {pool} has a new root key")
        assert office.run("rotate", "ingest", pool) == (0, f"pool {pool} has a new ingest key")
        new = office.status()[pool]
        assert new["epoch"] > old["epoch"]
        assert (old["ingest_keys"], new["ingest_keys"]) == (1, 2)
    office.record(1)

    second = office.key("second")
    public = str(office.folder / "second.pub")
    code, said = office.with_key("second", "add", "sensitive", public)
    assert (code != 0, "pool sensitive is not sealed to this key" in said) == (True, True)
    assert office.with_key("own", "add", "sensitive", public)[0] == 0
    assert set(office.status()["sensitive"]["sealed_to"].split(", ")) == {office.own, second}
    assert office.with_key("second", "remove", "sensitive", office.own)[0] == 0
    assert office.status()["sensitive"]["sealed_to"] == second
    code, said = office.with_key("second", "remove", "sensitive", second)
    assert (code != 0, "nobody could open the pool any more" in said) == (True, True)

    assert office.run("lock", "sensitive") == (0, "pool sensitive is locked")
    assert office.status()["sensitive"]["state"] == "locked"
    office.record(2)
    assert office.with_key("own", "unlock", "sensitive")[0] != 0
    assert office.with_key("second", "unlock", "sensitive")[0] == 0
    office.record(3)  # is taken after all that waited
    for number in (1, 2):
        reply, _ = office.operator.ask(m.Verify(call_id(number)))
        assert (reply.faults, reply.frames) == ([], 4)


def test_whole_store_is_locked_and_unlocked(office):
    assert office.run("lock", "base")[0] == 0
    assert {pool["state"] for pool in office.status().values()} == {"locked"}
    office.record(4)
    assert office.run("unlock", "base", "--key", str(office.folder / "secret/unlock.key"))[0] == 0
    assert office.status()["base"]["state"] == "open"


def test_impossible_wishes_say_what_to_do(office):
    code, said = office.run("lock", "nowhere")
    assert (code, "Pools are base, core, sensitive" in said) == (2, True)
    code, said = office.run("add", "base", str(office.folder / "own.pub"))
    assert (code, "Give --key FILE, or --shares" in said) == (2, True)
    code, said = office.run("remove", "base", "nobody", "--key",
                            str(office.folder / "secret/unlock.key"))  # fmt: skip
    assert (code != 0, "is not sealed to a key nobody" in said) == (True, True)


def test_verify_all_checks_key_files_and_call_records_repair_all_asks_for_them(office):
    office.record(0)
    code, said = office.command("verify", "--all")
    assert (code, "3 key files checked, 0 damaged" in said) == (0, True)
    assert "1 call records checked, 0 damaged" in said
    assert "1 recordings checked, 0 damaged" in said  # though its call record names no stream
    assert "pool is locked: call records of sensitive" in said

    page = office.rig.store / "keys/page-000000.0"
    data = bytearray(page.read_bytes())
    data[5000] ^= 1
    page.write_bytes(data)
    code, said = office.command("repair", "--all", "--wait", "0")
    assert (code, "page-000000.0 cannot be repaired" in said) == (1, True)
    code, said = office.command("verify", "--all")
    assert (code, "3 key files checked, 1 damaged" in said) == (1, True)
    assert "page-000000.0: key page 0 does not authenticate" in said
