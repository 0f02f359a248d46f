"""A store of three pools: copied, erased from, and restored with each pool's keys."""

from pathlib import Path

import pytest

from spanvault import certificate
from spanvault.client import Client
from spanvault.daemon.rules import POOLS
from spanvault.keys import keyfile
from spanvault.messages import Search
from spanvault.private import PrivateStore, toml
from tests.support.command import spanvault
from tests.support.ingest import caller, identity

IN = {"base": [0], "core": [1, 3], "sensitive": [2]}  # made-up calls by pool
GONE = 3


@pytest.fixture
def burnt(make_house, until):
    """A house whose core opens with the store's keys and whose sensitive has one of its own."""
    house = make_house("old")
    own = keyfile.create_private(house.etc / "keys/sensitive.key")
    keyfile.write_public(house.etc / "keys/sensitive.pub", own)
    rules = [
        {"pool": pool, "number": [caller(number)]} for pool in POOLS[1:] for number in IN[pool]
    ]
    with (house.etc / "storaged.toml").open("a") as file:
        file.write(f"[pools.core]\n[pools.sensitive]\n"
                   f"recipients = ['{house.etc}/keys/sensitive.pub']\n"
                   f"unlock_key = '{house.etc}/keys/sensitive.key'\n")  # fmt: skip
        for rule in rules:
            file.write(f"[[rules]]\npool = '{rule['pool']}'\nnumber = {rule['number']}\n")
    house.start()
    house.record(range(4))
    until(lambda: house.copied(range(4)))
    for pool, numbers in IN.items():
        assert {house.get(number).pool for number in numbers} == {pool}
    with house.client() as client:
        client.erase([identity(GONE)], "asked for", unfinished=False)
        until(lambda: next(client.erasures()).rows_gone_ns)
        until(lambda: not next(client.erasures()).pending)
        facts, _ = certificate.parse(client.certificate(identity(GONE)))
    assert (facts["pool"], facts["pending"]) == ("core", [])
    assert facts["copies"][0]["signature"]
    for name in ("replicator", "storaged"):
        assert house.appliance.stop(name) == 0
    return house


def restored(client: Client) -> set[bytes]:
    return {call.id for call in client.search(Search())}


def test_three_pools_are_copied_erased_from_and_restored_each_with_its_keys(burnt, tmp_path):
    names = {path.name for path in (burnt.replica / "keys/core").iterdir()}
    # Anew without the call's own key, and once more without that of its day.
    assert names == {"page-000000.2", "root"}
    assert not burnt.copy(GONE).exists()
    burnt.check_replica([0, 1, 2])

    recovery, own = burnt.etc / "keys/recovery.key", burnt.etc / "keys/sensitive.key"
    new = tmp_path / "new"
    command = ["restore", "--from", burnt.replica, "--store", new, "--recovery-key", recovery]
    done = spanvault(*command, columns=300)
    assert done.returncode == 1
    assert "pool sensitive stays locked: its calls are not restored" in done.stderr
    assert "--pool-key sensitive=FILE" in done.stderr
    assert "Traceback" not in done.stderr
    with PrivateStore(new, recovery) as running:
        assert restored(running.client) == {identity(0), identity(1)}

    done = spanvault(*command, "--pool-key", f"sensitive={own}", columns=300)
    assert (done.returncode, "locked" in done.stderr) == (0, False), done.stderr
    with PrivateStore(new, recovery, {"sensitive": own}) as running:
        assert restored(running.client) == {identity(number) for number in (0, 1, 2)}
        for number, pool in enumerate(POOLS):
            assert running.client.get(identity(number)).pool == pool
            assert running.client.verify(identity(number)).faults == []
        facts, _ = certificate.parse(running.client.certificate(identity(GONE)))
        assert facts["pool"] == "core"


@pytest.mark.parametrize(
    ("given", "said"), [("base=x", "POOL is core or sensitive"), ("core=/none", "cannot be read")]
)
def test_pool_key_that_is_none_is_said(tmp_path, given: str, said: str):
    done = spanvault("restore", "--from", tmp_path, "--store", tmp_path / "new",
                     "--recovery-key", _key(tmp_path), "--pool-key", given)  # fmt: skip
    assert done.returncode != 0
    assert said in done.stderr


def _key(folder: Path) -> Path:
    keyfile.create_private(folder / "a.key")
    return folder / "a.key"


def test_tables_in_settings_are_toml():
    assert (
        toml({"pools": {"core": {"unlock_key": "/k"}}}) == 'pools = {core = {unlock_key = "/k"}}\n'
    )
