"""Keys: the root and its envelopes, pages of DEKs, slots that are never handed out twice."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from spanvault.certificate import OVERWRITTEN
from spanvault.keys import keyfile
from storaged import files
from storaged.faults import Fault
from storaged.format import keypage
from storaged.format.keypage import SLOTS, Name
from storaged.format.record import MAGIC, open_call, parse_head, seal_call, token
from storaged.keys import keyring
from storaged.keys.keyring import Dropped, Keyring
from tests.support.vault import make_call

STORE_ID = bytes(range(16))
SECRETS = {Name(keypage.INGEST_KEY, 0): b"i" * 32, Name(keypage.PAGE_KEY, 3, 2): b"p" * 32}
NONCES = [bytes((number,)) * 12 for number in range(2)]


class Slots:
    """The durable counter, as the index keeps it."""

    def __init__(self) -> None:
        self.reserved = 0

    def reserve(self, number: int) -> None:
        self.reserved = number

    def take(self, ring: Keyring) -> int:
        return ring.take(lambda: self.reserved, self.reserve)[0]


@pytest.fixture
def unlock(tmp_path: Path) -> bytes:
    keyfile.create_private(tmp_path / "unlock.key")
    return keyfile.load(tmp_path / "unlock.key")


@pytest.fixture
def folder(tmp_path: Path, unlock: bytes) -> Path:
    keyring.create(tmp_path / "keys", STORE_ID, [keyfile.public_of(unlock)])
    return tmp_path / "keys"


def test_root_opens_with_each_of_its_keys():
    unlock, recovery = b"u" * 32, b"r" * 32
    recipients = [keyfile.public_of(unlock), keyfile.public_of(recovery)]
    data = keypage.serialize_root(STORE_ID, 1, 0, b"k" * 32, recipients, SECRETS, NONCES)
    for key in (unlock, recovery):
        root = keypage.open_root(data, key)
        assert (root.root_key, root.secrets, root.recipients) == (b"k" * 32, SECRETS, recipients)
    with pytest.raises(LookupError, match="not sealed to this key"):
        keypage.open_root(data, b"x" * 32)


@given(st.integers(0), st.integers(1, 255))
def test_any_changed_byte_of_the_root_is_found(at, mask):
    data = bytearray(
        keypage.serialize_root(
            STORE_ID, 1, 0, b"k" * 32, [keyfile.public_of(b"u" * 32)], SECRETS, NONCES
        )
    )
    data[at % len(data)] ^= mask
    with pytest.raises(ValueError, match=r"root|magic|envelope|secret"):
        keypage.open_root(bytes(data), b"u" * 32)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_value_error(data):
    for parse in (
        lambda: keypage.open_root(data, b"u" * 32),
        lambda: keypage.open_root(keypage.ROOT_MAGIC + data, b"u" * 32),
        lambda: keypage.open_page(keypage.PAGE_MAGIC + data, 0, 0, STORE_ID, b"k" * 32),
        lambda: open_call(b"i" * 16, MAGIC + data, b"k" * 32),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - that it is one is the point
            parse()


def test_page_of_another_place_is_not_taken():
    page = keypage.seal_page(1, 0, 0, STORE_ID, bytes(SLOTS * 32), b"k" * 32, bytes(12))
    with pytest.raises(ValueError, match=r"key page 1\.0 lies where 2\.0 belongs"):
        keypage.open_page(page, 2, 0, STORE_ID, b"k" * 32)
    with pytest.raises(ValueError, match="does not authenticate"):
        keypage.open_page(page, 1, 0, bytes(16), b"k" * 32)


def test_slots_are_not_handed_out_twice_after_a_crash(folder, unlock):
    slots = Slots()
    before = [slots.take(Keyring(folder, unlock)) for _ in range(3)]
    ring = Keyring(folder, unlock)
    before += [slots.take(ring) for _ in range(300)]
    after = slots.take(Keyring(folder, unlock))
    assert len(set(before)) == len(before)
    assert after > max(before)


def test_page_is_made_when_the_last_is_used_up(folder, unlock):
    ring, slots = Keyring(folder, unlock), Slots()
    slots.reserved = SLOTS - 1
    assert [slots.take(ring) for _ in range(2)] == [SLOTS - 1, SLOTS]
    assert ring.names() == ["page-000000.0", "page-000001.0", "root"]
    again = Keyring(folder, unlock)
    assert ring.dek(SLOTS) == again.dek(SLOTS) != again.dek(SLOTS - 1)


def test_bytes_of_a_dropped_key_are_overwritten_where_they_lay(folder, tmp_path, unlock):
    """Who finds the old page's blocks, and has its key, finds neither the DEK nor a check of it."""
    ring, slots = Keyring(folder, unlock), Slots()
    first, second = slots.take(ring), slots.take(ring)
    path, lost, kept = folder / ring.names()[0], ring.dek(first), ring.dek(second)
    key = keypage.open_root((folder / "root").read_bytes(), unlock).secrets[
        Name(keypage.PAGE_KEY, 0)
    ]
    blocks = tmp_path / "blocks"
    blocks.hardlink_to(path)
    tag = path.read_bytes()[-16:]
    ring.drop([first])
    old = blocks.read_bytes()
    counter = algorithms.AES(key), modes.CTR(old[16:28] + (2).to_bytes(4, "big"))
    deks = Cipher(*counter).decryptor().update(old[28:-16])
    assert deks[32 * second : 32 * second + 32] == kept  # so this is how the page was sealed
    assert deks[32 * first : 32 * first + 32] != lost
    assert old[-16:] != tag


def test_dropped_key_is_gone_and_its_neighbours_are_not(folder, unlock):
    ring, slots = Keyring(folder, unlock), Slots()
    first, second = slots.take(ring), slots.take(ring)
    dek, old_root, old_page = ring.dek(second), (folder / "root").read_bytes(), ring.names()[0]
    dropped = Dropped(2, {0: 1}, ["page-000000.1", "root"], OVERWRITTEN)
    assert [ring.drop([first]), ring.drop([first])] == [dropped, dropped]
    for one in (ring, Keyring(folder, unlock)):
        assert one.dek(second) == dek
        with pytest.raises(Fault, match="was destroyed"):
            one.dek(first)
    assert not (folder / old_page).exists()
    assert (folder / "root").read_bytes() != old_root
    assert sorted(path.name for path in folder.iterdir()) == ["page-000000.1", "root"]


def test_root_survives_a_crash_before_its_successor_is_in_place(folder, unlock, monkeypatch):
    """Then the root has two names, and what is overwritten must not be the only one there is."""
    before = (folder / "root").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", lambda *_: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError):  # noqa: PT011
            Keyring(folder, unlock).renew()
    assert (folder / "root.old").samefile(folder / "root")
    assert Keyring(folder, unlock).store_id == STORE_ID
    assert (folder / "root").read_bytes() == before
    assert not (folder / "root.old").exists()


def test_drop_that_a_crash_cut_off_is_finished_at_the_next_start(folder, unlock, monkeypatch):
    ring, slots = Keyring(folder, unlock), Slots()
    key_id = slots.take(ring)
    with monkeypatch.context() as patched:
        patched.setattr(files, "destroy", lambda *_: None)
        ring.drop([key_id])
    assert len(list(folder.iterdir())) == 4
    Keyring(folder, unlock)
    assert sorted(path.name for path in folder.iterdir()) == ["page-000000.1", "root"]


def test_drop_that_did_not_reach_its_root_leaves_nothing_of_itself(folder, unlock, monkeypatch):
    ring, slots = Keyring(folder, unlock), Slots()
    key_id, other = slots.take(ring), slots.take(ring)
    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", full)
        with pytest.raises(OSError, match="full"):
            ring.drop([key_id])
    again = Keyring(folder, unlock)
    assert sorted(path.name for path in folder.iterdir()) == ["page-000000.0", "root"]
    assert again.dek(key_id) != again.dek(other)
    assert ring.drop([key_id]).generations == {0: 1}
    assert Keyring(folder, unlock).dek(other) == again.dek(other)


def test_what_was_on_its_way_or_of_another_generation_is_overwritten_at_a_start(
    folder, unlock, tmp_path
):
    """Seen by a second name of each: what the disk has at their place."""
    Slots().take(Keyring(folder, unlock))
    page = (folder / "page-000000.0").read_bytes()
    for name in ("root.new", "page-000001.0.new", "page-000000.7"):
        (folder / name).write_bytes(page)
        os.link(folder / name, tmp_path / name)
    Keyring(folder, unlock)
    assert sorted(path.name for path in folder.iterdir()) == ["page-000000.0", "root"]
    for name in ("root.new", "page-000001.0.new", "page-000000.7"):
        assert page[1000:1032] not in (tmp_path / name).read_bytes()


def full(*_):
    raise OSError(28, "disk full")


def test_many_keys_of_many_pages_go_with_one_new_root(folder, unlock):
    ring, slots = Keyring(folder, unlock), Slots()
    for page in range(4):
        slots.reserved, ring = page * SLOTS, Keyring(folder, unlock)
        slots.take(ring)
    dropped = ring.drop([0, 1, 2 * SLOTS, 3 * SLOTS + 5])
    assert (dropped.epoch, dropped.generations) == (2, {0: 1, 2: 1, 3: 1})
    again = Keyring(folder, unlock)
    for gone in (0, 1, 2 * SLOTS, 3 * SLOTS + 5):
        with pytest.raises(Fault, match="was destroyed"):
            again.dek(gone)
    assert len({again.dek(kept) for kept in (2, SLOTS, 2 * SLOTS + 1, 3 * SLOTS)}) == 4


def test_key_files_are_for_their_owner_only(folder, unlock, tmp_path):
    Slots().take(Keyring(folder, unlock))
    files = [*folder.iterdir(), tmp_path / "unlock.key"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_wrong_key_says_what_to_do(folder):
    with pytest.raises(Fault, match="Set unlock_key to the key this store was made with"):
        Keyring(folder, b"x" * 32)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "64 hex digits"), ("zz" * 32, "64 hex digits"), ("00" * 31, "64 hex digits")],
)
def test_file_that_is_no_key(tmp_path, text, fault):
    (tmp_path / "key").write_text(text)
    with pytest.raises(ValueError, match=fault):
        keyfile.load(tmp_path / "key")


def test_root_of_before_there_was_a_signing_key_is_refused(folder, unlock):
    data = keypage.serialize_root(
        STORE_ID, 1, 0, b"k" * 32, [keyfile.public_of(unlock)], SECRETS, NONCES
    )
    (folder / "root").write_bytes(data)
    with pytest.raises(Fault, match="the root of a store of version 1"):
        Keyring(folder, unlock)


def test_key_file_is_never_replaced(tmp_path):
    keyfile.create_private(tmp_path / "key")
    with pytest.raises(FileExistsError):
        keyfile.create_private(tmp_path / "key")


def test_sealed_record_opens_as_its_own_call_only():
    call, dek = make_call(1, revision=4), b"d" * 32
    sealed = seal_call(call, 9, dek, bytes(12))
    assert parse_head(sealed) == (4, 9)
    assert open_call(call.id, sealed, dek) == call
    assert call.caller.encode() not in sealed
    for other in (b"x" * 16, call.id):
        changed = sealed if other != call.id else sealed[:4] + b"\x05" + sealed[5:]
        with pytest.raises(ValueError, match="does not authenticate"):
            open_call(other, changed, dek)


def test_token_depends_on_key_and_kind():
    assert token(b"a" * 32, b"n", "100") == token(b"a" * 32, b"n", "100")
    others = {token(b"b" * 32, b"n", "100"), token(b"a" * 32, b"c", "100")}
    assert token(b"a" * 32, b"n", "100") not in others


def test_root_that_a_failing_disk_left_is_destroyed_before_the_next_takes_its_place(
    folder, unlock, monkeypatch
):
    ring, slots = Keyring(folder, unlock), Slots()
    key_id = slots.take(ring)
    with monkeypatch.context() as patched:
        patched.setattr(files, "destroy", lambda *_: None)
        ring.drop([key_id])
    old = (folder / "root.old").read_bytes()
    with (folder / "root.old").open("rb") as still:
        ring.vouch(1, b"p" * 32)
        assert still.read() != old
    assert not (folder / "root.old").exists()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """Hundreds of erasures, of which each syncs a dozen times."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


CHANGES = ("write", "fsync", "rename", "link", "unlink")


class FailingDisk:
    """From its n-th step on it takes nothing."""

    def __init__(self, patched: pytest.MonkeyPatch, works: int) -> None:
        self.left = works
        for name in CHANGES:
            patched.setattr(keyring.os, name, self._step(getattr(os, name)))
        patched.setattr(files, "syncfs", self._step(files.syncfs))

    def _step(self, real):
        def step(*arguments, **named):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **named)

        return step


def test_erasure_on_a_disk_that_fails_twice_and_a_crash_cost_no_other_key(
    folder, unlock, monkeypatch, in_memory
):
    """The second try must not take what the first put in place for what a crash left."""
    ring, slots = Keyring(folder, unlock), Slots()
    key_id, other = slots.take(ring), slots.take(ring)
    before = ring.dek(other)
    template, folder = folder, in_memory / "keys"
    for first in range(100):
        for second in range(100):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(template, folder)
            ring = Keyring(folder, unlock)
            ends = [drops(ring, key_id, monkeypatch, works) for works in (first, second)]
            assert Keyring(folder, unlock).dek(other) == before, (first, second)
            ring.drop([key_id])
            assert Keyring(folder, unlock).dek(other) == before
            with pytest.raises(Fault, match="was destroyed"):
                Keyring(folder, unlock).dek(key_id)
            if ends[1]:
                break
        if ends[0]:
            break
    assert first > 10


def drops(ring: Keyring, key_id: int, monkeypatch: pytest.MonkeyPatch, works: int) -> bool:
    """Whether an erasure gets to its end on a disk that works for so many steps."""
    with monkeypatch.context() as patched:
        FailingDisk(patched, works)
        try:
            ring.drop([key_id])
        except OSError:
            return False
        return True


def test_old_key_files_are_destroyed_only_once_the_new_ones_are_durable(
    folder, unlock, monkeypatch
):
    """Else a power cut could undo the rename, and the root is what was overwritten."""
    ring, slots = Keyring(folder, unlock), Slots()
    key_id = slots.take(ring)
    with monkeypatch.context() as patched:
        patched.setattr(files, "destroy", lambda *_: None)
        ring.drop([key_id])
    done: list[str] = []
    for name in ("fsync", "write"):
        monkeypatch.setattr(keyring.os, name, told(done, name, getattr(os, name)))
    Keyring(folder, unlock)
    assert done[0] == f"fsync {folder.name}"
    assert "write root.old" in done


def told(done: list[str], name: str, real):
    def step(descriptor, *rest):
        done.append(f"{name} {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        return real(descriptor, *rest)

    return step
