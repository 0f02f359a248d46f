"""The rolling check: what it finds, how fast it goes, and where it goes on. FORMAT.md §11."""

import contextlib
import errno
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from spanvault import messages as m
from storaged.faults import Fault
from storaged.index import callrows, damage
from storaged.integrity import medium
from storaged.integrity.scrub import FLOOR, SEEK, Pace
from storaged.recordings.reading import Reader
from storaged.scrubbing import Scrubbing
from tests.support.checked import Checked
from tests.support.vault import Parts, call_id, make_call

DAY_S = 86400
PERIOD_S = 15 * DAY_S  # a round of 30 days' check
CALLS = range(1, 6)


@pytest.fixture
def checked(parts: Parts) -> Checked:
    for number in CALLS:
        parts.commit([(call_id(number), 1, 0)], [make_call(number)])
    return Checked(parts)


def damage_object(parts: Parts, number: int, at: int = 120) -> bytes:
    """Flip a bit; gives what was there."""
    path = parts.pool.path(call_id(number))
    data = bytearray(whole := path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return whole


def test_whole_store_is_checked_and_nothing_is_found(checked, caplog):
    fields = checked.round()
    assert (fields["checked"], fields["of"], fields["damaged"]) == (5, 5, 0)
    size = sum(checked.parts.pool.path(call_id(number)).stat().st_size for number in CALLS)
    ledger = sum(path.stat().st_size for path in checked.parts.pool.ledger.files())
    assert fields["read_bytes"] == size + 5 * SEEK + ledger
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_flipped_bit_is_told_of_once_and_forgotten_when_it_is_mended(checked, caplog):
    whole = damage_object(checked.parts, 3)
    for _ in range(3):
        fields = checked.round()
        assert (fields["damaged"], fields["damaged_ids"]) == (1, [call_id(3).hex()])
    checked.again()
    assert checked.round()["checked"] == 5
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert call_id(3).hex() == error.RECORDING_ID
    assert "frame 0 does not authenticate" in error.FAULT
    assert "restored from a replica" in error.REMEDY
    checked.parts.pool.path(call_id(3)).write_bytes(whole)
    assert checked.round()["damaged"] == 0


def test_asked_for_check_forgets_what_was_mended(checked):
    whole = damage_object(checked.parts, 3)
    checked.round()
    reader = Reader(checked.parts.index, checked.parts.vaults)
    assert reader.verify(call_id(3)).faults
    assert checked.fields["damaged"] == 1
    checked.parts.pool.path(call_id(3)).write_bytes(whole)
    assert reader.verify(call_id(3)).faults == []
    assert checked.fields["damaged"] == 0


@pytest.mark.parametrize(
    "harm",
    [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-40]),
     lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x")],
)  # fmt: skip
def test_missing_cut_and_foreign_objects_are_found(checked, harm):
    harm(checked.parts.pool.path(call_id(2)))
    assert checked.round()["damaged_ids"] == [call_id(2).hex()]


def test_lost_key_is_damage(checked, monkeypatch):
    def lost(_: int) -> bytes:
        raise Fault("corrupt", "page 0 is damaged")

    monkeypatch.setattr(checked.parts.vaults.base, "dek", lost)
    assert checked.round()["damaged"] == 5


def test_locked_pool_is_checked_by_hash_alone(parts):
    vault = parts.open_pool("sensitive")
    parts.vaults.add(vault)
    parts.commit([(call_id(1), 1, 0)], [make_call(1)])
    with parts.index.reading() as view:
        row = view.state(call_id(1))
    path = vault.pool.path(call_id(1))
    path.parent.mkdir(parents=True, exist_ok=True)
    parts.pool.path(call_id(1)).rename(path)
    parts.index.write(lambda writing: writing.put_state(call_id(1), row._replace(tier=vault.tier)))
    vault.lock()
    checked = Checked(parts)
    assert checked.round()["damaged"] == 0
    damage_bit = bytearray(path.read_bytes())
    damage_bit[-1] ^= 1
    path.write_bytes(damage_bit)
    assert checked.round()["damaged"] == 1


def test_unreadable_object_is_damage_and_a_lack_of_descriptors_is_not(checked, monkeypatch):
    @contextlib.contextmanager
    def failing(*_: Any) -> Iterator[medium.Medium]:
        raise OSError(number, "as the system says it")
        yield

    monkeypatch.setattr(medium, "opened", failing)
    number = errno.EMFILE
    with pytest.raises(OSError, match="as the system"):
        checked.round()
    assert checked.fields["damaged"] == 0
    number = errno.EIO
    checked.again()
    assert checked.round()["damaged"] == 5


def test_pool_that_is_away_is_not_so_much_damage(checked):
    objects = checked.parts.pool.objects
    objects.rename(objects.with_name("away"))
    with pytest.raises(FileNotFoundError):
        checked.round()
    objects.mkdir()  # what lies below a mount point
    checked.again()
    with pytest.raises(OSError, match="Stale file handle"):
        checked.round()
    assert checked.fields["damaged"] == 0
    objects.rmdir()
    objects.with_name("away").rename(objects)
    checked.again()
    assert checked.until(state="rests")["checked"] == 5


def erase(parts: Parts, number: int) -> None:
    parts.index.write(
        lambda writing: callrows.remove_call(writing, call_id(number), make_call(number))
    )
    parts.pool.path(call_id(number)).unlink()


def test_what_is_erased_meanwhile_is_no_damage(checked, monkeypatch):
    """Within the check of the very object: between its first byte and its verdict."""

    def then_erased(recording_id: bytes, *_: Any) -> Any:
        erase(checked.parts, CALLS_BY_ID[recording_id])
        yield
        return m.VerifyReply(recording_id, True, 0, 0, "", ["there was nothing"])

    monkeypatch.setattr("storaged.integrity.scrub.examining", then_erased)
    assert checked.round()["damaged"] == 0


CALLS_BY_ID = {call_id(number): number for number in CALLS}


def test_erased_recording_is_no_longer_counted_as_damaged(checked):
    damage_object(checked.parts, 3)
    assert checked.round()["damaged"] == 1
    erase(checked.parts, 3)
    assert checked.fields["damaged"] == 0


def test_key_of_an_erased_recording_is_let_go_in_mid_check(checked, monkeypatch):
    steps = []

    def endless(*_: Any) -> Any:
        while True:
            steps.append(1)
            checked.now_s += 0.3
            if len(steps) == 2:
                for number in CALLS:
                    erase(checked.parts, number)
            yield

    monkeypatch.setattr("storaged.integrity.scrub.examining", endless)
    assert checked.round()["damaged"] == 0
    assert len(steps) < 8


def test_what_is_written_behind_the_sealed_bytes_is_no_damage(checked):
    with checked.parts.pool.path(call_id(2)).open("ab") as file:
        file.write(b"a group that is being committed")
    assert checked.round()["damaged"] == 0


def test_restart_goes_on_where_it_was(checked):
    checked.until(checked=3)
    checked.scrub.save()
    checked.again()
    assert checked.fields["checked"] == 3
    fields = checked.until(state="rests")
    assert (fields["checked"], fields["of"]) == (5, 5)
    assert checked.fields["ended"]


def test_killed_in_mid_round_checks_again_what_was_not_written_down(checked):
    damage_object(checked.parts, sorted(CALLS_BY_ID.items())[0][1])
    checked.until(checked=3)
    checked.parts.again()
    checked.again()
    assert checked.fields["checked"] == 0
    fields = checked.until(state="rests")
    assert (fields["checked"], fields["damaged"]) == (5, 1)


def test_rounds_follow_each_other_at_half_the_days(checked):
    checked.round()
    assert checked.now_s < DAY_S
    checked.until(state="checks")
    assert checked.now_s == pytest.approx(PERIOD_S, abs=60)


def test_clock_that_is_set_back_puts_no_round_off(checked):
    checked.round()
    checked.now_s -= DAY_S
    checked.turns.close()
    checked.again()
    checked.until(state="checks")
    assert checked.now_s < 0


def test_rate_follows_from_bytes_and_days_between_floor_and_ceiling(checked, monkeypatch, caplog):
    checked.round()
    read = checked.fields["read_bytes"]

    def rate(days: float, ceiling: float) -> float:
        """Of the middle of a first round."""
        one = Checked(checked.parts, days, ceiling)
        checked.parts.index.write(lambda writing: writing.delete(b"meta", b"scrub"))
        one.again()
        one.until(checked=1)
        began_s, began = one.now_s, one.fields["read_bytes"]
        one.until(checked=4)
        return (one.fields["read_bytes"] - began) / (one.now_s - began_s)

    days = 2 * read / (4 * FLOOR) / DAY_S
    assert rate(30, 20e6) == pytest.approx(FLOOR, rel=0.1)
    assert rate(days, 20e6) >= 3 * FLOOR
    assert not caplog.text
    assert rate(days, 2 * FLOOR) == pytest.approx(2 * FLOOR, rel=0.1)
    assert "raise scrub_mb_s" in caplog.text


def test_more_than_the_rate_allows_in_scrub_days_is_said(parts, checked):
    bounded = Checked(parts, days=2, ceiling=3 * SEEK / (2 * DAY_S))
    overdue = bounded.until(state="checks")["overdue"]
    assert overdue.startswith(
        "the check of all recordings takes 3 days, longer than scrub_days (2)"
    )
    assert overdue.endswith("raise scrub_mb_s")


def test_disk_slower_than_the_rate_is_said_until_the_round_ends(checked):
    assert checked.until(checked=1)["overdue"] == ""
    checked.now_s += 31 * DAY_S  # the disk took so long for the next one
    overdue = checked.until(checked=2)["overdue"]
    assert "takes 31 days, longer than scrub_days (30): its disk is too slow" in overdue
    assert checked.until(state="rests")["overdue"] == ""


def test_pause_is_not_made_up_for_by_a_burst():
    now_s = 0.0
    pace = Pace(lambda: now_s)
    assert pace.spend(1000, 100) == 10
    now_s = 500.0
    assert pace.spend(1000, 100) == 10
    assert pace.spend(1000, 100) == 20


def test_medium_is_read_in_blocks_and_as_if_it_were_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(medium, "BLOCK", 16)
    (path := tmp_path / "object").write_bytes(data := bytes(range(100)))
    with medium.opened(path, 90) as read:
        assert len(read) == 90
        assert read[0:4] + read[4:16] == data[:16]
        assert read.taken == 16
        assert read[10:90] == data[10:90]
        assert (read[85:200], read[90:91], read[50:40]) == (data[85:90], b"", b"")
        path.write_bytes(b"")
        assert read[0:4] == b""


def long_object(parts: Parts) -> None:
    """A recording, call 9, of which many frames lie in two blocks."""
    for second in range(0, 1000, 20):
        chunks = [(call_id(9), 1, second + n) for n in range(20)]
        parts.commit(chunks, [make_call(9)] if second == 980 else [])


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(medium, "BLOCK", 1 << 15)
    monkeypatch.setattr("storaged.recordings.examining.STEP", 1 << 13)


def test_a_long_object_is_read_once(checked, short_blocks):
    long_object(checked.parts)
    size = checked.parts.pool.path(call_id(9)).stat().st_size
    assert size > 8 * medium.BLOCK
    read = checked.round()["read_bytes"]
    one = checked.scrub._round
    assert read == one.planned
    assert read > size


@pytest.mark.parametrize("at", [50_000, 200_000, -1])
def test_a_long_object_s_damage_is_found_wherever_it_lies(checked, short_blocks, at):
    long_object(checked.parts)
    damage_object(checked.parts, 9, at)
    assert checked.round()["damaged_ids"] == [call_id(9).hex()]


class Late:
    """A disk that recording waits for, until it is told otherwise."""

    def __init__(self, checked: Checked) -> None:
        self.is_so, self.asked = True, 0
        self.thread = Scrubbing(checked.scrub, self)

    def __call__(self) -> bool:
        self.asked += 1
        return self.is_so


def test_nothing_is_checked_while_recording_waits(checked, monkeypatch):
    monkeypatch.setattr("storaged.scrubbing._LATE_S", 0.001)
    late = Late(checked)
    late.thread.start()
    while late.asked < 20:
        pass
    with checked.parts.index.reading() as view:
        fields = late.thread.fields(view)
    assert (fields["state"], fields.get("checked", 0)) == ("waits for recording", 0)
    late.thread.close()
    assert late.thread.broken is None


def test_turned_off_it_reads_nothing_and_still_tells_what_it_knows(checked):
    damage_object(checked.parts, 3)
    checked.round()
    off = Checked(checked.parts, days=0)
    thread = Scrubbing(off.scrub, lambda: False)
    thread.start()
    thread.close()
    assert (off.fields["state"], off.fields["damaged"]) == ("off", 1)


def test_ids_that_are_told_are_bounded(checked):
    def many(writing: Any) -> None:
        for number in range(100):
            writing.put(b"damaged", call_id(number), b"")

    checked.parts.index.write(many)
    assert checked.fields["damaged"] == 100
    assert len(checked.fields["damaged_ids"]) == damage.TOLD
