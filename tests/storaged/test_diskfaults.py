"""One line that names place, disk, cause and remedy, whoever raised the error."""

import errno
import os
from collections import namedtuple

import lmdb
import pytest

from storaged import diskfaults
from storaged.diskfaults import explain, line, named
from storaged.faults import Fault

CANNOT = "the store cannot be written: "


def of_lmdb(text: str, path: str = "") -> lmdb.Error:
    error = lmdb.Error(text)
    if path:
        error.filename = path
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, ""), CANNOT + "No space left on device. Free space there"),
        (OSError(errno.EROFS, "", "/none/keys/root.new"),
         CANNOT + "/none/keys (disk /): Read-only file system. It is read-only"),
        (OSError(errno.EIO, "", "/none/core/objects/ab/x.svr"),
         CANNOT + "/none/core (disk /): Input/output error. It fails"),
        (OSError(errno.EACCES, "", "/none/core/ledger/x.svl"), "(disk /): Permission denied. Give"),
        (OSError(errno.EIO, "", "relative"), CANNOT + "Input/output error"),
        (of_lmdb("mdb_txn_commit: No space left on device"), "Free space"),
        (of_lmdb("mdb_txn_commit: Input/output error", "/none/index/data.mdb"), "It fails"),
        (lmdb.CorruptedError("mdb_get: MDB_CORRUPTED"), "index is damaged: look at dmesg and"),
        (lmdb.CorruptedError("mdb_get: MDB_CORRUPTED"), "spanvault reindex makes it anew"),
        (of_lmdb("mdb_put: something else"), "mdb_put: something else. Look at dmesg"),
        (Fault("locked", "no page", "Restore."), "no page. Restore."),
    ],
)  # fmt: skip
def test_line_for_the_operator(error, words):
    assert words in explain(error)
    assert "\n" not in explain(error)


def test_write_that_a_full_disk_cut_short_is_no_failing_disk(tmp_path, monkeypatch):
    """LMDB says the same of both."""
    error = of_lmdb("mdb_txn_commit: Input/output error", f"{tmp_path}/data.mdb")
    assert "It fails" in line(error)
    space = namedtuple("space", "f_bavail f_frsize f_files f_favail")(0, 4096, 9, 9)
    monkeypatch.setattr(diskfaults.os, "statvfs", lambda _: space)
    assert "No space left on device" in line(error)


@pytest.mark.parametrize("text", ["Input/output error", "MDB_PANIC: Update of meta page failed"])
def test_what_lmdb_does_not_tell_another_write_does(tmp_path, monkeypatch, text):
    def exceeded(*_: object) -> int:
        raise OSError(errno.EDQUOT, "")

    error = of_lmdb(f"mdb_txn_commit: {text}")
    with monkeypatch.context() as patch:
        patch.setattr(diskfaults.os, "write", exceeded)
        diskfaults.blame(error, tmp_path / "data.mdb")
    assert line(error).startswith(f"{tmp_path} (disk ")
    assert "): Disk quota exceeded. Raise the quota of" in line(error)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_passed_stays_what_lmdb_says(tmp_path):
    error = of_lmdb("mdb_txn_commit: Input/output error")
    diskfaults.blame(error, tmp_path / "data.mdb")
    assert "Input/output error. It fails" in line(error)


def test_error_of_an_open_file_gets_its_name(tmp_path):
    descriptor = os.open(tmp_path / "page", os.O_RDONLY | os.O_CREAT)
    with pytest.raises(OSError, match="page") as caught, named(descriptor):
        os.write(descriptor, b"x")
    assert caught.value.filename == str(tmp_path / "page")
    os.close(descriptor)
