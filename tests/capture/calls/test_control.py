"""RTCP beside calls: whose it is, what it tells of the far end, and that it opens nothing."""

import pytest

from capture.model import Datagram
from spanvault.media.chunk import CONTROL
from spanvault.messages import FarEnd
from tests.support.conversation import A_TO_B, ALICE, B_TO_A, BOB, SECOND, Leg, Wire, endpoint, sdp
from tests.support.rtcpforge import (
    Block,
    description,
    goodbye,
    packet,
    receiver_report,
    sender_report,
)

A_RTCP, B_RTCP = ("10.0.0.1:4001", "10.0.0.2:5001"), ("10.0.0.2:5001", "10.0.0.1:4001")


@pytest.fixture
def leg(wire: Wire) -> Leg:
    """An answered call whose caller speaks as SSRC 1, the callee as 2."""
    made = Leg(wire)
    made.answer(ALICE, BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    return made


def say(wire: Wire, ends: tuple[str, str], payload: bytes, after_s: float = 0.001) -> None:
    wire.now_ns += round(after_s * SECOND)
    source, destination = map(endpoint, ends)
    wire.calls.control(Datagram(wire.now_ns, source, destination, payload, "udp"))


def kept(wire: Wire) -> list[tuple[int, list[int], list[bytes]]]:
    """(stream number, packet types, datagrams) of each chunk since last asked."""
    return [
        (
            int(one.header["stream"]),
            one.frames["payload_type"].tolist(),
            [bytes(payload) for payload in one.payloads()],
        )
        for one in wire.calls.media().chunks()
    ]


def test_reports_are_kept_beside_the_stream_and_told_of_the_other(wire, leg):
    report = sender_report(1, [Block(2, fraction=128, lost=7, jitter=30)]) + description((1, "a"))
    say(wire, A_RTCP, report)
    assert kept(wire) == [(CONTROL, [200], [report])]
    assert kept(wire) == []
    (call,) = wire.end()
    said = {stream.ssrc: stream.far_end for stream in call.streams}
    assert said == {1: None, 2: FarEnd(reports=1, lost=7, worst=0.5, jitter=30.0)}
    (beside,) = call.beside
    assert (beside.number, beside.media, beside.party, beside.packets) == (
        CONTROL, "control", "caller", 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "lines"),
    [
        (A_TO_B, ()),  # RFC 5761: on RTP's own ports
        (A_RTCP, ()),  # RFC 3550 §11: one above
        (("10.0.0.1:7777", "10.0.0.2:8888"), ("a=rtcp:8888",)),  # RFC 3605
        (("192.0.2.9:61234", "10.0.0.2:5001"), ()),  # NAT: only where it goes is known
    ],
)
def test_rtcp_is_found_by_the_ports_it_may_use(wire, ends, lines):
    leg = Leg(wire)
    leg.answer(ALICE, sdp("10.0.0.2:5000", more=lines))
    wire.rtp(*A_TO_B, ssrc=1)
    say(wire, ends, sender_report(1))
    assert [number for number, _, _ in kept(wire)] == [CONTROL]


def test_where_sdp_says_rtcp_goes_survives_a_restart(wire):
    leg = Leg(wire)
    leg.answer(ALICE, sdp("10.0.0.2:5000", more=("a=rtcp:8888",)))
    wire.restart()
    wire.rtp(*A_TO_B, ssrc=1)
    say(wire, ("10.0.0.1:7777", "10.0.0.2:8888"), sender_report(1))
    assert len(kept(wire)) == 1


def test_a_round_trip_is_measured_from_where_we_listen(wire, leg):
    say(wire, A_RTCP, sender_report(1, ntp=0x0000_1111_2222_0000))
    answer = [Block(1, last_sr=0x1111_2222, delay=65536 // 2)]
    say(wire, B_RTCP, receiver_report(2, answer), after_s=0.540)
    say(wire, B_RTCP, receiver_report(2, [Block(1, last_sr=0x5555, delay=1)]), after_s=5)
    (call,) = wire.end()
    far = call.streams[0].far_end
    assert far is not None
    assert (far.reports, far.round_trips, round(far.round_trip_ms or 0, 3)) == (2, 1, 40.0)


def test_a_bye_is_noted_and_the_stream_goes_on_if_it_does(wire, leg):
    say(wire, A_RTCP, receiver_report(1) + goodbye(1))
    (call,) = wire.end()
    assert [stream.bye_ns for stream in call.streams] == [wire.now_ns, None]
    assert call.end_reason == "capture_end"  # RTCP ends no call


def test_copies_of_a_mirror_count_once_and_a_swarm_is_bounded(wire, leg):
    say(wire, A_RTCP, sender_report(1))
    say(wire, A_RTCP, sender_report(1))
    for number in range(100):
        say(wire, A_RTCP, sender_report(1, packets=number + 1))
    assert len(kept(wire)[0][1]) == 64
    counters = wire.calls.counters
    assert (counters["rtcp_copies"], counters["rtcp_ignored"]) == (1, 37)


def test_chunks_of_one_stream_never_begin_alike(wire, leg):
    starts = []
    for number in range(3):
        say(wire, A_RTCP, sender_report(1, packets=number), after_s=0)
        starts += [int(one.header["start_ns"]) for one in wire.calls.media().chunks()]
    assert len(set(starts)) == 3


def test_rtcp_without_a_call_opens_nothing(wire):
    say(wire, A_RTCP, sender_report(1, [Block(2)]))
    say(wire, A_RTCP, sender_report(9))
    wire.rtp(*A_TO_B, ssrc=1)
    say(wire, A_RTCP, sender_report(1, [Block(2)]))
    assert kept(wire) == []
    wire.wait(120)
    say(wire, A_RTCP, b"")
    assert (kept(wire), wire.calls.released(), wire.end()) == ([], [1], [])
    assert wire.calls.counters["rtcp_unmatched"] == 3


def test_rtcp_that_comes_before_its_call_is_known_is_kept_with_it(wire):
    """Before the stream's first packet, and while it waits for its SDP."""
    early, waiting, later = (sender_report(1, [Block(2, lost=n)], packets=n) for n in (1, 2, 3))
    say(wire, A_RTCP, early)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    say(wire, A_RTCP, waiting)
    assert kept(wire) == []
    Leg(wire).answer(ALICE, BOB)
    say(wire, A_RTCP, later)
    assert kept(wire) == [(CONTROL, [200] * 3, [early, waiting, later])]
    (call,) = wire.end()
    assert call.streams[1].far_end == FarEnd(reports=3, lost=3)


def test_encrypted_rtcp_of_a_stream_that_waits_for_its_call_is_kept(wire):
    sealed = sender_report(1)[:8] + bytes(range(40))
    wire.rtp(*A_TO_B, ssrc=1)
    say(wire, A_RTCP, sealed)
    key = ("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + "QUJD" * 10,)
    Leg(wire).answer(sdp("10.0.0.1:4000", more=key), sdp("10.0.0.2:5000", more=key))
    assert kept(wire) == [(CONTROL, [200], [sealed])]


def test_of_streams_that_nobody_claims_no_more_rtcp_is_held_than_its_share(wire):
    wire.rtp(*A_TO_B, ssrc=1)
    for number in range(40):
        say(wire, A_RTCP, sender_report(1, packets=number))
    for ssrc in range(300):
        say(wire, B_RTCP, sender_report(1000 + ssrc))
    assert wire.calls.counters["rtcp_unmatched"] == 40 - 32 + 300 - 256


def test_what_is_malformed_is_counted_and_not_kept(wire, leg):
    say(wire, A_RTCP, packet(200, 9, bytes(24)))
    say(wire, A_RTCP, b"")
    assert kept(wire) == []
    assert wire.calls.counters["rtcp_unreadable"] == 2


def test_encrypted_rtcp_is_kept_and_not_read(wire):
    leg = Leg(wire)
    key = ("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + "QUJD" * 10,)
    leg.answer(sdp("10.0.0.1:4000", more=key), sdp("10.0.0.2:5000", more=key))
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    sealed = sender_report(1, [Block(2, lost=5)]) + bytes(14)  # index and tag, RFC 3711 §3.4
    say(wire, A_RTCP, sealed)
    assert kept(wire) == [(CONTROL, [200], [sealed])]
    (call,) = wire.end()
    assert [stream.far_end for stream in call.streams] == [None, None]
    assert wire.calls.counters["rtcp_encrypted"] == 1


def test_both_calls_of_a_shared_stream_are_told(wire):
    for call_id, hosts in (
        ("leg-1", ("10.0.0.1", "10.0.0.9")),
        ("leg-2", ("10.0.0.9", "10.0.0.2")),
    ):
        Leg(wire, call_id, hosts=(f"{hosts[0]}:5060", f"{hosts[1]}:5060")).answer(ALICE, BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    say(wire, A_RTCP, sender_report(1, [Block(2, lost=3)]))
    owner, sharer = wire.end()
    assert [call.streams[1].far_end for call in (owner, sharer)] == [FarEnd(reports=1, lost=3)] * 2
    (beside,) = sharer.beside
    assert (beside.stored_in, beside.stored_as) == (owner.id, owner.beside[0].number)


def test_an_rtcp_bye_frees_the_ports_before_silence_does(wire):
    """The next call's media is its own, though the SIP BYE was lost and no second has passed."""
    first = Leg(wire, "first")
    first.answer(ALICE, BOB)
    row = wire.rtp(*A_TO_B, ssrc=1, seconds=1)
    wire.rtp(*B_TO_A, ssrc=2, seconds=1)
    wire.now_ns += SECOND
    say(wire, A_RTCP, receiver_report(1) + goodbye(1), after_s=0.01)
    wire.calls.tick(wire.now_ns)
    wire.attached()
    wire.now_ns += SECOND // 5
    wire.calls.tick(wire.now_ns)
    Leg(wire, "second").answer(ALICE, BOB)
    wire.attached()
    assert row in wire.closed
