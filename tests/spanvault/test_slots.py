"""Media by memory: storaged reads what a capture put into a slot, whatever happens to it then."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault import slots as module
from spanvault.messages import Slot
from spanvault.slots import MOST_MEMORIES, SLOT_BYTES, Memories, Slots

US = os.getuid()
MEDIA = [b"table", b"frames", b"payload"]


@pytest.fixture
def endpoint() -> Iterator[str]:
    # The path of a unix socket holds 107 bytes at most: a short folder of our own.
    folder = tempfile.mkdtemp(prefix="sv-")
    yield f"ipc://{folder}/ingest"
    shutil.rmtree(folder)


@pytest.fixture
def memories(endpoint):
    made = Memories(endpoint)
    yield made
    made.close()


@pytest.fixture
def slots():
    made = Slots(4 * SLOT_BYTES)
    yield made
    made.close()


@pytest.fixture
def handed(endpoint, memories, slots):
    """A capture's memory that storaged has been given."""
    assert slots.hand_over(endpoint, US)
    return slots


def call(endpoint: str, name: bytes, descriptor: int) -> socket.socket:
    """Somebody hands over what is no memory of a capture's."""
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller.connect(module.path_of(endpoint))
    socket.send_fds(caller, [name], [descriptor])
    return caller


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_put_is_taken(handed, memories):
    slot = handed.put(MEDIA)
    assert memories.take(slot) == MEDIA
    assert handed.get(slot) == MEDIA


def test_what_was_taken_does_not_change_with_the_slot(handed, memories):
    slot = handed.put(MEDIA)
    taken = memories.take(slot)
    handed.free(slot)
    assert handed.put([b"TABLE", b"FRAMES", b"PAYLOAD"]) == slot
    assert taken == MEDIA


def test_slots_run_out_and_are_used_again(slots):
    taken = [slots.put(MEDIA) for _ in range(4)]
    assert len({slot.offset for slot in taken}) == 4
    assert slots.put(MEDIA) is None
    slots.free(taken[2])
    assert slots.put(MEDIA) == taken[2]


def test_a_batch_that_is_too_large_for_a_slot_is_not_put(slots):
    assert slots.put([b"", b"", bytes(SLOT_BYTES)]) is not None
    assert slots.put([b"x", b"", bytes(SLOT_BYTES)]) is None


def test_a_free_slot_beyond_what_is_kept_gives_its_memory_back(slots, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", SLOT_BYTES)
    taken = [slots.put([b"", b"", bytes(SLOT_BYTES)]) for _ in range(3)]
    full = os.fstat(slots._descriptor).st_blocks
    for slot in taken:
        slots.free(slot)
    assert os.fstat(slots._descriptor).st_blocks * 3 == full


def test_another_host_is_given_nothing(slots):
    assert not slots.hand_over("tcp://192.0.2.1:5000", US)


def test_who_is_not_storaged_is_given_nothing(endpoint, memories, slots):
    """The user was told over CURVE; another one may listen where storaged used to."""
    assert not slots.hand_over(endpoint, US + 1)
    memories.refresh()
    assert memories.take(slots.put(MEDIA)) is None


def test_without_a_listener_there_are_frames(endpoint, slots):
    assert not slots.hand_over(endpoint, US)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": bytes(16)},
        {"memory": b""},
        {"offset": -1},
        {"offset": 4 * SLOT_BYTES - 10},
        {"offset": 1 << 63},
        {"sizes": (5, 6, -7)},
        {"sizes": (5, 6, 1 << 40)},
    ],
)
def test_a_slot_that_cannot_be_is_not_taken(handed, memories, changes):
    slot = handed.put(MEDIA)
    wrong = {"memory": slot.memory, "offset": slot.offset, "sizes": slot.sizes, **changes}
    assert memories.take(Slot(**wrong)) is None
    assert memories.take(slot) == MEDIA


def test_only_memory_of_fixed_size_is_taken(endpoint, memories, tmp_path):
    """A pipe or a file could keep storaged waiting for ever."""
    ends = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    growing = os.memfd_create("growing", os.MFD_ALLOW_SEALING)
    for number, descriptor in enumerate((ends[0], file, growing)):
        os.write(ends[1] if descriptor == ends[0] else descriptor, b"x" * 100)
        name = bytes([number]) * 16
        with call(endpoint, name, descriptor):
            assert memories.take(Slot(name, 0, (1, 1, 1))) is None
        os.close(descriptor)
    os.close(ends[1])


def test_a_capture_that_has_gone_is_forgotten(endpoint, memories, slots):
    before = open_descriptors()
    assert slots.hand_over(endpoint, US)
    slot = slots.put(MEDIA)
    assert memories.take(slot) == MEDIA
    slots._hang_up()
    memories.refresh()
    assert memories.take(slot) is None
    assert open_descriptors() == before


def test_callers_who_say_nothing_cost_a_bounded_number_of_descriptors(endpoint, memories, slots):
    before = open_descriptors()
    silent = []
    for _ in range(3 * MOST_MEMORIES):
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        caller.connect(module.path_of(endpoint))
        silent.append(caller)
        memories.refresh()
    assert open_descriptors() - before <= len(silent) + MOST_MEMORIES
    assert slots.hand_over(endpoint, US)  # who comes last is heard
    assert memories.take(slots.put(MEDIA)) == MEDIA
    for caller in silent:
        caller.close()


def test_a_storaged_that_starts_again_is_given_the_memory_again(endpoint, slots):
    first = Memories(endpoint)
    assert slots.hand_over(endpoint, US)
    first._listener.close()  # killed: its socket file stays
    second = Memories(endpoint)
    assert slots.hand_over(endpoint, US)
    assert second.take(slots.put(MEDIA)) == MEDIA
    second.close()


def test_a_closed_memory_holds_nothing_even_where_storaged_has_it_open(endpoint, memories):
    slots = Slots(SLOT_BYTES)
    assert slots.hand_over(endpoint, US)
    slot = slots.put(MEDIA)
    assert memories.take(slot) == MEDIA
    kept = os.dup(slots._descriptor)
    slots.close()
    assert os.fstat(kept).st_blocks == 0
    os.close(kept)
