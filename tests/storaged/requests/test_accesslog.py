"""The access log: a crash is told from a change, and no change stays unseen where replicas look."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.replica import Replica
from replicator.targets import make_target
from spanvault import cli, logchain
from spanvault import messages as m
from spanvault.daemon.config import TargetConfig
from spanvault.keys import keyfile
from spanvault.logchain import FIRST, Head
from spanvault.spool import key_id
from storaged.requests import accesslog, policy, witness
from storaged.requests.accesslog import ROOM, AccessLog
from storaged.requests.witness import EVERY_NS, Witness
from tests.storaged.requests.test_policy import request_of
from tests.support.desk import Counter
from tests.support.vault import call_id, make_call

ONE = call_id(1)


def chain(kinds: str, last: str = FIRST) -> list[bytes]:
    """Lines that follow each other: f for a fetch, s for a status."""
    lines = []
    for number, kind in enumerate(kinds):
        entry = {"at_ns": number, "kind": {"f": "fetch", "s": "status"}[kind], "prev": last}
        lines.append(json.dumps(entry).encode() + b"\n")
        last = logchain.digest(lines[-1][:-1])
    return lines


def found(data: bytes, *heads: Head) -> list[str]:
    return [one.what for one in logchain.check(data, heads)]


def opened(path: Path, data: bytes, known: Head | None = None) -> tuple[str | None, bytes]:
    """What the daemon says of a log at its start, and what it makes of it."""
    path.write_bytes(data)
    log = AccessLog(path, known, 7)
    log.append({"kind": "status"}, sync=True)
    log.close()
    return log.fault, path.read_bytes()


LOG = b"".join(chain("sfsfss"))
SYNCED = len(b"".join(chain("sfsf")))  # what was answered is on the medium up to here


@given(end=st.integers(SYNCED, len(LOG)), zeros=st.integers(0, 40), more=st.integers(0, 30),
       room=st.sampled_from([0, 9000]))  # fmt: skip
def test_what_a_power_cut_leaves_is_torn_and_not_changed(tmp_path_factory, end, zeros, more, room):
    left = LOG[:end] + bytes(zeros) + LOG[end + zeros : end + zeros + more] + bytes(room)
    fault, after = opened(tmp_path_factory.mktemp("log") / "log", left)
    assert fault is None
    assert after.startswith(LOG[:SYNCED])
    assert set(found(after)) <= {"torn"}
    assert set(found(left)) <= {"torn"}


@given(at=st.integers(0, len(b"".join(chain("sfs"))) - 1), flip=st.integers(1, 255))
def test_changed_byte_is_no_crash(tmp_path_factory, at, flip):
    data = LOG + b"".join(chain("f", logchain.digest(LOG[:-1].rpartition(b"\n")[2])))
    data = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
    assert "changed" in found(data)
    fault, after = opened(tmp_path_factory.mktemp("log") / "log", data)
    assert fault is not None
    assert after.startswith(data)  # the evidence stays
    assert json.loads(after.splitlines()[-2])["kind"] == "opened"


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("most", [10, 10_000])
def test_zeros_before_lines_that_were_answered_are_no_crash(tmp_path, line, most):
    """As who wants something gone would have it look like a power cut."""
    lines = chain("sfsff")
    lines[line] = lines[line][:-most] + bytes(min(most, len(lines[line])))
    data = b"".join(lines)
    assert found(data)[0] == "changed"
    fault, after = opened(tmp_path / "log", data)
    assert (fault is not None, after.startswith(data)) == (True, True)


def test_lines_go_into_room_that_is_there_and_a_stop_leaves_lines_alone(tmp_path):
    path = tmp_path / "log"
    log = AccessLog(path)
    log.append({"kind": "status"}, sync=False)
    log.make_room()
    size = path.stat().st_size
    for number in range(5):
        log.append({"kind": "fetch", "number": number}, sync=True)
    log.make_room()
    assert path.stat().st_size == size == ROOM + path.read_bytes().index(b"\n") + 1
    killed = path.read_bytes()
    assert found(killed) == []
    log.close()
    text = path.read_bytes()
    assert (killed.rstrip(b"\0"), len(text.splitlines())) == (text, 6)
    path.write_bytes(killed)
    again = AccessLog(path, at_ns=7)
    again.append({"kind": "fetch"}, sync=True)
    assert path.stat().st_size == size
    again.close()
    assert path.read_bytes().startswith(text)
    assert [json.loads(line)["kind"] for line in path.read_bytes().splitlines()[6:]] == ["fetch"]


def test_room_that_is_used_up_or_that_no_disk_has_costs_no_line(tmp_path, monkeypatch):
    path = tmp_path / "log"
    log = AccessLog(path)
    log.make_room()
    while log.head[0] <= ROOM // 2:
        log.append({"kind": "status", "long": "x" * 60_000}, sync=False)
    log.make_room()
    assert path.stat().st_size == log.head[0] + ROOM
    while log.head[0] < 2 * ROOM:
        log.append({"kind": "status", "long": "x" * 60_000}, sync=False)
    monkeypatch.setattr(accesslog, "_SPARE", 1 << 60)
    log.make_room()
    assert path.stat().st_size == log.head[0]
    monkeypatch.setattr(accesslog, "_SPARE", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as while_full:
        while_full.setattr(accesslog.files, "write_all", full)
        log.make_room()
    log.append({"kind": "fetch"}, sync=True)
    log.close()
    assert found(path.read_bytes()) == []


@pytest.mark.parametrize("sync", [True, False])
def test_line_that_must_be_is_on_the_medium_when_it_is_answered(tmp_path, monkeypatch, sync):
    synced = []
    log = AccessLog(path := tmp_path / "log")
    log.make_room()
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda one: (synced.append(path.read_bytes()),
                                                      fdatasync(one)))  # fmt: skip
    log.append({"kind": "fetch", "number": 1}, sync=sync)
    assert [b'"number":1' in data for data in synced] == [True] * sync
    log.close()


def test_every_kind_that_is_synced_is_known_to_the_check():
    assert {kind.__name__.lower() for kind in policy.REVEALING} == logchain.SYNCED


# --- what replicas were told of ------------------------------------------------------------------


@pytest.fixture
def told(counter: Counter) -> Counter:
    """Somebody heard a recording, and replicas were told of the log."""
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    counter.ask(m.Fetch(ONE, 0, from_ns=5))
    counter.desk.sync_log()
    return counter


def heads(counter: Counter) -> list[Head]:
    with counter.parts.index.reading() as view:
        known = witness.known(view)
    return [known] if known else []


def test_head_is_signed_and_told_of_when_something_was_heard(told):
    (head,) = heads(told)
    assert head.is_signed
    assert head.signer == told.parts.keyring.signing_key.public_key().public_bytes_raw()
    (change,) = [one for one in told.ask(m.Feed(0)).changes if one.kind == "log"]
    data = (told.store.log / "access.log").read_bytes()
    assert found(data, head) == []
    assert json.loads(data.splitlines()[0])["from_ns"] == 5
    assert change.sha256 == ""


def test_heads_are_bounded_and_none_comes_of_asking_for_them(told):
    told.ask(m.Get(ONE))
    told.desk.sync_log()
    (first,) = heads(told)
    now_ns = [first.at_ns]
    watch = Witness(told.access, told.parts.index, told.store, told.parts.vaults.base,
                    lambda: now_ns[0])  # fmt: skip
    watch.tick()
    (second,) = heads(told)
    assert second.size > first.size
    now_ns[0] += 10 * EVERY_NS
    told.ask(m.Feed(0))
    told.ask(m.Status())
    watch.tick()
    assert heads(told) == [second]


def test_locked_store_tells_of_its_log_once_it_is_open(told):
    told.ask(m.Lock("base"))
    told.desk.sync_log(ending=True)
    before = heads(told)
    told.ask(m.Unlock("base", keyfile.load(told.parts.folder / "unlock.key")))
    told.desk.sync_log(ending=True)
    assert heads(told)[0].size > before[0].size


def rewritten(lines: list[bytes]) -> bytes:
    """As who has root would do it: without the second line, all else chained anew."""
    last, new = FIRST, []
    for line in [*lines[:1], *lines[2:]]:
        new.append(json.dumps({**json.loads(line), "prev": last}).encode() + b"\n")
        last = logchain.digest(new[-1][:-1])
    return b"".join(new)


def test_log_that_was_written_anew_is_known_by_the_head_alone(told, tmp_path):
    told.ask(m.Get(ONE))
    told.ask(m.Search())
    told.desk.sync_log(ending=True)
    (head,) = heads(told)
    data = (told.store.log / "access.log").read_bytes().rstrip(b"\0")
    forged = rewritten(data.splitlines(keepends=True))
    assert found(forged) == []
    forged += b"".join(chain("ffffffff", logchain.digest(forged[:-1].rpartition(b"\n")[2])))
    assert len(forged) > head.size
    assert found(forged, head) == ["rewritten"]
    assert found(data[: data.index(b"\n") + 1], head) == ["cut short"]
    for changed in (forged, data[: data.index(b"\n") + 1]):
        fault, after = opened(tmp_path / "log", changed, head)
        assert (fault is not None, after.startswith(changed)) == (True, True)


def run(capsys: Any, *arguments: str) -> tuple[int, str]:
    code = cli.run(["log", *arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_auditor_holds_a_copy_of_the_log_against_a_target(told, tmp_path, capsys):
    replica = Replica(make_target(TargetConfig("siteb", "directory", tmp_path / "siteb")))
    replica.claim(told.store.store_id.hex(), first=True)
    replica.put_bundle(told.ask(m.Feed(0)).changes)
    path = told.store.log / "access.log"
    code, said = run(capsys, str(path), "--from", str(tmp_path / "siteb"))
    assert (code, "held against 1 heads" in said, "0 faults" in said) == (0, True, True), said
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes().replace(b"alice", b"nobod", 1))
    code, said = run(capsys, str(copy), "--from", str(tmp_path / "siteb"))
    assert (code, "changed: it does not follow" in said) == (1, True), said
    code, said = run(capsys, str(path), "--from", str(tmp_path / "siteb"), "--key", "00" * 32)
    assert (code, "not signed" in said) == (1, True), said
    code, said = run(capsys, str(path), "--from", str(tmp_path))
    assert (code, "it holds no replica" in said) == (1, True), said


def test_log_names_numbers_by_token_only(counter):
    counter.parts.commit(calls=[make_call(1)])
    counter.ask(m.Search(number="+49300000001", call_id="call-1@example.org"))
    counter.ask(m.Get(ONE))
    counter.ask(m.Search(id_prefix="49300000001"))  # somebody took it for an id
    text = (counter.store.log / "access.log").read_text()
    assert "0000001" not in text
    assert "example.org" not in text
    search, get, mistyped = counter.lines
    assert len(mistyped["id_prefix"]) == 32
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


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_nothing_is_given_out_that_cannot_be_logged(counter, monkeypatch):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    monkeypatch.setattr(counter.access, "append", no_space)
    answer = counter.answer(m.Fetch(ONE))
    assert (answer.reply.code, answer.media) == ("full", None)
    assert isinstance(counter.ask(m.Status()), m.StatusReply)


@pytest.mark.parametrize(
    "kind", [m.Erase, m.Move, m.Unlock, m.OfferShare, m.Rotate, m.Recipients]
)  # fmt: skip
def test_what_takes_effect_is_logged_before_it_is_begun_or_not_done(counter, monkeypatch, kind):
    """Who can open a pool must not be changed, nor a pool opened, on a disk that takes no line."""
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    request = request_of(kind)
    with monkeypatch.context() as patched:
        patched.setattr(counter.access, "append", no_space)
        refusing = dict.fromkeys(counter.desk.custody.handlers, pytest.fail)
        patched.setattr(counter.desk.custody, "handlers", refusing)
        answer = counter.ask(request)
    assert answer.code == "full"
    assert counter.parts.pool.path(ONE).exists()
    counter.ask(request)
    begun, ended = counter.lines
    assert (begun["kind"], begun["result"]) == (kind.__name__.lower(), "begun")
    assert ended["result"] != "begun"


def test_line_about_keys_says_what_becomes_of_them(counter):
    key = keyfile.load(counter.parts.folder / "unlock.key")
    other = keyfile.public_of(b"o" * 32)
    counter.ask(m.Recipients("base", key, [other], []))
    counter.ask(m.Recipients("base", key, [], [key_id(other)]))
    counter.ask(m.Rotate("base", "ingest"))
    counter.ask(m.Unlock("base", key, drill=True))
    added, removed, rotated, drill = (line for line in counter.lines if line["result"] == "ok")
    assert (added["add"], added["remove"]) == ([key_id(other)], [])
    assert (removed["add"], removed["remove"]) == ([], [key_id(other)])
    assert (rotated["what"], drill["drill"]) == ("ingest", True)
    text = (counter.store.log / "access.log").read_text()
    assert not [one for one in (key, other) if one.hex() in text]


def test_request_for_more_than_is_erased_at_once_makes_no_longer_line(counter):
    refused = counter.ask(m.Erase([ONE] * 5000 + [call_id(n) for n in range(6000)], "asked for"))
    assert (refused.code, "Name 1 to 5000" in refused.hint) == ("invalid", True)
    assert [len(line["ids"]) for line in counter.lines] == [5000, 5000]
