"""The disk of a capture's spool is full, read-only or failing: told where and why, and outlived.

Real filesystems (tests/support/smalldisk.py, tests/support/fusedisk.py), a real outbox and courier;
storaged is silent, so that all that is heard has to wait.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capture.delivery import outbox as module
from capture.delivery.courier import Courier
from capture.delivery.spool import Spool
from capture.recorder import Heard
from spanvault.media.chunk import CHUNK, FRAME, Media
from tests.support.capturing import Life
from tests.support.fusedisk import WORKS, WRITES_FAIL, Disk
from tests.support.outboxes import PUBLIC
from tests.support.smalldisk import close_to_writes, empty, fill, open_to_writes, small_disks

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]
FULL = fill, empty, "No space left on device. Free space there, or enlarge it"
READ_ONLY = close_to_writes, open_to_writes, "Read-only file system. It is read-only: look at dmesg"
BOUND_MB = 4  # what is kept in memory


def megabyte() -> Heard:
    """Media that is just one batch."""
    table, frames = np.zeros(1, CHUNK), np.zeros(1, FRAME)
    table["frames"], table["payload_bytes"], frames["length"] = 1, 60_000, 60_000
    table, frames = np.repeat(table, 16), np.repeat(frames, 16)
    return Heard([], [Media(table, frames, memoryview(bytes(16 * 60_000)))])


@pytest.fixture
def begun(router, tmp_path, monkeypatch) -> Iterator[Callable[[], Courier]]:
    """Starts captures whose state lies under tmp_path/disk."""
    monkeypatch.setattr(module, "PROBE_NS", 0)
    state = tmp_path / "disk/state"
    settings = type(router.settings)(
        **{name: getattr(router.settings, name) for name in router.settings.__struct_fields__}
        | {"state_dir": state, "outbox_mb": BOUND_MB, "spool_mb": 100}
    )  # fmt: skip
    with contextlib.ExitStack() as stack:

        def begin() -> Courier:
            made = Courier(settings, Life(), logging.getLogger("capture"))
            made.outbox.ingest_key = PUBLIC
            stack.callback(made.close)
            return made

        yield begin


def hear(courier: Courier, batches: int) -> None:
    for _ in range(batches):
        courier.put(megabyte())
        look(courier)


def look(courier: Courier) -> None:
    """As the loop does, with the disk's answer waited for."""
    for _ in range(2):
        courier.pump()
        courier.outbox.aside.wait()


def line(courier: Courier) -> Any:
    courier.tell("recording", {}, now=True)
    return courier._life.said[-1]  # type: ignore[attr-defined]


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    with small_disks({tmp_path / "disk": 16}):
        yield tmp_path / "disk"


@pytest.mark.parametrize(("breaks", "mends", "words"), [FULL, READ_ONLY], ids=["full", "read-only"])
def test_disk_takes_nothing_and_recording_goes_on_in_memory(
    begun, disk, caplog, breaks, mends, words
):
    caplog.set_level(logging.INFO)
    courier = begun()
    hear(courier, BOUND_MB + 2)
    before = courier.outbox.spooled
    breaks(disk)
    assert (before, courier.outbox.lost_batches) == (2, 0)
    hear(courier, 3)
    told = line(courier)
    assert "3 batches LOST: the spool cannot be written: " in told
    assert f": {disk}/state/spool (disk {disk}): {words}" in told
    assert [one.FAULT for one in caplog.records if "disk fails" in one.message] == [
        told.partition("LOST: ")[2]
    ]
    assert courier.outbox.waiting == BOUND_MB + 2  # what is newest, and what lay on disk
    mends(disk)
    look(courier)
    assert "cannot be written" not in line(courier)
    assert "the spool's disk is mended" in caplog.messages
    hear(courier, 2)
    assert (courier.outbox.spooled, courier.outbox.lost_batches) == (4, 3)


@pytest.mark.parametrize(("breaks", "mends", "words"), [FULL, READ_ONLY], ids=["full", "read-only"])
def test_capture_that_starts_on_such_a_disk_records(begun, disk, breaks, mends, words):
    """Its folder is not even there. A loss comes when memory is full, and not before."""
    breaks(disk)
    courier = begun()
    hear(courier, BOUND_MB)
    assert courier.outbox.lost_batches == 0
    hear(courier, 1)
    assert courier.outbox.lost_batches == 1
    if breaks is close_to_writes:  # a folder is made on a full tmpfs
        assert words in line(courier)
    mends(disk)
    look(courier)
    hear(courier, 1)
    assert (courier.outbox.spooled, courier.outbox.lost_batches) == (1, 1)


def test_batch_that_storaged_has_is_removed_once_the_disk_lets_it(begun, disk):
    """It may be erased there: what opens with the ingest key must not stay until the next start."""
    courier = begun()
    hear(courier, BOUND_MB + 1)
    (sequence,) = courier.outbox._on_disk
    close_to_writes(disk)
    courier.outbox.acknowledged([sequence], 1)
    look(courier)
    assert "cannot be written" in line(courier)
    assert len(list(disk.rglob("*.sealed"))) == 1
    open_to_writes(disk)
    look(courier)
    assert list(disk.rglob("*.sealed")) == []


def test_what_lies_on_a_read_only_disk_is_sent_by_the_next_start(begun, disk):
    courier = begun()
    hear(courier, BOUND_MB + 2)
    close_to_writes(disk)
    again = begun()
    assert again.outbox.spooled == 2
    assert [len(again._spool.read(again._spool.file(one))[1]) > 960_000
            for one in again._spool.sequences()] == [True, True]  # fmt: skip


def test_disk_that_takes_nothing_at_the_end_costs_no_orderly_end(begun, disk, caplog):
    courier = begun()
    hear(courier, BOUND_MB + 1)
    close_to_writes(disk)
    courier.put_away()
    assert courier.outbox.waiting == 1
    assert f"{disk}/state/spool (disk {disk}): Read-only" in line(courier)
    lost = [one.BATCHES for one in caplog.records if "could not be put" in one.message]
    assert lost == [BOUND_MB]


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")
@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices")
def test_disk_whose_writes_fail(begun, tmp_path):
    mounted = tmp_path / "disk"
    with Disk(tmp_path / "served", 32, mounted) as disk:
        courier = begun()
        hear(courier, BOUND_MB + 1)
        disk.mood(WRITES_FAIL)
        with contextlib.suppress(OSError):
            os.fsync(folder := os.open(mounted / "state/spool", os.O_RDONLY))
        os.close(folder)
        hear(courier, 2)
        told = line(courier)
        assert f"{mounted}/state/spool (disk {mounted}): " in told
        assert "Input/output error. It fails" in told or "It is read-only" in told
        disk.unmount()
        disk.mood(WORKS)
        disk.mount()
        look(courier)
        assert "cannot be written" not in line(courier)
        assert Spool(mounted / "state/spool").fault == ""


def test_capture_that_meets_storaged_on_a_read_only_disk_goes_on(begun, router, disk, caplog):
    """Its ingest key cannot be written down."""
    close_to_writes(disk)
    courier = begun()
    courier.pump()
    router.receive()
    router.welcome()
    courier.put(megabyte())
    while not courier.link.connected:
        courier.pump(100)
    courier.pump()
    assert len(router.receive_batches(1)) == 1
    courier.outbox.aside.wait()
    (fault,) = [one.FAULT for one in caplog.records if "ingest key" in one.message]
    assert fault.startswith(f"{disk}/state (disk {disk}): Read-only file system. It is read-only")
