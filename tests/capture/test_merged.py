"""A kernel that merges frames of the mirror is told of, with the command that stops it."""

import logging
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from capture.delivery import courier
from capture.live import Live
from capture.sources import merged
from capture.sources.merged import Merged
from tests.support.callgen import Frame, answered, phones
from tests.support.capturing import Life
from tests.support.veth import veth

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a ring needs root"),
]
PACKETS = 40  # of each direction
WAITS = 20_000_000, 100  # what comes within 20 ms is merged, though each frame is a wake-up
GOES = 0, 0  # the next frame takes with it what waits
SET = """mount -t sysfs none /sys && cd /sys/class/net/far &&
echo {} > gro_flush_timeout && echo {} > napi_defer_hard_irqs"""


@pytest.fixture
def near() -> Iterator[socket.socket]:
    """What is sent into it comes out of far, merged."""
    with veth() as sender:
        for feature in ("gro", "rx-udp-gro-forwarding"):
            subprocess.run(["ethtool", "-K", "far", feature, "on"], check=True)
        merging(*WAITS)
        yield sender


def merging(timeout_ns: int, deferred: int) -> None:
    """How long frames wait for others that they might be merged with."""
    command = SET.format(timeout_ns, deferred)
    subprocess.run(["unshare", "--mount", "sh", "-c", command], check=True)


class Patient(Life):
    """A life that goes on until the last of some things was said; acts where one is."""

    def __init__(self, *acts) -> None:
        super().__init__()
        self._acts = list(acts)
        self._end = time.monotonic() + 20

    def status(self, text: str) -> None:
        self.said.append(text)
        if self._acts and self._acts[0](text):
            del self._acts[0]

    @property
    def done(self) -> bool:
        """Whether all was said."""
        return not self._acts

    @property
    def stop_requested(self) -> bool:
        return not self._acts or time.monotonic() > self._end


def test_it_is_said_while_it_lasts_and_the_packets_are_told_apart(vault, near, monkeypatch):
    monkeypatch.setattr(courier, "TELL_S", 0.05)
    monkeypatch.setattr(merged, "ASK_S", 0.1)

    def does_as_told(text: str) -> bool:
        # Not before all has come: a veth whose GRO is switched off forgets what waits in it.
        if " frames MERGED: ethtool -K far rx-gro off" not in text or " 2 calls on " not in text:
            return False
        return not subprocess.run(text.split(": ")[1].split("; ")[0].split(), check=True).returncode

    life = Patient(does_as_told, lambda text: text.startswith("recording 2 calls on far"))
    live = Live(vault.settings, "far", life, logging.getLogger("capture"))
    for frame in frames():
        near.send(frame)
    merging(*GOES)
    near.send(answered(time.time_ns(), *phones(1.0, 1), "last@test")[0].data)
    live.run()
    assert life.done, life.said[-3:]
    (call,) = (one for one in vault.calls() if one.streams)
    assert [(stream.packets, stream.lost) for stream in call.streams] == [(PACKETS, 0)] * 2
    assert vault.stored_frames(call) == 2 * PACKETS
    assert not [text for text in life.said[-2:] if "MERGED" in text]


def test_frames_of_a_network_that_has_such_large_ones_are_none():
    with veth():  # gro is off
        large = Merged("far")
        large.look(0.0, 7)
        assert large.remedy == ""


def frames() -> Iterator[bytes]:
    """A call whose BYE is not heard, each direction's packets in one go."""
    every = answered(time.time_ns(), *phones(PACKETS / 50), "merged@test")
    media = [frame for frame in every if b"SIP/2.0" not in frame.data]
    yield from (frame.data for frame in every[: every.index(media[0])])
    yield from map(checked, sorted(media, key=lambda frame: frame.data[26:30]))


def checked(frame: Frame) -> bytes:
    """With a UDP checksum: the kernel merges none without."""
    ends, udp = frame.data[26:34], frame.data[34:]
    summed = ends + struct.pack("!HH", 17, len(udp)) + udp
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~(total + (total >> 16)) & 0xFFFF
    return frame.data[:40] + struct.pack("!H", total) + frame.data[42:]
