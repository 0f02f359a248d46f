"""What is damaged in the store comes back from a target, with real daemons; kills on the way."""

import json
import time

import pytest

from replicator import bundle
from spanvault.messages import Verify
from storaged.index.environment import Index
from tests.support.ingest import Ingest, call, identity

CALLS = range(4)
SIZE = 400_000  # a second: some parts each


@pytest.fixture
def house(make_house, until):
    """A house whose calls lie at two targets."""
    made = make_house("house")
    made.target(siteb=made.replica, sitec=made.replica.with_name("sitec"))
    made.replica.with_name("sitec").mkdir()
    made.start()
    made.record(CALLS, size=SIZE)
    until(lambda: made.copied(CALLS, "siteb") and made.copied(CALLS, "sitec"))
    return made


def flip(path, at: int = 4000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def repair(house, *arguments: str):
    """The command's exit code, its documents by id, and what it said."""
    done = house.appliance.spanvault("repair", *arguments, "--json", "--wait", "20")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {one["id"]: one for one in found}, done.stderr


def bundled(place) -> set[bytes]:
    """Ids of all that the bundles at a target tell of."""
    files = (path.read_bytes() for path in place.glob("records/*.bundle"))
    return {change.id for each in files for change in bundle.parse(each)}


def test_flipped_cut_and_deleted_recordings_are_whole_again(house, until) -> None:
    sound = {number: house.original(number).read_bytes() for number in CALLS}
    paths = {number: house.original(number) for number in CALLS}
    flip(paths[0])
    paths[1].write_bytes(sound[1][:1000])
    paths[2].unlink()
    code, found, said = repair(house, *(identity(number).hex() for number in CALLS))
    assert (code, {one["state"] for one in found.values()}) == (0, {"whole"}), said
    assert {number: paths[number].read_bytes() for number in CALLS} == sound
    assert all(house.said(number, size=SIZE) for number in CALLS)
    with house.client() as client:
        fields = client.status().fields
    assert (fields["repair"]["mended"], fields["scrub"]["damaged"]) == (3, 0)
    assert "A damaged recording was repaired" in house.appliance.log("storaged", 60)


def test_damaged_copy_is_named_passed_over_and_made_sound(house, until) -> None:
    sound = house.original(0).read_bytes()
    flip(house.copy(0))  # at siteb
    house.copy(1).unlink()
    for number in (0, 1):
        flip(house.original(number))
    code, _, said = repair(house, identity(0).hex(), identity(1).hex())
    assert code == 0, said
    assert house.original(0).read_bytes() == sound
    log = house.appliance.log("storaged", 60)
    if "its copy is damaged: its SHA-256 is another" in log:  # siteb was the first to be asked
        until(lambda: house.copy(0).read_bytes() == sound)


def test_what_no_target_has_is_said_by_target(house) -> None:
    for place in (house.replica, house.replica.with_name("sitec")):
        flip(house.copy(3, place))
    flip(house.original(3))
    code, found, said = repair(house, identity(3).hex())
    assert code == 1
    one = found[identity(3).hex()]
    damaged = "its copy is damaged: its SHA-256 is another"
    assert (one["state"], one["targets"]) == ("hopeless", {"siteb": damaged, "sitec": damaged})
    assert "cannot be repaired" in said
    with house.client() as client:
        assert "CANNOT BE REPAIRED" in client.status().state


def test_killed_daemons_leave_the_damaged_or_the_whole_recording(house) -> None:
    """Whoever is killed whenever: the object is one of the two, and becomes whole."""
    path = house.original(2)
    sound = path.read_bytes()
    flip(path)
    damaged = path.read_bytes()
    for turn in range(6):
        with house.client() as client:
            client.request(Verify(identity(2)), object)  # finds it, and has it asked back
        time.sleep(0.03 * turn)
        for name in ("storaged", "replicator") if turn % 2 else ("replicator", "storaged"):
            house.appliance.kill(name)
        assert path.read_bytes() in (sound, damaged)
        if path.read_bytes() == sound:
            path.write_bytes(damaged)
        house.start()
    code, _, said = repair(house, identity(2).hex())
    assert code == 0, said
    assert path.read_bytes() == sound
    assert house.said(2, size=SIZE)


def test_key_page_that_was_damaged_comes_back_by_itself_and_calls_are_heard(house, until) -> None:
    page = house.store / "keys/page-000000.0"
    sound = page.read_bytes()
    for name in ("storaged", "replicator"):
        house.appliance.kill(name)
    flip(page)
    house.start()  # key files are read at a start
    until(lambda: page.read_bytes() == sound)
    assert all(house.said(number, size=SIZE) for number in CALLS)
    assert (house.replica / "keys/page-000000.0").read_bytes() == sound
    with house.client() as client:
        assert "from site" in client.status().fields["repair"]["last"]


def test_root_that_was_damaged_while_nothing_ran_comes_back_and_opens(house, until) -> None:
    root = house.store / "keys/root"
    sound = root.read_bytes()
    house.appliance.kill("storaged")
    house.appliance.start("storaged")  # or a minute later: then it is known which root is whole
    for name in ("storaged", "replicator"):
        house.appliance.kill(name)
    flip(root, at=200)
    house.start()
    until(lambda: root.read_bytes() == sound)
    assert (house.replica / "keys/root").read_bytes() == sound
    with house.client() as client:
        assert "whole again: unlock it, or restart storaged" in client.status().state
    house.appliance.kill("storaged")
    house.appliance.start("storaged")
    assert all(house.said(number, size=SIZE) for number in CALLS)


def test_call_record_that_lies_nowhere_else_comes_back_out_of_a_bundle(house, until) -> None:
    lost = call(9, 0)
    with Ingest(house.etc / "capture.toml") as ingest:
        ingest.send([lost])  # nothing was heard of it: no recording has its record
        ingest.settle()
    with house.client() as client:
        known = client.get(lost.id).call
    places = house.replica, house.replica.with_name("sitec")
    until(lambda: all(lost.id in bundled(place) for place in places))
    house.appliance.kill("storaged")
    for path in house.store.glob("pools/base/ledger/*.svl"):
        path.write_bytes(path.read_bytes()[:48])
    index = Index(house.store / "index")
    with index.reading() as view:
        sealed = view.get(b"record", lost.id) or b""
    index.write(lambda writing: writing.put(b"record", lost.id, sealed[:-1] + b"\0"))
    index.close()
    house.appliance.start("storaged")
    until(lambda: repair(house, lost.id.hex())[0] == 0)  # once the targets ask again
    with house.client() as client:
        assert client.get(lost.id).call == known
        assert "record of" in client.status().fields["repair"]["last"]
