"""Media of the outbox by memory that storaged shares: a slot is told once, and never used twice."""

import pytest

from capture.delivery.outbox import SILENCE_NS
from spanvault import wire
from spanvault.media.chunk import NO_MEDIA
from spanvault.messages import Sealed
from spanvault.slots import SLOT_BYTES
from spanvault.spool import open_batch
from tests.support.outboxes import SECRET, call, media, outbox, send_all, tick


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
