"""What is left of a sealed batch where its file goes: nothing that a key opens, freed blocks too.

A second name of the file tells what its blocks hold once the first is gone.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from capture.delivery.spool import Spool
from spanvault import spool, wire
from spanvault.keys import keyfile
from spanvault.media.chunk import NO_MEDIA
from spanvault.messages import Batch
from storaged.pools.intake import Intake
from storaged.pools.layout import Store
from tests.support.vault import make_call

KEY = bytes(range(32))
FRAMES = wire.encode_media(Batch("test", 1, [make_call(1)]), NO_MEDIA)


def refused(folder: Path) -> None:
    store = Store(folder.parent)
    store.open(lambda: [keyfile.public_of(KEY)])
    store.close()


@pytest.mark.parametrize(
    ("folder", "name", "start"),
    [("spool", "1.ab.part", Spool), ("base", "1.ab.sealed.new", Intake),
     ("refused", "1-ab.sealed.new", refused)],
)  # fmt: skip
def test_batch_that_a_crash_cut_off_opens_with_no_key(tmp_path, folder, name, start) -> None:
    if start is refused:
        refused(tmp_path / "refused")
    (tmp_path / folder).mkdir(exist_ok=True)
    torn, blocks = tmp_path / folder / name, tmp_path / "blocks"
    sealed = spool.seal_batch(FRAMES, keyfile.public_of(KEY))
    torn.write_bytes(sealed)
    blocks.hardlink_to(torn)
    start(tmp_path / folder)
    assert not torn.exists()
    assert blocks.read_bytes() == bytes(32) + sealed[32:]


def on_full_disk(monkeypatch: pytest.MonkeyPatch, name: str, blocks: Path) -> None:
    """A rename that a disk refuses; a second name of the file is kept."""

    def full(path: Path, _: Path) -> None:
        blocks.hardlink_to(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, name, full)


@pytest.mark.parametrize(
    "keep",
    [lambda folder, public: Spool(folder).seal(1, FRAMES, public),
     lambda folder, public: Intake(folder).put([make_call(1)], [], public)],
    ids=["spool", "intake"],
)  # fmt: skip
def test_batch_that_a_full_disk_took_in_part_opens_with_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Callable[[Path, bytes], object]
) -> None:
    on_full_disk(monkeypatch, "rename", tmp_path / "blocks")
    with pytest.raises(OSError, match="No space left"):
        keep(tmp_path / "folder", keyfile.public_of(KEY))
    assert list((tmp_path / "folder").iterdir()) == []
    left = (tmp_path / "blocks").read_bytes()
    assert (left[:32], len(left) > 100) == (bytes(32), True)


def test_block_that_takes_no_writes_keeps_no_file(tmp_path, monkeypatch) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    (tmp_path / "torn").write_bytes(b"x" * 99)
    spool.shred_torn(tmp_path / "torn")
    assert not (tmp_path / "torn").exists()
