"""What storaged has not acknowledged is kept: in memory, then sealed on disk."""

import pytest

from capture.delivery.outbox import IN_FLIGHT_BYTES, LEAST_ROOM_BYTES, SEALING, SILENCE_NS
from capture.delivery.spool import Spool
from spanvault import wire
from spanvault.media.chunk import NO_MEDIA
from spanvault.messages import Batch, Sealed
from spanvault.spool import key_id, open_batch
from tests.support.outboxes import (
    MEGABYTE,
    PUBLIC,
    SECRET,
    Later,
    call,
    disk_done,
    media,
    outbox,
    send_all,
    tick,
)


@pytest.fixture
def box(tmp_path):
    return outbox(tmp_path)


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


def test_what_was_left_unanswered_while_others_were_acknowledged_leaves_again(box):
    """A connection that broke lost it; where others go on coming there is never silence."""
    for _ in range(5):
        box.add([], media())
    send_all(box)
    box.acknowledged([2, 4], 1)
    assert [sequence for sequence, _ in send_all(box)] == [1, 3]
    box.acknowledged([5], 2)
    assert send_all(box) == []  # they left behind it
    box.acknowledged([3], 3)
    assert [sequence for sequence, _ in send_all(box)] == [1]
    box.acknowledged([1], 4)
    assert (box.waiting, box.memory_bytes, box._in_flight_bytes) == (0, 0, 0)


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
    box = outbox(tmp_path, memory=2500, aside=Later())  # else its probe may mend it meanwhile
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


def test_it_tells_every_ingest_key_that_something_unacknowledged_is_sealed_to(tmp_path):
    box = outbox(tmp_path, memory=1, aside=Later())
    old, new = key_id(PUBLIC), key_id(bytes(range(32)))
    box.add([], media())
    box.tick(0)  # on its way to disk, under the old key
    box.ingest_key = bytes(range(32))
    assert box.sealed_to == {old, new}
    disk_done(box)
    assert box.sealed_to == {old, new}
    assert outbox(tmp_path).sealed_to == {old}  # found by the next life
    for sequence, _ in send_all(box):
        assert box.sealed_to == {old, new}  # sent is not yet acknowledged
        box.acknowledged([sequence], 0)
    assert box.sealed_to == {new}


def test_a_file_that_this_life_cannot_read_still_counts_as_sealed_to_its_key(tmp_path):
    box = outbox(tmp_path, memory=1)
    box.add([], media())
    tick(box)
    box.ingest_key = None
    next((tmp_path / "spool").glob("*.sealed")).unlink()
    assert send_all(box) == []
    assert (box.waiting, box.sealed_to) == (0, {key_id(PUBLIC)})


def test_of_a_folder_that_cannot_be_looked_through_nobody_can_tell(tmp_path):
    (tmp_path / "spool").write_text("no folder")
    assert outbox(tmp_path).sealed_to is None


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
