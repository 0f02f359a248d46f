"""Private daemons on a store: started, asked, stopped, and nothing left of them."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.client import Client, RequestFailed, refuse_dead_socket
from spanvault.daemon.config import OperatorConfig, ReplicatorConfig, load
from spanvault.keys import keyfile
from spanvault.messages import Get, Search, StatusReply
from spanvault.private import PrivateStore, StoreUnavailable, stop, toml
from spanvault.transport import make_certificate
from tests.support.command import start as spanvault
from tests.support.folders import SAMPLE


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "unlock.key"
    keyfile.create_private(path)
    return path


@pytest.fixture
def running(tmp_path: Path, key: Path) -> Iterator[PrivateStore]:
    with PrivateStore(tmp_path / "store", key) as running:
        yield running


def test_it_answers_and_leaves_nothing(tmp_path: Path, key: Path):
    with PrivateStore(tmp_path / "store", key) as running:
        folder = running.folder
        assert folder.stat().st_mode & 0o777 == 0o700
        assert running.client.status().fields["calls"] == 0
    assert not folder.exists()


def test_a_store_has_one_storaged(tmp_path: Path, key: Path, running: PrivateStore):
    with (
        pytest.raises(StoreUnavailable, match="running on this store"),
        PrivateStore(tmp_path / "store", key),
    ):
        pass


def test_what_is_wrong_is_told_in_storageds_words(tmp_path: Path, key: Path):
    (tmp_path / "store").write_text("not a folder")
    with (
        pytest.raises(StoreUnavailable, match=str(tmp_path / "store")),
        PrivateStore(tmp_path / "store", key),
    ):
        pass


def test_killed_it_takes_its_daemons_along(
    tmp_path: Path, key: Path, request: pytest.FixtureRequest
):
    code = (
        "import sys, time; from pathlib import Path; from spanvault.private import PrivateStore\n"
        "with PrivateStore(Path(sys.argv[1]), Path(sys.argv[2])):\n"
        "    print('up', flush=True); time.sleep(99)"
    )
    temporary = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # short: sockets lie in it
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    owner = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "store", key],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    owner.kill()
    owner.communicate()
    for _ in range(100):  # storaged drains and goes; then the store is free again
        try:
            with PrivateStore(tmp_path / "store", key):
                return
        except StoreUnavailable:
            time.sleep(0.1)
    pytest.fail("the store is still held")


def test_refusals_carry_code_and_remedy(running: PrivateStore):
    with pytest.raises(RequestFailed) as told:
        running.client.get(bytes(16))
    assert told.value.code == "not_found"
    with pytest.raises(RequestFailed) as told:
        running.client.request(Search(limit=0), StatusReply)
    assert (told.value.code, bool(told.value.hint)) == ("invalid", True)


def test_an_unexpected_answer_is_no_answer(running: PrivateStore):
    with pytest.raises(RequestFailed, match="answered SearchReply"):
        running.client.request(Search(), StatusReply)


def test_a_stranger_gets_no_answer_in_time(running: PrivateStore, tmp_path: Path):
    stranger = make_certificate(tmp_path, "operator", "stranger")
    settings = OperatorConfig(**{**running.connection("operator"), "certificate": stranger})
    with Client.of(settings, timeout_s=0.5) as client, pytest.raises(RequestFailed) as told:
        client.get(bytes(16))
    assert told.value.code == "unavailable"
    assert "clients folder" in told.value.hint


def test_an_end_without_a_word_is_told_by_its_signal(tmp_path: Path, key: Path, monkeypatch):
    dies = "import os, signal, sys\nif 'storaged' in sys.orig_argv:\n"
    dies += "    os.kill(os.getpid(), signal.SIGBUS)\n"
    (tmp_path / "sitecustomize.py").write_text(dies)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with (
        pytest.raises(StoreUnavailable, match="storaged was ended by SIGBUS"),
        PrivateStore(tmp_path / "store", key),
    ):
        pass


def test_a_role_is_held_to_what_it_may_ask(running: PrivateStore):
    with Client.of(OperatorConfig(**running.connection("replicator"))) as client:
        assert client.status().store_id
        with pytest.raises(RequestFailed) as told:
            client.request(Get(bytes(16)), StatusReply)
    assert told.value.code == "denied"


def test_a_client_goes_on_after_storaged_was_started_anew(tmp_path: Path, key: Path):
    # The socket's path and keys stay: what a restart of the service looks like.
    with PrivateStore(tmp_path / "store", key) as running:
        before = running.client.status().store_id
        (storaged,) = running._running
        stop(storaged)
        with pytest.raises(RequestFailed):
            running.client.status(timeout_s=0.3)
        config = tomllib.loads((running.folder / "storaged.toml").read_text())
        running.daemon("storaged", config, stdout=subprocess.DEVNULL)
        for _ in range(100):
            try:
                assert running.client.status(timeout_s=1.0).store_id == before
                return
            except RequestFailed:
                time.sleep(0.05)
        pytest.fail("no answer from the new storaged")


def test_nobody_listening_is_told_at_once(tmp_path: Path):
    with pytest.raises(RequestFailed, match="no such file") as told:
        refuse_dead_socket(f"ipc://{tmp_path}/none")
    assert "--store DIR" in told.value.hint


def test_settings_are_written_as_the_daemons_read_them(tmp_path: Path):
    (tmp_path / "replicator.toml").write_text(
        toml({
            "state_dir": Path('/odd "name"\\ä'), "retry_s": 0.5,
            "targets": [{"name": "b", "kind": "directory", "path": "/x"}],
        })
    )  # fmt: skip
    settings = load(tmp_path / "replicator.toml", ReplicatorConfig)
    assert settings.state_dir == Path('/odd "name"\\ä')
    assert (settings.retry_s, settings.targets[0].path) == (0.5, Path("/x"))


def replicate(store: Path, key: Path, replica: Path) -> None:
    """One copy of the store, made by the real replicator."""
    with PrivateStore(store, key) as running:
        settings = {
            **running.connection("replicator"),
            "state_dir": running.folder / "state",
            "targets": [{"name": "b", "kind": "directory", "path": replica}],
        }
        (running.folder / "replicator.toml").write_text(toml(settings))
        replica.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "replicator", "--config", running.folder / "replicator.toml"],
            stderr=subprocess.PIPE,
        )
        (call,) = running.client.search(Search(outcome="answered"))
        deadline = time.monotonic() + 60
        while not running.client.get(call.id).receipts and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate()
        assert running.client.get(call.id).receipts, errors


def test_a_replica_is_restored_and_sounds_the_same(tmp_path: Path, key: Path):
    store, replica, again = tmp_path / "store", tmp_path / "replica", tmp_path / "again"
    assert spanvault("replay", SAMPLE, "--store", store, "--unlock-key", key).returncode == 0
    replicate(store, key, replica)
    done = spanvault("restore", "--from", replica, "--store", again, "--unlock-key", key)
    assert done.returncode == 0, done.stderr
    assert spanvault("verify", "--all", "--store", again, "--unlock-key", key).returncode == 0
    calls = [
        spanvault("calls", "--json", "--store", place, "--unlock-key", key).stdout
        for place in (store, again)
    ]
    assert calls[0] == calls[1]
    one = spanvault("calls", "--json", "--outcome", "answered", "--store", again,
                    "--unlock-key", key).stdout.decode().split('"')[3]  # fmt: skip
    sounds = [
        spanvault("export", one, "-o", "-", "--store", place, "--unlock-key", key).stdout
        for place in (store, again)
    ]
    assert len(sounds[0]) > 250_000
    assert sounds[0] == sounds[1]


def test_restoring_what_is_no_replica(tmp_path: Path, key: Path):
    (tmp_path / "empty").mkdir()
    for arguments, fault in (
        (["--from", tmp_path / "empty"], b"holds no replica"),
        (["--from", tmp_path / "empty", "--unlock-key", key], b"store.json"),
        (["--target", "b", "--config", tmp_path / "none.toml"], b"cannot be read"),
        ([], b"say where from"),
    ):
        done = spanvault("restore", "--store", tmp_path / "s", *arguments)
        assert done.returncode in (1, 2)
        assert fault in done.stderr, done.stderr
        assert b"Traceback" not in done.stderr
