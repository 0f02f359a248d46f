"""Link types beyond our own table: what scapy can dissect reaches the recorder all the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dot11 import Dot11, Dot11FCS, RadioTap
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import LLC, SNAP, Ether, MPacketPreamble

from capture.packets.dissect import FRAMES_EACH, ip_packet
from capture.packets.slowpath import SlowPath
from tests.support.frames import block

SECOND = 1_000_000_000
VOICE = (
    IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=4000, dport=5000) / (b"\x80\x08" + bytes(170))
)
WIFI = LLC() / SNAP() / VOICE
DATA = {"type": 2, "addr1": "02:00:00:00:00:01", "addr2": "02:00:00:00:00:02"}
FRAMES = {
    "802.11": (105, Dot11(**DATA) / WIFI),
    "802.11 with radiotap": (127, RadioTap(present="Flags") / Dot11FCS(**DATA) / WIFI),
    "Ethernet with its preamble": (274, MPacketPreamble() / Ether() / VOICE),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_datagram_is_found_behind_an_odd_link_header(name):
    link_type, frame = FRAMES[name]
    (found,) = SlowPath().receive(block([bytes(frame)], link_type=link_type), [0])
    assert (str(found.source), str(found.destination)) == ("10.0.0.1:4000", "10.0.0.2:5000")
    assert found.payload == bytes(VOICE[UDP].payload)


def test_a_link_type_that_nobody_knows_is_counted():
    slow_path = SlowPath()
    assert slow_path.receive(block([bytes(60)], link_type=64_000), [0]) == []
    assert slow_path.counters["unread_link_type_64000"] == 1


def test_a_flood_of_such_frames_is_cut_sooner_than_one_of_others():
    link_type, frame = FRAMES["Ethernet with its preamble"]
    # A quarter of a second's worth may come at once.
    slow_path = SlowPath(frames_per_second=40 * (FRAMES_EACH + 1))
    flood = block([bytes(frame)] * 50, link_type=link_type)
    assert len(slow_path.receive(flood, range(50))) == 10
    assert slow_path.counters["flood_dropped"] == 40


@given(frame=st.binary(max_size=200), link_type=st.sampled_from([105, 127, 195, 230, 274]))
def test_arbitrary_bytes_raise_only_value_error(frame, link_type):
    try:
        packet = ip_packet(memoryview(frame), link_type)
    except ValueError:
        return
    assert len(packet) <= len(frame)
