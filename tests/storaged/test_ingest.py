"""Batches whose media comes by memory, at the daemon's ingest socket."""

import signal

import pytest

from spanvault import messages as m
from spanvault import wire
from spanvault.slots import SLOT_BYTES, Slots
from storaged.index import ingestkeys
from storaged.index.environment import Index
from tests.support.vault import Client, call_id, chunk_keys, make_call, make_media

ONE = call_id(1)


@pytest.fixture
def slots():
    made = Slots(4 * SLOT_BYTES)
    yield made
    made.close()


@pytest.fixture
def capture(rig, slots):
    """A capture on storaged's host, which has handed over its slots."""
    rig.start()
    client = rig.capture()
    client.send(m.Hello("test"))
    welcome, _ = client.receive(wire.decode_from_ingest)
    assert slots.hand_over(rig.ingest, welcome.user)
    return client


def batch(slots, sequence, media, **fields):
    """A batch that names a slot, with nothing behind it."""
    slot = slots.put(wire.encode_media(m.Hello("test"), media)[2:])
    return m.Batch("test", sequence, **{"slot": slot, **fields})


def stored(rig) -> list[tuple[bytes, int, int, bytes]]:
    _, bulk = rig.client("operator").ask(m.Fetch(ONE))
    return chunk_keys(wire.decode_media(bulk))


def answer(client: Client, timeout_s: float = 10):
    received = client.receive(wire.decode_from_ingest, timeout_s)
    return received and received[0]


def test_media_in_a_slot_is_recorded_as_media_behind_a_batch_is(rig, capture, slots):
    capture.send(m.Batch("test", 1, [make_call(1)]), make_media([(ONE, 0, 0)]))
    capture.send(batch(slots, 2, make_media([(ONE, 0, 1), (ONE, 1, 1)])))
    safe: set[int] = set()
    while safe != {1, 2}:
        safe |= set(answer(capture).sequences)
    sent = make_media([(ONE, 0, 0), (ONE, 0, 1), (ONE, 1, 1)])
    assert sorted(stored(rig)) == sorted(chunk_keys(sent))


def test_the_same_batch_again_with_its_media_behind_it_is_stored_once(rig, capture, slots):
    media = make_media([(ONE, 0, 0)])
    capture.send(batch(slots, 1, media, calls=[make_call(1)]))
    capture.send(m.Batch("test", 1, [make_call(1)]), media)
    assert answer(capture) is not None
    assert stored(rig) == chunk_keys(media)


def test_a_slot_of_an_unknown_memory_is_not_answered_and_harms_nothing(rig, capture, slots):
    elsewhere = Slots(SLOT_BYTES)
    media = make_media([(ONE, 0, 0)])
    capture.send(batch(elsewhere, 1, media))
    assert answer(capture, 0.6) is None
    capture.send(m.Batch("test", 1, [make_call(1)]), media)
    assert answer(capture) == m.Acknowledge([1])
    assert stored(rig) == chunk_keys(media)
    elsewhere.close()


def test_what_can_never_be_stored_is_refused_from_a_slot_too(capture, slots):
    media = make_media([(ONE, 0, 0)])
    wrong = media.table.copy()
    wrong["frames"] = 7
    capture.send(batch(slots, 1, media._replace(table=wrong)))
    refused = answer(capture)
    assert isinstance(refused, m.Refuse)
    assert "7 frames" in refused.error


def test_who_is_told_a_key_is_known_before_anything_comes_of_it(rig, capture):
    """An erasure waits for whoever may hold something that was sealed to it."""
    rig.stop(signal.SIGKILL)
    index = Index(rig.store / "index")
    with index.reading() as view:
        assert ingestkeys.captures(view) == {"capture"}
    index.close()
