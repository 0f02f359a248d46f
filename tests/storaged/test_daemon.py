"""The daemon as a process: fed, asked, stopped, killed, out of space."""

import os
import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from spanvault import messages as m
from spanvault import spool, wire
from spanvault.keys import keyfile
from storaged import serving
from tests.support.vault import (
    Client,
    Rig,
    acknowledged,
    call_id,
    fetch,
    make_call,
    make_media,
    payload,
)

ONE, TWO = call_id(1), call_id(2)


def test_batch_is_acknowledged_and_read_back(rig):
    rig.start()
    capture, operator = rig.capture(), rig.client("operator")
    capture.send(m.Hello("test"))
    welcome, _ = capture.receive(wire.decode_from_ingest)
    assert welcome.key_id == spool.key_id(welcome.ingest_key)
    capture.send(m.Batch("test", 1, [make_call(1)]), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [1]
    assert fetch(operator, ONE) == [(1, 0)]
    reply, _ = operator.ask(m.Search(number=make_call(1).caller))
    assert reply.calls == [make_call(1)]
    assert rig.stop() == 0


def test_spooled_batch_is_opened(rig):
    rig.start()
    capture = rig.capture()
    capture.send(m.Hello("test"))
    welcome, _ = capture.receive(wire.decode_from_ingest)
    frames = wire.encode_media(m.Batch("test", 5, [make_call(1)]), make_media([(ONE, 1, 0)]))
    sealed = spool.seal_batch(frames, welcome.ingest_key)
    assert payload(ONE, 1, 0, 32) not in sealed
    capture.send(m.Sealed("test", 5, welcome.key_id), None, sealed)
    assert acknowledged(capture) == [5]
    assert fetch(rig.client("operator"), ONE) == [(1, 0)]


def test_malformed_batches_are_refused_counted_and_survived(rig):
    rig.start()
    capture = rig.capture()
    bad = wire.encode(m.Batch("test", 1), b"x" * 10, b"", b"")
    for frames in (bad, [b"GARBAGE"], [wire.PROTOCOL, b"\xff\xff"], []):
        capture.socket.send_multipart(frames or [b""])
    capture.send(m.Sealed("test", 2, "00"), None, b"no ciphertext")
    capture.send(m.Health("capture", "+4930" * 20_000))
    capture.send(m.Batch("test", 3, [make_call(1, id=b"short")]), make_media([(ONE, 1, 0)]))
    refusals = [capture.receive(wire.decode_from_ingest)[0] for _ in range(3)]
    assert [(type(one), one.sequence) for one in refusals] == [(m.Refuse, n) for n in (1, 2, 3)]
    capture.send(m.Batch("test", 4), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [4]
    status, _ = rig.client("operator").ask(m.Status())
    counts = status.fields["ingest"]
    assert (counts["refused"], counts["unreadable"], counts["chunks"]) == (3, 4, 1)
    kept = list((rig.store / "refused").iterdir())
    assert len(kept) == 3
    assert not any(payload(ONE, 1, 0, 32) in path.read_bytes() for path in kept)
    assert "GARBAGE" not in rig.messages


def test_other_roles_may_not_send_media_nor_a_stranger_anything(rig):
    rig.start()
    operator = rig.client("operator", rig.ingest)
    operator.send(m.Batch("test", 1), make_media([(ONE, 1, 0)]))
    assert operator.receive(wire.decode_from_ingest, 0.5) is None
    (rig.folder / "secret/capture.key_secret").unlink()
    (rig.folder / "secret/capture.key").unlink()
    from spanvault import transport

    transport.make_certificate(rig.folder / "secret", "capture", "capture")
    stranger = rig.capture()
    stranger.send(m.Hello("test"))
    assert stranger.receive(wire.decode_from_ingest, 0.5) is None
    assert rig.client("operator").ask(m.Status())[0].fields["strangers"] >= 1
    public = transport.load_certificate(rig.folder / "secret/capture.key").public.decode()
    assert rig.messages.count("A key that is not among the clients' was refused") == 1
    assert public in rig.messages


def test_request_that_cannot_be_read_gets_an_answer(rig):
    rig.start()
    operator = rig.client("operator")
    operator.socket.send_multipart([b"SPANVAULT/9", b""])
    failure, _ = operator.receive(wire.decode_reply)
    assert (failure.code, "protocol" in failure.error) == ("invalid", True)


def test_feed_waits_for_a_change_and_holds_up_nobody(rig):
    rig.start()
    capture, follower, operator = rig.capture(), rig.client("replicator"), rig.client("operator")
    reply, _ = follower.ask(m.Feed(0))
    follower.send(m.Feed(reply.position, wait_ms=10_000))
    operator.ask(m.Status(), timeout_s=1)
    begun_s = time.monotonic()
    capture.send(m.Batch("test", 1, [make_call(1)]), make_media([(ONE, 1, 0)]))
    changes, _ = follower.receive(wire.decode_reply)
    assert [change.kind for change in changes.changes][-2:] == ["record", "object"]
    assert time.monotonic() - begun_s < 5
    follower.send(m.Feed(changes.position, wait_ms=300))
    assert follower.receive(wire.decode_reply)[0].changes == []


def test_one_client_cannot_fill_the_waiting_room(rig):
    rig.start()
    follower, operator = rig.client("replicator"), rig.client("operator")
    head = follower.ask(m.Feed(0))[0].position
    for _ in range(serving.UNDER_WAY + 1):
        follower.send(m.Feed(head, wait_ms=30_000))
    failure, _ = follower.receive(wire.decode_reply)
    assert (failure.code, "16 requests" in failure.error) == ("unavailable", True)
    assert "certificate of its own" in failure.hint
    assert isinstance(operator.ask(m.Feed(head, wait_ms=50))[0], m.FeedReply)
    assert follower.receive(wire.decode_reply, 0.2) is None


def test_long_check_holds_up_nobody(rig):
    """A recording of 3,000 frames takes a good second to check."""
    rig.configure(commit_interval_s=0.001)
    rig.start()
    capture, checker, other = rig.capture(), rig.client("operator"), rig.client("replicator")
    every = [(ONE, stream, second) for second in range(100) for stream in range(150)]
    for sequence in range(10):
        part = every[sequence * 1500 : (sequence + 1) * 1500]
        capture.send(m.Batch("test", sequence), make_media(part, 8000))
        assert acknowledged(capture) == [sequence]
    for _ in range(8):
        checker.send(m.Verify(ONE))
    answered = 0
    while checker.receive(wire.decode_reply, 0) is None:
        assert isinstance(other.ask(m.Status(), timeout_s=1)[0], m.StatusReply)
        answered += 1
    assert answered > 3
    for _ in range(7):
        assert checker.receive(wire.decode_reply)[0].faults == []


def scrubbed(client: Client) -> dict[str, Any]:
    """What the rolling check tells when it has been through all recordings."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        told: dict[str, Any] = client.ask(m.Status())[0].fields["scrub"]
        if told["state"] == "rests" and told.get("checked") == 3:
            return told
        time.sleep(0.05)
    raise AssertionError(told)


def test_flipped_bit_is_found_without_asking(rig):
    """Rounds of a second; a kill between them and in their midst."""
    rig.configure(scrub_days=2 / 86400)
    rig.start()
    capture = rig.capture()
    numbers = (1, 2, 3)
    media = make_media([(call_id(number), 1, second) for number in numbers for second in (0, 1)])
    capture.send(m.Batch("test", 1, [make_call(number) for number in numbers]), media)
    assert acknowledged(capture) == [1]
    operator = rig.client("operator")
    assert scrubbed(operator)["damaged"] == 0
    assert "damaged" not in rig.messages

    path = rig.store / f"pools/base/objects/{TWO.hex()[-2:]}/{TWO.hex()}.svr"
    data = bytearray(whole := path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    while not (told := scrubbed(operator))["damaged"]:
        pass
    assert told["damaged_ids"] == [TWO.hex()]
    assert "1 recordings DAMAGED" in operator.ask(m.Status())[0].state

    rig.stop(signal.SIGKILL)
    rig.start()
    operator = rig.client("operator")
    assert scrubbed(operator)["damaged_ids"] == [TWO.hex()]
    assert rig.messages.count("damaged RECORDING_ID=") == 1
    path.write_bytes(whole)
    assert operator.ask(m.Verify(TWO))[0].faults == []
    assert scrubbed(operator)["damaged"] == 0
    assert rig.stop() == 0
    assert "cannot go on" not in rig.messages


def test_stop_commits_what_was_received(rig):
    rig.configure(commit_interval_s=30)
    rig.start()
    capture = rig.capture()
    for sequence in range(20):
        capture.send(m.Batch("test", sequence), make_media([(ONE, 1, sequence)]))
    time.sleep(0.02)
    assert rig.stop() == 0
    got: list[int] = []
    while more := acknowledged(capture, 0.3):
        got += more
    rig.start()
    stored = fetch(rig.client("operator"), ONE) if got else []
    assert stored == [(1, second) for second in got]


def send_for(rig: Rig, capture: Client, state: dict[str, Any], stop: threading.Event) -> None:
    """A capture of 20 concurrent calls that keeps every batch until it is acknowledged."""
    while not stop.is_set():
        sequence = state["next"]
        if len(state["waiting"]) < 30:
            second = sequence // 4
            keys = [
                (call_id(number), stream, second)
                for number in range(5 * (sequence % 4), 5 * (sequence % 4) + 5)
                for stream in (1, 2)
            ]
            state["waiting"][sequence] = keys
            state["next"] += 1
            calls = [make_call(keys[0][0][0], id=keys[0][0], final=False, revision=second)]
            capture.send(m.Batch("test", sequence, calls), make_media(keys, 1600))
        for done in acknowledged(capture, 0.001):
            state["acknowledged"] += state["waiting"].pop(done, [])


def test_kill_9_loses_nothing_acknowledged(rig):
    """Killed again and again at random moments, in the middle of whatever it does."""
    state: dict[str, Any] = {"next": 0, "waiting": {}, "acknowledged": []}
    moments = random.Random(1)
    rig.configure(commit_interval_s=0.03)
    for _ in range(8):
        rig.start()
        capture, stop = rig.capture(), threading.Event()
        for sequence, keys in list(state["waiting"].items()):
            capture.send(m.Batch("test", sequence), make_media(keys, 1600))
        sender = threading.Thread(target=send_for, args=(rig, capture, state, stop))
        sender.start()
        time.sleep(0.2 + moments.random() / 2)
        rig.stop(signal.SIGKILL)
        stop.set()
        sender.join()
    rig.start()
    operator = rig.client("operator")
    assert len(state["acknowledged"]) > 200
    stored = {
        (recording, *key)
        for recording in {key[0] for key in state["acknowledged"]}
        for key in fetch(operator, recording)
    }
    assert set(state["acknowledged"]) <= stored
    for recording in {key[0] for key in stored}:
        report, _ = operator.ask(m.Verify(recording))
        assert (report.sealed, report.faults) == (False, [])
    capture = rig.capture()
    finals = [make_call(n, id=call_id(n), revision=10**6) for n in range(20)]
    capture.send(m.Batch("test", 10**6, finals), make_media([(call_id(0), 9, 0)]))
    assert acknowledged(capture) == [10**6]
    for number in range(20):
        report, _ = operator.ask(m.Verify(call_id(number)))
        assert (report.sealed, report.faults) == (True, [])


def fill(path: Path) -> None:
    with path.open("wb", 0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_full_disk_stops_acknowledging_and_resumes_by_itself(rig):
    rig.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", rig.store], check=True)
    try:
        rig.start()
        capture, operator = rig.capture(), rig.client("operator")
        capture.send(m.Batch("test", 1), make_media([(ONE, 1, 0)]))
        assert acknowledged(capture) == [1]
        filler = rig.store / "log" / "filler"
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        capture.send(m.Batch("test", 2, [make_call(1)]), make_media([(ONE, 1, 1)] * 1, 60_000))
        assert acknowledged(capture, 1.5) == []
        status, _ = operator.ask(m.Status())
        assert "No space left on device" in status.state
        assert "Free space" in status.fields["pools"]["base"]["state"]
        filler.unlink()
        assert acknowledged(capture, 5) == [2]
        assert fetch(operator, ONE) == [(1, 0), (1, 1)]
        assert operator.ask(m.Verify(ONE))[0].faults == []
        assert rig.stop() == 0
    finally:
        if rig.process is not None:
            rig.stop(signal.SIGKILL)
        subprocess.run(["umount", "-l", rig.store], check=True)


def test_nothing_lies_in_plain_text(rig):
    """Every file of the store, the messages and the refused batches, searched byte for byte."""
    rig.start()
    capture, operator = rig.capture(), rig.client("operator")
    call = make_call(
        1, caller="+4917699988877", callee="zz-callee-zz", call_ids=["zz-id@zz.example"]
    )
    capture.send(m.Batch("test", 1, [call]), make_media([(ONE, 1, 0), (TWO, 1, 0)]))
    assert acknowledged(capture) == [1]
    capture.send(m.Batch("test", 2, [make_call(1, id=b"zz", caller=call.caller)]), make_media([]))
    assert isinstance(capture.receive(wire.decode_from_ingest)[0], m.Refuse)
    operator.ask(m.Search(number=call.caller, call_id=call.call_ids[0]))
    fetch(operator, ONE)
    unlock = keyfile.load(rig.folder / "secret/unlock.key")
    rig.stop()
    secrets = {
        "caller": call.caller.encode()[3:], "callee": b"zz-callee", "call id": b"zz.example",
        "audio": payload(ONE, 1, 0, 16), "audio without record": payload(TWO, 1, 0, 16),
        "unlock key": unlock, "unlock key as text": unlock.hex().encode(),
    }  # fmt: skip
    files = [*Path(rig.store).rglob("*"), rig.folder / "stderr"]
    for path in (path for path in files if path.is_file()):
        data = path.read_bytes()
        assert [name for name, secret in secrets.items() if secret in data] == [], path


def test_files_and_memory_are_for_their_owner_only(rig):
    rig.start()
    limits = Path(f"/proc/{rig.process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    capture = rig.capture()
    capture.send(m.Batch("test", 1), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [1]
    rig.stop()
    open_ones = {
        str(path.relative_to(rig.store))
        for path in rig.store.rglob("*")
        if path.stat().st_mode & 0o077
    }
    assert open_ones == {"format.json"}
