"""An erasure reaches every copy, is confirmed with a signature, and no restore undoes it."""

import msgspec
import pytest

from replicator import bundle, layout
from replicator.replica import Replica
from replicator.targets.directory import DirectoryTarget
from spanvault import certificate
from spanvault.client import RequestFailed
from spanvault.keys import keyfile
from spanvault.messages import Change, Erasure, RekeyedPage, Search
from storaged.keys import keyring
from storaged.keys.keyring import Keyring
from tests.replicator.test_restore import heir, restore
from tests.support.ingest import identity

GONE, KEPT = 1, 2


def test_erasure_reaches_the_replica_and_stays_after_a_restore(make_house, until) -> None:
    house = make_house("old")
    house.start()
    house.record([GONE, KEPT])
    until(lambda: house.copied([GONE, KEPT]))
    old_page = (house.replica / "keys/page-000000.0").read_bytes()
    with house.client() as client:
        house.appliance.stop("replicator")
        client.erase([identity(GONE)], "asked for", unfinished=False)
        until(lambda: next(client.erasures()).rows_gone_ns)
        assert next(client.erasures()).pending == ["siteb"]
        house.start("replicator")
        until(lambda: not next(client.erasures()).pending)
        facts, _ = certificate.parse(client.certificate(identity(GONE)))
    (copy,) = facts["copies"]
    assert (copy["target"], copy["grade"], facts["pending"]) == (
        "siteb", certificate.OVERWRITTEN, [],
    )  # fmt: skip
    assert copy["signature"]
    # Once more for the key of its day: the replica is told of that as of the call's own key.
    names = sorted(path.name for path in (house.replica / "keys").iterdir())
    assert names == ["page-000000.2", "root"]
    assert not house.copy(GONE).exists()
    for path in house.replica.rglob("*"):
        assert not path.is_file() or old_page[28:] not in path.read_bytes()
    house.check_replica([KEPT])
    for name in ("replicator", "storaged"):
        assert house.appliance.stop(name) == 0
    # As if the target had kept the object: its key is gone, and the bundles say that it was erased.
    house.copy(GONE).write_bytes(b"left over")
    new = heir(house, make_house)
    code, progress, said = restore(house, new)
    assert (code, said) == (0, "")
    assert progress[-1]["objects"] == 1
    assert new.said(KEPT)
    with new.client() as client:
        assert [call.id for call in client.search(Search())] == [identity(KEPT)]
        with pytest.raises(RequestFailed) as failure:
            client.get(identity(GONE))
        assert failure.value.code == "erased"
        again, _ = certificate.parse(client.certificate(identity(GONE)))
    assert again["sha256"] == facts["sha256"]


def test_page_of_the_feed_that_ends_before_the_root_puts_the_erasure_off(tmp_path) -> None:
    private = tmp_path / "unlock.key"
    keyring.create(tmp_path / "keys", bytes(16), [keyfile.create_private(private)])
    replica = Replica(DirectoryTarget(tmp_path / "replica"))
    replica.claim("store", first=True)
    ring = Keyring(tmp_path / "keys", keyfile.load(private))
    ring.take(lambda: 0, lambda _: None)
    for name in ring.names():
        replica.put_keys(Change(1, "keys", name=name, data=(tmp_path / "keys" / name).read_bytes()))
    erasure = Erasure(
        bytes(16), 0, "", "", [], [RekeyedPage("base", 0, 0, 1)], {"base": ring.drop([0]).epoch}
    )
    assert not replica.erase(erasure)
    assert replica.target.exists("keys/page-000000.0")
    for name in ring.names():
        replica.put_keys(Change(2, "keys", name=name, data=(tmp_path / "keys" / name).read_bytes()))
    assert replica.erase(erasure)
    assert not replica.target.exists("keys/page-000000.0")
    assert replica.target.exists("keys/page-000000.1")


def test_bundle_carries_an_erasure_whole() -> None:
    data = msgspec.msgpack.encode(Erasure(bytes(16), 1, "operator/alice", "asked for", []))
    (back,) = bundle.parse(bundle.serialize([Change(1, "erase", bytes(16), data=data)]))
    assert back.data == data


def test_epoch_of_what_is_no_root_is_none() -> None:
    assert layout.root_epoch(b"") == layout.root_epoch(bytes(64)) == 0
