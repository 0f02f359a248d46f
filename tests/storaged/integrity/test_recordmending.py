"""A call record that neither its recording nor the ledger has comes back out of a bundle."""

from collections.abc import Iterator

import pytest

from spanvault import messages as m
from tests.storaged.integrity.test_recordcheck import ALL, SILENT, Records
from tests.support.checked import Checked
from tests.support.desk import REPLICATOR
from tests.support.vault import Parts, make_call

NAME = b"records/" + SILENT.hex().encode()


class Lost(Records):
    """A desk whose ledger is gone, and a target that has the records as it was fed them."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.fed = {change.id: change for change in self.ask(m.Feed(0)).changes
                    if change.kind == "record"}  # fmt: skip
        self.sound = self.row(SILENT)
        self.lose_ledger()
        self.desk._mender._clock_s = lambda: self.now_s
        self.now_s = 0.0

    def wanted(self) -> list[m.Change]:
        self.now_s += 2
        found: list[m.Change] = self.ask(m.Feed(1 << 40, target="siteb"), who=REPLICATOR).wanted
        return found

    def bring(self, change: m.Change, sealed: bytes) -> m.Message:
        reply: m.Message = self.ask(m.Return("siteb", change), sealed, who=REPLICATOR)
        return reply


@pytest.fixture
def lost(parts: Parts) -> Iterator[Lost]:
    made = Lost(parts)
    yield made
    made.access.close()


def test_damaged_record_comes_back_as_it_was_fed(lost, caplog):
    assert lost.wanted() == []
    lost.flip(SILENT)
    assert SILENT.hex() in lost.check().faults
    (change,) = lost.wanted()
    assert (change.kind, change.id, change.position) == (
        "record", SILENT, lost.fed[SILENT].position)  # fmt: skip
    assert lost.bring(change, lost.fed[SILENT].data) == m.Done()
    assert lost.row(SILENT) == lost.sound
    assert lost.calls == ALL
    assert lost.wanted() == []
    (said,) = [one for one in caplog.records if one.msg == "A damaged call record was brought back"]
    assert SILENT.hex() == said.RECORDING_ID
    assert said.TARGET == "siteb"
    assert any(line.get("result") == "replacing" and line["id"] == SILENT.hex()
               for line in lost.lines)  # fmt: skip


def test_record_that_is_missing_comes_back_too(lost):
    lost.parts.index.write(lambda writing: writing.delete(b"record", SILENT))
    assert lost.check().faults == {SILENT.hex(): "call record is missing"}
    (change,) = lost.wanted()
    assert lost.bring(change, lost.fed[SILENT].data) == m.Done()
    assert lost.calls == ALL


@pytest.mark.parametrize("spoil", ["flipped", "cut", "empty", "another's", "older"])
def test_what_is_not_that_record_is_refused_and_told_by_target(lost, spoil):
    copy = lost.fed[SILENT].data
    if spoil == "older":
        lost.parts.commit(calls=[make_call(2, outcome="busy", answered_ns=None, revision=1)])
        lost.lose_ledger()
    damaged = lost.flip(SILENT)
    lost.check()
    (change,) = lost.wanted()
    what = {"flipped": copy[:-1] + bytes((copy[-1] ^ 1,)), "cut": copy[:20], "empty": b"",
            "another's": next(one.data for key, one in lost.fed.items() if key != SILENT),
            "older": copy}  # fmt: skip
    assert lost.bring(change, what[spoil]).code == "corrupt"
    assert lost.row(SILENT) == damaged
    (one,) = lost.ask(m.Mend([], again=False)).recordings
    assert one.id == NAME
    assert "its copy does not open" in one.told["siteb"] if one.told else one.state == "hopeless"


def test_record_that_came_or_went_meanwhile_is_not_replaced(lost):
    lost.flip(SILENT)
    lost.check()
    (change,) = lost.wanted()
    newer = make_call(2, outcome="busy", answered_ns=None, revision=5)
    lost.parts.commit(calls=[newer])
    assert lost.bring(change, lost.fed[SILENT].data).code in ("not_found", "corrupt")
    assert lost.ask(m.Get(SILENT)).call.revision == 5
    assert lost.wanted() == []
    assert Checked(lost.parts).fields["damaged_records"] == []


def test_locked_pool_is_not_asked_for_and_takes_nothing(lost):
    lost.flip(SILENT)
    lost.check()
    (change,) = lost.wanted()
    lost.parts.vaults.lock("base")
    assert lost.bring(change, lost.fed[SILENT].data).code == "locked"
    assert lost.wanted() == []


def test_damaged_record_is_not_fed_to_a_replica_whose_copy_is_sound(lost):
    lost.flip(SILENT)
    lost.check()
    assert SILENT not in {change.id for change in lost.ask(m.Feed(0)).changes
                          if change.kind == "record"}  # fmt: skip


def test_damage_that_nobody_has_read_yet_is_not_fed_either(lost):
    """Else a bundle would have it, as if it was what the capture sent."""
    lost.flip(SILENT)
    fed = {change.id for change in lost.ask(m.Feed(0)).changes if change.kind == "record"}
    assert fed == set(ALL) - {SILENT}
    assert Checked(lost.parts).fields["damaged_records"] == [SILENT.hex()]
    (change,) = lost.wanted()
    assert lost.bring(change, lost.fed[SILENT].data) == m.Done()
    assert SILENT in {change.id for change in lost.ask(m.Feed(0)).changes}


def test_replica_is_fed_a_record_that_is_sound_again_by_itself(lost):
    """It was passed over while it was damaged: what is not announced again never gets there."""
    lost.flip(SILENT)
    lost.check()
    position = lost.ask(m.Feed(0)).position
    lost.put(SILENT, lost.sound)
    lost.check()
    (change,) = lost.ask(m.Feed(position)).changes
    assert (change.kind, change.id, change.data) == ("record", SILENT, lost.sound)
    lost.check()
    assert lost.ask(m.Feed(change.position)).changes == []


def test_rolling_check_tells_of_it_once_and_forgets_what_is_whole(lost, caplog):
    lost.flip(SILENT)
    checked = Checked(lost.parts)
    assert checked.round()["damaged_records"] == [SILENT.hex()]
    assert checked.round()["damaged_records"] == [SILENT.hex()]
    assert [one.msg for one in caplog.records].count("A call record is damaged") == 1
    lost.put(SILENT, lost.sound)
    assert checked.round()["damaged_records"] == []


def test_repair_of_one_call_checks_its_record_first(lost):
    lost.flip(SILENT)
    states = {one.id: one.state for one in lost.ask(m.Mend([SILENT])).recordings}
    assert set(states) == {SILENT, NAME}
    assert states[NAME] != "whole"


def test_erased_call_is_forgotten(lost):
    lost.flip(SILENT)
    lost.check()
    assert lost.ask(m.Erase([SILENT], "asked for")).erased == 1
    assert lost.wanted() == []
