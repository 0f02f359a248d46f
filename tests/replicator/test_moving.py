"""A call that is moved up: its lower copy goes at the target too, and the new one restores."""

import msgspec
import pytest

from replicator.inventory import Inventory
from spanvault import certificate
from spanvault.messages import Change, ErasedRecording, Erasure, Search, Verify
from tests.replicator.test_restore import heir, restore
from tests.support.ingest import caller, identity

UP, KEPT = 1, 2


@pytest.fixture
def house(make_house):
    made = make_house("old")
    with (made.etc / "storaged.toml").open("a") as file:
        file.write("[pools.core]\n")
    made.start()
    return made


@pytest.mark.parametrize("away", [False, True], ids=["target there", "target away"])
def test_move_reaches_the_replica_and_survives_a_restore(house, make_house, until, away) -> None:
    house.record([UP, KEPT])
    until(lambda: house.copied([UP, KEPT]))
    old = house.copy(UP).read_bytes()
    if away:
        house.appliance.stop("replicator")
    done = house.appliance.spanvault("move", identity(UP).hex(), "core", "--reason", "it matters")
    assert done.returncode == 0, done.stderr
    assert "1 calls moved to core" in done.stderr
    assert house.get(UP).pool == "core"
    until(lambda: house.get(UP).sealed)
    assert house.said(UP)
    if away:
        house.start("replicator")
    with house.client() as client:
        until(lambda: not next(client.erasures()).pending)
        facts, _ = certificate.parse(client.certificate(identity(UP)))
    assert (facts["pool"], facts["moved_to"], facts["pending"]) == ("base", "core", [])
    assert facts["copies"][0]["signature"]
    until(lambda: house.copied([UP, KEPT]))
    house.check_replica([UP, KEPT])
    assert house.copy(UP).read_bytes() != old
    assert not (house.replica / "keys/page-000000.0").exists()
    for name in ("replicator", "storaged"):
        assert house.appliance.stop(name) == 0

    new = heir(house, make_house)
    code, progress, said = restore(house, new)
    assert (code, said) == (0, "")
    assert progress[-1]["objects"] == 2
    assert new.said(UP)
    assert new.said(KEPT)
    assert new.get(UP).pool == "core"
    with new.client() as client:
        assert {call.id for call in client.search(Search())} == {identity(UP), identity(KEPT)}
        assert [call.id for call in client.search(Search(number=caller(UP)))] == [identity(UP)]
        assert client.request(Verify(identity(UP)), object)[0].faults == []
        again, _ = certificate.parse(client.certificate(identity(UP)))
    assert again["moved_to"] == "core"


def test_bundle_entries_of_the_lower_copy_do_not_count_wherever_they_lie() -> None:
    one = bytes(16)
    moved = Erasure(
        bytes(16), 0, "", "", [ErasedRecording(one, "base", [0], 5, "aa")], moved_to="core"
    )
    lower = Change(1, "object", one, "base", size=5, sha256="aa")
    upper = Change(3, "object", one, "core", size=6, sha256="bb")
    erase = Change(2, "erase", bytes(16), data=msgspec.msgpack.encode(moved))
    for order in ([lower, erase, upper], [lower, upper, erase], [erase, lower, upper]):
        inventory = Inventory()
        for change in order:
            inventory.add(change)
        assert [version.sha256 for version in inventory.objects[one]] == ["bb"]
        assert inventory.gone(Change(9, "record", one, "base"))
        assert not inventory.gone(Change(9, "record", one, "core"))
