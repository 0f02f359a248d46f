"""The capture's end of the ingest socket, told by a ROUTER what storaged would say."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from capture.delivery.link import HELLO_NS, Link
from capture.delivery.outbox import SILENCE_NS, Outbox
from capture.delivery.spool import Spool
from spanvault.daemon import durable
from spanvault.media.chunk import CHUNK, FRAME, NO_MEDIA, Media
from spanvault.messages import Batch, Call, Health, Hello, Slot
from spanvault.slots import Memories, Slots
from spanvault.spool import key_id
from tests.support.routers import Router

NOW = HELLO_NS  # the first pump greets
KEY = b"k" * 32


class End:
    """A link, its outbox, and the ROUTER at the other end."""

    def __init__(self, folder: Path, slots: Slots | None = None) -> None:
        self.router = Router(folder, KEY)
        self.settings = self.router.settings
        self.outbox = Outbox("port1", Spool(folder / "state/spool"), 1 << 30, 1 << 30, 1, slots)
        self.link = Link(self.settings, self.outbox, logging.getLogger("test"), slots)

    def hear(self, number: int) -> Call:
        call = Call(number.to_bytes(16), "port1", [f"call-{number}"], "1001", "1002", 0, final=True)
        self.outbox.add([call], NO_MEDIA)
        return call

    def close(self) -> None:
        self.outbox.aside.wait()
        self.link.close()
        self.router.close()

    def greet(self, instance: str = "first", user: int = -1) -> None:
        self.link.pump(NOW)
        assert isinstance(self.router.receive(), Hello)
        self.router.welcome(instance, user)
        self.pump_until(lambda: self.link.connected)

    def pump_until(self, done) -> list[bytes]:
        settled: list[bytes] = []
        deadline = time.monotonic() + 5
        while not done():
            assert time.monotonic() < deadline
            settled += self.link.pump(NOW + 1, 20)
        return settled


@pytest.fixture
def end(folder):
    made = End(folder)
    yield made
    made.close()


def test_nothing_leaves_before_storaged_has_answered(end):
    end.hear(1)
    end.link.pump(NOW)
    assert end.router.receive() == Hello("port1")
    assert end.router.receive(100) is None
    assert not end.link.connected


def test_a_welcome_lets_batches_out_and_an_acknowledgement_settles_their_calls(end):
    call = end.hear(1)
    end.greet()
    end.link.pump(NOW + 1)
    (batch,) = end.router.receive_batches(1)
    assert batch == Batch("port1", 1, [call])
    end.router.acknowledge(1)
    assert end.pump_until(lambda: not end.outbox.waiting) == [call.id]


def test_it_greets_every_two_seconds_and_no_oftener(end):
    for now_ns in (NOW, NOW + 1, NOW + HELLO_NS - 1, NOW + HELLO_NS):
        end.link.pump(now_ns)
    assert [end.router.receive(200) for _ in range(3)] == [Hello("port1"), Hello("port1"), None]


def test_a_storaged_that_restarted_gets_what_was_in_flight_again(end):
    end.hear(1)
    end.hear(2)
    end.greet()
    end.link.pump(NOW + 1)
    assert [batch.sequence for batch in end.router.receive_batches(2)] == [1, 2]
    end.router.acknowledge(1)
    end.pump_until(lambda: end.outbox.waiting == 1)
    end.router.welcome("first")  # the same one: nothing is sent twice
    end.link.pump(NOW + 1, 200)
    end.link.pump(NOW + 1)
    assert end.router.receive(100) is None
    end.router.welcome("second")
    end.link.pump(NOW + 1, 1000)
    end.link.pump(NOW + 1)
    assert [batch.sequence for batch in end.router.receive_batches(1)] == [2]


def test_a_refused_batch_is_let_go_counted_and_its_call_not_settled(end, caplog):
    end.hear(1)
    end.greet()
    end.link.pump(NOW + 1)
    end.router.receive_batches(1)
    end.router.refuse(1)
    assert end.pump_until(lambda: not end.outbox.waiting) == []
    assert end.outbox.refused_batches == 1
    (record,) = [one for one in caplog.records if one.message == "storaged refused a batch"]
    assert (record.BATCH, record.FAULT, record.HINT) == (1, "it is nonsense", "Report it.")


def test_the_ingest_key_is_kept_for_a_start_without_storaged(end):
    assert end.outbox.ingest_key is None
    end.greet()
    assert end.outbox.ingest_key == KEY
    end.outbox.aside.wait()
    alone = Outbox("port1", Spool(end.settings.state_dir / "spool"), 1, 1, 1)
    Link(end.settings, alone, logging.getLogger("test")).close()
    assert alone.ingest_key == KEY


def test_an_older_key_is_told_of_until_the_newer_one_lies_on_disk(end):
    """A start without storaged seals to what lies there: storaged must not destroy that before."""
    assert end.link.sealed_to == []
    end.greet()
    end.outbox.aside.wait()
    assert end.link.sealed_to == [key_id(KEY)]
    end.router.welcome("first", key=b"n" * 32)
    end.pump_until(lambda: end.outbox.ingest_key == b"n" * 32)
    assert end.link.sealed_to == sorted([key_id(KEY), key_id(b"n" * 32)])
    end.outbox.aside.wait()
    assert end.link.sealed_to == [key_id(b"n" * 32)]


def test_a_key_that_the_disk_did_not_take_is_kept_with_a_later_welcome(end, caplog):
    state = end.settings.state_dir
    state.rename(state.with_name("away"))
    state.write_text("no folder")
    end.greet()
    end.outbox.aside.wait()
    welcome_again(end)
    assert end.outbox.ingest_key == KEY
    said = [one.message for one in caplog.records]
    assert said.count("the ingest key cannot be kept") == 1
    state.unlink()
    welcome_again(end)
    assert (state / "ingest.key").read_bytes() == KEY


def test_a_key_that_the_disk_may_have_taken_all_the_same_is_told_of(end, monkeypatch):
    """Its folder could not be synced: which key the next start finds, nobody knows."""
    end.greet()
    end.outbox.aside.wait()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_folder", failing)
        for key in (b"m" * 32, b"n" * 32):
            end.router.welcome("first", key=key)
            end.link.pump(NOW + 1, 1000)
            end.outbox.aside.wait()
    assert end.link.sealed_to == sorted(map(key_id, (KEY, b"m" * 32, b"n" * 32)))
    end.router.welcome("first", key=b"n" * 32)
    end.link.pump(NOW + 1, 1000)
    end.outbox.aside.wait()
    assert end.link.sealed_to == [key_id(b"n" * 32)]


def failing(*_: object) -> None:
    raise OSError(5, "Input/output error")


def welcome_again(end: End) -> None:
    end.router.welcome("first")
    end.link.pump(NOW + 1, 1000)
    end.outbox.aside.wait()


def test_what_cannot_be_read_now_may_be_a_key_that_the_next_start_seals_to(folder):
    (folder / "state/ingest.key").mkdir(parents=True)
    made = End(folder)
    assert made.link.sealed_to is None
    made.close()


@pytest.mark.parametrize(
    "frames", [[b""], [b"SPANVAULT/2", b"\x80"], [b"SPANVAULT/1", b"\xc1"], [b"SPANVAULT/1", b""]]
)
def test_what_cannot_be_read_is_said_and_left_out(end, caplog, frames):
    end.greet()
    end.router.send(*frames)
    end.router.acknowledge(7)
    end.link.pump(NOW + 1, 1000)
    end.link.pump(NOW + 1, 100)
    assert [one.message for one in caplog.records].count("storaged sent what we cannot read") == 1
    end.hear(1)
    end.link.pump(NOW + 1)
    assert [batch.sequence for batch in end.router.receive_batches(1)] == [1]


def test_a_report_reaches_storaged(end):
    end.link.report(Health("capture port1", "recording", {"calls": 3}))
    assert end.router.receive() == Health("capture port1", "recording", {"calls": 3})


# --- media by memory ------------------------------------------------------------------------------


@pytest.fixture
def near(folder):
    """A link on storaged's host: storaged's ROUTER, and beside it what takes memories."""
    slots, memories = Slots(4 << 20), Memories(f"ipc://{folder}/i")
    made = End(folder, slots)
    yield made, memories
    made.close()
    memories.close()
    slots.close()


def heard_media(end, memories, fill):
    """Let some media be heard; what storaged takes of the batch's slot."""
    table, frames = np.zeros(1, CHUNK), np.zeros(1, FRAME)
    table["frames"], table["payload_bytes"], frames["length"] = 1, len(fill), len(fill)
    end.outbox.add([], Media(table, frames, memoryview(fill)))
    end.link.pump(NOW + 1)
    (batch,) = end.router.receive_batches(1)
    return batch.slot and bytes(memories.take(batch.slot)[2])


def test_a_welcome_from_this_host_has_media_go_by_memory(near):
    end, memories = near
    end.greet(user=os.getuid())
    assert heard_media(end, memories, b"abc") == b"abc"


def test_a_welcome_that_names_no_user_has_media_go_as_frames(near):
    end, memories = near
    end.greet()
    assert heard_media(end, memories, b"abc") is None


def test_a_storaged_that_restarted_is_given_the_memory_again(near):
    end, memories = near
    end.greet(user=os.getuid())
    memories.take(Slot(b"", 0, (0, 0, 0)))
    memories._memories.pop().close()  # what a new process knows
    end.router.welcome("second", os.getuid())
    end.link.pump(NOW + 1, 1000)
    assert heard_media(end, memories, b"abc") == b"abc"


def test_memory_is_tried_again_once_something_was_acknowledged(near):
    end, memories = near
    end.greet(user=os.getuid())
    assert heard_media(end, memories, b"abc") == b"abc"
    end.outbox.tick(NOW + 2 * SILENCE_NS)
    end.router.welcome("first", os.getuid())
    end.link.pump(NOW + 2, 1000)
    assert not end.outbox.handed_over
    end.router.acknowledge(1)
    end.pump_until(lambda: not end.outbox.waiting)
    end.router.welcome("first", os.getuid())
    end.pump_until(lambda: end.outbox.handed_over)


def test_once_storaged_has_gone_nothing_leaves_until_its_successor_welcomes(near):
    """Else a last record, queued by ZeroMQ, would overtake the media that goes again as frames."""
    end, memories = near
    end.greet(user=os.getuid())
    assert heard_media(end, memories, b"abc") == b"abc"
    memories.close()
    end.hear(1)
    end.link.pump(NOW + 1)
    assert not end.link.connected
    assert end.router.receive(100) is None
    end.router.welcome("second")
    end.link.pump(NOW + 1, 1000)
    end.link.pump(NOW + 1)
    media, last = end.router.receive_batches(2)
    assert media.slot is None
    assert [call.final for call in last.calls] == [True]
