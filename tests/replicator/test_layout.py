"""Names at the target, there and back."""

import pytest

from replicator import layout
from replicator.layout import Positions

IDENTITY = bytes.fromhex("3f0102030405060708090a0b0c0d0e0f")


def test_names() -> None:
    assert layout.object_name(IDENTITY) == f"objects/0f/{IDENTITY.hex()}.svr"
    assert layout.bundle_name(Positions(5, 12)) == (
        "records/0000000000000005-0000000000000012.bundle"
    )
    assert layout.keys_name("page-000001") == "keys/page-000001"


def test_names_are_understood_again() -> None:
    assert layout.recording_id(layout.object_name(IDENTITY)) == IDENTITY
    assert layout.bundle_positions(layout.bundle_name(Positions(5, 12))) == (5, 12)


@pytest.mark.parametrize(
    "name", ["objects/3f/readme.txt", f"objects/40/{IDENTITY.hex()}.svr", "records/5.bundle"]
)
def test_other_files_are_none_of_ours(name: str) -> None:
    assert layout.recording_id(name) is None
    assert layout.bundle_positions(name) is None


@pytest.mark.parametrize("name", ["../root", "", "/etc/shadow", ".hidden"])
def test_a_key_file_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a file's name"):
        layout.keys_name(name)


def test_an_id_has_16_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        layout.object_name(b"abc")
