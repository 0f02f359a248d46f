"""The replicator as a process against the real storaged: it copies, and survives its world."""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replicator import layout
from spanvault.messages import Feed, FeedReply
from tests.support.fusedisk import WORKS, WRITES_FAIL, Disk
from tests.support.ingest import WORDS, Ingest, call, caller, identity, media
from tests.support.smalldisk import close_to_writes, empty, fill, open_to_writes


def test_every_sealed_recording_arrives_and_is_receipted(house, until) -> None:
    house.start()
    house.record(range(5))
    until(lambda: house.copied(range(5)))
    house.check_replica(range(5))
    for number in range(5):
        (receipt,) = house.get(number).receipts
        assert (receipt.target, receipt.size) == ("siteb", house.original(number).stat().st_size)
        assert receipt.sha256 == house.receipts()[identity(number)]["sha256"]
    assert json.loads((house.replica / layout.STORE).read_text())["layout"] == 1
    stored = {path.name: path.read_bytes() for path in (house.store / "keys").iterdir()}
    copied = {path.name: path.read_bytes() for path in (house.replica / "keys").iterdir()}
    assert copied == stored


def test_nothing_of_it_is_in_plain_text(house, until) -> None:
    house.start()
    house.record(range(3))
    until(lambda: house.copied(range(3)))
    secrets = [WORDS, b"secret-call", *(caller(number).encode() for number in range(3))]
    for top in (house.replica, house.state, house.appliance.logs):
        for path in top.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert [secret for secret in secrets if secret in data] == []


def test_status_tells_lag_and_targets(house, until) -> None:
    house.start()
    house.record(range(2))
    until(lambda: house.copied(range(2)))
    until(lambda: house.status()["state"] == "siteb: up to date, 2 copied")
    target = house.reported("siteb")
    assert target["position"] == house.position()
    assert target["changes_behind"] == 0
    assert target["fault"] is None
    assert house.appliance.stop("replicator") == 0


def test_audio_that_came_late_is_copied_again(house, until) -> None:
    house.start()
    house.record([1])
    until(lambda: house.copied([1]))
    first = house.receipts()[identity(1)]["sha256"]
    with Ingest(house.etc / "capture.toml") as ingest:
        ingest.send([], media(1, [3, 4], 8000))
        ingest.send([call(1, 5, revision=2)])
        ingest.settle()
    until(lambda: house.receipts()[identity(1)]["sha256"] != first)
    house.check_replica([1])
    assert house.said(1, seconds=5)


def test_a_target_that_is_missing_holds_up_no_other(house, until, tmp_path: Path) -> None:
    away = tmp_path / "not mounted" / "sitec"
    house.target(siteb=house.replica, sitec=away)
    house.start()
    house.record(range(3))
    until(lambda: house.copied(range(3)))
    until(lambda: "No such file" in house.status()["state"])
    assert "mounted; copying goes on by itself" in house.status()["state"]
    away.parent.mkdir()
    until(lambda: house.copied(range(3), "sitec"))
    house.check_replica(range(3), away)
    until(lambda: house.reported("sitec").get("fault", "") is None)


def test_an_empty_mount_point_is_not_taken_for_the_replica(house, until) -> None:
    house.start()
    house.record([1])
    until(lambda: house.copied([1]))
    elsewhere = house.replica.rename(house.replica.with_name("unmounted"))
    house.replica.mkdir()
    house.record([2])
    until(lambda: house.reported("siteb").get("fault"))
    assert not (house.replica / "objects").exists()
    assert not house.copied([2])
    for left in sorted(house.replica.rglob("*"), reverse=True):
        left.rmdir()
    house.replica.rmdir()
    elsewhere.rename(house.replica)
    until(lambda: house.copied([2]))
    house.check_replica([1, 2])


@pytest.mark.root
def test_a_full_target_waits_for_space_and_goes_on(house, until, small_disk: Path) -> None:
    house.target(siteb=house.replica, small=small_disk)
    house.start()
    house.record(range(4), seconds=5, size=100_000)
    until(lambda: house.copied(range(4)))
    until(lambda: "No space left on device" in house.status()["state"])
    assert "Free space there or enlarge it" in house.status()["state"]
    assert house.reported("siteb").get("fault", "") is None
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    until(lambda: house.copied(range(4), "small"))
    house.check_replica(range(4), small_disk)


def test_a_recording_damaged_in_the_store_is_named_and_the_rest_copied(house, until) -> None:
    house.start("storaged")
    house.record(range(3))
    path = house.original(1)
    sound = path.read_bytes()
    path.write_bytes(sound[:500] + bytes([sound[500] ^ 1]) + sound[501:])
    house.start("replicator")
    until(lambda: house.copied([0, 2]))
    until(lambda: house.reported("siteb").get("set_aside") == 1)
    assert f"RECORDING_ID={identity(1).hex()}" in house.appliance.log("replicator")
    assert not house.copy(1).exists()
    assert not house.copied([1])
    path.write_bytes(sound)  # repaired
    until(lambda: house.copied([1]))
    house.check_replica(range(3))
    until(lambda: house.reported("siteb").get("set_aside") == 0)


def test_a_recording_that_is_gone_from_the_store_holds_up_nothing(house, until) -> None:
    house.start("storaged")
    house.record(range(3))
    house.original(1).unlink()
    house.start("replicator")
    until(lambda: house.copied([0, 2]))
    until(lambda: house.reported("siteb").get("set_aside") == 1)


def test_another_stores_replica_is_refused_and_left_alone(house, until) -> None:
    label = house.replica / layout.STORE
    label.write_text('{"layout": 1, "store_id": "00000000000000000000000000000000"}')
    house.start()
    house.record([1])
    until(lambda: house.reported("siteb").get("fault"))
    assert "it is the replica of store 00000000000000000000000000000000" in house.status()["state"]
    assert "Give each store its own place" in house.status()["state"]
    assert {path.name for path in house.replica.iterdir()} == {".part", layout.STORE}


def test_storaged_may_come_later_and_go_away(house, until) -> None:
    house.appliance.start("replicator")
    until(lambda: "storaged cannot be asked" in house.appliance.log("replicator"), 60)
    house.start("storaged")
    house.record([1])
    until(lambda: house.copied([1]), 60)
    house.appliance.kill("storaged")
    house.start("storaged")
    house.record([2])
    until(lambda: house.copied([2]), 60)
    house.check_replica([1, 2])


def kill_while_copying(house, pause_s: float) -> bool:
    """Start the replicator, let it begin to copy, kill -9. Whether a file was half written."""
    on_its_way = house.replica / ".part"
    house.appliance.start("replicator", wait=False)
    end = time.monotonic() + 10
    while time.monotonic() < end and not (on_its_way.is_dir() and any(on_its_way.iterdir())):
        time.sleep(0.001)
    time.sleep(pause_s)
    house.appliance.kill("replicator")
    return on_its_way.is_dir() and any(on_its_way.iterdir())


def test_killed_again_and_again_while_copying(house, until) -> None:
    """kill -9 at random moments: the position is never ahead of what is there; all arrives."""
    chance = random.Random(5)
    house.start("storaged")
    torn, positions, calls = 0, [], range(48)
    for turn in range(12):
        house.record(range(4 * turn, 4 * turn + 4), seconds=3, size=700_000)  # 2 MB: several parts
        torn += kill_while_copying(house, chance.random() * 0.03)
        positions.append(house.position())
        with house.client() as client:
            passed = feed_objects(client, positions[-1])
        assert all((house.replica / layout.object_name(one)).exists() for one in passed)
    assert positions == sorted(positions)
    assert torn >= 3  # or the kills came at the wrong moments, and this proves little

    house.start("replicator")
    until(lambda: house.copied(calls), 120)
    house.check_replica(calls)
    assert set(house.receipts()) == {identity(number) for number in calls}
    for number in calls:
        assert house.receipts()[identity(number)]["size"] == house.copy(number).stat().st_size
    assert house.appliance.stop("replicator") == 0
    assert list((house.replica / ".part").iterdir()) == []


def feed_objects(client, position: int) -> list[bytes]:
    """The recordings that the feed names up to a position."""
    reply, _ = client.request(Feed(0, 5000), FeedReply)
    return [c.id for c in reply.changes if c.kind == "object" and c.position <= position]


def test_a_place_that_hangs_holds_up_neither_the_others_nor_the_end(
    house, until, tmp_path: Path
) -> None:
    dead = tmp_path / "dead share"
    dead.mkdir()
    os.mkfifo(dead / layout.STORE)  # whoever opens it waits for ever
    house.target(siteb=house.replica, dead=dead)
    house.start()
    house.record(range(3))
    until(lambda: house.copied(range(3)))
    began_s = time.monotonic()
    assert house.appliance.stop("replicator") == 0
    assert time.monotonic() - began_s < 15


def test_a_stop_while_copying_is_quick_and_clean(house, until) -> None:
    on_its_way = house.replica / ".part"
    house.start("storaged")
    house.record(range(30), seconds=3, size=700_000)
    house.appliance.start("replicator")
    until(lambda: on_its_way.is_dir() and house.receipts())
    began_s = time.monotonic()
    assert house.appliance.stop("replicator") == 0
    assert time.monotonic() - began_s < 5
    assert list(on_its_way.iterdir()) == []
    house.start("replicator")
    until(lambda: house.copied(range(30)), 60)
    house.check_replica(range(30))


def told_of(house, place: Path) -> str:
    """What the store's status says of a state_dir, its disk, cause and remedy."""
    (text,) = re.findall(rf"state_dir: {place} \(disk {place}\): (.*)", house.status()["state"])
    return str(text)


@pytest.mark.root
def test_a_full_state_dir_is_named_and_survived(house, until, small_disk: Path) -> None:
    house.move_state(small_disk)
    house.start()
    house.record([1])
    until(lambda: house.copied([1]))
    fill(small_disk)
    house.record(range(2, 30))
    until(lambda: "state_dir: " in house.status()["state"])
    told = told_of(house, small_disk)
    assert ("No space left on device" in told, "Free space there" in told) == (True, True)
    assert house.appliance.processes["replicator"].poll() is None
    empty(small_disk)
    until(lambda: house.copied(range(2, 30)))
    house.check_replica(range(1, 30))


@pytest.mark.root
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")
@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices")
def test_a_state_dir_whose_disk_fails_is_named_and_goes_on_once_it_is_mended(
    house, until, tmp_path: Path
) -> None:
    """EIO, then read-only as ext4 makes itself. A start while it is so is tried again by systemd:
    it ends with 74, not with the 78 of settings that cannot work.
    """
    place = tmp_path / "disk"
    with Disk(tmp_path / "served", 32, place) as disk:
        house.move_state(place)
        house.start()
        house.record([1])
        until(lambda: house.copied([1]))
        disk.mood(WRITES_FAIL)
        house.record(range(2, 10))
        until(lambda: "state_dir: " in house.status()["state"])
        told = told_of(house, place)
        assert "Input/output error, for" in told or "Read-only file system, for" in told
        house.appliance.stop("replicator")
        disk.unmount()
        disk.mood(WORKS)
        disk.mount()
        close_to_writes(place)
        done = run("--config", house.etc / "replicator.toml")
        assert f"{place} (disk {place}): Read-only file system. It is read-only" in done.stderr
        assert (done.returncode, "Traceback" in done.stderr) == (74, False)
        open_to_writes(place)
        house.appliance.start("replicator")
        until(lambda: house.copied(range(1, 10)))
        house.check_replica(range(1, 10))
        house.appliance.stop("replicator")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "replicator", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("retry = 3\n", "unknown key 'retry'"),
        ('[[targets]]\nname = "a"\nkind = "tape"\npath = "/x"\n', "kind 'tape' is unknown"),
        ('[[targets]]\nname = "a/b"\nkind = "directory"\npath = "/x"\n', "'a/b' is not usable"),
        (2 * '[[targets]]\nname = "a"\nkind = "directory"\npath = "/x"\n', "'a' is not usable"),
        ('certificate = "/none/r.key_secret"\n', "no certificate can be read"),
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path: Path, text: str, fault: str) -> None:
    config = tmp_path / "replicator.toml"
    config.write_text(f'state_dir = "{tmp_path / "state"}"\n' * ("targets" not in text) + text)
    done = run("--config", config)
    assert done.returncode == 78
    assert fault in done.stderr.replace("\\'", "'")
    assert "Traceback" not in done.stderr


def test_two_replicators_do_not_share_a_state_dir(house) -> None:
    house.start()
    done = run("--config", house.etc / "replicator.toml")
    assert done.returncode == 78
    assert "another replicator uses this state_dir" in done.stderr
