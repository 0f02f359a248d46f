"""What storaged's user may not use is named, with the command that gives it to him."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault import messages as m
from spanvault import wire
from tests.support.vault import Rig, call_id, make_call, make_media

NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A store that was recorded into, all of it nobody's."""
    folder = Path(tempfile.mkdtemp(prefix="sv-"))
    made = Rig(folder)
    made.start()
    capture = made.capture()
    capture.send(m.Batch("test", 1, [make_call(1)]), make_media([(call_id(1), 1, 0)]))
    capture.receive(wire.decode_from_ingest)
    made.stop()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    yield made
    made.close()
    shutil.rmtree(folder)


def first_words(rig: Rig, until: str) -> str:
    """What a storaged of nobody's says, until it ends or has said this."""
    command = [*AS_NOBODY, sys.executable, "-m", "storaged", "--config", rig.config]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if until in line:
                break
        process.kill()
    return said


@pytest.mark.parametrize(
    "name",
    [
        "clients", "clients/operator.key", "secret", "secret/storaged.key_secret",
        "secret/unlock.key", "store", "store/format.json", "store/index", "store/index/data.mdb",
        "store/intake", "store/intake/base", "store/keys", "store/keys/root", "store/log",
        "store/log/access.log", "store/lock", "store/pools", "store/pools/base/ledger",
        "store/pools/base/objects",
    ],
)  # fmt: skip
def test_what_belongs_to_somebody_else_is_named_with_the_command(rig, name):
    path = rig.folder / name
    mode = path.stat().st_mode
    whole = path.parent if name == "store/index/data.mdb" else path  # LMDB names its folder
    wanted = f"chown -R nobody: {whole}"
    os.chown(path, 0, 0)
    path.chmod(0o700 if path.is_dir() else 0o600)
    try:
        said = first_words(rig, wanted)
    finally:
        os.chown(path, NOBODY, NOBODY)
        path.chmod(mode & 0o777)
    assert wanted in said
    assert "Traceback" not in said
    assert "reindex" not in said.partition(wanted)[0]


def test_given_back_it_opens(rig):
    assert "The store is open" in first_words(rig, "The store is open")
