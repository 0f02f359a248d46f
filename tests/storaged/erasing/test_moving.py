"""Moving a call up: what goes along, what a crash leaves, what is refused. FORMAT.md §13."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spanvault import messages as m
from spanvault.media import chunk
from storaged import files
from storaged.faults import Fault
from storaged.format.walk import finish
from storaged.index import erasures
from storaged.pools import intake
from storaged.recordings.gathering import Group
from tests.storaged.erasing.test_eraser_pools import ThreePools
from tests.support.vault import call_id, make_call, make_media

ONE, TWO, ORPHAN = call_id(1), call_id(2), call_id(7)
SOUND, CONTROL, DIGITS = 1, 1 + chunk.CONTROL, 1 + chunk.EVENTS
STREAMS = (SOUND, CONTROL, DIGITS)


class Moved(ThreePools):
    """Three pools; each call has sound, RTCP and digits of some seconds."""

    def record(self, *calls: m.Call, seconds: int = 4) -> None:
        """In groups of a second each, the first record first, the last one last."""
        for second in range(seconds):
            media = make_media([(call.id, one, second) for call in calls for one in STREAMS])
            records = {
                0: [msgspec.structs.replace(call, final=False) for call in calls],
                seconds - 1: [msgspec.structs.replace(call, revision=1) for call in calls],
            }
            group = Group()
            group.add(b"", m.Batch("test", second, records.get(second, [])), media)
            self.sorter.commit(group)

    def move(self, pool: str, *ids: bytes) -> Any:
        reply = self.ask(m.Move(list(ids), pool, "it matters"))
        self.settle()
        return reply

    def settle(self) -> None:
        while self.sorter.drain():
            pass

    def follow(self) -> None:
        finish(self.counter.desk.following())
        self.settle()

    def heard(self, call: bytes) -> set[Any]:
        """Every chunk of a call, digits as well."""
        page = self.counter.desk._lookup._reader
        with self.parts.index.reading() as view:
            found = self.counter.desk._lookup._call(view, call)
        chunks = set()
        for digits in (False, True):
            media = page.fetch(found, 0, digits=digits).media
            chunks |= {
                (int(one.header["stream"]), int(one.header["start_ns"]), bytes(one.payload))
                for one in media.chunks()
            }
        return chunks

    def objects(self) -> dict[str, list[str]]:
        return {
            name: sorted(path.name[:8] for path in vault.pool.objects.rglob("*.*"))
            for name, vault in self.pools.items()
        }

    def crash(self) -> "Moved":
        """A restart: what it finds on disk is finished; keys of the pools are opened again."""
        self.close()
        again = Moved(self.parts.folder, self.keys)
        again.counter.eraser.finish()
        again.counter.desk._mover.clear()
        again.settle()
        return again


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Moved]:
    made = [Moved(tmp_path / "store")]
    yield made[0]
    made[0].close()


def test_call_goes_up_whole_and_its_lower_copy_is_erased(three):
    three.record(make_call(1), make_call(2))
    before, lower, neighbour = three.heard(ONE), three.key_of(ONE), three.key_of(TWO)
    assert len(before) == 4 * len(STREAMS)
    sha256 = three.ask(m.Verify(ONE)).sha256
    reply = three.move("core", ONE)
    assert (reply.moved, reply.already) == (1, [])
    assert three.key_of(ONE)[0] == "core"
    assert three.heard(ONE) == before
    assert not three.opens(lower)
    assert three.opens(neighbour)
    assert three.objects() == {"base": [TWO.hex()[:8]], "core": [ONE.hex()[:8]], "sensitive": []}
    verified = three.ask(m.Verify(ONE))
    assert (verified.faults, verified.sealed) == ([], True)
    assert verified.sha256 != sha256
    (erasure,) = three.ask(m.Erasures()).erasures
    assert (erasure.moved_to, erasure.done, erasure.recordings[0].sha256) == ("core", True, sha256)


def test_record_search_and_details_follow(three):
    three.record(make_call(1))
    before = three.ask(m.Get(ONE))
    three.move("sensitive", ONE)
    after = three.ask(m.Get(ONE))
    assert (after.call, after.sealed, after.pool) == (before.call, True, "sensitive")
    assert after.receipts == []
    for question in (m.Search(number=make_call(1).caller), m.Search(call_id="call-1@example.org"),
                     m.Search()):  # fmt: skip
        assert [call.id for call in three.ask(question).calls] == [ONE]
    three.ask(m.Lock("sensitive"))
    assert three.ask(m.Search(number=make_call(1).caller)).calls == []
    assert three.ask(m.Get(ONE)).code == "locked"


def test_feed_tells_of_the_new_copy_and_of_the_erasure_of_the_old(three):
    three.record(make_call(1))
    at = three.parts.index.position
    three.move("core", ONE)
    changes = three.ask(m.Feed(at)).changes
    found = {
        (change.kind, change.pool) for change in changes if change.kind in ("object", "record")
    }
    assert found == {("object", "core"), ("record", "core")}
    assert [change.kind for change in changes].count("erase") == 1


def test_certificate_says_where_the_call_lives_on(three):
    three.record(make_call(1))
    three.move("core", ONE)
    text = three.ask(m.Certify(ONE)).document
    assert '"moved_to": "core"' in text
    assert '"pool": "base"' in text


def test_no_batch_of_the_move_stays_and_none_lay_in_the_clear(three, monkeypatch):
    written = []
    real = files.replace
    monkeypatch.setattr(
        intake.files, "replace", lambda path, data: (written.append(data), real(path, data))
    )
    three.record(make_call(1))
    three.move("core", ONE)
    assert len(written) >= 2
    for data in written:
        assert b"call-1@example.org" not in data
        assert make_call(1).caller.encode() not in data
    assert not [*(three.parts.folder / "intake").rglob("*.*")]


def test_moving_again_changes_nothing_and_higher_still_goes(three):
    three.record(make_call(1))
    three.move("core", ONE)
    assert three.move("core", ONE) == m.MoveReply(b"", 0, [ONE])
    before = three.heard(ONE)
    assert three.move("sensitive", ONE).moved == 1
    assert (three.heard(ONE), three.key_of(ONE)[0]) == (before, "sensitive")
    assert [one.moved_to for one in three.ask(m.Erasures()).erasures] == ["sensitive", "core"]


@pytest.mark.parametrize(
    ("ids", "pool", "code", "words"),
    [
        ([ONE], "base", "invalid", "no call is moved to 'base'"),
        ([ONE], "vault", "invalid", "no call is moved to 'vault'"),
        ([TWO], "core", "invalid", "lies in sensitive, above core"),
        ([ONE, call_id(9)], "core", "not_found", "there is no call"),
        ([], "core", "invalid", "0 ids"),
        ([call_id(3)], "core", "invalid", "has not ended"),
    ],
)
def test_what_is_refused_is_named_and_changes_nothing(three, ids, pool, code, words):
    three.record(make_call(1), make_call(2, callee="sensitive"))
    three.commit(make_call(3, final=False))
    before = three.objects()
    failure = three.move(pool, *ids)
    assert failure.code == code
    assert words in failure.error
    assert three.objects() == before
    assert three.key_of(ONE)[0] == "base"


def test_locked_upper_pool_is_refused(three):
    three.record(make_call(1))
    three.ask(m.Lock("core"))
    assert three.move("core", ONE).code == "locked"
    assert three.key_of(ONE)[0] == "base"


@pytest.mark.parametrize("at", [300, -20])  # of a frame; of the locator: all frames open
def test_damaged_recording_is_not_moved(three, at):
    three.record(make_call(1))
    path = three.pools["base"].pool.path(ONE)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    failure = three.move("core", ONE)
    assert failure.code == "corrupt"
    assert "repair" in failure.hint
    assert three.key_of(ONE)[0] == "base"
    assert not [*(three.parts.folder / "intake").rglob("*.*")]


def test_media_that_comes_late_follows(three):
    three.record(make_call(1))
    three.move("core", ONE)
    group = Group()
    group.add(b"", m.Batch("test", 99, []), make_media([(ONE, SOUND, 50)]))
    three.sorter.commit(group)
    assert three.objects()["base"] == []
    assert len(three.heard(ONE)) == 4 * len(STREAMS) + 1


def legs(orphan: bytes) -> list[m.Stream]:
    codec = {0: m.Codec("PCMU", 8000, 1)}
    return [m.Stream(number=1, party="caller", media="audio", ssrc=1, source="a", destination="b",
                     codecs=codec, payload_types={0: 1}, first_ns=0, last_ns=1, packets=1, lost=0,
                     duplicates=0, late=0, jitter=0.0, stored_in=orphan, stored_as=1)]  # fmt: skip


def test_orphan_follows_its_call_into_the_higher_pool(three):
    three.record(make_call(7, caller="", callee=""))
    three.record(make_call(2, callee="sensitive", streams=legs(ORPHAN)))
    assert three.key_of(ORPHAN)[0] == "base"
    before, lower = three.heard(TWO), three.key_of(ORPHAN)
    three.follow()
    assert (three.key_of(ORPHAN)[0], three.heard(TWO)) == ("sensitive", before)
    assert not three.opens(lower)
    (erasure,) = three.ask(m.Erasures()).erasures
    assert (erasure.who, erasure.moved_to) == ("storaged", "sensitive")
    assert [line["who"] for line in three.counter.lines if line["kind"] == "move"] == ["storaged"]
    three.follow()
    assert len(three.ask(m.Erasures()).erasures) == 1


def test_orphan_waits_for_its_end_and_for_a_locked_pool(three):
    three.commit(make_call(7, caller="", callee="", final=False))
    three.record(make_call(2, callee="sensitive", streams=legs(ORPHAN)))
    three.follow()
    assert three.key_of(ORPHAN)[0] == "base"
    three.ask(m.Lock("sensitive"))
    three.commit(make_call(7, caller="", callee="", revision=5), media=False)
    three.follow()
    assert three.key_of(ORPHAN)[0] == "base"
    three.unlock("sensitive")
    three.follow()
    assert three.key_of(ORPHAN)[0] == "sensitive"


def test_call_by_hand_takes_the_recordings_of_its_streams_along(three):
    three.record(make_call(7, caller="", callee=""))
    three.record(make_call(2, streams=legs(ORPHAN)))
    before = three.heard(TWO)
    assert three.move("core", TWO).moved == 2
    assert (three.key_of(ORPHAN)[0], three.key_of(TWO)[0]) == ("core", "core")
    assert three.heard(TWO) == before
    assert three.ask(m.Erase([TWO], "asked for")).code == "invalid"  # still only together
    assert three.ask(m.Erase([TWO, ORPHAN], "asked for")).erased == 2


def test_call_whose_record_came_behind_its_media_follows_its_rule(three):
    group = Group()
    group.add(b"", m.Batch("test", 1, []), make_media([(ONE, SOUND, 0)]))
    three.sorter.commit(group)
    assert three.key_of(ONE)[0] == "base"
    three.commit(make_call(1, callee="core"))
    three.follow()
    assert three.key_of(ONE)[0] == "core"
    assert three.ask(m.Get(ONE)).call.callee == "core"


class Died(Exception):
    """The process ends here."""


STEPS = ("first batch", "second batch", "transaction", "after the transaction", "publish",
         "keys", "root", "after the keys", "end")  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_crash_at_each_step_leaves_the_call_in_one_pool_and_is_made_up_for(
    three, monkeypatch, step: str
) -> None:
    """As a kill: only what is on disk is gone on with."""
    three.record(make_call(1), make_call(2))
    before, lower = three.heard(ONE), three.key_of(ONE)
    with monkeypatch.context() as dying:
        arm(dying, step, three)
        with pytest.raises(Died):
            finish(three.counter.desk._mover.moving("operator/x", m.Move([ONE], "core", "why")))
    begun = step not in STEPS[:3]
    again = three.crash()
    assert not [*(again.parts.folder / "intake").rglob("*.moving")]
    assert again.heard(ONE) == before
    assert again.key_of(ONE)[0] == ("core" if begun else "base")
    assert again.opens(lower) == (not begun)
    assert [name for name, found in again.objects().items() if ONE.hex()[:8] in found] == [
        "core" if begun else "base"
    ]
    assert again.opens(again.key_of(TWO))
    with again.parts.index.reading() as view:
        assert erasures.unfinished(view) == []
    assert again.move("core", ONE).moved == (not begun)
    assert again.heard(ONE) == before
    assert not [*(again.parts.folder / "intake").rglob("*.*")]
    three.__dict__ = again.__dict__  # what the fixture closes


def test_what_a_move_that_came_to_nothing_sealed_opens_no_more(three, monkeypatch, tmp_path):
    """Seen by a second name: what the disk has at its place."""
    three.record(make_call(1))
    with monkeypatch.context() as dying:
        arm(dying, "second batch", three)
        dying.setattr(three.counter.desk._mover, "_drop_what_came_to_nothing", lambda _: None)
        with pytest.raises(Died):
            finish(three.counter.desk._mover.moving("operator/x", m.Move([ONE], "core", "why")))
        (left,) = (three.parts.folder / "intake/core").glob("*.moving")
        os.link(left, tmp_path / "kept")
    three.__dict__ = three.crash().__dict__
    three.counter.desk._mover.clear()
    assert not left.exists()
    assert (tmp_path / "kept").read_bytes()[:32] == bytes(32)


def test_what_was_sealed_to_a_key_that_went_meanwhile_is_not_moved(three):
    three.record(make_call(1))
    core, steps = three.pools["core"], three.counter.desk._mover.moving(
        "operator/x", m.Move([ONE], "core", "why"))  # fmt: skip
    next(steps)
    three.counter.retirer.rotate(core)
    core.keyring.retire_ingest_keys(core.keyring.ingest_key_ids[:1])
    with pytest.raises(Fault, match="got a new ingest key"):
        finish(steps)
    assert three.move("core", ONE).moved == 1
    assert len(three.heard(ONE)) == 12


def test_a_move_that_took_place_is_not_cleared_though_a_disk_keeps_it_from_counting(
    three, monkeypatch
):
    """Its batches are all that there is of the call."""
    three.record(make_call(1))
    before = three.heard(ONE)
    with monkeypatch.context() as dying:
        arm(dying, "after the transaction", three)
        with pytest.raises(Died):
            finish(three.counter.desk._mover.moving("operator/x", m.Move([ONE], "core", "why")))
    with monkeypatch.context() as failing:
        failing.setattr(intake.Intake, "publish_moving", full)
        three.__dict__ = three.crash().__dict__
        three.counter.desk._mover.clear()
        assert list((three.parts.folder / "intake/core").glob("*.moving"))
    three.__dict__ = three.crash().__dict__
    assert three.heard(ONE) == before
    assert three.key_of(ONE)[0] == "core"


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def arm(dying: pytest.MonkeyPatch, step: str, three: Moved) -> None:
    """Let the process die before a step."""
    upper, eraser, index = three.pools["core"], three.counter.eraser, three.parts.index

    def die_at(owner: Any, name: str, turn: int = 1, after: bool = False) -> None:
        real, seen = getattr(owner, name), []

        def dies(*arguments: Any, **named: Any) -> Any:
            seen.append(name)
            if len(seen) == turn and not after:
                raise Died
            result = real(*arguments, **named)
            if len(seen) == turn:
                raise Died
            return result

        dying.setattr(owner, name, dies)

    match step:
        case "first batch":
            die_at(upper.intake, "put_moving")
        case "second batch":
            die_at(upper.intake, "put_moving", turn=2)
        case "transaction":
            die_at(index, "write")
        case "after the transaction":
            die_at(index, "write", after=True)
        case "publish":
            die_at(upper.intake, "publish_moving", after=True)
        case "keys":
            die_at(eraser, "complete")
        case "root":
            die_at(three.pools["base"].keyring._root, "replace")
        case "after the keys":
            die_at(eraser, "_destroy", after=True)
        case "end":
            die_at(index, "write", turn=2)
    # A process that is killed cleans nothing up.
    dying.setattr(three.counter.desk._mover, "_drop_what_came_to_nothing", lambda _: None)
