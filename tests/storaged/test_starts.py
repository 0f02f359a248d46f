"""Starts of the daemon: beside a second one, with wrong keys or settings, on what is no store."""

import os
import select
import shutil
import signal
import subprocess

import pytest

from spanvault import messages as m
from spanvault.keys import keyfile
from storaged.index import erasures
from storaged.index.environment import Index
from storaged.keys.keyring import Keyring
from tests.support.vault import (
    START,
    Rig,
    acknowledged,
    call_id,
    fetch,
    make_call,
    make_media,
)

ONE, TWO = call_id(1), call_id(2)


def test_second_daemon_names_the_first(rig):
    rig.start()
    assert rig.process is not None
    code, messages = rig.run_to_end()
    assert code == 1
    assert f"storaged with pid {rig.process.pid} is running on this store" in messages


def test_wrong_unlock_key_is_a_config_error_with_a_remedy(rig):
    rig.start()
    rig.stop()
    (rig.store / "intake/keys").unlink()  # or it would record locked: test_locked_store.py
    keyfile.create_private(rig.folder / "other.key")
    rig.configure(unlock_key=rig.folder / "other.key")
    code, messages = rig.run_to_end()
    assert code == 78
    assert "not one this store is sealed to. Set unlock_key to" in messages
    assert "Traceback" not in messages


def test_recovery_key_opens_the_store(rig):
    public = keyfile.create_private(rig.folder / "recovery.key")
    keyfile.write_public(rig.folder / "recovery.pub", public)
    rig.configure(recovery_public=rig.folder / "recovery.pub")
    rig.start()
    capture = rig.capture()
    capture.send(m.Batch("test", 1), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [1]
    rig.stop()
    rig.configure(unlock_key=rig.folder / "recovery.key")
    rig.start()
    assert fetch(rig.client("operator"), ONE) == [(1, 0)]


def test_root_that_no_replica_was_told_of_is_told_of_by_a_start(rig):
    """A kill may come between a new root and its place in the feed."""
    rig.start()
    (before,) = roots(rig)
    rig.stop(signal.SIGKILL)
    unlock = keyfile.load(rig.folder / "secret/unlock.key")
    Keyring(rig.store / "keys", unlock).renew()
    rig.start()
    (after,) = roots(rig)
    assert after.position > before.position
    assert after.data == (rig.store / "keys/root").read_bytes() != before.data


def test_erasure_that_a_kill_cut_off_is_completed_by_a_start(rig):
    """Nobody has to ask for anything first."""
    rig.start()
    capture = rig.capture()
    capture.send(m.Batch("test", 1, [make_call(1)]), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [1]
    rig.stop()
    index = Index(rig.store / "index")
    with index.reading() as view:
        key_id = view.state(ONE).key_id
    gone = m.erasing.ErasedRecording(ONE, "base", [key_id], 0, "")
    page = m.erasing.RekeyedPage("base", 0, 0, -1)
    begun = m.Erasure(bytes(16), START, "operator/x", "asked for", [gone], [page])
    index.write(lambda writing: erasures.begin(writing, begun))
    index.close()
    rig.start()
    assert rig.client("operator").ask(m.Certify(ONE))[0].document
    assert not list(rig.store.rglob("*.svr"))


def roots(rig: Rig) -> list[m.Change]:
    """What the feed says of base's root."""
    fed, _ = rig.client("replicator").ask(m.Feed(0))
    return [one for one in fed.changes if one.name == "root"]


def remove_key(rig: Rig) -> None:
    (rig.folder / "secret/unlock.key").unlink()


def foreign_folder(rig: Rig) -> None:
    rig.store.mkdir()
    (rig.store / "thesis.txt").write_text("mine")


def unknown_setting(rig: Rig) -> None:
    rig.configure(colour="blue")


def newer_format(rig: Rig) -> None:
    rig.start()
    rig.stop()
    path = rig.store / "format.json"
    path.write_text(path.read_text().replace('"version": 3', '"version": 4'))


def store_without_ledgers(rig: Rig) -> None:
    rig.start()
    rig.stop()
    path = rig.store / "format.json"
    path.write_text(path.read_text().replace('"version": 3', '"version": 1'))


def endless_format(rig: Rig) -> None:
    rig.start()
    rig.stop()
    path = rig.store / "format.json"
    path.write_text(path.read_text().replace('"version": 3', '"version": 1e999'))


def missing_index(rig: Rig, cut: int = 0) -> None:
    rig.start()
    capture = rig.capture()
    capture.send(m.Batch("test", 1), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [1]
    rig.stop()
    index = rig.store / "index/data.mdb"
    os.truncate(index, cut) if cut else index.unlink()


def emptied_index(rig: Rig) -> None:
    """A filesystem may keep a name and lose the bytes; LMDB would begin anew, keys and all."""
    missing_index(rig)
    (rig.store / "index/data.mdb").touch()


def missing_index_of_unmounted_pools(rig: Rig) -> None:
    """Only the keys in the store's own folder tell that anything was ever recorded."""
    base_elsewhere(rig)
    (rig.store / "index/data.mdb").unlink()
    (rig.folder / "base").rename(rig.folder / "volume")
    (rig.folder / "base").mkdir()


def cut_index(rig: Rig) -> None:
    missing_index(rig, cut=2 * 4096)


def lost_folder(rig: Rig, name: str) -> None:
    rig.start()
    capture = rig.capture()
    capture.send(m.Batch("test", 1), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [1]
    rig.stop()
    shutil.rmtree(rig.store / name)


def lost_pools(rig: Rig) -> None:
    lost_folder(rig, "pools")


def unmounted_pool(rig: Rig) -> None:
    lost_folder(rig, "pools/base/objects")


def lost_format(rig: Rig) -> None:
    """No object lies in the store's own folder: only its keys tell that it was in use."""
    base_elsewhere(rig)
    (rig.store / "format.json").unlink()


def unmounted_store(rig: Rig) -> None:
    base_elsewhere(rig)
    rig.store.rename(rig.folder / "unmounted")


def base_elsewhere(rig: Rig) -> None:
    with rig.config.open("a") as file:
        file.write(f'[pools.base]\npath = "{rig.folder}/base"\n')
    rig.start()
    capture = rig.capture()
    capture.send(m.Batch("test", 1), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [1]
    rig.stop()


def dangling_store(rig: Rig) -> None:
    rig.store.symlink_to(rig.folder / "nowhere")


def store_that_is_a_file(rig: Rig) -> None:
    rig.store.write_text("mine")


def lost_log(rig: Rig) -> None:
    lost_folder(rig, "log")


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (remove_key, 78, "unlock.key: key file cannot be read"),
        (foreign_folder, 78, "not a store, and not empty. Name an empty folder"),
        (unknown_setting, 78, "unknown key 'colour'"),
        (
            newer_format,
            78,
            "store version 4, this program reads 3. Use the version of spanvault that",
        ),
        (store_without_ledgers, 78, "store version 1, this program reads 3. It is from before"),
        (endless_format, 74, "not readable as a store's format"),
        (missing_index, 74, "the index is missing, and the store was in use"),
        (emptied_index, 74, "keys/page-000000.0). spanvault reindex makes the index anew"),
        (missing_index_of_unmounted_pools, 74, "/base first, nothing is there; then: spanvault re"),
        (cut_index, 74, "MDB_CORRUPTED: Located page was wrong type). spanvault reindex makes"),
        (lost_pools, 1, "pools/base/objects: the pool cannot be opened (missing, and there are"),
        (unmounted_pool, 1, "missing, and there are recordings). Mount the pool's volume"),
        (lost_format, 74, "format.json is missing, and the store was in use"),
        (unmounted_store, 1, "there is no store, and the pool"),
        (dangling_store, 1, "/store: File exists. Check that the store's folder exists"),
        (store_that_is_a_file, 1, "/store: File exists. Check that the store's folder exists"),
        (lost_log, 1, "log/access.log: the access log cannot be opened (No such file"),
    ],
)
def test_what_it_cannot_start_on(rig, fault, code, message):
    fault(rig)
    found, messages = rig.run_to_end()
    assert (found, message in messages, "Traceback" in messages) == (code, True, False), messages


def test_empty_mount_point_of_a_store_is_not_taken_for_a_new_one(rig, tmp_path, monkeypatch):
    """systemd gives the folder in which it is remembered."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    rig.start()
    rig.stop()
    volume = rig.store.rename(rig.folder / "volume")
    rig.store.mkdir()
    code, messages = rig.run_to_end()
    assert (code, "there is no store, and there was one (id " in messages) == (1, True), messages
    assert "Mount its volume" in messages
    assert list(rig.store.iterdir()) == []
    rig.store.rmdir()
    volume.rename(rig.store)
    rig.start()
    rig.stop()
    shutil.rmtree(rig.store)  # lost; the administrator does as he was told
    (tmp_path / "stores.json").unlink()
    rig.start()


@pytest.mark.parametrize("kept", ["{", "[]", '{"/elsewhere": "00"}', None])
def test_what_is_remembered_of_stores_stops_no_start(rig, tmp_path, monkeypatch, kept):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "gone" if kept is None else tmp_path))
    (tmp_path / "stores.json").write_text(kept or "")
    rig.start()


def test_what_it_refused_to_start_on_is_as_it_was(rig):
    """Its keys above all: with format.json put back every recording plays."""
    base_elsewhere(rig)
    path = rig.store / "format.json"
    text, keys = path.read_text(), (rig.store / "keys/root").read_bytes()
    path.unlink()
    assert rig.run_to_end()[0] == 74
    assert (rig.store / "keys/root").read_bytes() == keys
    path.write_text(text)
    rig.start()
    assert fetch(rig.client("operator"), ONE) == [(1, 0)]


def test_index_is_not_begun_anew_while_pools_are_not_mounted(rig):
    """Nor made anew: both would hand out keys again, and know of no call."""
    missing_index_of_unmounted_pools(rig)
    kept = {path: path.read_bytes() for path in rig.store.glob("keys/*")}
    assert rig.run_to_end()[0] == 74
    assert rig.reindex() == 1
    assert not (rig.store / "index/data.mdb").exists()
    assert list((rig.folder / "base").iterdir()) == []
    assert {path: path.read_bytes() for path in rig.store.glob("keys/*")} == kept
    (rig.folder / "base").rmdir()
    (rig.folder / "volume").rename(rig.folder / "base")
    assert rig.reindex() == 0
    rig.start()
    assert fetch(rig.client("operator"), ONE) == [(1, 0)]


def test_copy_of_a_running_store_goes_on_elsewhere(rig):
    """As from a snapshot, or cp -a between two calls; the original is gone."""
    rig.start()
    capture = rig.capture()
    capture.send(m.Batch("test", 1), make_media([(ONE, 1, 0)]))
    assert acknowledged(capture) == [1]
    subprocess.run(["cp", "-a", rig.store, rig.folder / "copy"], check=True)
    rig.stop(signal.SIGKILL)
    shutil.rmtree(rig.store)
    rig.configure(store=rig.folder / "copy")
    rig.start()
    capture = rig.capture()
    capture.send(m.Batch("test", 2, [make_call(1)]), make_media([(ONE, 1, 0), (ONE, 1, 1)]))
    assert acknowledged(capture) == [2]
    operator = rig.client("operator")
    assert fetch(operator, ONE) == [(1, 0), (1, 1)]
    assert operator.ask(m.Verify(ONE))[0].faults == []


def test_of_two_that_start_at_once_on_an_empty_folder_one_makes_the_store(rig):
    rig.process, second = rig.spawn(), rig.spawn()
    try:
        select.select([pid := os.pidfd_open(rig.process.pid), other := os.pidfd_open(second.pid)],
                      [], [], 20)  # fmt: skip
        os.close(pid)
        os.close(other)
        if rig.process.poll() is not None:
            rig.process, second = second, rig.process
        assert second.wait(20) == 1
        assert f"storaged with pid {rig.process.pid} is running" in rig.messages
        assert rig.client("operator").ask(m.Status())[0].store_id
    finally:
        second.kill()
        second.wait()


def test_interrupted_creation_is_begun_anew(rig):
    rig.start()
    rig.stop()
    (rig.store / "format.json").unlink()
    rig.start()
