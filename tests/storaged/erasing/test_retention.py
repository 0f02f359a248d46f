"""Calls go when their time is up: which ones, with what proof, and what keeps the others."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spanvault import messages as m
from spanvault import wire
from spanvault.daemon.config import PoolConfig
from storaged.erasing.retention import BATCH
from storaged.erasing.terms import DAY_NS, Terms
from storaged.format.walk import finish
from tests.storaged.erasing.test_eraser_pools import ThreePools
from tests.support.vault import SECOND, START, call_id, make_call, make_media

ONE, TWO, THREE = call_id(1), call_id(2), call_id(3)


class Kept(ThreePools):
    """Three pools, a clock that the test sets, and terms."""

    day = 0.0
    turns = 0

    def keep(self, **pools: dict[str, int]) -> None:
        terms = {name: Terms.of(PoolConfig(**about)) for name, about in pools.items()}
        self.counter.eraser.terms = terms
        self.counter.clock_ns = lambda: START + int(self.day * DAY_NS)
        self.counter.eraser._clock_ns = self.counter.clock_ns
        self.counter.desk._mover._clock_ns = self.counter.clock_ns

    def sweep(self, day: float) -> dict[str, Any]:
        """A round on a day after the first call, the machine having run since the last one."""
        self.turns += 1
        self.counter.monotonic_ns = lambda: self.turns * 10_000 * DAY_NS
        self.day = day
        finish(self.counter.desk.following())
        return self.counter.retention.fields()

    def ids(self) -> set[bytes]:
        """Of all calls that a search lists."""
        return {call.id for call in self.ask(m.Search()).calls}


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "store")
    made.sweep(0)
    yield made
    made.close()


def test_each_pool_has_a_term_of_its_own(kept):
    kept.commit(make_call(1), make_call(2, callee="core"), make_call(3, callee="sensitive"))
    keys = {one: kept.key_of(one) for one in (ONE, TWO, THREE)}
    kept.keep(base={"keep_days": 30}, sensitive={"keep_days": 90})
    kept.sweep(29.9)
    assert kept.ids() == {ONE, TWO, THREE}
    assert kept.sweep(30.1)["erased"] == 1
    assert kept.ids() == {TWO, THREE}
    assert not kept.opens(keys[ONE])
    kept.sweep(91)
    assert kept.ids() == {TWO}
    assert not kept.opens(keys[THREE])
    assert kept.opens(keys[TWO])


def test_it_is_an_erasure_like_any_other_with_its_line_in_the_log_and_a_certificate(kept):
    kept.commit(make_call(1))
    kept.keep(base={"keep_days": 30})
    kept.sweep(31)
    (erasure,) = kept.ask(m.Erasures()).erasures
    assert (erasure.who, erasure.reason) == ("storaged", "keep_days of pool base have passed")
    assert (erasure.done, [one.id for one in erasure.recordings]) == (True, [ONE])
    (line,) = [each for each in kept.counter.lines if each["kind"] == "erase"]
    assert (line["who"], line["ids"], line["result"]) == ("storaged", [ONE.hex()], "begun")
    assert "keep_days of pool base" in kept.ask(m.Certify(ONE)).document


def test_recording_without_signalling_goes_when_its_record_says_so(kept):
    kept.commit(make_call(1, expires_ns=START + 7 * DAY_NS), make_call(2))
    kept.keep()
    kept.sweep(6.9)
    assert kept.ids() == {ONE, TWO}
    kept.sweep(7.1)
    assert kept.ids() == {TWO}
    (erasure,) = kept.ask(m.Erasures()).erasures
    assert erasure.reason == "without signalling, kept for orphan_days"


def test_recording_that_a_call_took_over_stays(kept):
    found = make_call(1, expires_ns=START + 7 * DAY_NS)
    kept.commit(found)
    kept.commit(msgspec.structs.replace(found, expires_ns=None, revision=1), media=False)
    kept.keep()
    assert kept.sweep(8)["erased"] == 0
    with kept.parts.index.reading() as view:
        assert view.count(b"expires") == 0


@pytest.mark.parametrize("sooner", [{"expires_ns": START + 1}, {"started_ns": START - 40 * DAY_NS}])
def test_capture_cannot_have_an_ended_call_of_its_own_go_sooner(kept, sooner):
    """One that was taken over: neither by a time of the record's own nor by an earlier start."""
    found = make_call(2, expires_ns=START + 29 * DAY_NS)
    kept.commit(make_call(1), found)
    for old in (make_call(1), found):
        kept.commit(msgspec.structs.replace(old, revision=1, **sooner), media=False)
    kept.keep(base={"keep_days": 30})
    kept.sweep(28)
    assert kept.ids() == {ONE, TWO}
    kept.sweep(29.5)
    assert kept.ids() == {ONE}
    kept.sweep(30.5)
    assert kept.ids() == set()


def test_nobody_erases_what_has_to_be_kept(kept):
    kept.commit(make_call(1, expires_ns=START + DAY_NS), make_call(2))
    kept.keep(base={"keep_at_least_days": 30})
    assert kept.sweep(29)["erased"] == 0
    refused = kept.erase(TWO)
    assert refused.code == "denied"
    assert "has to be kept until 2023-12-14 22:13 UTC" in refused.error
    assert "keep_at_least_days of pool base" in refused.hint
    assert kept.ids() == {ONE, TWO}
    kept.sweep(31)
    assert kept.ids() == {TWO}
    assert kept.erase(TWO).erased == 1


def test_what_has_to_be_kept_is_not_moved_to_where_it_need_not(kept):
    """Else it would be erased there."""
    kept.commit(make_call(1), make_call(2))
    kept.keep(base={"keep_at_least_days": 30}, sensitive={"keep_at_least_days": 29})
    kept.sweep(1)
    refused = kept.ask(m.Move([ONE], "sensitive", "it matters"))
    assert (refused.code, "2023-12-14 22:13 UTC, and pool sensitive" in refused.error) == (
        "denied", True)  # fmt: skip
    assert "keep_at_least_days of pool base" in refused.hint
    kept.keep(base={"keep_at_least_days": 30}, sensitive={"keep_at_least_days": 30})
    assert kept.ask(m.Move([ONE], "sensitive", "it matters")).moved == 1
    kept.keep(base={"keep_at_least_days": 30})
    kept.sweep(31)
    assert kept.ask(m.Move([TWO], "sensitive", "it matters")).moved == 1


def test_call_that_moved_up_is_kept_as_its_new_pool_says(kept):
    kept.commit(make_call(1))
    kept.keep(base={"keep_days": 30}, sensitive={"keep_days": 60, "keep_at_least_days": 60})
    kept.sweep(1)
    kept.ask(m.Move([ONE], "sensitive", "it matters"))
    while kept.sorter.drain():
        pass
    kept.sweep(31)
    assert kept.ids() == {ONE}
    kept.sweep(61)
    assert kept.ids() == set()


def test_calls_with_media_in_common_go_once_the_last_of_them_may(kept):
    late = make_call(200_000)  # two days after the first
    stream = m.Stream(7, "callee", "audio", 1, "", "", {}, stored_in=late.id, stored_as=1)
    early = make_call(1, streams=[stream])
    kept.commit(late)
    kept.commit(early, media=False)
    kept.keep(base={"keep_days": 30})
    assert kept.sweep(31)["erased"] == 0
    assert kept.sweep(33)["erased"] == 2
    assert kept.ids() == set()


def test_call_without_an_end_stays_a_week_longer(kept):
    kept.commit(make_call(1, final=False, ended_ns=None))
    kept.keep(base={"keep_days": 30})
    assert kept.sweep(36.9)["erased"] == 0
    assert kept.sweep(37.1)["erased"] == 1


def test_what_lies_in_a_locked_pool_stays_is_told_of_and_goes_once_it_is_open(kept):
    kept.commit(make_call(1), make_call(2, callee="sensitive"))
    kept.keep(base={"keep_days": 30}, sensitive={"keep_days": 30})
    assert kept.ask(m.Lock("sensitive")) == m.Done()
    told = kept.sweep(31)
    assert told["erased"] == 1
    assert told["state"] == "calls whose time is up stay (1): pool sensitive is locked"
    kept.unlock("sensitive")
    assert "state" not in kept.sweep(31.1)
    assert kept.ids() == set()


def test_clock_that_jumps_ahead_erases_nothing_for_a_day(kept):
    kept.commit(make_call(1))
    kept.keep(base={"keep_days": 30})
    kept.sweep(1)
    monotonic_ns = kept.turns * 10_000 * DAY_NS
    kept.day = 4000

    def round_after(hours: float) -> dict[str, Any]:
        kept.counter.monotonic_ns = lambda: monotonic_ns + int(hours * 3600 * SECOND)
        finish(kept.counter.desk.following())
        return kept.counter.retention.fields()

    assert "the host's clock went ahead to 2034-10-27" in round_after(2)["state"]
    assert "for 1 hours" in round_after(25)["state"]
    assert kept.ids() == {ONE}
    round_after(27)
    assert kept.ids() == set()


def test_nothing_goes_that_cannot_be_logged(kept, monkeypatch):
    kept.commit(make_call(1))
    kept.keep(base={"keep_days": 30})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept.counter.access, "append", full)
        assert "No space left on device" in kept.sweep(31)["state"]
    assert kept.ids() == {ONE}
    assert kept.sweep(31.2)["erased"] == 1


def test_many_calls_go_in_batches_and_the_younger_stay(kept):
    calls = [make_call(number) for number in range(BATCH + 20)]
    kept.commit(*calls, *(make_call(500_000 + number) for number in range(20)), media=False)
    kept.keep(base={"keep_days": 30})
    assert kept.sweep(31)["erased"] == BATCH + 20
    assert len(kept.ids()) == 20
    assert len(kept.ask(m.Erasures()).erasures) == 2


def test_a_new_index_knows_of_them_as_well(kept):
    """The rows are made wherever a record is put, so reindex makes them, too."""
    kept.commit(make_call(1, expires_ns=START + 7 * DAY_NS))
    with kept.parts.index.reading() as view:
        assert view.count(b"expires") == 1
    kept.keep()
    kept.sweep(8)
    with kept.parts.index.reading() as view:
        assert view.count(b"expires") == 0


def test_daemon_erases_what_its_settings_say_and_tells_of_it(rig):
    rig.start()
    capture = rig.capture()
    capture.send(m.Batch("test", 1, [make_call(1)]), make_media([(ONE, 1, 0)]))
    capture.receive(wire.decode_from_ingest)
    assert rig.stop() == 0
    rig.config.write_text(rig.config.read_text() + "[pools.base]\nkeep_days = 30\n")
    rig.start()
    operator = rig.client("operator")
    deadline = time.monotonic() + 20
    while not (told := operator.ask(m.Status())[0].fields["retention"])["erased"]:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    assert told == {"erased": 1, "staying": {}}
    assert operator.ask(m.Search())[0].calls == []
    assert operator.ask(m.Erasures())[0].erasures[0].who == "storaged"
