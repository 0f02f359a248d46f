"""Merging bundles: fewer files, the same changes, nothing lost by a kill in between."""

from pathlib import Path

import pytest

from replicator import merging
from replicator.inventory import in_order
from replicator.layout import RECORDS
from replicator.replica import Replica
from replicator.targets import TargetError
from replicator.targets.directory import DirectoryTarget
from spanvault.messages import Change


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    made = Replica(DirectoryTarget(tmp_path / "replica"))
    made.target.prepare(create=True)
    return made


def records(first: int, last: int, size: int = 100) -> list[Change]:
    return [
        Change(position, "record", id=position.to_bytes(16, "big"), data=bytes(size))
        for position in range(first, last + 1)
    ]


def positions(replica: Replica) -> list[int]:
    bundles = [(each.positions, each.name) for each in replica.bundles()]
    return [change.position for change in in_order(bundles, replica.load_bundle)]


def test_many_small_ones_become_one(replica: Replica) -> None:
    for first in range(1, 301, 3):
        replica.put_bundle(records(first, first + 2))
    merging.merge(replica)
    (merged,) = replica.bundles()
    assert merged.positions == (1, 300)
    assert positions(replica) == list(range(1, 301))


def test_large_ones_are_left_alone(replica: Replica) -> None:
    for first in (1, 11, 21, 31):
        replica.put_bundle(records(first, first + 9, size=150_000))  # 1.5 MB each
    replica.put_bundle(records(41, 60, size=150_000))
    merging.merge(replica)
    assert [each.positions for each in replica.bundles()] == [(1, 20), (21, 40), (41, 60)]
    merging.merge(replica)  # and no second time
    assert [each.positions for each in replica.bundles()] == [(1, 20), (21, 40), (41, 60)]


def test_overlapping_ones_give_each_change_once(replica: Replica) -> None:
    for span in ((1, 9), (3, 5), (4, 12)):
        replica.put_bundle(records(*span))
    merging.merge(replica)
    (merged,) = replica.bundles()
    assert [change.position for change in replica.load_bundle(merged.name)] == list(range(1, 13))


def test_a_damaged_one_stays_and_is_not_lost_sight_of(replica: Replica, tmp_path: Path) -> None:
    for first in (1, 2, 3):
        replica.put_bundle(records(first, first))
    damaged = tmp_path / "replica" / replica.bundles()[1].name
    damaged.write_bytes(b"x" * 100)
    merging.merge(replica)
    assert [each.positions for each in replica.bundles()] == [(1, 3), (2, 2)]
    assert damaged.read_bytes() == b"x" * 100


def test_a_kill_between_writing_and_removing_loses_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (1, 2, 3):
        replica.put_bundle(records(first, first))

    def away(name: str) -> None:
        raise TargetError("remove", name, "away", "mount it")

    with monkeypatch.context() as patch:
        patch.setattr(replica.target, "remove", away)
        with pytest.raises(TargetError):
            merging.merge(replica)
    assert len(list(replica.target.list(RECORDS))) == 4
    assert positions(replica) == [1, 2, 3]
    merging.merge(replica)
    assert [each.positions for each in replica.bundles()] == [(1, 3)]
