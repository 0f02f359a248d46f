"""A port whose link is lost in every way there is, and comes back."""

import logging
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from capture.model import Block
from capture.sources import interface as interfaces
from capture.sources import port as ports
from capture.sources.port import Port
from tests.support import veth as cable
from tests.support.veth import ip

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a ring needs root"),
]
LOG = logging.getLogger("capture")


@pytest.fixture(autouse=True)
def often(monkeypatch) -> None:
    monkeypatch.setattr(ports, "LOOK_S", 0.02)


@pytest.fixture
def near() -> Iterator[socket.socket]:
    with cable.veth() as sender:
        yield sender


def frame(number: int) -> bytes:
    return b"\xff" * 12 + b"\x08\x00" + struct.pack(">I5xB", number, 17) + bytes(40)


def send(number: int) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("near", 0))
        sender.send(frame(number))


def frames(port: Port) -> list[int]:
    """The numbers of the frames that are there, or come within a moment."""
    return [
        struct.unpack_from(">I", block.data, at + 14)[0]
        for block in port.blocks(20)
        for at in block.start
    ]


def hears(port: Port, count: int) -> list[int]:
    """The numbers of the next frames."""
    found: list[int] = []
    end = time.monotonic() + 10
    while len(found) < count and time.monotonic() < end:
        found += frames(port)
    return found


def notices(port: Port, trouble: str) -> list[int]:
    """What is heard until the port tells of a trouble, or of none."""
    found: list[int] = []
    end = time.monotonic() + 10
    while not (port.trouble.startswith(trouble) and bool(port.trouble) == bool(trouble)):
        assert time.monotonic() < end, port.trouble
        found += frames(port)
    return found


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records]


def test_an_interface_that_disappears_and_comes_back_is_heard_again(near, caplog):
    caplog.set_level("INFO")
    port = Port("far", 2, LOG)
    send(1)
    assert hears(port, 1) == [1]
    ip("link del far")
    assert notices(port, "far has gone") == []
    ip("link add near type veth peer name far")
    notices(port, "far is down")
    ip("link del far")
    cable.plug_in()
    assert notices(port, "") == []
    send(2)
    assert hears(port, 1) == [2]
    assert (port.trouble, port.interruptions) == ("", 1)
    assert said(caplog) == ["the link is lost", "the link is back"]
    port.close()


def test_what_came_just_before_the_interface_went_is_heard(near):
    port = Port("far", 2, LOG)
    for number in range(5):
        near.send(frame(number))
    ip("link del far")
    found = notices(port, "far has gone")
    assert found + hears(port, 5 - len(found)) == [0, 1, 2, 3, 4]
    port.close()


@pytest.mark.parametrize(
    ("loss", "repair", "trouble"),
    [
        ("link set far down", "link set far up", "far is down: ip link set far up"),
        ("link set near down", "link set near up", "far has no carrier"),
    ],
)
def test_a_link_that_is_lost_is_said_in_one_line_and_recovered(near, caplog, loss, repair, trouble):
    caplog.set_level("INFO")
    port = Port("far", 2, LOG)
    ip(loss)
    assert notices(port, trouble) == []
    ip(repair)
    assert notices(port, "") == []
    send(3)
    assert hears(port, 1) == [3]
    assert said(caplog) == ["the link is lost", "the link is back"]
    port.close()


def test_one_that_is_back_but_stays_down_is_left_to_who_can_set_it_up(near, monkeypatch):
    monkeypatch.setattr(ports, "PREPARED_S", 0.2)
    port = Port("far", 2, LOG)
    ip("link del far")
    notices(port, "far has gone")
    ip("link add near type veth peer name far")
    with pytest.raises(OSError, match="'far' is back, but down"):
        hears(port, 1)
    port.close()


def test_frames_dropped_before_the_interface_went_still_count(near):
    port = Port("far", 2, LOG)
    for number in range(40_000):
        near.send(frame(number))
    dropped = port.drops()
    assert dropped > 0
    ip("link del far")
    notices(port, "far has gone")
    assert port.drops() == dropped
    port.close()
    assert port.drops() == dropped


def test_what_was_dropped_is_known_after_the_end(near):
    port = Port("far", 2, LOG)
    for number in range(40_000):
        near.send(frame(number))
    port.close()
    assert port.drops() > 0


def test_an_interface_that_merges_frames_is_warned_of(near, caplog):
    subprocess.run(["ethtool", "-K", "far", "gro", "on"], check=True)
    Port("far", 2, LOG).close()
    (warning,) = caplog.records
    assert "may merge frames" in warning.message
    assert warning.HINT == "ethtool -K far rx-gro off"
    caplog.clear()
    subprocess.run(warning.HINT.split(), check=True)
    Port("far", 2, LOG).close()
    assert caplog.records == []


def test_one_that_is_stopped_while_the_interface_is_away_ends(near):
    port = Port("far", 2, LOG)
    ip("link del far")
    notices(port, "far has gone")
    assert list(port.drain()) == []
    port.close()


def test_what_the_card_missed_since_we_listen_is_known(near, monkeypatch, tmp_path):
    counters = tmp_path / "far" / "statistics"
    counters.mkdir(parents=True)
    for name in interfaces.MISSED:
        (counters / name).write_text("100\n")
    monkeypatch.setattr(interfaces, "INTERFACES", tmp_path)
    port = Port("far", 2, LOG)
    assert port.missed == 0
    (counters / "rx_missed_errors").write_text("107\n")
    until(port, lambda: port.missed)
    assert port.missed == 7
    assert says_loss(near, port)
    port.close()


def test_the_block_behind_a_lost_link_says_since_when_nothing_was_heard(near):
    port = Port("far", 2, LOG)
    send(1)
    (block,) = next_blocks(port)
    heard_ns = int(block.time_ns[-1])
    assert block.unheard == ()
    ip("link set far down")
    notices(port, "far is down")
    ip("link set far up")
    notices(port, "")
    send(2)
    (block,) = next_blocks(port)
    ((since_ns, mended_ns),) = block.unheard
    assert heard_ns < since_ns < block.time_ns[0] < mended_ns
    until(port, lambda: not says_loss(near, port))
    port.close()


def test_a_link_that_was_lost_for_a_moment_is_noticed_when_it_is_up_again(near, caplog):
    port = Port("far", 2, LOG)
    ip("link set far down")
    ip("link set far up")
    until(port, lambda: port.interruptions)
    assert (port.trouble, port.interruptions) == ("", 1)
    assert said(caplog) == ["the link was lost for a moment"]
    assert says_loss(near, port)
    port.close()


def test_a_carrier_that_blinked_between_two_looks_is_noticed(near, monkeypatch, tmp_path, caplog):
    (tmp_path / "far").mkdir()
    changes = tmp_path / "far/carrier_changes"
    changes.write_text("4\n")
    monkeypatch.setattr(interfaces, "INTERFACES", tmp_path)
    port = Port("far", 2, LOG)
    assert not says_loss(near, port)
    changes.write_text("6\n")
    until(port, lambda: port.interruptions)
    assert says_loss(near, port)
    assert said(caplog) == ["the link was lost for a moment"]
    port.close()


def until(port: Port, condition) -> None:
    """Listen until something has come about."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        frames(port)


def next_blocks(port: Port) -> list[Block]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if found := list(port.blocks(200)):
            return found
    return []


def says_loss(near: socket.socket, port: Port) -> bool:
    """Whether the next block tells of one."""
    near.send(frame(9))
    return any(block.unheard for block in next_blocks(port))
