"""A capture that was taken over, with its own key at the ingest socket, against another's calls."""

import time
from collections.abc import Sequence
from typing import Any

import pytest

from spanvault import messages as m
from spanvault import spool, transport, wire
from spanvault.media.chunk import NO_MEDIA
from storaged.erasing.eraser import Eraser
from storaged.format import walk
from storaged.index.binding import APART, Binding
from storaged.index.rows import FINAL
from storaged.pools.layout import Store
from storaged.recordings.gathering import Group
from tests.support.vault import (
    SECOND,
    START,
    Client,
    Parts,
    Rig,
    call_id,
    chunk_keys,
    make_call,
    make_media,
)

VICTIM = call_id(1)
DAY_NS = 86400 * SECOND


class Host:
    """A capture host: a certificate of its own, and what it sends."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.client = Client(rig, name, rig.ingest)
        self.sequence = 0

    def send(
        self, calls: Sequence[m.Call] = (), chunks: Sequence[Any] = (), timeout_s: float = 10
    ) -> Any:
        """Send a batch. Gives the answer, None if there is none."""
        self.sequence += 1
        batch = m.Batch("test", self.sequence, list(calls))
        self.client.send(batch, make_media(chunks) if chunks else NO_MEDIA)
        answer = self.client.receive(wire.decode_from_ingest, timeout_s)
        return answer and answer[0]


@pytest.fixture
def hosts(rig, request):
    """storaged with two captures, `capture` and `hostile`."""
    transport.make_certificate(rig.folder / "secret", "capture", "hostile")
    public = (rig.folder / "secret/hostile.key").read_bytes()
    (rig.folder / "clients/hostile.key").write_bytes(public)
    rig.configure(**getattr(request, "param", {}))
    rig.start()
    both = Host(rig, "capture"), Host(rig, "hostile")
    yield both
    for host in both:
        host.client.close()


def stored(rig: Rig, one: bytes) -> tuple[m.Call, list[Any]]:
    operator = rig.client("operator")
    about = operator.ask(m.Get(one))[0]
    page, bulk = operator.ask(m.Fetch(one))
    assert page.faults == []
    return about.call, sorted(chunk_keys(wire.decode_media(bulk)))


def test_another_s_call_is_not_touched_and_nothing_is_lost(rig, hosts):
    good, bad = hosts
    going_on = make_call(1, final=False, ended_ns=None, revision=1)
    good.send([going_on], [(VICTIM, 0, 0)])
    forged = make_call(1, caller="+490000", revision=900, outcome="busy")
    assert bad.send([forged], [(VICTIM, 0, 1), (VICTIM, 3, 1)]) == m.Acknowledge([1])
    good.send([make_call(1, revision=2)], [(VICTIM, 0, 1)])
    assert stored(rig, VICTIM) == (
        make_call(1, revision=2), sorted(chunk_keys(make_media([(VICTIM, 0, 0), (VICTIM, 0, 1)]))),
    )  # fmt: skip
    calls = rig.client("operator").ask(m.Search(limit=10))[0].calls
    [apart] = [call for call in calls if call.id != VICTIM]
    assert (apart.caller, apart.flags, apart.id[:6]) == ("+490000", [APART], VICTIM[:6])
    assert [key[1:3] for key in stored(rig, apart.id)[1]] == [(0, 1), (3, 1)]
    status = rig.client("operator").ask(m.Status())[0]
    assert "capture hostile sent of 1 calls that are NOT ITS OWN" in status.state
    assert status.fields["kept_apart"] == {"hostile": 1}
    assert VICTIM.hex() in rig.messages


def test_it_stays_so_over_a_restart_and_a_new_index(rig, hosts):
    good, bad = hosts
    good.send([make_call(1, final=False, revision=1)], [(VICTIM, 0, 0)])
    rig.stop()
    rig.start()
    bad.send([make_call(1, caller="+490000", revision=900)])
    assert stored(rig, VICTIM)[0].caller == make_call(1).caller
    rig.stop()
    (rig.store / "index/data.mdb").unlink()
    assert rig.reindex() == 0
    rig.start()
    bad.send([make_call(1, caller="+490000", revision=901)])
    good.send([make_call(1, revision=2)])
    assert stored(rig, VICTIM)[0] == make_call(1, revision=2)


def test_a_spooled_batch_is_its_capture_s_too(rig, hosts):
    good, bad = hosts
    good.send([make_call(1, revision=1)], [(VICTIM, 0, 0)])
    bad.client.send(m.Hello("test"))
    welcome = bad.client.receive(wire.decode_from_ingest)[0]
    frames = wire.encode_media(m.Batch("test", 7, [make_call(1, revision=5, caller="")]), NO_MEDIA)
    sealed = spool.seal_batch(frames, welcome.ingest_key)
    bad.client.send(m.Sealed("test", 7, welcome.key_id), None, sealed)
    assert bad.client.receive(wire.decode_from_ingest)[0] == m.Acknowledge([7])
    assert stored(rig, VICTIM)[0] == make_call(1, revision=1)


def test_it_cannot_hold_another_s_recording_by_calling_it_its_own(rig, hosts):
    """A stream that is said to lie there would give its sound, and keep it from being erased."""
    good, bad = hosts
    good.send([make_call(1)], [(VICTIM, 0, 0)])
    stolen = m.Stream(0, "caller", "audio", 1, "", "", {}, stored_in=VICTIM, stored_as=0)
    bad.send([make_call(3, beside=[stolen])])
    bad.send([make_call(2, streams=[stolen])])
    assert stored(rig, call_id(2))[1] == stored(rig, call_id(3))[1] == []
    reply = rig.client("operator").ask(m.Erase([VICTIM], "asked for"))[0]
    assert reply.erased == 1


@pytest.mark.parametrize("hosts", [{"reserve_percent": 90}], indirect=True)
def test_who_floods_a_disk_that_is_nearly_full_waits_and_the_others_record(rig, hosts):
    """Here the last 90 % of the disk count as nearly full."""
    good, bad = hosts
    block = [(call_id(9), 0, second) for second in range(36)]
    good.send([make_call(1)], [(VICTIM, 0, 0)])
    for turn in range(12):
        media = make_media([(one, stream, 36 * turn + at) for one, stream, at in block], 120_000)
        bad.sequence += 1
        bad.client.send(m.Batch("test", bad.sequence), media)
        if bad.client.receive(wire.decode_from_ingest, 2) is None:
            break
    assert 8 <= turn < 11  # not at once, and not for ever
    assert good.send([make_call(3)], [(call_id(3), 0, 0)]) == m.Acknowledge([2])
    status = rig.client("operator").ask(m.Status())[0]
    assert "capture hostile floods the disk and is HELD BACK" in status.state
    assert status.fields["held_back"] == ["hostile"]


# --- closed calls ---------------------------------------------------------------------------------


class Captures:
    """A store, and a clock that is set."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.now_ns = parts, START
        self.parts.writer._clock_ns = lambda: self.now_ns  # type: ignore[attr-defined]
        self.binding = Binding(parts.index, 14, lambda: self.now_ns)

    def send(self, capture: str, calls: list[m.Call], chunks: Sequence[Any] = ()) -> list[bytes]:
        """Bind a batch and commit it. Gives the ids that its calls have then."""
        group = Group()
        media = make_media(chunks) if chunks else NO_MEDIA
        group.add(b"", *self.binding.bind(capture, m.Batch("test", 1, calls), media))
        self.parts.writer.commit(group)
        return list(group.calls)

    def state(self, one: bytes) -> Any:
        with self.parts.index.reading() as view:
            return view.state(one)


@pytest.fixture
def captures(parts):
    return Captures(parts)


def test_a_spool_that_comes_a_week_later_still_counts(captures):
    captures.send("a", [make_call(1, revision=1)], [(VICTIM, 0, 0)])
    captures.now_ns += 7 * DAY_NS
    assert captures.send("a", [make_call(1, revision=2)], [(VICTIM, 0, 1)]) == [VICTIM]
    assert captures.state(VICTIM).revision == 2


def test_after_two_weeks_a_call_is_closed_for_its_own_capture_too(captures):
    captures.send("a", [make_call(1, revision=1)], [(VICTIM, 0, 0)])
    before = captures.state(VICTIM)
    captures.now_ns += 16 * DAY_NS
    [apart] = captures.send("a", [make_call(1, revision=2)], [(VICTIM, 0, 1)])
    assert apart != VICTIM
    assert captures.state(VICTIM) == before
    assert captures.send("a", [make_call(1, revision=3)]) == [apart]  # always the same


def test_a_call_that_goes_on_is_not_closed_however_long_it_lasts(captures):
    captures.send("a", [make_call(1, final=False, revision=1)])
    captures.now_ns += 100 * DAY_NS
    assert captures.send("a", [make_call(1, revision=2)]) == [VICTIM]
    assert captures.state(VICTIM).bits & FINAL


def test_an_old_recording_that_is_imported_is_closed_by_when_it_came(captures):
    """The call of a capture file is years old; its second record comes a second later."""
    captures.send("a", [make_call(1, revision=1)])
    captures.now_ns += SECOND
    assert captures.send("a", [make_call(1, revision=2)]) == [VICTIM]


def test_of_an_ended_call_nothing_is_taken_away(captures):
    heard = m.Stream(0, "caller", "audio", 1, "a:1", "b:2", {}, packets=7)
    key = m.MediaKey("AES_CM_128_HMAC_SHA1_80", bytes(30))
    whole = make_call(1, revision=1, streams=[heard], keys=[key])
    captures.send("a", [whole])
    captures.send("a", [
        m.Call(VICTIM, "test", [], "", "", START, revision=2, expires_ns=1, end_reason="486"),
    ])  # fmt: skip
    with captures.parts.index.reading() as view:
        now = captures.parts.writer._stored_call(view, VICTIM)
    assert now.streams == [heard]
    assert (now.keys, now.call_ids, now.caller) == ([key], whole.call_ids, whole.caller)
    assert (now.final, now.expires_ns, now.end_reason) == (True, None, "486")


def test_a_call_of_a_store_from_before_is_bound_by_the_next_word_of_it(captures):
    captures.parts.commit([(VICTIM, 0, 0)], [make_call(1, final=False, revision=1)])
    assert captures.state(VICTIM).capture == 0
    assert captures.send("a", [make_call(1, final=False, revision=2)]) == [VICTIM]
    assert captures.state(VICTIM).capture
    assert captures.send("b", [make_call(1, revision=3)]) != [VICTIM]


# --- erased calls ---------------------------------------------------------------------------------


@pytest.fixture
def erased(captures):
    """A call of `a`, and what `b` sent of it; the call is erased, and storaged starts anew."""
    captures.send("a", [make_call(1)], [(VICTIM, 0, 0)])
    [apart] = captures.send("b", [make_call(1)], [(VICTIM, 0, 0)])
    parts = captures.parts
    store = Store(parts.folder)
    store.refused.mkdir()
    eraser = Eraser(store, parts.index, parts.vaults, parts.writer.forget, time.time_ns)
    walk.finish(eraser.erasing("test", m.Erase([VICTIM], "asked for")))
    return Captures(parts), apart


def test_another_capture_s_word_of_an_erased_call_makes_its_own_s_no_new_call(erased):
    captures, apart = erased
    captures.send("c", [make_call(1, revision=1)], [(VICTIM, 0, 1)])
    captures.send("a", [make_call(1, revision=2)], [(VICTIM, 0, 2)])
    with captures.parts.index.reading() as view:
        assert [bytes(one) for one in view.cursor(b"state").iternext(values=False)] == [apart]


def test_what_was_kept_beside_an_erased_call_goes_on(erased):
    captures, apart = erased
    assert captures.send("b", [make_call(1, revision=3)], [(VICTIM, 0, 3)]) == [apart]
    assert captures.state(apart).revision == 3
