"""Erasure: what goes, what stays, what a crash leaves, what may not be erased. FORMAT.md §12."""

import json
import time
from collections.abc import Iterator

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spanvault import certificate, spool, wire
from spanvault import messages as m
from spanvault.media import chunk
from spanvault.transport import Identity
from storaged import files
from storaged.erasing.eraser import Eraser
from storaged.faults import Fault
from storaged.format.keypage import SLOTS
from storaged.format.sealing import HEADER_BYTES, Header
from storaged.index import erasures
from storaged.index.rows import serialize_state
from tests.support.desk import Counter
from tests.support.vault import Parts, call_id, make_call, make_media

ONE, TWO, THREE = call_id(1), call_id(2), call_id(3)
REPLICATOR = Identity("replicator", "copier")


@pytest.fixture
def counter(parts: Parts) -> Iterator[Counter]:
    made = Counter(parts)
    made.parts.commit([(ONE, 1, 0), (TWO, 1, 0)], [make_call(1), make_call(2)])
    yield made
    made.access.close()


def erase(counter: Counter, *ids: bytes, **more: bool) -> m.EraseReply | m.Failure:
    return counter.ask(m.Erase(list(ids), "asked for", **more))


def rows(counter: Counter, what: bytes) -> list[str]:
    """Tables in which something occurs."""
    with counter.parts.index.reading() as view:
        return [
            name.decode()
            for name in counter.parts.index.tables
            if any(what in bytes(key) + bytes(value) for key, value in view.cursor(name))
        ]


def test_erased_call_is_gone_and_its_neighbour_plays(counter):
    neighbour = counter.fetch(TWO)
    assert erase(counter, ONE).erased == 1
    for request in (m.Get(ONE), m.Fetch(ONE), m.Verify(ONE)):
        failure = counter.ask(request)
        assert (failure.code, "operator/alice" in failure.error) == ("erased", True)
    assert [call.id for call in counter.ask(m.Search()).calls] == [TWO]
    assert counter.ask(m.Search(number=make_call(1).caller)).calls == []
    assert not counter.parts.pool.path(ONE).exists()
    assert counter.fetch(TWO) == neighbour
    counter.convert()
    assert rows(counter, ONE) == ["erasure", "erased"]
    with pytest.raises(Fault, match="destroyed"):
        counter.parts.keyring.dek(0)


def test_digits_go_with_the_call_and_do_not_come_again(counter):
    digits = chunk.EVENTS + 1
    counter.parts.commit([(THREE, 1, 0), (THREE, digits, 0)], [make_call(3)])
    erase(counter, THREE)
    wish, dialler = m.Fetch(THREE, digits=True), Identity("operator", "x", frozenset({"digits"}))
    assert counter.ask(wish, who=dialler).code == "erased"
    counter.parts.commit([(THREE, digits, 0), (THREE, digits, 1)])
    assert not counter.parts.pool.path(THREE).exists()


def test_tombstone_names_nobody(counter):
    erase(counter, ONE)
    call = make_call(1)
    for text in (call.caller, *call.call_ids):
        assert rows(counter, text.encode()) == []


def test_thousands_of_ids_take_one_new_root(counter):
    counter.parts.commit(calls=[make_call(number) for number in range(3, 1003)])
    reply = erase(counter, *(call_id(number) for number in range(3, 1003)))
    assert (reply.erased, counter.parts.keyring.epoch) == (1000, 2)
    assert len(counter.ask(m.Search(limit=1000)).calls) == 2


def test_what_a_spool_still_brings_is_let_go(counter):
    erase(counter, ONE)
    counter.convert()
    batch = [(ONE, 1, 1), (ONE, 1, 0), (THREE, 1, 0)], [make_call(1, revision=9), make_call(3)]
    for again in (counter.parts, counter.parts.again()):
        again.commit(*batch)
        assert not again.pool.path(ONE).exists()
    counter.parts = again
    assert rows(counter, ONE) == ["erasure", "erased"]


def test_erasing_again_changes_nothing(counter):
    first = erase(counter, ONE)
    assert erase(counter, ONE) == m.EraseReply(first.erasure, 0, [ONE], [])
    assert erase(counter, ONE, TWO).already == [ONE]


def test_all_are_erased_or_none(counter):
    assert erase(counter, ONE, THREE).code == "not_found"
    assert erase(counter).code == erase(counter, b"short").code == "invalid"
    assert counter.ask(m.Erase([ONE], "  ")).code == "invalid"
    assert counter.ask(m.Get(ONE)).call == make_call(1)


def test_call_that_goes_on_is_erased_only_if_that_is_meant(counter):
    counter.parts.commit([(THREE, 1, 0)], [make_call(3, final=False)])
    assert "has not ended" in erase(counter, THREE).error
    assert erase(counter, THREE, unfinished=True).erased == 1
    counter.parts.commit([(THREE, 1, 1)], [make_call(3, revision=2)])
    assert not counter.parts.pool.path(THREE).exists()
    assert counter.ask(m.Get(THREE)).code == "erased"


@pytest.mark.parametrize("kind", ["streams", "beside"])
def test_calls_with_media_in_common_go_together(counter, kind):
    """A B2BUA's other leg: the sound, or its digits alone, lie once, in the first's recording."""
    shared = m.Stream(7, "callee", "audio", 1, "", "", {}, stored_in=ONE, stored_as=1)
    counter.parts.commit(calls=[make_call(3, **{kind: [shared]})])
    assert THREE.hex() in erase(counter, ONE).error
    assert ONE.hex() in erase(counter, THREE).error
    assert erase(counter, ONE, THREE).erased == 2
    counter.convert()
    assert rows(counter, THREE) == ["erasure", "erased"]


def test_record_that_is_damaged_is_erased_with_all_that_leads_to_it(counter):
    with counter.parts.index.reading() as view:
        sealed = view.get(b"record", ONE)
    broken = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    counter.parts.index.write(lambda writing: writing.put(b"record", ONE, broken))
    assert erase(counter, ONE).erased == 1
    counter.convert()
    assert rows(counter, ONE) == ["erasure", "erased"]


@pytest.mark.parametrize("at", [0, 60])
@pytest.mark.parametrize("removed", [False, True])
def test_object_that_was_set_aside_goes_too_with_its_own_key(counter, at, removed):
    """An image of before opens with it, whatever is left of the object; so does its first record.

    at: the byte that the disk damaged: of the header's magic, or of its salt.
    """
    parts = counter.parts
    path = parts.pool.path(ONE)
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    parts.commit([(ONE, 1, 1)], [make_call(1, revision=3)])
    aside, whole = sorted(parts.pool.paths(ONE))
    first, second = (Header.parse(one[:HEADER_BYTES]).key_id for one in (data, whole.read_bytes()))
    assert (aside.suffix, whole.suffix, first != second) == (".damaged", ".svr", True)
    if removed:  # by somebody who had looked at it
        aside.unlink()
    elif at:  # an index that was made anew may know of the file alone
        parts.index.write(lambda writing: writing.delete(b"former", ONE))
    erase(counter, ONE)
    assert parts.pool.paths(ONE) == []
    for key_id in (first, second):
        with pytest.raises(Fault, match="destroyed"):
            parts.keyring.dek(key_id)


def test_row_that_names_the_key_of_another_call_erases_nothing(counter):
    """A flipped bit there would take the neighbour's sound with it."""
    parts, neighbour = counter.parts, counter.fetch(TWO)
    with parts.index.reading() as view:
        own, other = view.state(ONE), view.state(TWO)
    flipped, whole = (serialize_state(own._replace(key_id=one.key_id)) for one in (other, own))
    parts.index.write(lambda writing: writing.put(b"state", ONE, flipped))
    failure = erase(counter, ONE)
    assert (failure.code, f"key {other.key_id}" in failure.error) == ("corrupt", True)
    parts.index.write(lambda writing: writing.put(b"state", ONE, whole))
    assert erase(counter, ONE).erased == 1
    assert counter.fetch(TWO) == neighbour


def test_object_whose_damaged_head_names_the_key_of_another_takes_no_key_but_its_own(counter):
    parts, neighbour = counter.parts, counter.fetch(TWO)
    with parts.index.reading() as view:
        own, other = view.state(ONE), view.state(TWO)
    path = parts.pool.path(ONE)
    header = Header.parse(path.read_bytes()[:HEADER_BYTES])
    damaged = header._replace(key_id=other.key_id)
    path.write_bytes(damaged.serialize() + path.read_bytes()[HEADER_BYTES:])
    assert erase(counter, ONE).erased == 1
    assert counter.fetch(TWO) == neighbour
    with pytest.raises(Fault, match="destroyed"):
        parts.keyring.dek(own.key_id)


@pytest.mark.parametrize("nested", [False, True])
def test_refused_batch_that_holds_the_call_is_destroyed(counter, nested):
    public = counter.parts.keyring.ingest_public
    for number, call in (("1", ONE), ("2", TWO)):
        frames = wire.encode_media(m.Batch("span", 1), make_media([(call, 1, 0)]))
        data = spool.seal_batch(frames, public)
        if nested:
            data = spool.seal_batch(wire.encode(m.Sealed("span", 1, "x"), data), public)
        (counter.store.refused / f"{number}.sealed").write_bytes(data)
    erase(counter, ONE)
    assert [path.name for path in counter.store.refused.iterdir()] == ["2.sealed"]


@pytest.mark.parametrize("step", ["complete", "drop", "unlink", "_destroy_refused", "end"])
def test_interrupted_erasure_is_completed_at_the_next_start(counter, monkeypatch, step):
    parts = counter.parts
    before = parts.index.position

    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    owner = {"drop": parts.keyring, "unlink": parts.pool, "end": erasures}.get(step, Eraser)
    name = {"unlink": "sync"}.get(step, step)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, crash)
        with pytest.raises(Crash):
            erase(counter, ONE)
    assert counter.ask(m.Get(ONE)).code == "erased"
    parts.again()
    Eraser(counter.store, parts.index, parts.vaults, parts.writer.forget, time.time_ns).finish()
    with pytest.raises(Fault, match="destroyed"):
        parts.keyring.dek(0)
    assert parts.keyring.dek(1)
    assert parts.pool.paths(ONE) == []
    with parts.index.reading() as view:
        assert erasures.unfinished(view) == []
        kinds = [kind for _, kind, _ in view.changes(before, 10)]
    assert kinds == [b"k", b"k", b"e"]


def test_disk_that_fails_leaves_a_clear_answer_and_the_rest_to_the_next(counter, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", full)
        assert erase(counter, ONE).code == "unavailable"
    assert counter.ask(m.Certify(ONE)).code == "unavailable"
    assert erase(counter, TWO).erased == 1
    with counter.parts.index.reading() as view:
        assert erasures.unfinished(view) == []


def test_nothing_is_erased_that_cannot_be_logged(counter, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(counter.access, "append", full)
        assert erase(counter, ONE).code == "full"
    assert counter.ask(m.Get(ONE)).call == make_call(1)
    erase(counter, ONE)
    begun, ended = (line for line in counter.lines if line["kind"] == "erase")
    assert (begun["result"], ended["result"]) == ("begun", "ok")
    assert (begun["ids"], begun["reason"]) == ([ONE.hex()], "asked for")


def signed(counter: Counter, receipt: m.ErasureReceipt, key: bytes = b"k" * 32) -> m.ErasureReceipt:
    """As a target's replicator signs it."""
    facts = certificate.receipt_facts(counter.store.store_id.hex(), receipt)
    private = Ed25519PrivateKey.from_private_bytes(key)
    signer, signature = certificate.sign(certificate.RECEIPT, facts, private)
    return msgspec.structs.replace(receipt, signer=signer, signature=signature)


def test_place_that_the_feed_was_copied_to_has_to_follow(counter):
    counter.ask(m.Feed(0, target="siteb"), who=REPLICATOR)
    counter.ask(m.Feed(0))  # an operator looks; he keeps nothing
    reply = erase(counter, ONE)
    assert reply.pending == ["siteb"]
    assert "pending at siteb" in counter.ask(m.Get(ONE)).error
    receipt = signed(counter, m.ErasureReceipt(reply.erasure, "siteb", 5, certificate.OVERWRITTEN))
    assert counter.ask(receipt, who=REPLICATOR) == m.Done()
    (erasure,) = counter.ask(m.Erasures()).erasures
    assert (erasure.receipts, erasure.pending) == ([receipt], [])
    assert counter.ask(m.ErasureReceipt(ONE, "siteb", 5, ""), who=REPLICATOR).code == "not_found"


def test_place_has_to_follow_once_more_when_keys_of_days_are_gone(counter):
    """It may have their key pages: what it confirmed before is not that they went."""
    counter.ask(m.Feed(0, target="siteb"), who=REPLICATOR)
    reply = erase(counter, ONE)
    receipt = signed(counter, m.ErasureReceipt(reply.erasure, "siteb", 5, certificate.OVERWRITTEN))
    position = counter.ask(m.Feed(0)).changes[-1].position
    assert counter.ask(receipt, who=REPLICATOR) == m.Done()
    counter.convert()
    (erasure,) = counter.ask(m.Erasures()).erasures
    assert (bool(erasure.rows_gone_ns), erasure.receipts, erasure.pending) == (True, [], ["siteb"])
    assert [one.kind for one in counter.ask(m.Feed(position)).changes] == ["keys", "keys", "erase"]
    late = msgspec.structs.replace(receipt, position=position)  # of what was told before
    assert counter.ask(late, who=REPLICATOR) == m.Done()
    assert counter.ask(m.Erasures()).erasures[0].pending == ["siteb"]
    receipt.position = counter.ask(m.Feed(position)).changes[-1].position
    assert counter.ask(receipt, who=REPLICATOR) == m.Done()
    (erasure,) = counter.ask(m.Erasures()).erasures
    assert (erasure.receipts, erasure.pending) == ([receipt], [])


def test_feed_tells_of_keys_before_the_erasure_and_no_more_of_the_call(counter):
    erase(counter, ONE)
    changes = counter.ask(m.Feed(0)).changes
    assert [change.kind for change in changes[-3:]] == ["keys", "keys", "erase"]
    assert [change.name for change in changes[-3:-1]] == ["page-000000.1", "root"]
    assert ONE not in {change.id for change in changes}


def test_certificate_says_what_was_done_and_breaks_if_it_is_changed(counter):
    sha256 = counter.ask(m.Verify(ONE)).sha256
    counter.ask(m.Feed(0, target="siteb"), who=REPLICATOR)
    size = counter.ask(m.Get(ONE)).size
    assert counter.ask(m.Receipt(ONE, "siteb", size, sha256, 7), who=REPLICATOR) == m.Done()
    erase(counter, ONE)
    text = counter.ask(m.Certify(ONE)).document
    facts, signer = certificate.parse(text)
    assert signer == counter.parts.keyring.signing_key.public_key().public_bytes_raw()
    assert (facts["recording"], facts["sha256"]) == (ONE.hex(), sha256)
    assert facts["keys"] == [{"key": 0, "page": 0, "generation_before": 0, "generation_after": 1}]
    assert (facts["root_epoch"], facts["pending"]) == (2, ["siteb"])
    assert facts["grade"] == "file overwrite, best effort"
    with pytest.raises(ValueError, match="was changed"):
        certificate.parse(text.replace("asked for", "a whim"))
    with pytest.raises(ValueError, match="not a certificate"):
        certificate.parse(json.dumps({"certificate": facts}))
    assert counter.ask(m.Certify(TWO)).code == "not_found"


def test_erasures_are_listed_newest_first_a_page_at_a_time(counter):
    counter.parts.commit(calls=[make_call(3)])
    batches = [erase(counter, one).erasure for one in (ONE, TWO, THREE)]
    first = counter.ask(m.Erasures(limit=2))
    second = counter.ask(m.Erasures(limit=2, cursor=first.cursor))
    assert [one.id for one in (*first.erasures, *second.erasures)] == batches[::-1]
    assert second.cursor is None
    assert counter.ask(m.Erasures(TWO)).erasures[0].id == batches[1]


def test_keys_of_other_pages_stay_as_they_are(counter):
    counter.parts.index.reserve_keys(SLOTS)
    counter.access.close()
    later = Counter(counter.parts.again())
    later.parts.commit([(THREE, 1, 0)], [make_call(3)])
    erase(later, THREE)
    names = sorted(path.name for path in counter.store.keys.iterdir())
    assert names == ["page-000000.0", "page-000001.1", "root"]


def test_call_that_comes_later_and_had_media_in_it_says_what_is_missing(counter):
    erase(counter, ONE)
    shared = m.Stream(7, "callee", "audio", 1, "", "", {}, stored_in=ONE, stored_as=1)
    counter.parts.commit([(THREE, 1, 0)], [make_call(3, streams=[shared])])
    first = counter.ask(m.Fetch(THREE))
    faults = [*first.faults, *counter.ask(m.Fetch(THREE, first.cursor)).faults]
    assert faults == [f"streams of this call lay in {ONE.hex()}, which was erased"]
