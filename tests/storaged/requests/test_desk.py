"""What the request API answers: calls, media, checks, objects, the feed. WIRE.md §6."""

import hashlib
from typing import Any

import pytest

from spanvault import messages as m
from storaged.format import walk
from storaged.format.sealing import HEADER_BYTES, Header, ObjectWriter, Trailer
from tests.support.desk import OPERATOR, REPLICATOR, Counter
from tests.support.vault import START, call_id, chunk_keys, make_call

ONE, TWO = call_id(1), call_id(2)


def test_get_tells_call_recording_and_copies(counter):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1, final=False)])
    growing = counter.ask(m.Get(ONE))
    assert (growing.call, growing.sealed) == (make_call(1, final=False), False)
    assert growing.size == counter.parts.pool.path(ONE).stat().st_size
    counter.parts.commit(calls=[make_call(1, revision=1)])
    sealed = counter.ask(m.Get(ONE))
    receipt = m.Receipt(ONE, "site-b", sealed.size, counter.ask(m.Verify(ONE)).sha256, START)
    counter.ask(m.Feed(0, target="site-b"), who=REPLICATOR)
    assert counter.ask(receipt, who=REPLICATOR) == m.Done()
    sealed = counter.ask(m.Get(ONE))
    assert (sealed.sealed, sealed.pool, sealed.receipts) == (True, "base", [receipt])


def test_several_calls_come_in_the_order_they_are_asked_for(counter):
    calls = [make_call(number) for number in (1, 2, 3)]
    counter.parts.commit(calls=calls)
    asked = [call_id(3), b"", call_id(9), b"x" * 400, call_id(1)]
    reply = counter.ask(m.Several(asked))
    assert [call.id for call in reply.calls] == [call_id(3), call_id(1)]
    assert (reply.cursor, reply.locked) == (None, [])
    assert counter.lines[-1]["ids"][0] == call_id(3).hex()
    assert counter.ask(m.Several([ONE] * 501)).code == "invalid"


@pytest.mark.parametrize(
    "request_",
    [
        m.Get(TWO), m.Get(b"x"), m.Get(b""), m.Fetch(TWO), m.Fetch(b""), m.Verify(TWO),
        m.Verify(b""), m.Verify(bytes(600)), m.ReadObject(b"", 0, 1),
    ],
)  # fmt: skip
def test_call_that_is_not_there(counter, request_):
    assert counter.ask(request_).code == "not_found"


def in_turns(counter: Counter, request: Any, between: Any = lambda: None) -> tuple[Any, int]:
    """The reply, and how often others could have had their turn before it."""
    steps, turns = counter.desk.answering(OPERATOR, request, []), 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value.reply, turns
        turns += 1
        between()


def test_a_long_search_gives_way_and_gives_one_whole_page(counter, monkeypatch):
    monkeypatch.setattr("storaged.requests.lookup.STEP_ROWS", 2)
    calls = [make_call(number) for number in range(10)]
    counter.parts.commit(calls=calls)
    found, turns = in_turns(counter, m.Search(outcome="busy"))
    assert (found.calls, found.cursor) == ([], None)
    assert turns >= 4
    found, turns = in_turns(counter, m.Search(limit=7))
    assert [call.id for call in found.calls] == [call.id for call in reversed(calls[3:])]
    assert turns >= 6
    rest, _ = in_turns(counter, m.Search(cursor=found.cursor))
    assert [call.id for call in rest.calls] == [call.id for call in reversed(calls[:3])]


def test_what_is_erased_while_a_search_gives_way_is_not_given_out(counter, monkeypatch):
    monkeypatch.setattr("storaged.requests.lookup.STEP_ROWS", 1)
    counter.parts.commit(calls=[make_call(number) for number in range(3)])
    newest = call_id(2)

    def erase() -> None:
        counter.parts.index.write(lambda writing: writing.put(b"erased", newest, bytes(16)))

    found, turns = in_turns(counter, m.Search(), erase)
    assert turns
    assert [call.id for call in found.calls] == [call_id(1), call_id(0)]


def test_finding_the_frames_of_a_long_recording_gives_way(counter, monkeypatch):
    monkeypatch.setattr("storaged.format.walk._FRAMES_A_STEP", 2)
    for second in range(8):
        counter.parts.commit([(ONE, 1, second)])
    reply, turns = in_turns(counter, m.Fetch(ONE))
    assert (reply.cursor, reply.faults) == (None, [])
    assert turns >= 3


def test_fetch_pages_through_a_long_recording(counter, monkeypatch):
    monkeypatch.setattr("storaged.recordings.reading.PAGE_BYTES", 1000)
    keys = [(ONE, stream, second) for second in range(6) for stream in (1, 2)]
    for second in range(6):
        counter.parts.commit(keys[2 * second : 2 * second + 2])
    found, pages = counter.fetch(ONE)
    assert [key[:3] for key in found] == keys
    assert pages == 3


def test_stream_that_another_recording_holds_is_given_as_the_call_s_own(counter):
    """A B2BUA's other leg: both calls are known, the audio is stored once."""
    shared = m.Stream(
        7, "callee", "audio", 1, "", "", {}, stored_in=ONE, stored_as=2
    )  # fmt: skip
    counter.parts.commit(
        [(ONE, 1, 0), (ONE, 2, 0), (TWO, 1, 0), (ONE, 2, 1)],
        [make_call(1), make_call(2, streams=[shared])],
    )
    found, _ = counter.fetch(TWO)
    assert [key[:3] for key in found] == [(TWO, 1, 0), (TWO, 7, 0), (TWO, 7, 1)]


def test_call_whose_media_lies_elsewhere_altogether(counter):
    shared = m.Stream(1, "callee", "audio", 1, "", "", {}, stored_in=ONE, stored_as=1)
    counter.parts.commit([(ONE, 1, 0)], [make_call(1), make_call(2, streams=[shared])])
    assert [key[:3] for key in counter.fetch(TWO)[0]] == [(TWO, 1, 0)]


def damage(counter: Counter, at: int) -> None:
    path = counter.parts.pool.path(ONE)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_verify_tells_where_a_damaged_byte_lies(counter):
    counter.parts.commit([(ONE, 1, 0)])
    counter.parts.commit([(ONE, 1, 1)], [make_call(1)])
    assert counter.ask(m.Verify(ONE)).faults == []
    damage(counter, 120)
    report = counter.ask(m.Verify(ONE))
    assert "segment 0, bytes 104-" in report.faults[0]
    assert "frame 0 does not authenticate" in report.faults[0]
    assert "SHA-256 differs" in report.faults[1]


def test_fetch_gives_what_can_be_opened_and_says_what_cannot(counter):
    counter.parts.commit([(ONE, 1, 0)])
    counter.parts.commit([(ONE, 1, 1)], [make_call(1)])
    damage(counter, 120)
    answer = counter.answer(m.Fetch(ONE))
    assert [key[1:3] for key in chunk_keys(answer.media)] == [(1, 1)]
    assert "bytes 104-" in answer.reply.faults[0]


def test_object_that_vanished_is_a_clear_failure(counter):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    counter.parts.pool.path(ONE).unlink()
    for request in (m.Fetch(ONE), m.Verify(ONE)):
        failure = counter.ask(request)
        assert (failure.code, "replica" in failure.hint) == ("corrupt", True)


def test_cut_object_is_found_by_verify(counter):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    path = counter.parts.pool.path(ONE)
    path.write_bytes(path.read_bytes()[:-40])
    faults = " ".join(counter.ask(m.Verify(ONE)).faults)
    assert "the last frame is missing" in faults
    assert "were sealed" in faults


def test_object_that_somebody_sealed_anew_is_told_by_its_hash_alone(counter):
    """Who has the DEK, or an older copy: of the same size, and every tag opens."""
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    path = counter.parts.pool.path(ONE)
    data = path.read_bytes()
    header = Header.parse(data[:HEADER_BYTES])
    dek = counter.parts.keyring.dek(header.key_id)
    opener = walk.Opener(data, layout := walk.walk(data), lambda _: dek)
    plain = [opener.open(place) for place in layout.places]
    writer = ObjectWriter(ONE, header.key_id, 0)
    forged = writer.begin(dek, header.created_ns, bytes(16))
    forged += writer.data([plain[0]], START, START)
    path.write_bytes(forged + writer.last(Trailer.parse(plain[1]).record))
    assert path.stat().st_size == len(data)
    [fault] = counter.ask(m.Verify(ONE)).faults
    assert "SHA-256 differs from the sealed object's" in fault


def test_read_object_gives_the_bytes_on_disk(counter):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    data = counter.parts.pool.path(ONE).read_bytes()
    answer = counter.answer(m.ReadObject(ONE, 10, 50))
    assert (answer.reply.total, answer.bulk) == (len(data), [data[10:60]])
    assert counter.ask(m.ReadObject(ONE, len(data) + 1, 5)).code == "invalid"
    counter.parts.commit([(TWO, 1, 0)])
    assert counter.ask(m.ReadObject(TWO, 0, 5)).code == "not_found"


def test_feed_carries_ciphertext_only(counter):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    reply = counter.ask(m.Feed(0))
    assert [change.kind for change in reply.changes] == ["keys", "keys", "record", "object"]
    sealed = counter.parts.pool.path(ONE).read_bytes()
    assert reply.changes[3].sha256 == hashlib.sha256(sealed).hexdigest()
    assert reply.position == reply.changes[3].position
    assert make_call(1).caller.encode() not in b"".join(one.data for one in reply.changes)
    assert counter.ask(m.Feed(reply.position)).changes == []
