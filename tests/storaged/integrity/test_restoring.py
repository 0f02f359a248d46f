"""Imports: a replica's changes make an empty store that store, and nothing else does."""

from collections.abc import Iterator

import msgspec
import pytest

from spanvault import messages as m
from storaged.faults import Fault
from storaged.format.walk import finish
from storaged.index import erasures, ingestkeys
from tests.support.desk import Counter
from tests.support.vault import Parts, call_id, make_call

ONE, TWO = call_id(1), call_id(2)


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
    # A page of its own besides: the key of the day that the calls are found by is not restored.
    assert sorted(kinds) == ["keys", "keys", "keys", "object", "record", "record"]


def test_restored_store_records_on_with_keys_of_its_own(counter, empty):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    restore(counter, empty)
    empty.parts.commit([(TWO, 1, 0)], [make_call(2)])
    with empty.parts.index.reading() as view:
        keys = {view.state(ONE).key_id, view.state(TWO).key_id}
    assert keys == {0, 4097}  # 4096 is the day's
    reply = counter.ask(m.Feed(0))
    failure = empty.ask(m.Import(reply.store_id, reply.changes[0]))
    assert "holds recordings of its own" in failure.error


def test_import_again_changes_nothing(counter, empty):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    restore(counter, empty)
    restore(counter, empty, part=77)
    assert empty.fetch(ONE) == counter.fetch(ONE)
    assert len(empty.ask(m.Search()).calls) == 1
    again = Counter(empty.parts.again())
    assert len(again.ask(m.Search(number=make_call(1).caller)).calls) == 1


def test_what_is_erased_before_the_first_recording_stays_gone_when_the_import_goes_on(
    counter, empty
):
    """As after any erasure; a replica's key files, which have those keys yet, are let be."""
    counter.parts.commit([(ONE, 1, 0), (TWO, 1, 0)], [make_call(1), make_call(2)])
    restore(counter, empty)
    with empty.parts.index.reading() as view:
        key_id = view.state(ONE).key_id
    assert empty.ask(m.Erase([ONE], "asked for")).erased == 1
    empty.convert()
    (erasure,) = empty.ask(m.Erasures()).erasures
    assert erasure.rows_gone_ns
    before = {path.name: path.read_bytes() for path in empty.store.keys.iterdir()}
    restore(counter, empty)
    assert {path.name: path.read_bytes() for path in empty.store.keys.iterdir()} == before
    with pytest.raises(Fault, match="destroyed"):
        empty.parts.keyring.dek(key_id)
    assert empty.ask(m.Get(ONE)).code == "erased"
    assert empty.fetch(TWO) == counter.fetch(TWO)
    new = m.Change(1, "keys", name="page-000007.0", data=b"of a newer replica")
    store_id = empty.ask(m.Status()).store_id
    assert "could bring their keys back" in empty.ask(m.Import(store_id, new)).error


def test_replica_that_heard_of_an_erasure_before_its_rows_were_gone(counter, empty):
    """Its old day key goes at the first call that is recorded: until then key files may come."""
    counter.parts.commit([(ONE, 1, 0), (TWO, 1, 0)], [make_call(1), make_call(2)])
    counter.ask(m.Erase([ONE], "asked for"))
    reply = counter.ask(m.Feed(0))
    for kind in ("keys", "erase", "record"):
        for change in (one for one in reply.changes if one.kind == kind):
            assert empty.ask(m.Import(reply.store_id, change)) == m.Done()
    (key,) = empty.ask(m.Erasures()).erasures[0].day_keys
    empty.convert()
    assert empty.parts.keyring.dek(key.key_id)
    with empty.parts.index.reading() as view:
        told = empty.eraser.converter.fields(view)
    assert (told["days_due"], "end of a restore" in told["state"]) == (1, True)
    empty.parts.commit(calls=[make_call(3)])
    empty.convert()
    with pytest.raises(Fault, match="destroyed"):
        empty.parts.keyring.dek(key.key_id)
    assert empty.ask(m.Erasures()).erasures[0].rows_gone_ns
    assert [one.id for one in empty.ask(m.Search(number=make_call(2).caller)).calls] == [TWO]


def test_replica_that_heard_of_an_erasure_before_its_ingest_keys_were_gone(counter, empty):
    """They are in its root: so they go here, once no key file can bring them back."""
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    counter.ask(m.Erase([ONE], "asked for"))
    old = counter.parts.keyring.ingest_key_ids
    reply = counter.ask(m.Feed(0))
    for kind in ("keys", "erase"):
        for change in (one for one in reply.changes if one.kind == kind):
            assert empty.ask(m.Import(reply.store_id, change)) == m.Done()
    finish(empty.retirer.retiring())
    assert empty.parts.keyring.ingest_key_ids == old
    empty.parts.commit(calls=[make_call(3)])
    finish(empty.retirer.retiring())
    assert not {*old} & {*empty.parts.keyring.ingest_key_ids}
    assert empty.ask(m.Erasures()).erasures[0].spools_gone_ns


def test_replica_that_heard_of_an_erasure_before_and_behind_waits_for_nothing(counter, empty):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    counter.ask(m.Erase([ONE], "asked for"))
    early = counter.ask(m.Feed(0)).changes
    counter.convert()
    finish(counter.retirer.retiring())
    reply = counter.ask(m.Feed(0))
    told = [one for one in (*early, *reply.changes) if one.kind == "erase"]
    for change in (*(one for one in reply.changes if one.kind == "keys"), *told):
        assert empty.ask(m.Import(reply.store_id, change)) == m.Done()
    with empty.parts.index.reading() as view:
        assert (erasures.due(view), ingestkeys.due(view)) == ({}, {})


@pytest.mark.parametrize("key", [("nowhere", "0" * 16), ("base", "short"), ("base", "G" * 16)])
def test_erasure_of_an_ingest_key_that_cannot_be_is_refused(counter, empty, key):
    counter.parts.commit(calls=[make_call(1)])
    reply = counter.ask(m.Feed(0))
    for change in (one for one in reply.changes if one.kind == "keys"):
        assert empty.ask(m.Import(reply.store_id, change)) == m.Done()
    erasure = m.Erasure(bytes(16), 1, "", "", [], done=True, ingest_keys=[m.IngestKey(*key)])
    change = m.Change(1, "erase", erasure.id, data=msgspec.msgpack.encode(erasure))
    failure = empty.ask(m.Import(reply.store_id, change))
    assert (failure.code, "an ingest key that cannot be" in failure.error) == ("corrupt", True)


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
