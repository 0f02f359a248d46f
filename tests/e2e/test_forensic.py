"""After an erasure the medium is searched, by somebody who has every key there is.

Store and spool lie on an ext4 of their own, which is imaged: freed blocks, LMDB's free pages and
the journal included. The examiner (tests.support.examiner) has the unlock key and what it opens.
The control: where key files are only removed, not destroyed, the same examiner hears the call.
A loop file shows what the filesystem overwrote; what flash keeps beneath it, no test can see.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capture.delivery.spool import Spool
from spanvault import messages as m
from spanvault import wire
from spanvault.keys import keyfile
from storaged import files
from storaged.erasing.eraser import Eraser
from storaged.erasing.retiring import Retirer
from storaged.format import record
from storaged.format.keypage import ROOT_MAGIC
from storaged.format.walk import finish
from storaged.index.rows import time_key
from storaged.pools.layout import Store
from tests.support.examiner import BLOCK, Examiner
from tests.support.vault import Parts, call_id, make_call, make_media, payload

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount an image"),
]
ERASED = 1
# Calls without media: their records lie in index and ledger alone. Several, because an entry
# that spans two blocks of the medium may be in two places, and is not carved out then.
LONE, LONE_KEPT = range(11, 17), range(17, 23)
LABEL = slice(8, 24)  # of a search row's key
SPOKEN = 4096  # bytes a chunk
CALLS = range(1, 9)


def said(number: int, second: int) -> bytes:
    """The 32 bytes that only one chunk has; its payload repeats them."""
    return payload(call_id(number), 1, second, 32)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


class Evidence:
    """An image of the medium, and what was known of the call before it was erased."""

    def __init__(self, folder: Path, *, convert: bool = True) -> None:
        """convert: whether days of erased calls get new keys, too: that writes to freed blocks."""
        self._convert = convert
        self.image = folder / "medium"
        with self.image.open("wb") as file:
            file.truncate(48 << 20)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        with mounted(self.image, folder / "place") as place:
            self._use(place)
        self.data = self.image.read_bytes()

    def _use(self, place: Path) -> None:
        parts = Parts(place / "store")
        store = Store(place / "store")
        store.refused.mkdir()
        store.log.mkdir()
        spool = Spool(place / "spool")
        lying = []
        for number in CALLS:
            media = make_media([(call_id(number), 1, second) for second in range(3)], SPOKEN)
            frames = wire.encode_media(m.Batch("span", number), media)
            lying.append(spool.seal(number, frames, parts.keyring.ingest_public))
            parts.commit([(call_id(number), 1, 0)], [make_call(number, final=False, revision=0)])
            parts.commit([(call_id(number), 1, 1)], [make_call(number, revision=1)])
        parts.commit([], [make_call(number) for number in (*LONE, *LONE_KEPT)])
        spool.sync()
        self.spooled = lying[0].path.stat().st_size
        intake = parts.vaults.base.intake
        intake.put([], [make_media([(call_id(ERASED), 1, 0)], SPOKEN)], parts.keyring.ingest_public)
        self.waited = intake.size
        os.sync()
        self.snapshot = self.image.read_bytes()  # of everything, while the spool holds it, too
        for one in lying:
            spool.delete(one)
        path, *_ = intake.open_first(parts.keyring.ingest_key) or ()
        intake.remove(path)  # taken
        with parts.index.reading() as view:
            state = view.state(call_id(ERASED))
        assert state is not None
        self.dek = parts.keyring.dek(state.key_id)
        os.sync()  # what is to be destroyed has reached the medium
        wanted = m.Erase([call_id(number) for number in (ERASED, *LONE)], "asked for")
        eraser = Eraser(store, parts.index, parts.vaults, parts.writer.forget, time.time_ns)
        finish(eraser.erasing("operator/alice", wanted))
        os.sync()
        self.before_rows_went = self.image.read_bytes()
        if self._convert:
            finish(eraser.converter.converting())
        self.unlock = keyfile.load(place / "store/unlock.key")
        os.sync()
        self.before_rotation = self.image.read_bytes()
        self._retire(parts, store)
        parts.close()

    def _retire(self, parts: Parts, store: Store) -> None:
        """What storaged does by itself, once its capture has met the new key."""
        retirer = Retirer(
            parts.index, parts.vaults, parts.opener, store.refused, ["span"], 1 << 62,
            time.time_ns, time.monotonic_ns,
        )  # fmt: skip
        finish(retirer.retiring())
        said = {"sealed_to": [parts.keyring.ingest_key_id]}
        retirer.holding.hear("span", m.Health("capture span", "recording", said))
        finish(retirer.retiring())

    def examiner(self) -> Examiner:
        return Examiner(self.data, self.unlock)

    def with_snapshot(self, now: bytes) -> Examiner:
        """Who kept a copy of all but the root from before the erasure, and has what is now."""
        return Examiner(without_roots(self.snapshot) + now, self.unlock)

    def plain(self, number: int) -> list[bytes]:
        """What was said, dialled and called."""
        call = make_call(number)
        texts = [call.caller.encode(), call.call_ids[0].encode()]
        return [said(number, second) for second in range(3)] + texts


def without_roots(image: bytes) -> bytes:
    """An image in which no root file is left. Each has one block."""
    data, at = bytearray(image), image.find(ROOT_MAGIC)
    while at >= 0:
        data[at : at + BLOCK] = bytes(BLOCK)
        at = image.find(ROOT_MAGIC, at + 1)
    return bytes(data)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    return Evidence(tmp_path_factory.mktemp("forensic"))


def test_examiner_opens_what_was_not_erased(evidence):
    examiner = evidence.examiner()
    for number in CALLS:
        if number != ERASED:
            assert said(number, 1) in b"".join(examiner.objects(call_id(number)))
            assert any(
                make_call(number).caller.encode() in record
                for record in examiner.records(call_id(number))
            )


def test_nothing_of_the_erased_call_opens(evidence):
    examiner = evidence.examiner()
    assert examiner.objects(call_id(ERASED)) == []
    assert examiner.records(call_id(ERASED)) == []
    assert examiner.batches(evidence.spooled) == []


def test_nothing_of_it_opens_from_the_answer_on(evidence):
    """What follows, rows and other keys, destroys no more of it."""
    examiner = Examiner(evidence.before_rows_went, evidence.unlock)
    assert examiner.objects(call_id(ERASED)) == examiner.records(call_id(ERASED)) == []
    assert examiner.noted(call_id(LONE[0])) == []
    assert said(2, 1) in b"".join(examiner.objects(call_id(2)))


def test_lone_record_is_gone_from_the_ledger_too(evidence):
    examiner = evidence.examiner()
    assert any(examiner.noted(call_id(number)) for number in LONE_KEPT)
    for number in LONE:
        assert call_id(number) + record.MAGIC in evidence.data  # its ciphertext is as it was
        assert examiner.noted(call_id(number)) == examiner.records(call_id(number)) == []
    assert examiner.noted(call_id(ERASED)) == []


def test_snapshot_of_everything_but_the_root_opens_no_more_with_all_that_is_left(evidence):
    """Key pages, objects, index, ledger and spool from before; root and keys of today."""
    with pytest.raises(AssertionError, match="root"):
        Examiner(without_roots(evidence.snapshot), evidence.unlock)
    examiner = evidence.with_snapshot(evidence.data)
    assert examiner.objects(call_id(ERASED)) == []
    assert examiner.records(call_id(ERASED)) == []
    assert examiner.batches(evidence.spooled) == []
    assert found_by_its_number(examiner, ERASED) == []
    for number in CALLS:
        if number != ERASED:
            assert said(number, 1) in b"".join(examiner.objects(call_id(number)))


def test_control_with_its_root_the_snapshot_opens(evidence):
    examiner = Examiner(evidence.snapshot + evidence.data, evidence.unlock)
    assert said(ERASED, 1) in b"".join(examiner.objects(call_id(ERASED)))
    assert len(found_by_its_number(examiner, ERASED)) >= 3


def test_copy_of_a_spool_and_of_an_intake_opens_no_more(evidence):
    """Whoever copied a capture's disk, or the store's, and has all that is left."""
    examiner = evidence.with_snapshot(evidence.data)
    assert examiner.batches(evidence.spooled) == []
    assert examiner.batches(evidence.waited) == []


def test_control_copies_open_until_their_ingest_key_is_destroyed(evidence):
    examiner = evidence.with_snapshot(evidence.before_rotation)
    assert examiner.objects(call_id(ERASED)) == []
    for size in (evidence.spooled, evidence.waited):
        assert any(said(ERASED, 0) in batch for batch in examiner.batches(size))


def found_by_its_number(examiner: Examiner, number: int) -> list[tuple[bytes, bytes]]:
    """Search rows that somebody finds who has all keys, and the numbers and Call-ID of a call."""
    call = make_call(number)
    key = time_key(call.started_ns, call.id)
    return [row for row in examiner.search_rows(call) if row[1] == key]


def test_who_has_its_number_and_all_keys_finds_no_search_row(evidence):
    examiner = evidence.examiner()
    for number in (*CALLS, *LONE, *LONE_KEPT):
        found = {row for row, _ in found_by_its_number(examiner, number)}
        assert len(found) >= 3 or number in (ERASED, *LONE), number
    for number in (ERASED, *LONE):
        assert found_by_its_number(examiner, number) == []


def test_control_before_its_day_has_another_key_the_rows_are_found(evidence):
    examiner = Examiner(evidence.before_rows_went, evidence.unlock)
    for number in (ERASED, *LONE):
        assert len({row for row, _ in found_by_its_number(examiner, number)}) >= 3


def test_its_old_rows_lie_there_and_share_nothing_with_rows_that_still_open(evidence):
    """The callee is in every call: no neighbour's row gives away what an erased call's was."""
    before = Examiner(evidence.before_rows_went, evidence.unlock)
    old = {row for row, _ in found_by_its_number(before, ERASED)}
    # Whatever the index writes next, be it that ingest keys are gone, may come to lie over them.
    assert any(row in evidence.before_rotation for row in old)
    now = evidence.examiner()
    opened = {row for number in CALLS for row, _ in found_by_its_number(now, number)}
    assert not {row[LABEL] for row in old} & {row[LABEL] for row in opened}


def test_neither_its_key_nor_what_was_said_lies_anywhere(evidence):
    assert evidence.dek not in evidence.data
    examiner = evidence.examiner()
    assert evidence.dek not in examiner.secrets
    for text in evidence.plain(ERASED):
        assert text not in evidence.data


def test_control_without_the_destruction_the_call_is_heard(tmp_path, monkeypatch):
    def only_removed(folder: Path, names: list[str], spans: object = None) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    monkeypatch.setattr(files, "destroy", only_removed)
    monkeypatch.setattr("capture.delivery.spool.shred", Path.unlink)
    careless = Evidence(tmp_path, convert=False)
    examiner = careless.examiner()
    assert careless.dek in examiner.secrets
    assert said(ERASED, 1) in b"".join(examiner.objects(call_id(ERASED)))
    assert any(
        make_call(ERASED).caller.encode() in record for record in examiner.records(call_id(ERASED))
    )
    assert any(examiner.noted(call_id(number)) for number in LONE)
    assert any(said(ERASED, 2) in batch for batch in examiner.batches(careless.spooled))
