"""Outbox, spool and link together: in which order things leave, and what is said of it."""

import logging
import time

import numpy as np
import pytest

from capture.delivery import courier as module
from capture.delivery.courier import Courier
from capture.recorder import Heard
from spanvault.media.chunk import CHUNK, FRAME, Media
from spanvault.messages import Call, Health
from tests.support.capturing import Life
from tests.support.routers import Answering

CALL = Call(bytes(16), "port1", ["call-1"], "1001", "1002", 0, final=True)


def media() -> Media:
    table, frames = np.zeros(1, CHUNK), np.zeros(1, FRAME)
    table["frames"], table["payload_bytes"], frames["length"] = 1, 160, 160
    return Media(table, frames, memoryview(bytes(160)))


@pytest.fixture
def courier(router):
    made = Courier(router.settings, Life(), logging.getLogger("capture"))
    yield made
    made.outbox.aside.wait()
    made.close()


def wait_for(courier, done) -> None:
    deadline = time.monotonic() + 5
    while not done():
        assert time.monotonic() < deadline
        courier.pump(20)


def test_a_last_record_leaves_behind_the_media_heard_with_it(router, courier):
    courier.put(Heard([CALL], [media(), media()]))
    courier.pump()
    router.receive()
    router.welcome()
    wait_for(courier, lambda: courier.link.connected)
    courier.pump()
    batches = router.receive_batches(3)
    assert [len(batch.calls) for batch in batches] == [0, 0, 1]
    assert [batch.sequence for batch in batches] == sorted(batch.sequence for batch in batches)


def test_draining_gives_the_calls_that_are_safe(router, courier):
    courier.put(Heard([CALL], [media()]))
    with Answering(router, "acknowledge"):
        assert courier.drain(5) == [CALL.id]
    assert courier.outbox.waiting == 0


def test_draining_is_patient_until_a_stop_is_asked_for(router, courier, monkeypatch):
    monkeypatch.setattr(module, "STOP_S", 0.2)
    courier._life.stop_requested = True
    courier.put(Heard([CALL]))
    started = time.monotonic()
    with Answering(router, ""):
        assert courier.drain(60) == []
    assert 0.2 <= time.monotonic() - started < 5


def test_what_could_not_be_kept_is_told_to_systemd_the_journal_and_storaged(
    router, courier, caplog
):
    courier.put(Heard([CALL]))
    courier.put_away()  # no key to seal with is known yet
    courier.tell("recording", {"calls": 1}, now=True)
    assert courier._life.said == ["recording; 1 batches LOST: start storaged, enlarge spool_mb"]
    health = router.receive()
    assert isinstance(health, Health)
    assert (health.fields["lost_batches"], health.fields["calls"]) == (1, 1)
    assert [one.BATCHES for one in caplog.records] == [1]


def test_it_tells_every_two_seconds_unless_it_must(courier):
    for now in (False, False, True):
        courier.tell(f"line {now}", {}, now=now)
    assert [line.partition(";")[0] for line in courier._life.said] == ["line False", "line True"]


def test_without_memory_to_share_media_goes_by_the_socket(router, monkeypatch):
    def none(*_: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("os.memfd_create", none)
        courier = Courier(router.settings, Life(), logging.getLogger("capture"))
    courier.put(Heard([], [media()]))
    with Answering(router, "acknowledge"):
        courier.drain(5)
    assert courier.outbox.waiting == 0
    courier.outbox.aside.wait()
    courier.close()
