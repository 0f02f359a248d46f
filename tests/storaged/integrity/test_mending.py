"""What is damaged is asked back, checked, and put in place; what cannot be is named."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanvault import messages as m
from spanvault.transport import Identity
from storaged.format.walk import Steps, finish
from storaged.index import damage
from storaged.integrity import mending
from storaged.integrity.mending import AGAIN_S, AWAY, LEASE_S, NO_REPLICA, Mender
from storaged.requests.desk import Answer
from tests.support.desk import Counter
from tests.support.vault import Parts, call_id, make_call

REPLICATOR = Identity("replicator", "tape")
ONE, TWO = call_id(1), call_id(2)
PART = 1000


class Mended(Counter):
    """A desk whose store has two sealed recordings, and targets that ask for its feed."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.now_s = 0.0
        self.mender._clock_s = lambda: self.now_s
        for number in (1, 2):
            parts.commit([(call_id(number), 1, second) for second in range(9)], [make_call(number)])
        self.whole = {one: self.path(one).read_bytes() for one in (ONE, TWO)}

    @property
    def mender(self) -> Mender:
        return self.desk._mender

    def path(self, recording: bytes) -> Path:
        return self.parts.pool.path(recording)

    def hurt(self, recording: bytes = ONE, at: int = 300) -> bytes:
        """Flip a bit, and find it; gives the damaged bytes."""
        data = bytearray(self.whole[recording])
        data[at] ^= 1
        self.path(recording).write_bytes(data)
        assert self.ask(m.Verify(recording)).faults
        return bytes(data)

    def feed(self, target: str = "siteb") -> list[m.Change]:
        self.now_s += 1
        wanted: list[m.Change] = self.ask(m.Feed(1 << 40, target=target), who=REPLICATOR).wanted
        return wanted

    def bring(self, change: m.Change, data: bytes, target: str = "siteb") -> Any:
        """A target's copy in parts; gives the last answer."""
        for offset in range(0, len(data), PART):
            part = data[offset : offset + PART]
            answer = self.ask(m.Return(target, change, offset), part, who=REPLICATOR)
            if answer != m.Done():
                break
        return answer

    def on_its_way(self, monkeypatch: pytest.MonkeyPatch, checked: bool) -> Steps[Answer]:
        """The recording's copy has come, and waits before its check or behind it."""
        examining = mending.examining

        def slowly(*what: Any) -> Any:
            if not checked:
                yield
            reply = yield from examining(*what)
            if checked:
                yield
            return reply

        monkeypatch.setattr(mending, "examining", slowly)
        (change,) = self.feed()
        asked = m.Return("siteb", change, 0)
        steps = self.desk.answering(REPLICATOR, asked, [self.whole[ONE]])
        next(steps)
        return steps

    def refuse(self, change: m.Change, fault: str, target: str) -> Any:
        return self.ask(m.Return(target, change, fault=fault), who=REPLICATOR)

    def about(self, again: bool = False) -> m.Mending:
        (one,) = self.ask(m.Mend([ONE], again)).recordings
        return one


@pytest.fixture
def mended(parts: Parts) -> Iterator[Mended]:
    made = Mended(parts)
    yield made
    made.access.close()


def test_damaged_recording_comes_back_and_the_damaged_one_is_kept_aside(mended, caplog):
    assert mended.feed() == []
    damaged = mended.hurt()
    (change,) = mended.feed()
    assert (change.kind, change.id, change.size) == ("object", ONE, len(mended.whole[ONE]))
    assert mended.bring(change, mended.whole[ONE]) == m.Done()
    assert mended.path(ONE).read_bytes() == mended.whole[ONE]
    assert mended.path(ONE).with_suffix(".0.damaged").read_bytes() == damaged
    assert not mended.path(ONE).with_suffix(".part").exists()
    assert mended.ask(m.Verify(ONE)).faults == []
    assert mended.fetch(ONE)[0]
    assert mended.feed() == []
    assert mended.mender.fields() == {
        "mended": 1, "asked": 0, "hopeless": 0, "last": f"{ONE.hex()} from siteb",
    }  # fmt: skip
    (said,) = [one for one in caplog.records if one.msg == "A damaged recording was repaired"]
    assert (ONE.hex(), "siteb") == (said.RECORDING_ID, said.TARGET)
    lines = [line for line in mended.lines if line["kind"] == "return"]
    assert [line["result"] for line in lines[-2:]] == ["replacing", "ok"]
    assert (lines[-2]["id"], lines[-2]["target"]) == (ONE.hex(), "siteb")


def test_missing_and_cut_recordings_come_back(mended):
    mended.path(ONE).unlink()
    mended.path(TWO).write_bytes(mended.whole[TWO][:500])
    assert mended.ask(m.Verify(ONE)).code == "corrupt"
    assert mended.ask(m.Verify(TWO)).faults
    for change in mended.feed():
        assert mended.bring(change, mended.whole[change.id]) == m.Done()
    assert {one: mended.path(one).read_bytes() for one in (ONE, TWO)} == mended.whole
    assert not mended.path(ONE).with_suffix(".0.damaged").exists()


def test_one_target_brings_it_at_a_time_and_another_when_it_is_silent(mended):
    mended.hurt()
    (change,) = mended.feed("siteb")
    assert mended.feed("sitec") == []
    assert mended.feed("siteb") == [change]
    mended.now_s += LEASE_S
    assert mended.feed("sitec") == [change]


def test_target_without_a_sound_copy_is_named_and_another_is_asked(mended, caplog):
    mended.feed("siteb"), mended.feed("sitec")
    mended.hurt()
    (change,) = mended.feed("siteb")
    assert mended.refuse(change, "it has no copy", "siteb") == m.Done()
    assert mended.feed("siteb") == []
    assert mended.about().told == {"siteb": "it has no copy", "sitec": "asked"}
    assert mended.feed("sitec") == [change]
    announced = mended.parts.index.position
    assert mended.bring(change, mended.whole[ONE], "sitec") == m.Done()
    # siteb gets a sound copy: the recording is in the feed again.
    changes = mended.ask(m.Feed(announced), who=REPLICATOR).changes
    assert [(one.kind, one.id) for one in changes] == [("object", ONE)]
    assert not [one for one in caplog.records if "cannot be repaired" in one.msg]


def test_copy_that_is_damaged_itself_never_takes_the_place(mended):
    mended.feed("siteb")
    damaged = mended.hurt()
    (change,) = mended.feed("siteb")
    other = bytearray(mended.whole[ONE])
    other[-1] ^= 1
    assert mended.bring(change, bytes(other)).code == "corrupt"
    assert mended.path(ONE).read_bytes() == damaged
    assert not mended.path(ONE).with_suffix(".part").exists()
    one = mended.about()
    assert one.state == "hopeless"
    assert "SHA-256 differs" in one.told["siteb"] or "does not" in one.told["siteb"]


def test_what_nobody_can_bring_is_said_once_and_asked_for_again(mended, caplog):
    mended.feed("siteb"), mended.feed("sitec")
    mended.hurt()
    for target in ("siteb", "sitec"):
        (change,) = mended.feed(target)
        mended.refuse(change, f"{target} has no copy", target)
    (said,) = [one for one in caplog.records if "cannot be repaired" in one.msg]
    assert (ONE.hex(), mending.HOPELESS) == (said.RECORDING_ID, said.REMEDY)
    assert mended.mender.fields()["hopeless"] == 1
    one = mended.about()
    assert (one.state, one.told) == (
        "hopeless", {"siteb": "siteb has no copy", "sitec": "sitec has no copy"},
    )  # fmt: skip
    assert mended.feed("siteb") == []
    mended.now_s += AGAIN_S
    assert mended.feed("siteb") == [change]


def test_asking_by_hand_asks_all_targets_anew(mended):
    mended.feed("siteb")
    mended.hurt()
    (change,) = mended.feed("siteb")
    mended.refuse(change, "away", "siteb")
    assert mended.feed("siteb") == []
    assert mended.about(again=True).state == "asked"
    assert mended.feed("siteb") == [change]


def test_store_without_a_replica_says_so(mended):
    mended.hurt()
    one = mended.about(again=True)
    assert (one.state, one.told) == ("hopeless", {"": NO_REPLICA})


def test_target_that_does_not_ask_is_named(mended):
    mended.feed("siteb")
    mended.hurt()
    mended.now_s += 3600
    one = mended.about()
    assert (one.state, one.told) == ("hopeless", {"siteb": AWAY})


def test_recording_mended_by_hand_is_not_asked_back_any_more(mended):
    mended.hurt()
    (change,) = mended.feed()
    mended.path(ONE).write_bytes(mended.whole[ONE])
    assert mended.about(again=True).state == "whole"
    assert mended.feed() == []
    assert mended.bring(change, mended.whole[ONE]).code == "not_found"


def test_nobody_can_put_what_was_not_asked_back(mended):
    other = m.Change(0, "object", TWO, "base", size=5, sha256="00" * 32)
    assert mended.bring(other, b"stuff").code == "not_found"
    mended.hurt()
    (change,) = mended.feed()
    forged = m.Change(0, "object", ONE, "base", size=5, sha256="00" * 32)
    assert mended.bring(forged, b"stuff").code == "not_found"
    assert mended.bring(change, mended.whole[ONE] + b"more").code == "invalid"


def test_recording_that_is_erased_meanwhile_does_not_come_back(mended):
    mended.hurt()
    (change,) = mended.feed()
    mended.ask(m.Return("siteb", change, 0), mended.whole[ONE][:PART], who=REPLICATOR)
    assert mended.ask(m.Erase([ONE], "asked for")).erased == 1
    answer = mended.ask(m.Return("siteb", change, PART), mended.whole[ONE][PART:], who=REPLICATOR)
    assert answer.code == "not_found"
    assert not mended.path(ONE).exists()
    assert not mended.path(ONE).with_suffix(".part").exists()


@pytest.mark.parametrize("checked", [False, True])
def test_recording_that_is_erased_on_its_copys_way_does_not_come_back(mended, monkeypatch, checked):
    """The copy is here and whole; it is about to be checked, or to take its place."""
    mended.hurt()
    steps = mended.on_its_way(monkeypatch, checked)
    assert mended.path(ONE).with_suffix(".part").exists()
    assert mended.ask(m.Erase([ONE], "asked for")).erased == 1
    assert finish(steps).reply.code == "not_found"
    assert not [path for path in mended.path(ONE).parent.iterdir() if ONE.hex() in path.name]
    assert "replacing" not in [line.get("result") for line in mended.lines]


def test_recording_that_goes_on_behind_its_copys_check_is_left_alone(mended, monkeypatch):
    """The copy is that of what was sealed before: it would cost what came since."""
    mended.hurt()
    steps = mended.on_its_way(monkeypatch, checked=True)
    mended.parts.commit([(ONE, 1, 50)])
    longer = mended.path(ONE).read_bytes()
    assert len(longer) > len(mended.whole[ONE])
    assert finish(steps).reply.code == "not_found"
    assert mended.path(ONE).read_bytes() == longer
    assert not mended.path(ONE).with_suffix(".part").exists()


def test_recording_that_goes_on_is_left_alone(mended):
    mended.hurt()
    (change,) = mended.feed()
    mended.parts.commit([(ONE, 1, 50)])  # out of a spool: it is sealed anew, under another SHA-256
    assert mended.bring(change, mended.whole[ONE]).code == "not_found"
    assert len(mended.path(ONE).read_bytes()) > len(mended.whole[ONE])


def test_nothing_takes_a_place_that_cannot_be_logged(mended, monkeypatch):
    damaged = mended.hurt()
    (change,) = mended.feed()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mended.access, "append", full)
    assert mended.bring(change, mended.whole[ONE]).code in ("full", "unavailable")
    assert mended.path(ONE).read_bytes() == damaged


def test_crash_between_setting_aside_and_renaming_leaves_one_name_aside(mended):
    mended.hurt()
    aside = mended.path(ONE).with_suffix(".0.damaged")
    os.link(mended.path(ONE), aside)
    (change,) = mended.feed()
    assert mended.bring(change, mended.whole[ONE]) == m.Done()
    assert aside.exists()
    assert not mended.path(ONE).with_suffix(".1.damaged").exists()


def test_recording_of_a_locked_pool_is_repaired_by_its_hash(parts):
    vault = parts.open_pool("core")
    parts.vaults.add(vault)
    mended = Mended(parts)
    with parts.index.reading() as view:
        state = view.state(ONE)._replace(tier=1)
    parts.index.write(lambda writing: writing.put_state(ONE, state))
    vault.pool.append(ONE, mended.whole[ONE][:-1])
    vault.lock()
    damage.note(parts.index, ONE, state, ["found by hash"], 0)
    (change,) = mended.feed()
    assert change.pool == "core"
    assert mended.bring(change, mended.whole[ONE]) == m.Done()
    assert vault.pool.path(ONE).read_bytes() == mended.whole[ONE]
    mended.access.close()
    vault.pool.close()
