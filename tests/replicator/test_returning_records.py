"""A call's record out of bundles: the one that opens, wherever it lies among those that do not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from replicator import returning
from replicator.replica import Replica
from replicator.source import Refused
from replicator.targets.directory import DirectoryTarget
from spanvault import messages as m
from tests.storaged.integrity.test_recordcheck import ALL, SILENT
from tests.storaged.integrity.test_recordmending import NAME, Lost
from tests.support.desk import REPLICATOR
from tests.support.vault import Parts


class AtDesk:
    """What the replicator asks, at the store's own desk, without a socket between."""

    def __init__(self, lost: Lost) -> None:
        self._lost = lost

    def give_back(self, message: m.Return, *bulk: bytes) -> None:
        reply = self._lost.ask(message, *bulk, who=REPLICATOR)
        if isinstance(reply, m.Failure):
            raise Refused(reply.error, reply.hint, reply.code)


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Lost]:
    parts = Parts(tmp_path / "store")
    made = Lost(parts)
    yield made
    made.access.close()
    parts.close()


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    made = Replica(DirectoryTarget(tmp_path / "replica"))
    made.target.prepare(create=True)
    return made


def bring_back(lost: Lost, replica: Replica) -> list[m.Mending]:
    """Flip a record's bit, have it asked back and brought. Gives what the store says of it."""
    lost.flip(SILENT)
    lost.check()
    (wanted,) = lost.wanted()
    source: Any = AtDesk(lost)
    returning.bring_back(replica, source, "siteb", wanted)
    found: list[m.Mending] = lost.ask(m.Mend([], again=False)).recordings
    return found


def damaged(change: m.Change) -> m.Change:
    """The record as a store gave it that did not know yet."""
    return msgspec.structs.replace(change, data=change.data[:-1] + bytes([change.data[-1] ^ 1]))


def at(change: m.Change, position: int) -> m.Change:
    return msgspec.structs.replace(change, position=position)


def test_record_at_an_older_position_takes_the_place_of_a_damaged_one_at_the_named(lost, replica):
    sound = lost.fed[SILENT]
    replica.put_bundle([at(sound, sound.position - 1)])
    replica.put_bundle([damaged(sound)])
    assert bring_back(lost, replica) == []
    assert lost.calls == ALL


def test_all_bundles_that_have_the_named_position_are_tried(lost, replica):
    sound = lost.fed[SILENT]
    replica.put_bundle([damaged(sound)])
    replica.put_bundle([sound, at(sound, sound.position + 1)])
    assert bring_back(lost, replica) == []
    assert lost.calls == ALL


def test_target_with_none_that_opens_says_so_once(lost, replica, caplog):
    sound = lost.fed[SILENT]
    replica.put_bundle([damaged(sound), at(damaged(sound), sound.position + 1)])
    other = next(change for change in lost.fed.values() if change.id != SILENT)
    replica.put_bundle([other])
    (found,) = bring_back(lost, replica)
    assert (found.id, found.state) == (NAME, "hopeless")
    said = [one.msg for one in caplog.records]
    assert said.count("A target cannot bring back what is damaged") == 1
