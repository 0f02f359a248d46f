"""Nothing is left but a replica and shares on paper: by commands alone all comes back.

On another machine, with another home. What was erased before stays so, and is proved as before.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spanvault.keys import keyfile
from tests.support.command import start
from tests.support.ingest import identity

GONE, NEXT, KEPT = 1, 2, 3


class Machine:
    """A folder and a home that no other machine has, and the command there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def run(self, *words: object, typed: str = "", code: int = 0) -> str:
        """What the command says on stdout."""
        mine = {"HOME": str(self.folder)}
        done = start(
            *words, home=self.folder, variables=mine, input=typed, cwd=self.folder, text=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def certificate(self, call: bytes, *store: object) -> dict[str, Any]:
        """What the certificate of an erased call says; its signatures fit."""
        path = self.folder / f"{call.hex()}.json"
        self.run("certificate", "get", call.hex(), "-o", path, *store)
        pending = json.loads(path.read_text())["certificate"]["pending"]
        facts: dict[str, Any] = json.loads(
            self.run("certificate", "verify", path, "--json", code=int(bool(pending)))
        )
        return facts


@pytest.fixture
def ashes(make_house, until, tmp_path: Path) -> tuple[Path, list[str], dict[str, Any]]:
    """What is left of a house: its replica, shares (3, of which 2 are enough), a certificate."""
    house, old = make_house("old"), Machine(tmp_path / "desk")
    keys = house.etc / "keys"
    for name in ("recovery.key", "recovery.pub"):
        (keys / name).unlink()
    printed = old.run("keys", "shares", "--threshold", 2, "--count", 3,
                      "--pub", keys / "recovery.pub")  # fmt: skip
    house.start()
    house.record([GONE, NEXT, KEPT])
    config = ("--config", house.etc / "spanvault.toml")
    old.run("keys", "drill", "base", "--shares", *config, typed=printed)
    until(lambda: house.copied([GONE, NEXT, KEPT]))
    old.run("erase", identity(GONE).hex(), "--reason", "asked for", "--yes", *config)
    until(lambda: "pending at" not in old.run("erasures", *config))
    proof = old.certificate(identity(GONE), *config)
    for name in ("replicator", "storaged"):
        assert house.appliance.stop(name) == 0
    replica = house.replica.rename(tmp_path / "replica")
    for burnt in (house.etc.parent, old.folder):
        shutil.rmtree(burnt)
    return replica, printed.split("\n\n"), proof


def test_a_replica_and_two_of_three_shares_bring_all_back(ashes, tmp_path: Path) -> None:
    replica, shares, proof = ashes
    new = Machine(tmp_path / "new")
    key, store = new.folder / "recovery.key", new.folder / "store"
    new.run("keys", "make", key, "--shares", typed="\n\n".join(shares[1:]))
    new.run("restore", "--from", replica, "--store", store, "--recovery-key", key)
    here = ("--store", store, "--recovery-key", key)

    calls = [json.loads(line) for line in new.run("calls", "--json", *here).splitlines()]
    assert {call["id"] for call in calls} == {identity(NEXT).hex(), identity(KEPT).hex()}
    new.run("verify", "--all", *here)
    new.run("export", identity(KEPT).hex(), "-o", "kept.wav", *here)
    assert (new.folder / "kept.wav").stat().st_size > 3 * 8000

    again = new.certificate(identity(GONE), *here)
    for name in ("public_key", "store", "sha256", "erased_at", "keys", "root_epoch"):
        assert again[name] == proof[name]
    new.run("erase", identity(NEXT).hex(), "--reason", "asked for", "--yes", *here)
    after = new.certificate(identity(NEXT), *here)
    assert (after["public_key"], after["recording"]) == (proof["public_key"], identity(NEXT).hex())
    assert after["root_epoch"] > proof["root_epoch"]
    left = [json.loads(line)["id"] for line in new.run("calls", "--json", *here).splitlines()]
    assert left == [identity(KEPT).hex()]
    secret = keyfile.load(key)
    assert not any(secret in path.read_bytes() for path in store.rglob("*") if path.is_file())


def test_one_share_is_not_enough(tmp_path: Path) -> None:
    new = Machine(tmp_path / "new")
    printed = new.run("keys", "shares", "--threshold", 2, "--count", 3, "--pub", "recovery.pub")
    one = printed.split("\n\n")[0]
    new.run("keys", "make", "again.key", "--shares", typed=f"{one}\n", code=2)
    assert not (new.folder / "again.key").exists()
