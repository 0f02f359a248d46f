"""What a folder must look like to be opened as a store, or to be made one."""

from pathlib import Path

import pytest

from spanvault.keys import keyfile
from storaged.faults import Fault
from storaged.pools.layout import LEDGERS, VERSION, Store


def opened(folder: Path, **wanted: object) -> None:
    """As a start does it, with a key of the moment."""
    store = Store(folder)
    try:
        key = folder.with_name("unlock.key")
        key.unlink(missing_ok=True)
        store.open(lambda: [keyfile.create_private(key)], **wanted)  # type: ignore[arg-type]
    finally:
        store.close()


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each file and folder was last changed, and what is in it."""
    return {
        str(path): (path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes())
        for path in (folder, *folder.rglob("*"))
    }


@pytest.mark.parametrize(
    "used",
    ["keys/page-000000.0", "keys/core/root", "intake/base/000000000001.00.sealed",
     "pools/base/objects/00/a.svr", "pools/base/ledger/20260101-000000.svl"],
)  # fmt: skip
def test_what_was_in_use_is_not_begun_anew(tmp_path, used):
    """Its new keys would take the place of those that all of it is sealed under."""
    folder = tmp_path / "store"
    opened(folder)
    (folder / "format.json").unlink()
    (folder / used).parent.mkdir(parents=True, exist_ok=True)
    (folder / used).write_bytes(b"kept")
    root = (folder / "keys/root").read_bytes()
    with pytest.raises(Fault, match=f"the store was in use .*{used}"):
        opened(folder)
    assert (folder / "keys/root").read_bytes() == root
    assert not (folder / "format.json").exists()


@pytest.mark.parametrize("used", ["objects/00/a.svr", "ledger/20260101-000000.svl"])
def test_none_is_made_where_a_pool_elsewhere_is_one_s(tmp_path, used):
    pool = tmp_path / "volume"
    (pool / used).parent.mkdir(parents=True)
    (pool / used).write_bytes(b"kept")
    with pytest.raises(Fault, match=r"the pool .*volume is one's"):
        opened(tmp_path / "store", pools=[pool])
    assert not (tmp_path / "store/keys").exists()


@pytest.mark.parametrize(
    ("version", "oldest"), [(1, VERSION), (2, VERSION), (4, VERSION), (1, LEDGERS), (4, LEDGERS)]
)
def test_another_version_is_refused_before_anything_is_written(tmp_path, version, oldest):
    """Not even its lock; a start and reindex."""
    folder = tmp_path / "store"
    opened(folder)
    about = folder / "format.json"
    about.write_text(about.read_text().replace('"version": 3', f'"version": {version}'))
    (folder / "lock").unlink()
    before = everything(folder)
    with pytest.raises(Fault, match=f"store version {version}, this program reads 3"):
        opened(folder, oldest=oldest)
    assert everything(folder) == before
