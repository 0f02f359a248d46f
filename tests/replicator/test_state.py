"""Marks and receipts on the replicator's own disk."""

import contextlib
import json
from pathlib import Path

import pytest

from replicator.plan import Aside, Mark
from replicator.state import RECEIPTS, StateFolder
from spanvault.messages import Change, Receipt
from tests.support.smalldisk import empty, fill

MARK = Mark("store-1", 7, claimed=True, aside=(Aside(Change(3, "object", id=b"i" * 16), "bad"),))


def test_a_mark_survives_a_restart(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    assert state.load_mark("siteb") == Mark()
    state.save_mark("siteb", MARK)
    assert state.load_mark("siteb") == MARK
    assert state.load_mark("sitec") == Mark()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"position": "x"}', b"\xff"])
def test_a_damaged_mark_is_named_with_what_to_do(tmp_path: Path, damage: bytes) -> None:
    state = StateFolder(tmp_path)
    state.mark_path("siteb").write_bytes(damage)
    with pytest.raises(ValueError, match=r"siteb\.position: cannot be read .*Remove it"):
        state.load_mark("siteb")


def test_a_torn_receipt_spoils_only_itself(tmp_path: Path) -> None:
    (tmp_path / RECEIPTS).write_text('{"id": "00", "tar')
    StateFolder(tmp_path).append_receipt(Receipt(b"\x01" * 16, "siteb", 5, "ab", 9))
    torn, whole = (tmp_path / RECEIPTS).read_text().splitlines()
    assert torn == '{"id": "00", "tar'
    assert whole == (
        '{"id":"01010101010101010101010101010101","target":"siteb","sha256":"ab","size":5,'
        '"verified_ns":9}'
    )


@pytest.mark.root
def test_a_receipt_that_a_full_disk_tore_spoils_only_itself(small_disk: Path) -> None:
    state, number = StateFolder(small_disk), 0
    state.append_receipt(Receipt(bytes(16), "siteb", 5, "ab", 9))
    fill(small_disk)  # but for what is left of that file's last block
    with contextlib.suppress(OSError):
        for number in range(1, 1000):
            state.append_receipt(Receipt(number.to_bytes(16), "siteb", 5, "ab", 9))
    empty(small_disk)
    state.append_receipt(Receipt(number.to_bytes(16), "siteb", 5, "ab", 9))
    lines = (small_disk / RECEIPTS).read_text().splitlines()
    *whole, torn, last = lines
    assert not torn.endswith("}")
    assert [int(json.loads(line)["id"], 16) for line in [*whole, last]] == [*range(number + 1)]


def test_it_is_held_by_one_replicator(tmp_path: Path) -> None:
    first = StateFolder(tmp_path)
    with pytest.raises(ValueError, match="another replicator uses this state_dir"):
        StateFolder(tmp_path)
    assert first.folder == tmp_path
