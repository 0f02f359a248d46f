"""What lies in an intake: batches of ours, in order, and nothing that somebody put beside them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.keys import keyfile
from storaged.pools.intake import Intake
from tests.support.smalldisk import SmallDisk
from tests.support.vault import call_id, make_call, make_media

KEY = bytes(range(32))


def test_files_that_bear_other_names_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "intake" / "base"
    folder.mkdir(parents=True)
    Intake(folder).put([make_call(1)], [], keyfile.public_of(KEY))
    for name in ("notes.sealed", "x.1.sealed", "000000000009.sealed", "900000000009.ab.xyz.sealed"):
        (folder / name).write_bytes(b"not ours" * 9)
    intake = Intake(folder)
    assert len(intake) == 1
    first = intake.open_first(lambda key_id: KEY)
    assert first is not None
    path, batch, _ = first
    assert (path.name.split(".")[0], batch.calls) == ("000000000001", [make_call(1)])
    intake.put([make_call(2)], [], keyfile.public_of(KEY))
    assert [each.name.split(".")[0] for each in sorted(folder.glob("0*.*.sealed"))] == [
        "000000000001", "000000000002",
    ]  # fmt: skip


def test_a_batch_is_found_again_by_the_name_of_any_capture(tmp_path: Path) -> None:
    (tmp_path / "intake").mkdir()
    folder = tmp_path / "intake" / "base"
    for capture in ("", "site-b", "süd/1\n"):
        Intake(folder).put_sealed("ab12", capture, b"sealed")
    assert len(Intake(folder)) == 3


def test_a_batch_is_durable_before_it_counts(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "intake").mkdir()
    intake, done = Intake(tmp_path / "intake" / "base"), list[str]()

    def told(name: str) -> None:
        real = getattr(os, name)

        def step(what: int | Path, *rest: object) -> object:
            path = Path(f"/proc/self/fd/{what}").readlink() if isinstance(what, int) else what
            done.append(f"{name} {path.name}")
            return real(what, *rest)

        monkeypatch.setattr(os, name, step)

    told("fsync")
    told("rename")
    intake.put_sealed("ab12", "site", b"sealed")
    aside = f"000000000001.ab12.{b'site'.hex()}.sealed.new"
    assert done == [f"fsync {aside}", f"rename {aside}", "fsync base"]


@pytest.fixture
def megabyte(tmp_path: Path) -> Iterator[Path]:
    """A disk of so much."""
    disk = SmallDisk(tmp_path / "disk", 1)
    yield disk.mounted
    disk.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_what_does_not_fit_leaves_nothing_however_often_it_is_tried(megabyte: Path) -> None:
    intake = Intake(megabyte / "intake" / "base")
    large = make_media([(call_id(1), 1, second) for second in range(20)], size=100_000)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left on device"):
            intake.put([make_call(1)], [make_media([(call_id(1), 1, 0)]), large],
                       keyfile.public_of(KEY))  # fmt: skip
        assert (len(intake), list(intake.folder.iterdir())) == (0, [])
    intake.put([make_call(1)], [], keyfile.public_of(KEY))
    assert len(Intake(megabyte / "intake" / "base")) == 1
