"""The way back, with real processes: a replica into an empty store that opens and plays."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from replicator import layout
from spanvault.messages import Search
from tests.support.ingest import caller, identity


def restore(old, new, target: str = "siteb") -> tuple[int, list[dict], str]:
    """Run the restore of old's replica into the storaged of new: exit code, progress, messages."""
    new.target(**{target: old.replica})
    command = [sys.executable, "-m", "replicator", "restore", "--config", operators(new)]
    done = subprocess.run(
        [*command, "--target", target, "--json-progress"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def operators(house):
    """The replicator's settings with an operator's certificate: only operators may import."""
    text = (house.etc / "replicator.toml").read_text()
    assert "replicator.key_secret" in text
    path = house.etc / "restore.toml"
    path.write_text(text.replace("replicator.key_secret", "operator.key_secret"))
    return path


def test_a_replicator_may_not_import(old, make_house) -> None:
    new = heir(old, make_house)
    new.target(siteb=old.replica)
    done = subprocess.run(
        [sys.executable, "-m", "replicator", "restore",
         "--config", new.etc / "replicator.toml", "--target", "siteb"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "may not" in done.stderr
    with new.client() as client:
        assert list(client.search(Search())) == []


@pytest.fixture
def old(make_house, until):
    """A house with five calls, all of them replicated; then it burns down."""
    house = make_house("old")
    house.start()
    house.record(range(5), seconds=3, size=500_000)
    until(lambda: house.copied(range(5)))
    for name in ("replicator", "storaged"):
        assert house.appliance.stop(name) == 0
    return house


def heir(old, make_house, name: str = "new", key: str = "unlock"):
    """An empty store whose storaged runs with the old one's key."""
    house = make_house(name)
    secret = (old.etc / f"keys/{key}.key").read_bytes()
    (house.etc / "keys/unlock.key").write_bytes(secret)
    house.start("storaged")
    return house


def verified(house, number: int) -> list[str]:
    with house.client() as client:
        return client.verify(identity(number)).faults


@pytest.mark.parametrize("key", ["unlock", "recovery"])
def test_a_restored_store_opens_with_either_key_and_plays(old, make_house, key: str) -> None:
    new = heir(old, make_house, key=key)
    code, progress, said = restore(old, new)
    assert (code, said) == (0, "")
    end = progress[-1]
    assert (end["phase"], end["objects"], end["faults"]) == ("end", 5, 0)
    assert [one["phase"] for one in progress if one.get("done") == one.get("of")][:3] == [
        "keys",
        "records",
        "objects",
    ]
    for number in range(5):
        assert new.said(number, size=500_000)
        assert verified(new, number) == []
        assert new.get(number).call == old_call(new, number)
    new.appliance.stop("storaged")  # and it is still so after a restart
    new.start("storaged")
    assert new.said(3, size=500_000)


def old_call(house, number: int):
    """The call as a search by its number finds it."""
    with house.client() as client:
        (call,) = client.search(Search(number=caller(number)))
    return call


def test_damaged_and_missing_files_are_named_and_the_rest_comes_back(old, make_house) -> None:
    new = heir(old, make_house)
    flipped, cut, missing = old.copy(1), old.copy(2), old.copy(3)
    sound = {path: path.read_bytes() for path in (flipped, cut, missing)}
    flipped.write_bytes(sound[flipped][:-1] + bytes([sound[flipped][-1] ^ 1]))
    cut.write_bytes(sound[cut][:1000])
    missing.unlink()
    code, progress, said = restore(old, new)
    assert code == 1
    faults = {one["fault"]: one["error"] for one in progress if "fault" in one}
    assert faults == {
        layout.object_name(identity(1)): (
            "damaged: its SHA-256 is that of no version the bundles know"
        ),
        layout.object_name(identity(2)): f"damaged: 1000 bytes instead of {len(sound[cut])}",
        layout.object_name(identity(3)): "not at the target: its copy had not been made yet",
    }
    assert layout.object_name(identity(1)) in said
    assert progress[-1]["faults"] == 3
    assert new.said(0, size=500_000)
    assert new.said(4, size=500_000)
    assert new.get(1).size == 0  # the call is known, its sound is not there

    for path, data in sound.items():
        path.write_bytes(data)
    code, progress, _ = restore(old, new)  # again: only what lacks is sent
    assert code == 0
    assert all(new.said(number, size=500_000) for number in range(5))


def test_a_damaged_bundle_is_named(old, make_house) -> None:
    new = heir(old, make_house)
    bundles = sorted((old.replica / layout.RECORDS).iterdir())
    damaged = bundles[-1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, progress, _ = restore(old, new)
    assert code in (1, 74)  # 74: it was the one that names the keys
    faults = {one["fault"]: one["error"] for one in progress if "fault" in one}
    name = f"{layout.RECORDS}/{damaged.name}"
    assert faults[name] == "bundle damaged: its SHA-256 is another"


def test_a_store_with_recordings_of_its_own_is_not_restored_over(old, make_house) -> None:
    new = heir(old, make_house)
    new.record([77])
    code, _, said = restore(old, new)
    assert code == 1
    assert "this store holds recordings of its own" in said
    assert "HINT=" in said
    assert new.said(77)


def test_a_restore_goes_on_after_a_kill_of_either_side(old, make_house) -> None:
    new = heir(old, make_house)
    new.target(siteb=old.replica)
    command = [sys.executable, "-m", "replicator", "restore", "--config"]
    for pause_s in (0.5, 0.7, 0.9):
        process = subprocess.Popen(
            [*command, operators(new), "--target", "siteb"], stdout=subprocess.DEVNULL
        )
        time.sleep(pause_s)
        process.kill()
        process.wait()
        new.appliance.kill("storaged")
        new.start("storaged")
    code, _, said = restore(old, new)
    assert (code, said) == (0, "")
    assert all(new.said(number, size=500_000) for number in range(5))


@pytest.mark.parametrize("memory", ["lost", "kept"])
def test_the_restored_store_is_replicated_on_to_the_same_place(
    old, make_house, until, memory: str
) -> None:
    """memory: whether the replicator still has its state_dir, with positions of the lost store."""
    new = heir(old, make_house)
    assert restore(old, new)[0] == 0
    new.replica = old.replica
    if memory == "kept":
        shutil.copytree(old.state, new.state)
    bundles = {path.name: path.read_bytes() for path in (old.replica / "records").iterdir()}
    new.start("replicator")
    new.record([6], size=500_000)
    until(lambda: new.copied([*range(5), 6]))
    new.check_replica([*range(5), 6])
    for name, data in bundles.items():  # none of the lost store's was written over
        assert (old.replica / "records" / name).read_bytes() == data

    third = heir(old, make_house, "third")
    code, progress, said = restore(old, third)
    assert (code, said) == (0, "")
    assert progress[-1]["objects"] == 6
    assert all(third.said(number, size=500_000) for number in [*range(5), 6])


@pytest.mark.parametrize(
    ("target", "code", "fault"),
    [
        ("nowhere", 2, "no target is named 'nowhere'. Configured: siteb"),
        ("siteb", 74, "store.json"),
    ],
)
def test_a_wrong_place_is_said(house, target: str, code: int, fault: str) -> None:
    config = house.etc / "replicator.toml"
    command = [sys.executable, "-m", "replicator", "restore", "--config", config]
    done = subprocess.run(
        [*command, "--target", target], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code
    assert fault in done.stderr.replace("\\'", "'")
    assert "Traceback" not in done.stderr
