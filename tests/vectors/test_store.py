"""A store as storaged left it, killed, opened by who has its unlock key and FORMAT.md alone.

The other reader runs as a script by itself, without our packages, and without the index.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanvault import messages as m
from spanvault.keys import keyfile
from spanvault.media.chunk import NO_MEDIA
from tests.support.vault import Rig, acknowledged, call_id, chunk_keys, make_call, make_media
from tests.vectors.reader import Fault, signed
from tests.vectors.reader.store import Store

READER = Path(__file__).parent / "reader"
NOT_RECORDED, CORE, SECRET, GONE = 2, 3, 4, 5
CALLS = {1: "+4989", NOT_RECORDED: "+4989", CORE: "+4930", SECRET: "+4940", GONE: "+4989"}


class Left:
    """A store's folder, and what replicas were told of its log."""

    def __init__(self, rig: Rig, head: bytes, certificate: str) -> None:
        self.folder, self.head, self.certificate = rig.store, head, certificate
        self.unlock, self.secret = rig.folder / "secret/unlock.key", rig.folder / "sensitive.key"

    def read(self, folder: Path | None = None) -> tuple[dict[str, Any], dict[str, Any], int]:
        """Calls by id, what is said of the store, the exit code."""
        command = [sys.executable, "-I", READER, folder or self.folder, "--unlock", self.unlock]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        *calls, store = map(json.loads, done.stdout.splitlines())
        return {one["id"]: one for one in calls}, store, done.returncode


@pytest.fixture(scope="module")
def left() -> Iterator[Left]:
    folder = Path(tempfile.mkdtemp(prefix="sv-"))  # short: it has a socket
    rig = Rig(folder)
    try:
        yield Left(rig, *record(rig))
    finally:
        rig.close()
        shutil.rmtree(folder)


def record(rig: Rig) -> tuple[bytes, str]:
    """Have some calls recorded, one of them erased, one for a locked pool.

    Gives the log's head, and the certificate of the erasure.
    """
    keyfile.create_private(rig.folder / "sensitive.key")
    public = keyfile.public_of(keyfile.load(rig.folder / "sensitive.key"))
    keyfile.write_public(rig.folder / "sensitive.pub", public)
    with rig.config.open("a") as file:
        file.write(f"[pools.core]\n[pools.sensitive]\nrecipients = ['{rig.folder}/sensitive.pub']\n"
                   "[[rules]]\npool = 'core'\nnumber = ['+4930*']\n"
                   "[[rules]]\npool = 'sensitive'\nnumber = ['+4940*']\n")  # fmt: skip
    rig.start()
    capture, operator = rig.capture(), rig.client("operator")
    for number, (call, caller) in enumerate(CALLS.items()):
        media = [] if call == NOT_RECORDED else [(call_id(call), 1, 0), (call_id(call), 2, 0)]
        one = make_call(call, caller=f"{caller}555{call}", callee="+49")
        capture.send(m.Batch("test", number, [one]), make_media(media) if media else NO_MEDIA)
        assert acknowledged(capture) == [number]
    operator.ask(m.Search(number="+49895551"))
    assert operator.ask(m.Erase([call_id(GONE)], "asked for"))[0].erasure
    head, certificate = told_head(rig), operator.ask(m.Certify(call_id(GONE)))[0].document
    operator.ask(m.Search(number="+49895551"))
    rig.stop(signal.SIGKILL)
    shutil.rmtree(rig.store / "index")
    return head, certificate


def told_head(rig: Rig) -> bytes:
    """What the feed says of the access log."""
    replicator, position = rig.client("replicator"), 0
    for _ in range(20):
        fed, _ = replicator.ask(m.Feed(position, wait_ms=2000))
        if heads := [one.data for one in fed.changes if one.kind == "log"]:
            return bytes(heads[-1])
        position = fed.position
    raise AssertionError("no head was told of")


def test_every_call_is_there_but_the_erased_and_what_another_key_opens(left):
    calls, store, code = left.read()
    assert (store["locked"], store["faults"], code) == (["sensitive"], [], 0)
    assert {one["id"]: (one["pool"], one["caller"]) for one in calls.values()} == {
        call_id(1).hex(): ("base", "+49895551"),
        call_id(NOT_RECORDED).hex(): ("base", "+49895552"),
        call_id(CORE).hex(): ("core", "+49305553"),
    }
    for number in (1, CORE):
        one = calls[call_id(number).hex()]
        truth = chunk_keys(make_media([(call_id(number), 1, 0), (call_id(number), 2, 0)]))
        assert [(c["stream"], c["bytes"]) for c in one["chunks"]] == [
            (stream, len(payload)) for _, stream, _, payload in truth
        ]
        assert one["sealed"]
        assert one["sha256"]  # what the ledger says that was sealed


def test_what_waits_for_a_locked_pool_opens_with_its_key_and_no_other(left):
    private = keyfile.load(left.secret)
    store = Store(left.folder, keyfile.load(left.unlock))
    assert call_id(SECRET) not in store.calls()
    store._open_pool("sensitive", 2, private)
    waits = store.calls()[call_id(SECRET)]
    assert (waits.record["caller"], waits.waiting, waits.opened) == ("+49405554", 1, None)


def test_the_access_log_follows_and_fits_what_replicas_were_told(left, tmp_path):
    store = Store(left.folder, keyfile.load(left.unlock))
    kinds = [line["kind"] for line in store.log()]
    assert kinds[-1] == "search"
    assert "erase" in kinds
    assert store.check_head(left.head)["store"] == store.id.hex()
    other = tmp_path / "store"
    shutil.copytree(left.folder, other)
    log = other / "log/access.log"
    log.write_bytes(log.read_bytes().replace(b'"status"', b'"statue"', 1))  # its first line
    changed = Store(other, keyfile.load(left.unlock))
    with pytest.raises(Fault, match="changed"):
        changed.check_head(left.head)
    with pytest.raises(Fault, match="changed"):
        changed.log()


def test_the_certificate_is_signed_by_the_store(left):
    said = signed.check_certificate(left.certificate)
    assert (said["recording"], said["reason"]) == (call_id(GONE).hex(), "asked for")
    signer = Store(left.folder, keyfile.load(left.unlock)).signer.public_bytes_raw()
    assert json.loads(left.certificate)["signature"]["public_key"] == signer.hex()
    with pytest.raises(Fault, match="signature"):
        signed.check_certificate(left.certificate.replace("asked for", "asked off"))


def test_an_object_that_was_cut_is_not_what_was_sealed(left, tmp_path):
    other, one = tmp_path / "store", call_id(1).hex()
    shutil.copytree(left.folder, other)
    (path,) = (other / "pools/base/objects").glob(f"*/{one}.svr")
    path.write_bytes(path.read_bytes()[:-32])  # its locator
    calls, _, _ = left.read(other)
    assert calls[one]["sha256"] is None
    assert len(calls[one]["chunks"]) == 2
