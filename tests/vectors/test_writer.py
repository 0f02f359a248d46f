"""A store that another program wrote, from FORMAT.md alone: storaged goes on with it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from spanvault import messages as m
from spanvault import wire
from spanvault.keys import keyfile
from tests.support.vault import SECOND, START, Rig, acknowledged, call_id, make_call, make_media
from tests.vectors.reader.rootfile import open_root
from tests.vectors.reader.store import Store
from tests.vectors.writer import LATER, Writer

ENDED, GROWS, SILENT = (call_id(number) for number in range(1, 4))
NUMBER = "+493012345678"


def call(number: int, **more: Any) -> dict[str, Any]:
    """What a record must have, and a little more."""
    return {
        "id": call_id(number), "capture": "other", "call_ids": [f"{number}@example.org"],
        "caller": NUMBER, "callee": f"+49{number}", "started_ns": START + number * SECOND,
        "revision": 0, "from_later": {"a": [None, 1.5]}, **more,
    }  # fmt: skip


@pytest.fixture
def rig() -> Iterator[Rig]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = Rig(folder, commit_interval_s=0.05)
    unlock = keyfile.public_of(keyfile.load(folder / "secret/unlock.key"))
    store = Writer(made.store, unlock)
    store.recording(call(1, ended_ns=START + 60 * SECOND, outcome="answered", final=True), 1,
                    sealed=True)  # fmt: skip
    store.recording(call(2), 1, sealed=False)
    store.record(call(3, outcome="busy", final=True), store.take())
    store.finish()
    yield made
    made.close()
    shutil.rmtree(folder)


def heard(rig: Rig, one: bytes, *, digits: bool = False) -> list[bytes]:
    """Payloads of a recording."""
    reply, bulk = rig.client("operator").ask(m.Fetch(one, 0, digits=digits))
    assert isinstance(reply, m.FetchReply), reply
    assert reply.faults == []
    return [bytes(piece.payload) for piece in wire.decode_media(bulk).chunks()]


def a_table_of_later(rig: Rig) -> None:
    with lmdb.open(str(rig.store / "index"), max_dbs=32) as env:
        later = env.open_db(b"later")
        with env.begin(write=True) as txn:
            txn.put(b"key", b"value", db=later)


def test_a_store_of_another_program_opens_plays_and_goes_on(rig):
    assert rig.reindex() == 0
    a_table_of_later(rig)
    rig.start()
    operator = rig.client("operator")
    calls = operator.ask(m.Search(number=NUMBER))[0].calls
    assert [one.id for one in calls] == [SILENT, GROWS, ENDED]
    assert (operator.ask(m.Get(SILENT))[0].call.outcome, operator.ask(m.Get(ENDED))[0].sealed) \
        == ("busy", True)  # fmt: skip
    assert heard(rig, ENDED) == heard(rig, GROWS) == [b"soundmore"]
    for one in (ENDED, GROWS):
        assert operator.ask(m.Verify(one))[0].faults == []
    for what in ("keys", "records"):
        checked = operator.ask(m.Check(what))[0]
        assert (checked.checked > 0, checked.faults) == (True, {})
    capture = rig.capture()
    ended = make_call(2, caller=NUMBER, revision=1)
    capture.send(m.Batch("test", 1, [ended]), make_media([(GROWS, 1, 9)]))
    assert acknowledged(capture) == [1]
    about = operator.ask(m.Verify(GROWS))[0]
    assert (about.sealed, about.faults, len(heard(rig, GROWS))) == (True, [], 2)
    assert operator.ask(m.Erase([ENDED], "asked for"))[0].erased == 1
    assert heard(rig, GROWS)[0] == b"soundmore"
    unlock = keyfile.load(rig.folder / "secret/unlock.key")
    _, secrets = open_root((rig.store / "keys/root").read_bytes(), unlock)
    assert secrets[LATER, 0, 0] == b"l" * 32  # the erasure wrote a new root


def test_the_independent_reader_reads_it(rig):
    store = Store(rig.store, keyfile.load(rig.folder / "secret/unlock.key"))
    calls = store.calls()
    assert ({one: bool(about.opened) for one, about in calls.items()}, store.faults) == (
        {ENDED: True, GROWS: True, SILENT: False}, [])  # fmt: skip
    assert calls[ENDED].sha256
