"""Call records in the index: a flipped bit is found, and the record brought back from where it lies
a second time; never an older one, never one that was erased."""

import logging
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from spanvault import messages as m
from storaged.index.rows import OBJECT
from storaged.integrity.recordcheck import RecordCheck
from storaged.pools import ledgerfile
from tests.support.checked import Checked
from tests.support.desk import Counter
from tests.support.vault import Parts, call_id, make_call

SOUND, SILENT, LATER, OPEN = (call_id(number) for number in range(1, 5))
ALL = {
    SOUND: make_call(1),
    SILENT: make_call(2, outcome="busy", answered_ns=None),
    LATER: make_call(3, revision=1, end_reason="486"),
    OPEN: make_call(4, final=False),
}


class Records(Counter):
    """A desk whose store has calls with records in an object, in the ledger, or in both."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        parts.commit([(SOUND, 1, 0), (LATER, 1, 0), (OPEN, 1, 0)],
                     [ALL[SOUND], ALL[SILENT], make_call(3), ALL[OPEN]])  # fmt: skip
        parts.commit(calls=[ALL[LATER]])

    def row(self, call: bytes) -> bytes:
        with self.parts.index.reading() as view:
            found = view.get(b"record", call)
        assert found is not None
        return found

    def put(self, call: bytes, sealed: bytes) -> None:
        self.parts.index.write(lambda writing: writing.put(b"record", call, sealed))

    def flip(self, call: bytes, at: int = -5) -> bytes:
        """Flip a bit of a record's row; gives what is there since."""
        damaged = bytearray(self.row(call))
        damaged[at] ^= 1
        self.put(call, bytes(damaged))
        return bytes(damaged)

    def lose_ledger(self) -> None:
        for path in self.parts.pool.ledger.files():
            path.write_bytes(path.read_bytes()[:48])

    def check(self) -> m.CheckReply:
        reply = self.ask(m.Check("records"))
        assert isinstance(reply, m.CheckReply), reply
        return reply

    @property
    def calls(self) -> dict[bytes, m.Call]:
        return {call.id: call for call in self.ask(m.Search()).calls}


@pytest.fixture
def records(parts: Parts) -> Iterator[Records]:
    made = Records(parts)
    yield made
    made.access.close()


def test_whole_records_are_opened_and_left(records):
    rows = {call: records.row(call) for call in ALL}
    assert records.check() == m.CheckReply(4)
    assert rows == {call: records.row(call) for call in ALL}


@pytest.mark.parametrize("call", ALL, ids=["sound", "silent", "later", "open"])
@pytest.mark.parametrize("at", [0, 4, 8, 15, 16, 40, -1], ids=str)
def test_flipped_bit_of_any_record_is_found_and_mended(records, call, at):
    """In magic, revision, key id, nonce, text, tag."""
    records.flip(call, at)
    assert records.calls == {one: ALL[one] for one in ALL if one != call}
    assert records.ask(m.Get(call)).code == "corrupt"
    assert records.check() == m.CheckReply(4, mended=[call.hex()])
    assert records.calls == ALL
    assert records.ask(m.Get(call)).call == ALL[call]
    assert records.check() == m.CheckReply(4)


def test_rolling_check_mends_and_tells(records, caplog):
    records.flip(SILENT)
    records.flip(SOUND)
    checked = Checked(records.parts)
    fields = checked.round()
    assert (fields["mended_records"], fields["damaged_records"]) == (2, [])
    assert records.calls == ALL
    said = [one for one in caplog.records if one.msg == "A damaged call record was brought back"]
    assert {one.RECORDING_ID for one in said} == {SILENT.hex(), SOUND.hex()}


def test_record_that_lies_nowhere_else_is_told_of(records, caplog):
    records.lose_ledger()
    records.flip(SILENT)
    records.flip(SOUND)  # its recording has it
    found = records.check()
    assert found.faults == {SILENT.hex(): "call record does not authenticate"}
    assert found.mended == [SOUND.hex()]
    assert Checked(records.parts).round()["damaged_records"] == [SILENT.hex()]
    error = next(one for one in caplog.records if one.levelno == logging.ERROR
                 and one.msg == "A call record is damaged")  # fmt: skip
    assert SILENT.hex() == error.RECORDING_ID


def test_ledger_is_read_once_for_all_and_not_again_until_it_is_another(records):
    """Ten million calls make gigabytes: not for each of them, nor each hour."""
    many = [make_call(100 + number, outcome="busy", answered_ns=None) for number in range(30)]
    records.parts.commit(calls=many)
    for call in many:
        records.flip(call.id)
    check = RecordCheck(records.parts.index, records.parts.vaults, lambda: 1)
    for _ in check.checking(b"", b"\xff" * 16):
        pass
    *_, path = records.parts.pool.ledger.files()
    sound = path.read_bytes()
    path.write_bytes(sound[:48] + bytes(len(sound) - 48))
    reads: list[str] = []
    walked = ledgerfile.walk

    def walk(*of: Any) -> Any:
        reads.append(of[0].name)
        return walked(*of)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledgerfile, "walk", walk)
        for _ in range(3):
            assert last(check.searching()) == []
        assert reads == [path.name]
        records.parts.commit(calls=[make_call(3, revision=9)])  # it grows, and is the same
        assert last(check.searching()) == []
        assert reads == [path.name]
        fresh = RecordCheck(records.parts.index, records.parts.vaults, lambda: 1)
        path.write_bytes(sound + path.read_bytes()[len(sound) :])  # as from a backup
        assert sorted(last(fresh.searching())) == sorted(call.id for call in many)
        assert reads == [path.name] * 2
    assert records.check().faults == {}


def test_status_names_a_few_of_many(records):
    many = [make_call(100 + number, outcome="busy", answered_ns=None) for number in range(30)]
    records.parts.commit(calls=many)
    records.lose_ledger()
    for call in many:
        records.flip(call.id)
    fields = Checked(records.parts).round()
    assert (len(fields["damaged_records"]), fields["records_damaged"]) == (20, 30)


def last(steps: Generator[int, None, list[bytes]]) -> list[bytes]:
    """What a search returns."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: list[bytes] = done.value
            return found


def test_older_revision_never_takes_the_place_of_a_damaged_one(records):
    """The recording was sealed with the one before; the ledger alone has the last."""
    damaged = records.flip(LATER)
    records.lose_ledger()
    assert LATER.hex() in records.check().faults
    assert records.row(LATER) == damaged


def test_older_revision_of_the_ledger_does_not_either(records):
    records.parts.commit(calls=[make_call(2, outcome="busy", revision=1)])
    *_, path = records.parts.pool.ledger.files()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")  # the entry of that one alone
    damaged = records.flip(SILENT)
    assert SILENT.hex() in records.check().faults
    assert records.row(SILENT) == damaged


def test_sound_but_older_record_in_a_row_is_found(records):
    old = records.row(LATER)
    records.parts.commit(calls=[make_call(3, revision=2, end_reason="again")])
    records.put(LATER, old)
    assert records.check().mended == [LATER.hex()]
    assert records.ask(m.Get(LATER)).call.end_reason == "again"


def test_record_of_another_call_is_no_record(records):
    records.put(SILENT, records.row(SOUND))
    assert records.check().mended == [SILENT.hex()]
    assert records.calls == ALL


def test_record_that_came_meanwhile_stays(records):
    records.flip(SILENT)
    check = RecordCheck(records.parts.index, records.parts.vaults, lambda: 1)
    steps = check.checking(b"", b"\xff" * 16)
    next(steps)  # it was found
    newer = make_call(2, outcome="busy", answered_ns=None, revision=5)
    records.parts.commit(calls=[newer])
    for _ in steps:
        pass
    assert records.ask(m.Get(SILENT)).call.revision == 5


def test_later_record_takes_nothing_away_from_a_damaged_one(records):
    """A capture that restarted knows less: what the recording was sealed with counts, too."""
    records.flip(SOUND)
    later = make_call(1, revision=1, call_ids=["other@example.org"], callee="", end_reason="late")
    records.parts.commit(calls=[later])
    call = records.ask(m.Get(SOUND)).call
    assert (call.revision, call.end_reason, call.callee) == (1, "late", ALL[SOUND].callee)
    assert call.call_ids == ["other@example.org", *ALL[SOUND].call_ids]
    found = [one.id for one in records.ask(m.Search(call_id=ALL[SOUND].call_ids[0])).calls]
    assert found == [SOUND]
    assert records.check() == m.CheckReply(4)


def test_later_record_of_a_call_without_a_recording_counts_alone(records):
    records.flip(SILENT)
    assert records.check().mended == [SILENT.hex()]  # till one comes the ledger has it
    records.flip(SILENT)
    later = make_call(2, outcome="busy", answered_ns=None, revision=1, end_reason="late")
    records.parts.commit(calls=[later])
    assert records.ask(m.Get(SILENT)).call == later
    assert records.check() == m.CheckReply(4)


def test_what_is_erased_meanwhile_stays_so(records):
    records.flip(SILENT)
    check = RecordCheck(records.parts.index, records.parts.vaults, lambda: 1)
    steps = check.checking(b"", b"\xff" * 16)
    next(steps)  # it was found
    assert records.ask(m.Erase([SILENT], "asked for")).erased == 1
    for _ in steps:
        pass
    assert SILENT not in records.calls
    assert records.ask(m.Get(SILENT)).code == "erased"


def test_replica_is_fed_the_record_that_was_brought_back(records):
    sound = records.row(SILENT)
    position = records.ask(m.Feed(0)).position
    records.flip(SILENT)
    records.check()
    (change,) = records.ask(m.Feed(position)).changes
    assert (change.kind, change.id, change.data) == ("record", SILENT, sound)


def test_nobody_can_tell_of_a_locked_pool(records):
    records.flip(SILENT)
    records.parts.vaults.lock("base")
    assert records.check() == m.CheckReply(0, unchecked=["base"])


def test_pages(records, monkeypatch):
    monkeypatch.setattr("storaged.integrity.checks.PAGE", 3)
    first = records.check()
    assert first.checked == 3
    second = records.ask(m.Check("records", first.cursor))
    assert (second.checked, second.cursor) == (1, None)
    assert records.ask(m.Check("records", b"x")).code == "invalid"


def test_recordings_are_named_whatever_their_call_records_say(records, monkeypatch):
    """Else one whose record is damaged, or names no stream, would never be verified."""
    with records.parts.index.reading() as view:
        whole = {one for one in ALL if (state := view.state(one)) and state.bits & OBJECT}
    assert whole
    assert whole < set(ALL)  # one call has no media
    for call in ALL:
        records.flip(call)
    monkeypatch.setattr("storaged.integrity.checks.NAMED", 1)
    named, cursor = [], b""
    while cursor is not None:
        page = records.ask(m.Check("recordings", cursor))
        named, cursor = named + page.recordings, page.cursor
    assert sorted(named) == sorted(whole)
    records.parts.vaults.lock("base")
    monkeypatch.undo()
    assert records.ask(m.Check("recordings")) == m.CheckReply(0, unchecked=["base"])
