"""The directory target where it differs: the medium below it, and what the system may say."""

import os
from pathlib import Path

import pytest

from replicator.targets import TargetError, directory
from replicator.targets.directory import TEMPORARY, DirectoryTarget

NAME = "objects/3f/3f00.svr"


@pytest.fixture
def target(tmp_path: Path) -> DirectoryTarget:
    target = DirectoryTarget(tmp_path / "replica")
    target.prepare(create=True)
    return target


def cached(path: Path, size: int) -> bool:
    """Whether the first bytes of a file lie in the page cache. Source: preadv2(2), RWF_NOWAIT."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(file, [bytearray(size)], 0, os.RWF_NOWAIT) == size
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def test_the_digest_is_read_from_the_medium(
    target: DirectoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.put(NAME, [b"x" * 4096])
    path = target.folder / NAME
    try:
        if not cached(path, 4096):
            pytest.skip("this file system keeps no pages that RWF_NOWAIT can see")
    except OSError as error:
        pytest.skip(f"RWF_NOWAIT: {error}")
    seen = []
    advise = os.posix_fadvise

    def spy(file: int, start: int, size: int, advice: int) -> None:
        advise(file, start, size, advice)
        seen.append(cached(path, 4096))

    monkeypatch.setattr(os, "posix_fadvise", spy)
    target.sha256(NAME)
    assert seen == [False]


def test_prepare_clears_half_written_files(target: DirectoryTarget) -> None:
    left = target.folder / TEMPORARY / "objects,3f,3f00.svr"
    left.write_bytes(b"half")
    target.prepare(create=False)
    assert not left.exists()


def test_an_unmounted_disk_is_not_written_below(target: DirectoryTarget) -> None:
    target.put(NAME, [b"x"])
    target.folder.rename(target.folder.with_name("elsewhere"))
    target.folder.mkdir()  # what is left of a mount point
    with pytest.raises(TargetError, match="write"):
        target.put(NAME, [b"y"])
    assert list(target.folder.iterdir()) == []


def test_only_the_last_folder_of_the_path_is_made(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        DirectoryTarget(tmp_path / "not mounted" / "replica").prepare(create=True)
    assert "mounted" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_full_disk_says_so_and_keeps_what_was_there(small_disk: Path) -> None:
    target = DirectoryTarget(small_disk)
    target.prepare(create=False)
    target.put(NAME, [b"x" * 100_000])
    with pytest.raises(TargetError, match="No space") as caught:
        target.put("objects/41/4100.svr", [b"y" * 100_000] * 20)
    assert "Free space" in caught.value.hint
    assert target.sha256(NAME)
    assert not target.exists("objects/41/4100.svr")
    target.put("objects/42/4200.svr", [b"z" * 100_000])  # what was half written is gone


def test_supplant_that_was_cut_off_costs_the_old_file_nothing(tmp_path) -> None:
    target = DirectoryTarget(tmp_path / "replica")
    target.prepare(create=True)
    target.put("keys/root", [b"old"])

    def cut():
        yield b"ne"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.supplant("keys/root", cut())
    DirectoryTarget(tmp_path / "replica").prepare(create=False)
    assert (tmp_path / "replica/keys/root").read_bytes() == b"old"
    assert list((tmp_path / "replica" / TEMPORARY).iterdir()) == []


def test_supplant_that_was_cut_off_behind_the_new_file_leaves_nothing_old(
    tmp_path, monkeypatch
) -> None:
    target = DirectoryTarget(tmp_path / "replica")
    target.prepare(create=True)
    target.put("keys/root", [b"old"])
    with monkeypatch.context() as patched:
        patched.setattr(directory, "_destroy", lambda path: None)
        target.supplant("keys/root", [b"new"])
    (left,) = (tmp_path / "replica" / TEMPORARY).iterdir()
    with left.open("rb") as still:
        DirectoryTarget(tmp_path / "replica").prepare(create=False)
        assert still.read() != b"old"
    assert (tmp_path / "replica/keys/root").read_bytes() == b"new"
