"""A veth pair in a namespace of its own: what is sent into one end comes out of the ring."""

import os
import socket
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from capture.model import Block
from capture.sources.filter import SAMPLE, SAMPLED
from capture.sources.ring import Ring
from tests.support import veth as cable
from tests.support.veth import ip

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a ring needs root"),
]
BROADCAST = b"\xff" * 6 + b"\x02\0\0\0\0\x09"
UDP = bytes(9) + b"\x11" + bytes(40)  # as far as the filter looks


@pytest.fixture
def veth() -> Iterator[socket.socket]:
    """A socket that sends frames into near; they come out of far."""
    with cable.veth() as sender:
        yield sender


def frame(number: int, ether_type: bytes = b"\x08\x00", protocol: int = 17) -> bytes:
    """The protocol lies where IPv4 has it."""
    return BROADCAST + ether_type + struct.pack(">I5xB", number, protocol) + bytes(40)


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
    tagged = BROADCAST + bytes.fromhex("810000640800") + UDP
    priority = BROADCAST + bytes.fromhex("810000000800") + UDP
    double = BROADCAST + bytes.fromhex("88a80065810000660800") + UDP
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


PASSED = {
    "UDP": frame(1),
    "TCP": frame(2, protocol=6),
    "GRE": frame(3, protocol=47),
    "IPv6 UDP": BROADCAST + b"\x86\xdd" + bytes(6) + b"\x11" + bytes(43),
    "IPv6 fragment": BROADCAST + b"\x86\xdd" + bytes(6) + b"\x2c" + bytes(43),
    "first fragment": BROADCAST + b"\x08\x00" + bytes(6) + b"\x20\0\0\x11" + bytes(50),
    "last fragment": BROADCAST + b"\x08\x00" + bytes(6) + b"\0\x10\0\x11" + bytes(51),
    "inner tag": BROADCAST + bytes.fromhex("88a8006581000066") + UDP,
    "SNAP": BROADCAST + b"\0\x3a\xaa\xaa\x03" + bytes(55),
    "MPLS": BROADCAST + b"\x88\x47" + bytes(50),
    "PPPoE": BROADCAST + b"\x88\x64" + bytes(50),
}
KEPT_OUT = {  # but for one of SAMPLED, so that it can be told what they are
    "ARP": BROADCAST + b"\x08\x06" + bytes(50),
    "spanning tree": BROADCAST + b"\x00\x26" + bytes(50),
    "ICMP": frame(4, protocol=1),
    "ESP": frame(5, protocol=50),
    "IPv6 ICMP": BROADCAST + b"\x86\xdd" + bytes(6) + b"\x3a" + bytes(43),
}


def test_what_the_decoder_could_not_use_costs_no_room(veth: socket.socket) -> None:
    with Ring("far", 4) as ring:
        for each in PASSED.values():
            veth.send(each)
        found = heard(ring)
        assert [name for name, each in PASSED.items() if without_tag(each) not in found] == []
        long = [each + bytes(200) for each in KEPT_OUT.values()]
        for each in long * 400:
            veth.send(each)
        blocks = [(block.unread_each, frames(block)) for block in ring.drain()]
        sample = [each for _, some in blocks for each in some]
        expected = len(long) * 400 / SAMPLED  # chance is off by a tenth of that
        assert expected / 2 < len(sample) < 2 * expected
        assert {len(each) for each in sample} == {SAMPLE}
        assert {each for each, _ in blocks} == {SAMPLED}
        assert set(sample) <= {each[:SAMPLE] for each in long}


def without_tag(frame: bytes) -> bytes:
    """As the kernel hands it on: the outer tag is told apart."""
    return frame[:12] + frame[16:] if frame[12:14] == b"\x88\xa8" else frame


def flow(number: int, back: bool) -> bytes:
    """A frame of a UDP flow between two phones."""
    phones = (bytes((10, 1, 0, number)), 10_000 + number), (bytes((10, 2, 0, 1)), 20_000)
    source, target = reversed(phones) if back else phones
    head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 17, 0) + source[0] + target[0]
    return (
        BROADCAST + b"\x08\x00" + head + struct.pack(">4H", source[1], target[1], 20, 0) + bytes(18)
    )


def parts(whole: bytes, number: int) -> list[bytes]:
    """A frame as two IP fragments."""
    link, head, body = whole[:14], whole[14:34], whole[34:]
    cut = [
        (struct.pack(">4sHH", head[:2] + struct.pack(">H", 20 + len(part)), number, field), part)
        for part, field in ((body[:16], 0x2000), (body[16:], 2))
    ]
    return [link + checked(start[:4] + start[4:8] + head[8:]) + part for start, part in cut]


def checked(head: bytes) -> bytes:
    """An IPv4 header with its checksum: the kernel puts together only what is sound."""
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]


def rtp_of(frame: bytes) -> bytes:
    """Addresses, ports and what follows."""
    return frame[26:54]


def test_rings_of_a_group_share_the_flows_and_split_none(veth: socket.socket) -> None:
    with Ring("far", 4, group=77) as one, Ring("far", 4, group=77) as other:
        sent = [flow(number, back) for number in range(200) for back in (False, True)]
        for each in sent:
            veth.send(each)
        shares = [set(heard(one)), set(heard(other))]
    assert sum(map(len, shares)) == len(sent)
    assert shares[0] | shares[1] == set(sent)
    assert min(map(len, shares)) > 100
    calls = [{flow(number, back) for back in (False, True)} for number in range(200)]
    assert all(call <= shares[0] or call <= shares[1] for call in calls)


def test_the_parts_of_a_datagram_stay_with_its_flow(veth: socket.socket) -> None:
    whole = [flow(number, False) for number in range(50)]
    with Ring("far", 4, group=78) as one, Ring("far", 4, group=78) as other:
        for number, each in enumerate(whole):
            veth.send(each)
            for part in parts(each, number):
                veth.send(part)
        shares = [[rtp_of(each) for each in heard(ring)] for ring in (one, other)]
    assert sorted(shares[0] + shares[1]) == sorted([rtp_of(each) for each in whole] * 2)
    assert all(len(set(share)) * 2 == len(share) for share in shares)


def test_own_frames_are_not_heard(veth: socket.socket) -> None:
    with Ring("near", 4) as ring:
        veth.send(frame(1))
        assert heard(ring) == []


def test_frames_that_found_no_room_are_counted_and_told_of(veth: socket.socket) -> None:
    with Ring("far", 2) as ring:
        big = BROADCAST + b"\x08\x00" + UDP + bytes(1350)
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
    with pytest.raises(OSError, match=r"no interface 'nowhere'\. There are: .*far"):
        Ring("nowhere", 4)
    ip("link set far down")
    with pytest.raises(OSError, match="ip link set far up"):
        Ring("far", 4)
