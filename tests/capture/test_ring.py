"""A veth pair in a namespace of its own: what is sent into one end comes out of the ring."""

import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from capture.model import Block
from capture.sources.ring import Ring

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a ring needs root"),
]
CLONE_NEWNET = 0x40000000
BROADCAST = b"\xff" * 6 + b"\x02\0\0\0\0\x09"


@pytest.fixture
def veth() -> Iterator[socket.socket]:
    """A namespace with near ⇄ far; gives a socket that sends frames into near."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        pytest.skip("this kernel lets us make no network namespace")
    try:
        ip("link add near type veth peer name far")
        for name in ("near", "far"):
            with suppress(OSError):  # no router solicitations between our frames
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            ip(f"link set {name} up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind(("near", 0))
            yield sender
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def frame(number: int, ether_type: bytes = b"\x08\x00") -> bytes:
    return BROADCAST + ether_type + struct.pack(">I", number) + bytes(46)


def heard(ring: Ring) -> list[bytes]:
    """Every frame in the ring, copied out."""
    return [each for block in ring.drain() for each in frames(block)]


def frames(block: Block) -> list[bytes]:
    columns = zip(block.start.tolist(), block.length.tolist(), strict=True)
    return [bytes(block.data[start : start + length]) for start, length in columns]


def test_frames_come_out_as_they_were_sent(veth: socket.socket) -> None:
    with Ring("far", 4) as ring:
        sent = [frame(number) for number in range(1000)]
        for each in sent:
            veth.send(each)
        assert heard(ring) == sent
        assert ring.drops() == 0


def test_time_is_the_kernels_in_nanoseconds_and_rising(veth: socket.socket) -> None:
    with Ring("far", 4) as ring:
        before = time.time_ns()
        for number in range(10):
            veth.send(frame(number))
        times = np.concatenate([block.time_ns.copy() for block in ring.drain()])
        assert (np.diff(times) >= 0).all()
        assert before - 10_000_000 <= times[0] <= times[-1] <= time.time_ns()


def test_the_outer_tag_is_told_and_the_inner_one_stays(veth: socket.socket) -> None:
    tagged = BROADCAST + bytes.fromhex("810000640800") + bytes(50)
    priority = BROADCAST + bytes.fromhex("810000000800") + bytes(50)
    double = BROADCAST + bytes.fromhex("88a80065810000660800") + bytes(50)
    with Ring("far", 4) as ring:
        for each in (frame(1), tagged, priority, double):
            veth.send(each)
        found = []
        for block in ring.drain():
            assert block.vlan is not None
            found += list(zip(block.vlan.tolist(), frames(block), strict=True))
    assert [vlan for vlan, _ in found] == [-1, 100, 0, 0x65]
    assert found[1][1][12:14] == bytes.fromhex("0800")
    assert found[3][1][12:16] == bytes.fromhex("81000066")


def test_own_frames_are_not_heard(veth: socket.socket) -> None:
    with Ring("near", 4) as ring:
        veth.send(frame(1))
        assert heard(ring) == []


def test_frames_that_found_no_room_are_counted_and_told_of(veth: socket.socket) -> None:
    with Ring("far", 2) as ring:
        big = BROADCAST + b"\x08\x00" + bytes(1400)
        sent = 4000
        for _ in range(sent):
            veth.send(big)
        first = sum(len(block.start) for block in ring.drain())
        assert ring.drops() == sent - first > 0
        veth.send(frame(1))
        assert sum(block.dropped for block in ring.drain()) == ring.drops()


def test_a_block_is_used_again_without_what_lay_in_it(veth: socket.socket) -> None:
    with Ring("far", 2) as ring:
        for turn in range(6):
            sent = [frame(turn * 1000 + number) for number in range(100 - 10 * turn)]
            for each in sent:
                veth.send(each)
            assert heard(ring) == sent


def test_a_block_is_given_once_even_to_a_caller_who_leaves(veth: socket.socket) -> None:
    with Ring("far", 2) as ring:
        veth.send(frame(1))
        for block in ring.blocks(1000):
            assert frames(block) == [frame(1)]
            break
        veth.send(frame(2))
        assert heard(ring) == [frame(2)]


def test_waiting_ends_when_woken(veth: socket.socket) -> None:
    reader, writer = os.pipe()
    with Ring("far", 2) as ring:
        os.write(writer, b"!")
        began = time.monotonic()
        assert list(ring.blocks(10_000, reader)) == []
        assert time.monotonic() - began < 5
    os.close(reader)
    os.close(writer)


def test_an_interface_that_is_set_down_comes_back(veth: socket.socket) -> None:
    with Ring("far", 2) as ring:
        ip("link set far down")
        assert list(ring.blocks(50)) == []
        ip("link set far up")
        time.sleep(0.1)
        veth.send(frame(7))
        assert heard(ring) == [frame(7)]
        assert ring.link_down


def test_an_interface_that_goes_ends_the_capture(veth: socket.socket) -> None:
    with Ring("far", 2) as ring:
        ip("link del far")
        with pytest.raises(OSError, match="has gone"):
            list(ring.drain())


def test_what_cannot_be_captured_from_is_said_with_a_remedy(veth: socket.socket) -> None:
    with pytest.raises(ValueError, match=r"no interface 'nowhere'\. There are: .*far"):
        Ring("nowhere", 4)
    ip("link set far down")
    with pytest.raises(ValueError, match="ip link set far up"):
        Ring("far", 4)
