"""An outbox with its spool, fed with made-up batches and sent from by hand."""

from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from capture.delivery.aside import Aside
from capture.delivery.outbox import Outbox
from capture.delivery.spool import Spool
from spanvault.media.chunk import CHUNK, FRAME, Media
from spanvault.messages import Call
from spanvault.slots import Slots

SECRET = X25519PrivateKey.generate()
PUBLIC = SECRET.public_key().public_bytes_raw()
MEGABYTE = 1 << 20

Sent = tuple[int, list[Any]]  # sequence, frames


def media(chunks: int = 1, payload_bytes: int = 1000, fill: bytes = b"\x55") -> Media:
    table = np.zeros(chunks, CHUNK)
    table["frames"], table["payload_bytes"] = 1, payload_bytes
    frames = np.zeros(chunks, FRAME)
    frames["length"] = payload_bytes
    return Media(table, frames, memoryview(fill * payload_bytes * chunks))


def call(number: int, final: bool = True) -> Call:
    return Call(number.to_bytes(16), "port1", [f"call-{number}"], "1001", "1002", 0, final=final)


class Later(Aside):
    """Does nothing before it is waited for: a disk as slow as a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self._put_off: list[tuple[Any, Any]] = []

    def do(self, work: Any, then: Any = None) -> None:
        self._put_off.append((work, then))

    def wait(self) -> None:
        while self._put_off:
            super().do(*self._put_off.pop(0))
            super().wait()


def outbox(
    folder: Path, memory: int = 100 * MEGABYTE, disk: int = 100 * MEGABYTE, first: int = 1,
    slots: Slots | None = None, aside: Aside | None = None,
) -> Outbox:  # fmt: skip
    made = Outbox("port1", Spool(folder / "spool"), memory, disk, first, slots, aside)
    made.ingest_key = PUBLIC
    return made


def disk_done(box: Outbox) -> None:
    """All that was handed to the disk is there, and noted."""
    box.aside.wait()


def tick(box: Outbox, now_ns: int = 0) -> None:
    box.tick(now_ns)
    disk_done(box)


def send_all(box: Outbox, now_ns: int = 0) -> list[Sent]:
    """Send until nothing more may leave; what lies on disk is waited for."""
    sent: list[Sent] = []
    while more := send_some(box, now_ns):
        sent += more
    return sent


def send_some(box: Outbox, now_ns: int = 0) -> list[Sent]:
    sent: list[Sent] = []
    for _ in range(3):  # what must be sealed, then read, leaves the third time
        for sequence, frames in box.to_send():
            box.sent(sequence, now_ns)
            sent.append((sequence, frames))
        disk_done(box)
    return sent
