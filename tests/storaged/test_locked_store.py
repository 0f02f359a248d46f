"""The whole store locked, base too: it records, is not heard, becomes normal when unlocked."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanvault import messages as m
from spanvault import spool, transport, wire
from spanvault.keys import keyfile
from spanvault.messages import Message
from storaged.keys import keyring
from storaged.keys.intakekeys import parse, serialize
from tests.support.vault import Client, Rig, call_id, chunk_keys, make_call, make_media

ONE, TWO, SPOOLED, CORES = (call_id(number) for number in range(1, 5))
CORE = "[pools.core]\n[[rules]]\npool = 'core'\nnumber = ['+49300000004']\n"


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A store with base and core that was open once; its key is nowhere on the machine."""
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = Rig(folder, commit_interval_s=0.05)
    with made.config.open("a") as file:
        file.write(CORE)
    made.start()
    send(made.capture(), 1, [(ONE, 1, 0)], make_call(1, final=False))
    made.stop()
    (folder / "secret/unlock.key").rename(folder / "safe.key")
    yield made
    made.close()
    shutil.rmtree(folder)


def send(
    capture: Client, number: int, chunks: list[tuple[bytes, int, int]], *calls: m.Call
) -> None:
    capture.send(m.Batch("test", number, list(calls)), make_media(chunks))
    assert acknowledged(capture) == [number]


def acknowledged(capture: Client) -> list[int]:
    message, _ = capture.receive(wire.decode_from_ingest)
    assert isinstance(message, m.Acknowledge), message
    return message.sequences


def ask(rig: Rig, request: Message) -> Any:
    return rig.client("operator").ask(request)[0]


def unlock(rig: Rig, pool: str = "base") -> Any:
    return ask(rig, m.Unlock(pool, keyfile.load(rig.folder / "safe.key")))


def drained(rig: Rig) -> None:
    while any(pool["waiting"] for pool in ask(rig, m.Status()).fields["pools"].values()):
        pass


def heard(rig: Rig, recording: bytes) -> list[tuple[int, int]]:
    reply, bulk = rig.client("operator").ask(m.Fetch(recording, 0))
    assert isinstance(reply, m.FetchReply), reply
    keys = chunk_keys(wire.decode_media(bulk))
    assert keys == chunk_keys(make_media([key[:3] for key in keys]))
    return [key[1:3] for key in keys]


def spooled(rig: Rig, number: int, calls: list[m.Call]) -> tuple[m.Sealed, bytes]:
    """A batch as a capture's spool has it."""
    capture = rig.capture()
    capture.send(m.Hello("test"))
    welcome, _ = capture.receive(wire.decode_from_ingest)
    media = make_media([(SPOOLED, 1, 0), (CORES, 1, 1)])
    frames = wire.encode_media(m.Batch("test", number, calls), media)
    sealed = spool.seal_batch(frames, welcome.ingest_key)
    return m.Sealed("test", number, welcome.key_id), sealed


def test_locked_store_records_and_refuses_to_be_heard(rig):
    rig.start()
    capture = rig.capture()
    send(capture, 2, [(ONE, 1, 1), (TWO, 1, 0), (CORES, 1, 0)], make_call(4, final=False))
    sealed, bulk = spooled(rig, 3, [make_call(3)])
    capture.send(sealed, None, bulk)
    assert acknowledged(capture) == [3]
    status = ask(rig, m.Status())
    assert "pool base is locked" in status.state
    assert {name: pool["state"] for name, pool in status.fields["pools"].items()} == {
        "base": "locked", "core": "locked"}  # fmt: skip
    for request in (m.Get(ONE), m.Fetch(ONE, 0), m.Erase([ONE], "test"), m.Certify(ONE),
                    m.Rotate("base", "root"), unlock_core(rig)):  # fmt: skip
        reply = ask(rig, request)
        assert (type(reply), getattr(reply, "code", "")) == (m.Failure, "locked"), request
    assert ask(rig, m.Search(number="+49300000001")).calls == []
    assert list(rig.store.glob("pools/*/objects/*/*")) == [rig_object(rig, ONE)]

    rig.stop(signal.SIGKILL)
    rig.start()
    send(rig.capture(), 4, [(TWO, 1, 1)], make_call(2))
    assert unlock(rig) == m.Done()
    drained(rig)
    assert heard(rig, ONE) == heard(rig, TWO) == heard(rig, CORES) == [(1, 0), (1, 1)]
    assert heard(rig, SPOOLED) == [(1, 0)]
    assert [ask(rig, m.Get(one)).pool for one in (ONE, SPOOLED, CORES)] == ["base", "base", "core"]
    assert ask(rig, m.Get(TWO)).sealed
    assert ask(rig, m.Search(number="+49300000001")).calls[0].id == ONE
    assert not list(rig.store.glob("intake/*/*.sealed"))


def unlock_core(rig: Rig) -> m.Unlock:
    return m.Unlock("core", keyfile.load(rig.folder / "safe.key"))


def rig_object(rig: Rig, recording: bytes) -> Path:
    name = recording.hex()
    return rig.store / f"pools/base/objects/{name[-2:]}/{name}.svr"


def test_store_is_locked_and_unlocked_while_a_call_goes_on(rig):
    rig.start()
    assert unlock(rig) == m.Done()
    capture = rig.capture()
    send(capture, 2, [(ONE, 1, 1)])
    assert ask(rig, m.Lock("base")) == m.Done()
    assert [pool.locked for pool in ask(rig, m.Keys()).pools] == [True, True]
    send(capture, 3, [(ONE, 1, 2), (CORES, 1, 0)], make_call(4, final=False))
    assert ask(rig, m.Fetch(ONE, 0)).code == "locked"
    assert unlock(rig) == m.Done()
    send(capture, 4, [(ONE, 1, 3), (CORES, 1, 1)], make_call(1, revision=1))
    drained(rig)
    assert heard(rig, ONE) == [(1, second) for second in range(4)]
    assert heard(rig, CORES) == [(1, 0), (1, 1)]
    assert ask(rig, m.Verify(ONE)).faults == []


def test_key_of_another_store_leaves_it_locked_and_is_named(rig):
    keyfile.create_private(rig.folder / "secret/unlock.key")
    rig.start()
    assert ask(rig, m.Get(ONE)).code == "locked"
    assert "not one this store is sealed to. Set unlock_key to" in rig.messages
    reply = ask(rig, m.Unlock("base", keyfile.load(rig.folder / "secret/unlock.key")))
    assert reply.code == "locked"


def test_spooled_batch_that_holds_nothing_is_set_aside_once_it_can_be_opened(rig):
    rig.start()
    capture = rig.capture()
    sealed, bulk = spooled(rig, 2, [make_call(3, id=b"zz")])
    capture.send(sealed, None, bulk)
    assert acknowledged(capture) == [2]
    capture.send(m.Sealed("test", 3, "../../x"), None, bulk)
    assert isinstance(capture.receive(wire.decode_from_ingest)[0], m.Refuse)
    assert unlock(rig) == m.Done()
    drained(rig)
    assert len(list(rig.store.glob("intake/base/*.damaged"))) == 1


def another_key(rig: Rig) -> None:
    """As who changes the disk would have everything sealed to himself."""
    path = rig.store / "intake/keys"
    store_id = path.read_bytes()[8:24]
    public = keyfile.public_of(bytes(range(32)))
    path.write_bytes(serialize(store_id, dict.fromkeys(range(3), public), b"a guess"))


def of_another_store(rig: Rig) -> None:
    """Written by this very host, for a store that it had before."""
    path = rig.store / "intake/keys"
    secret = transport.load_certificate(rig.folder / "secret/storaged.key_secret").secret or b""
    store_id, keys = parse(path.read_bytes(), secret)
    path.write_bytes(serialize(bytes(len(store_id)), keys, secret))


def no_file(rig: Rig) -> None:
    (rig.store / "intake/keys").unlink()


@pytest.mark.parametrize("fault", [another_key, of_another_store, no_file])
def test_nothing_is_recorded_to_a_key_that_this_host_did_not_vouch_for(rig, fault):
    fault(rig)
    code, messages = rig.run_to_end()
    assert (code, "unlock.key: key file cannot be read" in messages) == (78, True), messages
    (rig.folder / "safe.key").rename(rig.folder / "secret/unlock.key")
    rig.start()
    assert heard(rig, ONE) == [(1, 0)]


def test_root_that_has_not_the_key_it_recorded_to_is_not_unlocked(rig):
    """As who changes the disk would have the store go on with keys that he knows."""
    rig.start()
    root = rig.store / "keys/root"
    public = keyfile.public_of(keyfile.load(rig.folder / "safe.key"))
    keyring.create(rig.folder / "keys", root.read_bytes()[8:24], [public])
    (rig.folder / "keys/root").rename(root)
    reply = unlock(rig)
    assert (reply.code, "not the root whose key the intake" in reply.error) == ("corrupt", True)
    assert ask(rig, m.Get(ONE)).code == "locked"


def damaged(root: Path) -> None:
    root.write_bytes(root.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("fault", [damaged, Path.unlink])
def test_store_whose_root_is_damaged_records_and_says_so(rig, fault):
    """The key is at hand; a start does not wait for the root, which a replica may bring back."""
    (rig.folder / "safe.key").rename(rig.folder / "secret/unlock.key")
    root = rig.store / "keys/root"
    sound = root.read_bytes()
    fault(root)
    rig.start()
    send(rig.capture(), 2, [(ONE, 1, 1)])
    state = ask(rig, m.Status()).state
    assert "pool base is locked" in state
    assert "root" in state
    assert ask(rig, m.Get(ONE)).code == "locked"
    rig.stop(signal.SIGKILL)
    root.write_bytes(sound)
    rig.start()
    drained(rig)
    assert heard(rig, ONE) == [(1, 0), (1, 1)]


def test_keys_of_intakes_are_read_as_they_were_written():
    keys = {0: bytes(range(32)), 2: bytes(range(1, 33))}
    data = serialize(b"s" * 16, keys, b"secret")
    assert parse(data, b"secret") == (b"s" * 16, keys)
    for broken in (data[:-1], b"", data[:20] + b"x" + data[21:]):
        with pytest.raises(ValueError, match="was changed"):
            parse(broken, b"secret")
    with pytest.raises(ValueError, match="another certificate"):
        parse(data, b"other")
