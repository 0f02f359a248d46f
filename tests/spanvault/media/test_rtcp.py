"""RTCP datagrams taken apart: every field, every fault by its name."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.media import rtcp
from spanvault.media.rtcp import Description, Goodbye, Other, ReceiverReport, Report, SenderReport
from tests.support.rtcpforge import (
    Block,
    description,
    goodbye,
    packet,
    receiver_report,
    sender_report,
)

ME, YOU = 0xCAFE0001, 0xCAFE0002
BLOCK = Block(YOU, fraction=64, lost=-3, highest=0x1_0007, jitter=40, last_sr=0xABCD, delay=65536)


def test_a_compound_is_its_packets_in_order():
    datagram = (
        sender_report(ME, [BLOCK], ntp=0x1234_5678_9ABC_DEF0, timestamp=160, packets=50)
        + description((ME, "alice@10.0.0.1"))
        + goodbye(ME, reason="hung up")
    )
    heard = Report(YOU, 64, -3, 0x1_0007, 40, 0xABCD, 65536)
    assert rtcp.parse(datagram) == [
        SenderReport(ME, 0x1234_5678_9ABC_DEF0, 160, 50, 8000, (heard,)),
        Description(((ME, "alice@10.0.0.1"),)),
        Goodbye((ME,)),
    ]


def test_one_who_only_listens_reports_several():
    (found,) = rtcp.parse(receiver_report(ME, [BLOCK, Block(7, lost=0x7FFFFF)]))
    assert isinstance(found, ReceiverReport)
    assert [(one.ssrc, one.lost) for one in found.reports] == [(YOU, -3), (7, 0x7FFFFF)]


@pytest.mark.parametrize("kind", [192, 204, 205, 206, 207, 213])
def test_types_that_are_not_read_are_stepped_over(kind):
    body = struct.pack(">II", ME, 0xFFFFFFFF)
    reduced = packet(kind, 31, body)
    assert rtcp.parse(reduced + goodbye(YOU)) == [Other(kind, ME), Goodbye((YOU,))]
    assert rtcp.sender_of(rtcp.parse(reduced)) == ME


def test_padding_of_the_last_packet_is_no_part_of_it():
    padded = packet(202, 1, description((ME, "a"))[4:], padding=8)
    assert rtcp.parse(receiver_report(ME) + padded)[1] == Description(((ME, "a"),))


def test_other_items_and_names_that_are_no_text():
    body = struct.pack(">I", ME) + b"\x06\x04tool\x01\x02\xff\xfe\0" + b"\0"
    assert rtcp.parse(packet(202, 1, body)) == [Description(((ME, "\ufffd\ufffd"),))]


def test_what_a_snap_length_cut_is_read_as_far_as_it_goes():
    whole = sender_report(ME, [BLOCK]) + goodbye(ME)
    assert len(rtcp.parse(whole[:-4], cut=True)) == 1
    with pytest.raises(ValueError, match="behind the last byte"):
        rtcp.parse(whole[:-4])


@pytest.mark.parametrize("tail", [b"\0", b"\0\0", b"\x81\xc9\0"])
def test_a_tail_too_short_for_a_packet_spoils_none_before_it(tail):
    """As phones send it that pad to no whole word."""
    whole = sender_report(ME, [BLOCK]) + description((ME, "a"))
    assert rtcp.parse(whole + tail) == rtcp.parse(whole)


@pytest.mark.parametrize(
    ("datagram", "fault"),
    [
        (b"", "empty"),
        (b"\x80\xc8\0", "behind the last"),
        (b"\x40\xc9\0\1" + bytes(4), "version 1"),
        (packet(200, 0, bytes(20)), "sender report of 20 bytes"),
        (packet(201, 2, bytes(4) + BLOCK.serialize()), "2 RTCP reports in 24 bytes"),
        (packet(201, 0, b""), "without an SSRC"),
        (packet(203, 2, bytes(4)), "BYE of 2 sources"),
        (packet(202, 1, bytes(4) + b"\x01\x09ab"), "item of 9 bytes"),
        (packet(202, 2, bytes(4) + b"\x01\x01a\0"), "without an SSRC"),
        (b"\xa0\xc9\0\1" + bytes(4), "0 bytes of padding"),
        (packet(201, 0, bytes(4), padding=4) + goodbye(ME), "4 bytes of padding"),
        (receiver_report(ME) + b"\0\0\0\0", "version 0"),
    ],
)
def test_faults_are_named(datagram, fault):
    with pytest.raises(ValueError, match=fault):
        rtcp.parse(datagram)


blocks = st.builds(
    Block, st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(-(2**23), 2**23 - 1),
    *[st.integers(0, 2**32 - 1)] * 4,
)  # fmt: skip


@given(st.lists(blocks, max_size=31), st.integers(0, 2**32 - 1))
def test_reports_are_read_as_they_were_written(sent, ssrc):
    (found,) = rtcp.parse(receiver_report(ssrc, sent))
    assert found == ReceiverReport(ssrc, tuple(Report(*one) for one in sent))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_packets_or_a_fault(data, cut):
    try:
        assert rtcp.parse(data, cut=cut)
    except ValueError:
        return
    assert data[0] >> 6 == 2
