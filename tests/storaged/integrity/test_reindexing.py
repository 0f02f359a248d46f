"""An index that is gone is made anew: everything that was there before is there afterwards."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest

from spanvault import messages as m
from spanvault import wire
from spanvault.daemon.config import StoragedConfig
from spanvault.keys import keyfile
from spanvault.media.chunk import NO_MEDIA
from storaged.faults import Fault
from storaged.format.keypage import SLOTS
from storaged.index import labels
from storaged.index.labels import Labels
from storaged.index.search import search
from storaged.integrity import reindexing
from storaged.keys.keyring import RESERVE
from storaged.pools.layout import Store
from storaged.recordings.writer import Writer
from tests.support.vault import (
    START,
    Client,
    Parts,
    Rig,
    call_id,
    chunk_keys,
    make_call,
    make_media,
)

FAILED = m.Stream(0, "caller", "audio", 1, "", "", {}, stored_in=call_id(1), stored_as=2)
CALLS = {
    "media": (make_call(1, id=call_id(1)), [(call_id(1), 1, 0), (call_id(1), 2, 0)]),
    "no media": (make_call(2, outcome="busy", answered_ns=None), []),
    "media without a record": (None, [(call_id(3), 1, 0)]),
    "media in another's recording": (make_call(4, streams=[FAILED]), []),
    "erased": (make_call(5), [(call_id(5), 1, 0)]),
    "erased without media": (make_call(6), []),
    "secret": (make_call(7, caller="+49666"), [(call_id(7), 1, 0)]),
    "secret without media": (make_call(8, caller="+49666"), []),
    "moved up": (make_call(10), [(call_id(10), 1, 0)]),
    "goes on": (make_call(9, final=False, revision=1), [(call_id(9), 1, 0)]),
}  # fmt: skip


class Seen(NamedTuple):
    """What a client is given of a store."""

    calls: dict[bytes, m.Call]
    recordings: dict[bytes, tuple[bool, int, str]]
    chunks: dict[bytes, list[Any]]
    changes: set[tuple[str, bytes, str, str]]
    erasures: list[m.Erasure]


def seen(client: Client) -> Seen:
    calls = {call.id: call for call in client.ask(m.Search(limit=1000))[0].calls}
    recordings, chunks = {}, {}
    for one in calls:
        about = client.ask(m.Get(one))[0]
        recordings[one] = about.sealed, about.size, about.pool
        page, bulk = client.ask(m.Fetch(one))
        chunks[one] = sorted(chunk_keys(wire.decode_media(bulk))) if not page.faults else page
        if about.size:
            assert client.ask(m.Verify(one))[0].faults == []
    feed = client.ask(m.Feed(0, 5000))[0]
    # Key files are others: days get new keys, and those of before are destroyed.
    changes = {
        (one.kind, one.id, one.name, one.sha256)
        for one in feed.changes if one.kind not in ("log", "keys")
    }  # fmt: skip
    return Seen(calls, recordings, chunks, changes, client.ask(m.Erasures())[0].erasures)


def send(capture: Client, number: int, call: m.Call | None, chunks: Sequence[Any] = ()) -> None:
    media = make_media(chunks) if chunks else NO_MEDIA
    capture.socket.send_multipart(
        wire.encode_media(m.Batch("test", number, [call] if call else []), media)
    )
    answer = capture.receive(wire.decode_from_ingest)
    assert answer is not None
    assert isinstance(answer[0], m.Acknowledge)


def fill(rig: Rig) -> Client:
    operator, capture = rig.client("operator"), rig.capture()
    for number, (call, chunks) in enumerate(CALLS.values()):
        send(capture, number, call, chunks)
    send(capture, 50, make_call(2, revision=3, end_reason="486"))  # changed after its end
    erased = operator.ask(m.Erase([call_id(5), call_id(6)], "asked for"))[0]
    assert erased.erased == 2
    moved = operator.ask(m.Move([call_id(10)], "sensitive", "asked for"))[0]
    assert moved.moved == 1
    while not getattr(operator.ask(m.Get(call_id(10)))[0], "sealed", False):
        continue  # the upper pool takes it in between two groups, its media first
    rig.client("replicator").ask(m.Feed(0, 1, 0, "siteb"))
    while operator.ask(m.Status())[0].fields["erasing"]["days_due"]:
        continue
    return operator


def reindex(rig: Rig, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "storaged", "--config", str(rig.config), *more, "reindex"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def rig(tmp_path) -> Iterator[Rig]:
    made = Rig(tmp_path / "s")
    key = made.folder / "secret/sensitive"
    keyfile.create_private(key)
    keyfile.write_public(key.with_suffix(".pub"), keyfile.public_of(keyfile.load(key)))
    rules(made, key)
    yield made
    made.close()


def rules(rig: Rig, key: Path | None = None) -> None:
    unlock = f'\nunlock_key = "{key}"' if key else ""
    rig.configure()
    with rig.config.open("a") as file:
        file.write(
            f'[pools.sensitive]\nrecipients = ["{rig.folder}/secret/sensitive.pub"]{unlock}\n'
            '[[rules]]\npool = "sensitive"\nnumber = ["+49666"]\n'
        )


def test_everything_is_there_again(rig):
    rig.start()
    operator = fill(rig)
    before = seen(operator)
    rig.stop(signal.SIGKILL)
    shutil.rmtree(rig.store / "index")
    code, said = rig.run_to_end()
    assert code == 74
    assert "spanvault reindex makes the index anew" in said
    done = reindex(rig)
    assert done.returncode == 0, done.stderr
    # Behind all that were handed out, and those that days have now.
    assert next_slots(rig) == {"reserved": SLOTS + RESERVE, "reserved/2": SLOTS + RESERVE}
    rig.start()
    after = seen(rig.client("operator"))
    assert after.calls == before.calls
    assert after.recordings == before.recordings
    assert after.chunks == before.chunks
    assert after.erasures == before.erasures
    assert after.changes == before.changes
    assert isinstance(rig.client("operator").ask(m.Get(call_id(5)))[0], m.Failure)
    while not (waits := rig.client("operator").ask(m.Status())[0].fields["erasing"]["ingest_keys"]):
        continue  # what erasures in the ledger wait for
    assert waits[0].startswith("base ")


def next_slots(rig: Rig) -> dict[str, int]:
    """By pool the slot that the next DEK is taken from."""
    with lmdb.open(str(rig.store / "index"), max_dbs=32, readonly=True) as env, env.begin() as txn:
        meta = env.open_db(b"meta", txn=txn, create=False)
        rows = [row for row in txn.cursor(db=meta) if bytes(row[0]).startswith(b"reserved")]
        return {bytes(name).decode(): int.from_bytes(value, "little") for name, value in rows}


def test_a_pool_that_was_locked_records_on_and_is_indexed_with_its_key(rig):
    rig.start()
    before = seen(fill(rig))
    rig.stop()
    shutil.rmtree(rig.store / "index")
    rules(rig)  # the key is not at hand
    assert reindex(rig).returncode == 0
    rig.start()
    operator, capture = rig.client("operator"), rig.capture()
    send(capture, 60, None, [(call_id(7), 1, 1)])  # follows its call, not the default
    found = operator.ask(m.Search(limit=1000))[0]
    assert {one.id for one in found.calls} == before.calls.keys() - {
        call_id(7),
        call_id(8),
        call_id(10),
    }
    key = keyfile.load(rig.folder / "secret/sensitive")
    answer = operator.ask(m.Unlock("sensitive", key))[0]
    assert "spanvault reindex --pool-key sensitive=FILE" in answer.hint
    rig.stop()
    assert reindex(rig, "--pool-key", f"sensitive={rig.folder}/secret/sensitive").returncode == 0
    rules(rig, rig.folder / "secret/sensitive")
    rig.start()
    operator, capture = rig.client("operator"), rig.capture()
    send(capture, 61, make_call(70))  # what waited goes first
    after = seen(operator)
    assert len(after.chunks[call_id(7)]) == 2
    assert {one: after.calls[one] for one in before.calls} == before.calls


def test_what_is_damaged_is_named_and_the_rest_is_there(rig):
    rig.start()
    before = seen(fill(rig))
    rig.stop()
    shutil.rmtree(rig.store / "index")
    (path,) = rig.store.glob("pools/base/ledger/*")
    data = path.read_bytes()
    at = data.index(call_id(2))  # the first record of a call that has another, newer
    path.write_bytes(data[: at + 40] + bytes(9) + data[at + 49 :] + data[:60])
    (path.parent / "notes.txt").write_text("not ours")
    objects = rig.store / "pools/base/objects"
    one = next(objects.glob(f"*/{call_id(1).hex()}.svr"))
    one.write_bytes(one.read_bytes()[:-20])
    (one.parent / "foreign.svr").write_text("not ours")
    done = reindex(rig)
    assert done.returncode == 1
    for name in ("does not authenticate", "notes.txt", "foreign.svr", "cut: "):
        assert name in done.stderr
    rig.start()
    operator = rig.client("operator")
    after = {call.id: call for call in operator.ask(m.Search(limit=1000))[0].calls}
    assert after.pop(call_id(1)).flags == ["record_missing"]
    assert after == {one: call for one, call in before.calls.items() if one != call_id(1)}
    assert operator.ask(m.Verify(call_id(1)))[0].faults


def test_killed_at_any_moment_it_is_done_again(rig):
    """The renames are the moments that count: before each of them, and wherever time falls."""
    rig.start()
    before = seen(fill(rig))
    rig.stop()
    for kill in ("rename", "link", "fsync", "unlink", "write", "ftruncate"):
        code = (
            "import os, signal, sys\n"
            "from storaged import __main__, files\n"
            f"os.{kill} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"sys.argv = ['storaged', '--config', {str(rig.config)!r}, 'reindex']\n"
            "sys.exit(__main__.main())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode in (-signal.SIGKILL, 0)
        rig.start()  # the old index, or the new one
        assert len(rig.client("operator").ask(m.Search(limit=100))[0].calls) == len(before.calls)
        rig.stop()
    with (rig.store / "index/data.mdb").open("rb") as old:
        written = old.read().rstrip(b"\0")
        assert reindex(rig).returncode == 0
        old.seek(0)
        assert old.read(len(written)).count(written[4096:4160]) == 0  # where it lay, too
    rig.start()
    assert seen(rig.client("operator")).calls == before.calls
    assert not list(rig.store.glob("index/replaced.mdb"))


def test_an_index_that_alone_has_calls_is_not_replaced(rig):
    """Else the records of calls without media would be lost."""
    rig.start()
    fill(rig)
    rig.stop()
    index, (path,) = rig.store / "index/data.mdb", rig.store.glob("pools/base/ledger/*")
    before = index.read_bytes()
    for spoil in (lambda: os.truncate(path, 60), path.unlink, lambda: forget_ledgers(rig)):
        spoil()
        done = reindex(rig)
        assert done.returncode == 78
        assert f"{path.parent}: the ledger is missing or cut" in done.stderr
    index.write_bytes(before[: 1 << 14])  # of no use: LMDB is killed by what lies behind the end
    assert reindex(rig).returncode == 0


def forget_ledgers(rig: Rig) -> None:
    """As a store was before there were any."""
    for folder in rig.store.glob("pools/*/ledger"):
        shutil.rmtree(folder)
    with lmdb.open(str(rig.store / "index"), max_dbs=32) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            for tier in (0, 2):
                txn.delete(b"ledger/%d" % tier, db=meta)


def test_a_running_store_is_left_alone(rig):
    rig.start()
    done = reindex(rig)
    assert done.returncode == 1
    assert "is running on this store" in done.stderr


def test_store_of_version_2_is_brought_up_and_finds_its_calls(tmp_path, monkeypatch):
    """What it was: no keys of days, in the index or in the ledger."""
    parts = Parts(tmp_path / "store")
    parts.commit([(call_id(1), 1, 0)], [make_call(1)])

    def in_the_index_alone(writer: Writer, calls: list[m.Call]) -> None:
        days = {labels.day_of(call.started_ns): writer._recordings.take_key(b"") for call in calls}
        parts.index.write(lambda writing: writer._labels.begin(writing, days))

    with monkeypatch.context() as before:
        before.setattr(Writer, "_begin_days", in_the_index_alone)
        parts.commit(calls=[make_call(2, started_ns=START + 5 * labels.DAY_NS)])
    store = Store(parts.folder)
    store.write_format(parts.keyring.store_id)
    parts.close()
    text = store.format_file.read_text()
    store.format_file.write_text(text.replace('"version": 3', '"version": 2'))
    with pytest.raises(Fault, match=r"store version 2.*spanvault reindex"):
        store.open(list)
    store.close()
    settings = StoragedConfig(store=parts.folder, unlock_key=parts.folder / "unlock.key")
    known: dict[int, set[int]] = {0: {1}, 5: set()}
    for _ in range(2):  # the second time with the keys that the first gave
        assert reindexing.reindex(settings, lambda *_: None, time.time_ns).faults == 0
        again = Parts(parts.folder)
        with again.index.reading() as view:
            days = list(labels.days(view))
            found, _ = search(view, m.Search(number=make_call(2).caller),
                              [Labels(0, again.keyring)], again.writer._stored_call)  # fmt: skip
        again.close()
        assert [call.id for call in found] == [call_id(2)]
        keys = {one.day - labels.day_of(START): one.key_ids for one in days}
        assert {day: set(ids[1:]) for day, ids in keys.items()} == known
        known = {day: set(ids) for day, ids in keys.items()}
    assert store.format_file.read_text() == text
