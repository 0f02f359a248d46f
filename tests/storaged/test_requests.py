"""What the request API answers, to whom, and what it writes down. WIRE.md §6."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import pytest

from spanvault import chunk, logchain, wire
from spanvault import messages as m
from spanvault.transport import Identity
from storaged import policy
from storaged.accesslog import AccessLog
from storaged.erasing import Eraser
from storaged.layout import Store
from storaged.mending import Mender
from storaged.moving import Mover
from storaged.requests import Answer, Desk
from storaged.retention import Retention
from tests.support.vault import (
    START,
    Parts,
    call_id,
    chunk_keys,
    make_call,
    make_media,
    payload,
)

OPERATOR = Identity("operator", "alice")
REPLICATOR = Identity("replicator", "copier")
ONE, TWO = call_id(1), call_id(2)


class Counter:
    """A desk with somebody behind it."""

    def __init__(
        self, parts: Parts, forget: Callable[[Sequence[bytes]], None] | None = None
    ) -> None:
        self.parts, self.store = parts, Store(parts.folder)
        self.store.log.mkdir(exist_ok=True)
        self.store.write_format(parts.keyring.store_id)
        self.access = AccessLog(self.store.log / "access.log")
        self.store.refused.mkdir(exist_ok=True)
        self.eraser = Eraser(
            self.store, parts.index, parts.vaults, forget or parts.writer.forget, time.time_ns
        )
        mender = Mender(
            parts.index, parts.vaults, forget or parts.writer.forget, time.time_ns, time.monotonic
        )
        self.clock_ns, self.monotonic_ns = time.time_ns, time.monotonic_ns
        self.retention = Retention(
            parts.index, parts.vaults, self.eraser, lambda: self.clock_ns(),
            lambda: self.monotonic_ns(),
        )  # fmt: skip
        self.desk = Desk(
            self.store, parts.index, parts.vaults, self.access, self.eraser, mender,
            Mover(parts.index, parts.vaults, self.eraser, forget or parts.writer.forget,
                  time.time_ns),
            time.time_ns, lambda: ("fine", {}), parts.opener, self.retention,
        )  # fmt: skip

    def ask(self, request: Any, *bulk: bytes, who: Identity = OPERATOR) -> Any:
        return self.answer(request, *bulk, who=who).reply

    def answer(self, request: Any, *bulk: bytes, who: Identity = OPERATOR) -> Answer:
        return self.desk.answer(who, request, list(bulk))

    def fetch(self, call: bytes) -> tuple[list[tuple[bytes, int, int, bytes]], int]:
        """All chunks of a call, and how many pages they took."""
        found, cursor, pages = [], 0, 0
        while cursor is not None:
            reply, bulk = wire.decode_reply(self.answer(m.Fetch(call, cursor)).frames())
            found += chunk_keys(wire.decode_media(bulk))
            cursor, pages = reply.cursor, pages + 1
        return found, pages

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = (self.store.log / "access.log").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def counter(parts: Parts) -> Iterator[Counter]:
    made = Counter(parts)
    yield made
    made.access.close()


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
    monkeypatch.setattr("storaged.requests.STEP_ROWS", 2)
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
    monkeypatch.setattr("storaged.requests.STEP_ROWS", 1)
    counter.parts.commit(calls=[make_call(number) for number in range(3)])
    newest = call_id(2)

    def erase() -> None:
        counter.parts.index.write(lambda writing: writing.put(b"erased", newest, bytes(16)))

    found, turns = in_turns(counter, m.Search(), erase)
    assert turns
    assert [call.id for call in found.calls] == [call_id(1), call_id(0)]


def test_finding_the_frames_of_a_long_recording_gives_way(counter, monkeypatch):
    monkeypatch.setattr("storaged.walk._FRAMES_A_STEP", 2)
    for second in range(8):
        counter.parts.commit([(ONE, 1, second)])
    reply, turns = in_turns(counter, m.Fetch(ONE))
    assert (reply.cursor, reply.faults) == (None, [])
    assert turns >= 3


def test_fetch_pages_through_a_long_recording(counter, monkeypatch):
    monkeypatch.setattr("storaged.reading.PAGE_BYTES", 1000)
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


# --- who may ask, and what is written down --------------------------------------------------------


def request_of(kind: type) -> Any:
    """One request of a kind, otherwise valid."""
    change = m.Change(1, "keys", name="root")
    return {
        m.Status: m.Status(), m.Search: m.Search(), m.Get: m.Get(ONE), m.Fetch: m.Fetch(ONE),
        m.Several: m.Several([ONE]),
        m.Verify: m.Verify(ONE), m.Feed: m.Feed(0), m.ReadObject: m.ReadObject(ONE, 0, 1),
        m.Receipt: m.Receipt(ONE, "t", 0, "", 0), m.Import: m.Import("00" * 16, change),
        m.Health: m.Health("capture", "ok"), m.Erase: m.Erase([ONE], "asked for"),
        m.ErasureReceipt: m.ErasureReceipt(ONE, "t", 0, ""), m.Erasures: m.Erasures(),
        m.Certify: m.Certify(ONE), m.Keys: m.Keys(), m.Unlock: m.Unlock("core", ONE),
        m.Lock: m.Lock("core"), m.Rotate: m.Rotate("base", "root"),
        m.Recipients: m.Recipients("core", ONE), m.Return: m.Return("t", change),
        m.Mend: m.Mend([ONE]), m.Move: m.Move([ONE], "core", "asked for"),
        m.OfferShare: m.OfferShare("core", "paper"), m.Check: m.Check("keys"),
    }[kind]  # fmt: skip


@pytest.mark.parametrize("role", ["capture", "replicator", "operator", "storaged", "unheard-of"])
@pytest.mark.parametrize("kind", get_args(m.Request))
def test_what_a_role_may_not_is_denied(counter, role, kind):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    reply = counter.ask(request_of(kind), who=Identity(role, "x"))
    denied = isinstance(reply, m.Failure) and reply.code == "denied"
    assert denied != (kind in policy.MAY.get(role, ()))
    assert counter.lines[-1]["result"] == ("denied" if denied else counter.lines[-1]["result"])


def test_replicator_may_not_listen():
    assert not policy.MAY["replicator"] & {m.Search, m.Several, m.Get, m.Fetch, m.Verify, m.Import}
    assert policy.MAY["capture"] == {m.Health}


# --- digits ---------------------------------------------------------------------------------------

DIALLER = Identity("operator", "bob", frozenset({"digits"}))
DIGITS = chunk.EVENTS + 1


def fetched(counter: Counter) -> list[int]:
    """The streams whose chunks come without a wish."""
    _, bulk = wire.decode_reply(counter.answer(m.Fetch(ONE)).frames())
    return [int(one.header["stream"]) for one in wire.decode_media(bulk).chunks()]


def test_digits_are_given_to_whom_they_are_granted_and_apart(counter):
    counter.parts.commit([(ONE, 1, 0), (ONE, DIGITS, 0), (ONE, 1, 1)], [make_call(1)])
    wish = m.Fetch(ONE, digits=True)
    assert fetched(counter) == [1, 1]
    assert counter.ask(wish).code == "denied"
    for role in ("capture", "replicator"):
        who = Identity(role, "x", frozenset({"digits"}))
        assert counter.ask(wish, who=who).code == "denied"
    _, bulk = wire.decode_reply(counter.answer(wish, who=DIALLER).frames())
    assert chunk_keys(wire.decode_media(bulk)) == [
        (ONE, DIGITS, 0, payload(ONE, DIGITS, 0, 320))
    ]  # fmt: skip
    said = [(line["who"], line.get("digits"), line["result"]) for line in counter.lines]
    assert said == [
        ("operator/alice", None, "ok"),
        ("operator/alice", True, "denied"),
        ("capture/x", True, "denied"),
        ("replicator/x", True, "denied"),
        ("operator/bob", True, "ok"),
    ]


def test_digits_of_a_stream_that_two_calls_share(counter):
    beside = m.Stream(DIGITS, "caller", "events", 1, "", "", {}, stored_in=TWO, stored_as=DIGITS)
    counter.parts.commit([(TWO, DIGITS, 0)], [make_call(2), make_call(1, beside=[beside])])
    reply, bulk = wire.decode_reply(counter.answer(m.Fetch(ONE, digits=True), who=DIALLER).frames())
    assert [key[:2] for key in chunk_keys(wire.decode_media(bulk))] == [(ONE, DIGITS)]
    assert (reply.cursor, reply.faults, fetched(counter)) == (None, [], [])


def test_what_another_program_put_among_the_sound_stays_closed(counter):
    """A reader trusts a chunk's number, not the frame that it lies in."""
    writer = counter.parts.writer
    counter.parts.commit([(ONE, 1, 0)], [make_call(1, final=False)])
    grown = writer._recordings.find(ONE)
    for piece in make_media([(ONE, DIGITS, 1)]).chunks():
        counter.parts.pool.append(ONE, grown.writer.data([chunk.pack(piece)], START, START))
    counter.parts.commit([(ONE, 1, 2)], [make_call(1, revision=1)])
    assert fetched(counter) == [1, 1]


def test_log_names_numbers_by_token_only(counter):
    counter.parts.commit(calls=[make_call(1)])
    counter.ask(m.Search(number="+49300000001", call_id="call-1@example.org"))
    counter.ask(m.Get(ONE))
    text = (counter.store.log / "access.log").read_text()
    assert "0000001" not in text
    assert "example.org" not in text
    search, get = counter.lines
    assert (search["who"], search["kind"], search["result"]) == ("operator/alice", "search", "ok")
    assert len(search["number"]) == 32
    assert (get["kind"], get["id"]) == ("get", ONE.hex())


def test_log_is_a_chain_that_survives_a_torn_line(counter):
    for _ in range(3):
        counter.ask(m.Status())
    counter.access.close()
    path = counter.store.log / "access.log"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"at_ns":17')
    counter.access = AccessLog(path)
    counter.access.append({"kind": "status"}, sync=True)
    assert path.read_bytes().startswith(whole)
    assert [one.what for one in logchain.check(path.read_bytes())] == ["torn"]  # told, and cut
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in (lines[:1] + lines[2:], [lines[0].replace(b"alice", b"nobod"), *lines[1:]]):
        first = next(logchain.check(b"".join(broken)))
        assert (first.what, first.line) == ("changed", 2)


def test_nothing_is_given_out_that_cannot_be_logged(counter, monkeypatch):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(counter.access, "append", full)
    answer = counter.answer(m.Fetch(ONE))
    assert (answer.reply.code, answer.media) == ("full", None)
    assert isinstance(counter.ask(m.Status()), m.StatusReply)


def test_health_is_kept_with_its_age_under_the_name_its_key_proved(counter):
    counter.ask(m.Health("capture", "recording"), who=Identity("capture", "span1"))
    (daemon,) = counter.ask(m.Status()).daemons
    assert (daemon["identity"], daemon["state"]) == ("capture/span1", "recording")
    assert daemon["age_s"] >= 0


# --- import ---------------------------------------------------------------------------------------


def restore(source: Counter, target: Counter, part: int = 200) -> None:
    """As replicator restore does: keys, then records, then objects in parts."""
    reply = source.ask(m.Feed(0))
    order = {"keys": 0, "record": 1, "object": 2}
    for change in sorted(reply.changes, key=lambda one: order[one.kind]):
        if change.kind != "object":
            assert target.ask(m.Import(reply.store_id, change)) == m.Done()
            continue
        for offset in range(0, change.size, part):
            data = source.answer(m.ReadObject(change.id, offset, part)).bulk[0]
            assert target.ask(m.Import(reply.store_id, change, offset), data) == m.Done()


@pytest.fixture
def empty(parts: Parts, tmp_path) -> Iterator[Counter]:
    """A store that has the same unlock key and nothing else in common."""
    folder = tmp_path / "restored"
    folder.mkdir()
    (folder / "unlock.key").write_bytes((parts.folder / "unlock.key").read_bytes())
    made = Counter(Parts(folder))
    yield made
    made.access.close()
    made.parts.close()


def test_restored_store_plays_and_finds(counter, empty):
    counter.parts.commit([(ONE, 1, 0), (ONE, 2, 0)])
    counter.parts.commit([(ONE, 1, 1)], [make_call(1), make_call(2)])
    restore(counter, empty)
    assert empty.fetch(ONE) == counter.fetch(ONE)
    assert empty.ask(m.Verify(ONE)) == counter.ask(m.Verify(ONE))
    found = empty.ask(m.Search(number=make_call(1).caller)).calls
    assert found == [make_call(1)]
    assert empty.ask(m.Status()).store_id == counter.ask(m.Status()).store_id
    kinds = [change.kind for change in empty.ask(m.Feed(0)).changes]
    assert sorted(kinds) == ["keys", "keys", "object", "record", "record"]


def test_restored_store_records_on_with_keys_of_its_own(counter, empty):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    restore(counter, empty)
    empty.parts.commit([(TWO, 1, 0)], [make_call(2)])
    with empty.parts.index.reading() as view:
        keys = {view.state(ONE).key_id, view.state(TWO).key_id}
    assert keys == {0, 4096}
    reply = counter.ask(m.Feed(0))
    failure = empty.ask(m.Import(reply.store_id, reply.changes[0]))
    assert "holds recordings of its own" in failure.error


def test_import_again_changes_nothing(counter, empty):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    restore(counter, empty)
    restore(counter, empty, part=77)
    assert empty.fetch(ONE) == counter.fetch(ONE)
    assert len(empty.ask(m.Search()).calls) == 1


def test_damaged_copy_is_not_taken(counter, empty):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    reply = counter.ask(m.Feed(0))
    (record,) = (one for one in reply.changes if one.kind == "record")
    restore_keys = [one for one in reply.changes if one.kind == "keys"]
    for change in restore_keys:
        empty.ask(m.Import(reply.store_id, change))
    record.data = record.data[:-1] + bytes((record.data[-1] ^ 1,))
    assert empty.ask(m.Import(reply.store_id, record)).code == "corrupt"
    (thing,) = (one for one in reply.changes if one.kind == "object")
    failure = empty.ask(m.Import(reply.store_id, thing), bytes(thing.size))
    assert (failure.code, "SHA-256" in failure.error) == ("corrupt", True)
    assert not list(empty.parts.pool.objects.glob("*/*"))


@pytest.mark.parametrize(
    "change",
    [
        m.Change(1, "keys", name="../../etc/passwd"),
        m.Change(1, "keys", name="root", data=b"nonsense"),
        m.Change(1, "record", ONE, data=b"nonsense"),
        m.Change(1, "object", b"short", size=5),
        m.Change(1, "object", ONE, size=5, sha256="zz"),
    ],
)
def test_import_of_nonsense_is_refused(empty, change):
    before = (empty.store.keys / "root").read_bytes(), empty.store.store_id
    assert isinstance(empty.ask(m.Import("11" * 16, change), b"12345"), m.Failure)
    assert before == ((empty.store.keys / "root").read_bytes(), empty.store.store_id)


def test_record_before_its_key_says_so(counter, empty):
    counter.parts.commit(calls=[make_call(1)])
    reply = counter.ask(m.Feed(0))
    (change,) = (one for one in reply.changes if one.kind == "record")
    failure = empty.ask(m.Import(reply.store_id, change))
    assert (failure.code, "keys first" in failure.hint) == ("locked", True)
