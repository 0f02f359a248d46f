"""What storaged has not acknowledged is kept: in memory, then sealed on disk."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from capture.aside import Aside
from capture.outbox import IN_FLIGHT_BYTES, LEAST_ROOM_BYTES, SEALING, SILENCE_NS, Outbox
from capture.spool import Spool
from spanvault import wire
from spanvault.chunk import CHUNK, FRAME, NO_MEDIA, Media
from spanvault.messages import Batch, Call, Sealed
from spanvault.slots import SLOT_BYTES, Slots
from spanvault.spool import open_batch

SECRET = X25519PrivateKey.generate()
PUBLIC = SECRET.public_key().public_bytes_raw()
MEGABYTE = 1 << 20


def media(chunks=1, payload_bytes=1000, fill=b"\x55"):
    table = np.zeros(chunks, CHUNK)
    table["frames"], table["payload_bytes"] = 1, payload_bytes
    frames = np.zeros(chunks, FRAME)
    frames["length"] = payload_bytes
    return Media(table, frames, memoryview(fill * payload_bytes * chunks))


def call(number, final=True):
    return Call(number.to_bytes(16), "port1", [f"call-{number}"], "1001", "1002", 0, final=final)


@pytest.fixture
def box(tmp_path):
    return outbox(tmp_path)


class Later(Aside):
    """Does nothing before it is waited for: a disk as slow as a test wants it."""

    def __init__(self):
        super().__init__()
        self._put_off = []

    def do(self, work, then=None):
        self._put_off.append((work, then))

    def wait(self):
        while self._put_off:
            super().do(*self._put_off.pop(0))
            super().wait()


def outbox(
    folder, memory=100 * MEGABYTE, disk=100 * MEGABYTE, first=1, slots=None, aside=None
):  # fmt: skip
    made = Outbox("port1", Spool(folder / "spool"), memory, disk, first, slots, aside)
    made.ingest_key = PUBLIC
    return made


def disk_done(box):
    """All that was handed to the disk is there, and noted."""
    box._aside.wait()


def tick(box, now_ns=0):
    box.tick(now_ns)
    disk_done(box)


def send_all(box, now_ns=0):
    """Send until nothing more may leave; what lies on disk is waited for."""
    sent = []
    while more := send_some(box, now_ns):
        sent += more
    return sent


def send_some(box, now_ns=0):
    sent = []
    for _ in range(3):  # what must be sealed, then read, leaves the third time
        for sequence, frames in box.to_send():
            box.sent(sequence, now_ns)
            sent.append((sequence, frames))
        disk_done(box)
    return sent


def spooled_files(folder):
    return [int(path.name.partition(".")[0]) for path in sorted((folder / "spool").iterdir())]


def test_a_batch_stays_until_it_is_acknowledged(box):
    box.add([], media())
    assert [sequence for sequence, _ in send_all(box)] == [1]
    assert box.waiting == 1
    assert send_all(box) == []  # in flight: not twice
    box.acknowledged([1], now_ns=5)
    assert box.waiting == 0
    assert box.memory_bytes == 0


def test_a_final_record_is_settled_by_its_acknowledgement_only(box):
    box.add([call(7)], media())
    media_batch, call_batch = send_all(box)
    assert box.acknowledged([media_batch[0]], 1) == []
    assert box.acknowledged([call_batch[0]], 2) == [call(7).id]


def test_the_last_record_leaves_behind_all_media(box):
    box.add([call(7)], media(chunks=4, payload_bytes=60_000))
    kinds = [len(wire.decode_to_ingest(frames)[0].calls) for _, frames in send_all(box)]
    assert kinds[-1] == 1
    assert not any(kinds[:-1])


def test_silence_sends_again_and_ever_more_rarely(box):
    box.add([], media())
    send_all(box, now_ns=0)
    box.tick(SILENCE_NS - 1)
    assert send_all(box) == []
    box.tick(SILENCE_NS + 1)
    assert [sequence for sequence, _ in send_all(box, SILENCE_NS + 1)] == [1]
    box.tick(2 * SILENCE_NS + 2)
    assert send_all(box) == []
    box.tick(3 * SILENCE_NS + 2)
    assert [sequence for sequence, _ in send_all(box)] == [1]


def test_a_restarted_storaged_gets_in_flight_batches_again_in_order(box):
    for _ in range(3):
        box.add([], media())
    send_all(box)
    box.acknowledged([2], 1)
    box.send_again()
    assert [sequence for sequence, _ in send_all(box)] == [1, 3]


@pytest.mark.parametrize(("memory", "bound"), [(1 << 30, IN_FLIGHT_BYTES), (20 << 20, 20 << 20)])
def test_the_flight_is_bounded_also_by_little_memory(tmp_path, memory, bound):
    box = outbox(tmp_path, memory=memory)
    while box.memory_bytes < bound + 10 * MEGABYTE:
        box.add([], media(chunks=100, payload_bytes=60_000))
    sent = sum(len(frame) for _, frames in send_all(box) for frame in frames)
    assert bound <= sent < bound + 3 * MEGABYTE


def test_full_memory_goes_to_disk_sealed_and_comes_back(tmp_path):
    box = outbox(tmp_path, memory=1)
    box.add([call(7)], media(fill=b"audio"[:1]))
    tick(box)
    assert (box.memory_bytes, box.spooled, box.waiting) == (0, 2, 2)
    for file in (tmp_path / "spool").iterdir():
        assert b"1001" not in file.read_bytes()
    first, second = send_all(box)
    message, (sealed,) = wire.decode_to_ingest(first[1])
    assert isinstance(message, Sealed)
    opened, bulk = wire.decode_to_ingest(open_batch(sealed, SECRET.private_bytes_raw()))
    assert isinstance(opened, Batch)
    assert bytes(wire.decode_media(bulk).payload) == b"a" * 1000
    box.acknowledged([first[0], second[0]], 1)
    disk_done(box)
    assert spooled_files(tmp_path) == []


def test_what_is_put_away_is_there_for_the_next_life(tmp_path):
    box = outbox(tmp_path)
    box.add([call(7)], media())
    assert box.put_away() == (2, 0)
    later = outbox(tmp_path, first=1)
    later.add([], media())
    assert [sequence for sequence, _ in send_all(later)] == [1, 2, 3]  # never reused


def test_a_full_spool_gives_up_the_oldest_and_counts_it(tmp_path):
    box = outbox(tmp_path, memory=1500, disk=1500)
    for _ in range(4):
        box.add([], media())
        tick(box)
    assert box.lost_batches == 2
    assert box.spooled == 1
    assert [sequence for sequence, _ in send_all(box)] == [2, 4]  # 1 and 3 were oldest in memory


def test_nothing_is_written_without_a_key_to_seal_it(tmp_path):
    box = outbox(tmp_path, memory=1)
    box.ingest_key = None
    box.add([], media())
    tick(box)
    assert box.lost_batches == 1
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_batch_is_about_a_megabyte(box):
    box.add([], media(chunks=500, payload_bytes=8000))
    sizes = [sum(len(frame) for frame in frames) for _, frames in send_all(box)]
    assert len(sizes) == 4
    assert all(size < 1.2 * MEGABYTE for size in sizes)
    total = sum(len(wire.decode_media(bulk).table) for bulk in _bulks(box))
    assert total == 500


def _bulks(box):
    box.send_again()
    return [wire.decode_to_ingest(frames)[1] for _, frames in send_all(box)]


def test_a_torn_spool_file_is_not_taken_for_a_batch(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "00000000000000000005.aa.part").write_bytes(b"torn")
    assert outbox(tmp_path).waiting == 0


def test_a_spool_file_whose_removal_a_kill_cut_off_is_not_sent_again(tmp_path):
    """storaged has it: it would refuse what does not open any more."""
    (tmp_path / "spool").mkdir()
    left = tmp_path / "spool" / f"{7:020d}.0123456789abcdef.sealed"
    left.write_bytes(bytes(32) + b"rest of a sealed batch")
    assert not Spool(tmp_path / "spool").sequences()
    assert not left.exists()


def test_nothing_heard_is_no_batch(box):
    box.add([], NO_MEDIA)
    assert box.waiting == 0


# --- beside the loop ------------------------------------------------------------------------------


def test_the_newest_go_to_disk_and_the_oldest_leave_from_memory(tmp_path):
    box = outbox(tmp_path, memory=2500)
    for _ in range(4):
        box.add([], media())
    tick(box)
    assert spooled_files(tmp_path) == [3, 4]
    kinds = [type(wire.decode_to_ingest(frames)[0]) for _, frames in send_all(box)]
    assert kinds == [Batch, Batch, Sealed, Sealed]


def test_what_is_in_flight_goes_to_disk_only_when_storaged_is_silent(tmp_path):
    box = outbox(tmp_path, memory=1)
    box.add([], media())
    send_all(box, now_ns=0)
    tick(box, SILENCE_NS - 1)
    assert box.spooled == 0
    tick(box, SILENCE_NS + 1)
    assert spooled_files(tmp_path) == [1]


def test_what_is_on_its_way_to_disk_is_not_overtaken(tmp_path):
    box = outbox(tmp_path, memory=1, aside=Later())
    box.add([call(1)], media())
    box.tick(0)
    box.add([call(2)], NO_MEDIA)  # 1 and 2 are being sealed
    assert [sequence for sequence, _ in box.to_send()] == []
    assert box.waiting == 3
    assert [sequence for sequence, _ in send_all(box)] == [1, 2, 3]


@pytest.mark.parametrize("settle", ["acknowledged", "refused"])
def test_what_is_settled_while_it_is_sealed_is_gone_from_everywhere(tmp_path, slots, settle):
    box = outbox(tmp_path, memory=1, slots=slots, aside=Later())
    box.handed_over = True
    box.add([], media())
    send_all(box)
    box.tick(SILENCE_NS + 1)
    assert box.waiting == 1
    if settle == "refused":
        box.refused(1, SILENCE_NS + 2)
    else:
        box.acknowledged([1], SILENCE_NS + 2)
    assert box.waiting == 0
    box.send_again()
    assert list(box.to_send()) == []
    disk_done(box)
    assert (spooled_files(tmp_path), box.spooled, box.waiting, box.memory_bytes) == ([], 0, 0, 0)
    assert box.lost_batches == 0
    assert slots.put([b"", b"", b"next"]).offset == 0


def test_a_call_whose_last_record_is_acknowledged_while_it_is_sealed_is_settled_at_once(tmp_path):
    box = outbox(tmp_path, memory=1, aside=Later())
    box.add([call(7)], NO_MEDIA)
    send_all(box)
    box.tick(SILENCE_NS + 1)
    assert box.acknowledged([1], SILENCE_NS + 2) == [call(7).id]


def test_a_disk_that_fails_costs_the_oldest_and_no_more_than_must_go(tmp_path):
    box = outbox(tmp_path, memory=2500)
    (tmp_path / "spool").rmdir()
    for _ in range(4):
        box.add([], media())
        tick(box)
    assert box.lost_batches == 2
    assert [sequence for sequence, _ in send_all(box)] == [3, 4]


def test_a_disk_that_fails_loses_nothing_that_was_acknowledged_meanwhile(tmp_path):
    box = outbox(tmp_path, memory=1, aside=Later())
    box.add([], media())
    send_all(box)
    box.tick(SILENCE_NS + 1)
    (tmp_path / "spool").rmdir()
    box.acknowledged([1], SILENCE_NS + 2)
    disk_done(box)
    assert (box.lost_batches, box.waiting, box.memory_bytes) == (0, 0, 0)


def test_a_disk_that_fails_costs_nothing_once_storaged_has_caught_up(tmp_path):
    box = outbox(tmp_path, memory=2500, aside=Later())
    for _ in range(4):
        box.add([], media())
    box.tick(0)
    (tmp_path / "spool").rmdir()
    for sequence, _ in box.to_send():
        box.sent(sequence, 0)
    box.acknowledged([1, 2], 1)
    disk_done(box)
    assert (box.lost_batches, [sequence for sequence, _ in send_all(box)]) == (0, [3, 4])


def test_a_disk_that_hangs_costs_memory_within_a_bound_and_then_the_oldest(tmp_path):
    box = outbox(tmp_path, memory=1, aside=Later())
    while not box.lost_batches:
        box.add([], media(chunks=16, payload_bytes=60_000))
        box.tick(0)
    assert LEAST_ROOM_BYTES - MEGABYTE < box.memory_bytes <= LEAST_ROOM_BYTES + 1
    box.add([], media(chunks=16, payload_bytes=60_000))
    box.tick(0)
    assert box.lost_batches == 2
    while sent := send_all(box):
        box.acknowledged([sequence for sequence, _ in sent], 1)
    disk_done(box)
    assert (box.memory_bytes, box.waiting, spooled_files(tmp_path)) == (0, 0, [])


def test_so_many_batches_at_once_are_sealed_and_no_more(tmp_path):
    box = outbox(tmp_path, memory=1, aside=Later())
    for _ in range(2 * SEALING):
        box.add([], media())
    box.tick(0)
    assert len(box._sealing) == SEALING
    assert (box.waiting, box.lost_batches) == (2 * SEALING, 0)


def test_a_spooled_batch_that_cannot_be_read_is_counted_and_holds_up_no_other(tmp_path):
    box = outbox(tmp_path, memory=1)
    for _ in range(3):
        box.add([], media())
    tick(box)
    next((tmp_path / "spool").glob("*2.*.sealed")).unlink()
    assert [sequence for sequence, _ in send_all(box)] == [1, 3]
    assert (box.lost_batches, box.waiting) == (1, 2)


def test_put_away_waits_for_what_is_being_sealed(tmp_path):
    box = outbox(tmp_path, memory=1, aside=Later())
    box.add([], media())
    box.tick(0)
    box.add([call(7)], media())
    send_all(box)
    assert box.put_away() == (3, 0)
    assert spooled_files(tmp_path) == [1, 2, 3]


def test_what_cannot_be_put_away_is_lost_and_counted(tmp_path):
    box = outbox(tmp_path, disk=1500)
    for _ in range(3):
        box.add([], media())
    assert box.put_away() == (1, 2)
    assert (box.lost_batches, box.waiting) == (2, 1)


# --- media by memory ------------------------------------------------------------------------------


@pytest.fixture
def slots():
    made = Slots(3 * SLOT_BYTES)
    yield made
    made.close()


@pytest.fixture
def near(tmp_path, slots):
    """The outbox of a capture on storaged's host, which has been handed the slots."""
    made = outbox(tmp_path, slots=slots)
    made.handed_over = True
    return made


def told(frames):
    """What a batch says that came without its media."""
    batch, bulk = wire.decode_to_ingest(frames)
    assert bulk == []
    return batch.slot


def sent_media(frames):
    batch, bulk = wire.decode_to_ingest(frames)
    assert batch.slot is None
    return bytes(wire.decode_media(bulk).payload)


def test_media_lies_in_a_slot_until_it_is_acknowledged(near, slots):
    near.add([], media(fill=b"\x77"))
    ((sequence, frames),) = send_all(near)
    slot = told(frames)
    assert slots.get(slot)[2] == b"\x77" * 1000
    near.acknowledged([sequence], 1)
    assert slots.put([b"", b"", b"next"]).offset == slot.offset


def test_call_records_never_lie_in_a_slot(near):
    near.add([call(1)], NO_MEDIA)
    ((_, frames),) = send_all(near)
    batch, bulk = wire.decode_to_ingest(frames)
    assert (batch.slot, len(bulk), len(batch.calls)) == (None, 3, 1)


def test_before_storaged_has_the_memory_media_goes_as_frames(near):
    near.handed_over = False
    near.add([], media(fill=b"\x77"))
    ((_, frames),) = send_all(near)
    assert sent_media(frames) == b"\x77" * 1000


def test_a_slot_is_told_once_and_then_its_media_goes_as_frames(near):
    """A slot told twice might be read a second time when it holds another batch."""
    near.add([], media(fill=b"\x77"))
    assert told(send_all(near)[0][1])
    near.send_again()
    assert sent_media(send_all(near)[0][1]) == b"\x77" * 1000


def test_silence_ends_the_use_of_slots_until_something_is_acknowledged(near):
    near.add([], media())
    send_all(near)
    near.tick(SILENCE_NS + 1)
    assert not near.handed_over
    assert near.in_doubt
    ((sequence, frames),) = send_all(near, SILENCE_NS + 1)
    assert sent_media(frames)
    near.acknowledged([sequence], SILENCE_NS + 2)
    assert not near.in_doubt


def test_where_no_slot_is_free_media_goes_as_frames(near):
    for _ in range(4):
        near.add([], media(payload_bytes=60_000))
    kinds = [wire.decode_to_ingest(frames)[0].slot is None for _, frames in send_all(near)]
    assert kinds == [False, False, False, True]
    assert near.memory_bytes == sum(held.size for held in near._memory.values())


def test_a_slot_is_spooled_as_the_batch_it_holds(near, tmp_path, slots):
    near.add([], media(fill=b"\x77"))
    send_all(near)
    assert near.put_away() == (1, 0)
    ((_, frames),) = send_all(again := outbox(tmp_path))
    assert again.spooled == 1
    sealed, bulk = wire.decode_to_ingest(frames)
    assert isinstance(sealed, Sealed)
    assert sent_media(open_batch(bulk[0], SECRET.private_bytes_raw())) == b"\x77" * 1000
    near.storaged_gone()
    assert {slots.put([b"", b"", b"x"]).offset for _ in range(3)} == {
        0, SLOT_BYTES, 2 * SLOT_BYTES,
    }  # fmt: skip


def test_a_full_batch_fits_into_a_slot_with_its_table(near):
    near.add([], media(chunks=20_000, payload_bytes=20))
    sent = send_all(near)
    assert len(sent) > 1
    assert all(told(frames) for _, frames in sent[:3])


def test_the_slot_of_a_batch_on_disk_stays_until_storaged_cannot_read_it_any_more(tmp_path, slots):
    """storaged may have hung with the message unread: it must not find another batch there."""
    box = outbox(tmp_path, memory=1, slots=slots)
    box.handed_over = True
    for fill in (b"\x11", b"\x22"):
        box.add([], media(fill=fill))
    told_slots = [told(frames) for _, frames in send_all(box)]
    tick(box, SILENCE_NS + 1)
    assert (box.spooled, box.memory_bytes) == (2, 0)
    free = slots.put([b"", b"", b"another"])
    assert free.offset not in [slot.offset for slot in told_slots]
    assert [slots.get(slot)[2][:1] for slot in told_slots] == [b"\x11", b"\x22"]
    box.acknowledged([1], SILENCE_NS + 2)
    assert slots.put([b"", b"", b"x"]).offset == told_slots[0].offset
    assert slots.put([b"", b"", b"x"]) is None
    box.storaged_gone()
    assert slots.put([b"", b"", b"x"]).offset == told_slots[1].offset
