"""Which stream is whose: conversations and RTP in, attachments out."""

import pytest

from tests.support.conversation import A_TO_B, ALICE, B_TO_A, BOB, SECOND, Leg, sdp, sounds, talk


def test_a_stream_is_attached_as_soon_as_it_is_heard(wire):
    leg = Leg(wire)
    leg.answer(ALICE, BOB)
    row = wire.rtp(*A_TO_B)
    assert wire.attached() == {row: ((1).to_bytes(16, "big"), 0)}


def test_rtp_before_the_answer_belongs_to_the_call_from_the_offer_on(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    row = wire.rtp(*B_TO_A)
    assert row in wire.attached()


def test_rtp_before_any_sdp_is_claimed_when_the_sdp_comes(wire):
    row = wire.rtp(*B_TO_A)
    assert wire.attached() == {}
    Leg(wire).answer(ALICE, BOB)
    assert row in wire.attached()


def test_rtp_that_nobody_ever_claims_is_released(wire):
    row = wire.rtp(*B_TO_A, seconds=1)
    wire.wait(20)
    assert wire.calls.released() == []
    wire.wait(20)
    assert wire.calls.released() == [row]


def test_early_media(wire):
    leg = Leg(wire)
    leg.invite(ALICE)
    leg.reply(183, body=BOB)
    wire.rtp(*B_TO_A)
    wire.wait(4)
    leg.reply(200, body=BOB)
    leg.bye()
    [call] = wire.end()
    assert "early_media" in call.flags
    assert sounds(call) == [("callee", "PCMU", 250)]


def test_delayed_offer(wire):
    leg = Leg(wire)
    leg.invite()
    leg.reply(200, body=BOB)
    leg.ack(ALICE)
    wire.rtp(*A_TO_B)
    wire.rtp(*B_TO_A)
    leg.bye()
    [call] = wire.end()
    assert [stream.party for stream in call.streams] == ["caller", "callee"]
    assert call.flags == ["delayed_offer"]


def test_hold_and_resume_stay_one_call_without_a_gap_in_its_streams(wire):
    leg = Leg(wire)
    talk(wire, leg)
    wire.attached()
    for cseq, offer in ((2, sdp("0.0.0.0:4000")), (3, ALICE)):
        leg.cseq = cseq
        leg.request("INVITE", "caller", offer)
        leg.reply(200, body=BOB)
        leg.ack()
    assert wire.attached() == {}
    assert wire.closed == {}
    leg.bye()
    [call] = wire.end()
    assert call.flags == ["hold"]
    assert len(call.streams) == 2


def test_a_reinvite_moves_the_media(wire):
    leg = Leg(wire)
    talk(wire, leg)
    leg.cseq = 2
    leg.request("INVITE", "callee", sdp("10.0.0.7:7000"), cseq=10)
    leg.reply(200, by="caller", body=ALICE, cseq=10)
    wire.rtp("10.0.0.7:7000", "10.0.0.1:4000", ssrc=3)
    wire.rtp("10.0.0.1:4000", "10.0.0.7:7000", ssrc=1)
    leg.bye()
    [call] = wire.end()
    assert [stream.party for stream in call.streams] == ["caller", "callee", "callee", "caller"]


def test_a_payload_type_that_changes_its_meaning_ends_the_stream(wire):
    leg = Leg(wire)
    leg.answer(sdp("10.0.0.1:4000", "97 iLBC/8000"), sdp("10.0.0.2:5000", "97 iLBC/8000"))
    row = wire.rtp(*A_TO_B, payload_type=97)
    leg.cseq = 2
    leg.request("INVITE", "caller", sdp("10.0.0.1:4000", "97 opus/48000/2"))
    leg.reply(200, body=sdp("10.0.0.2:5000", "97 opus/48000/2"))
    wire.attached()
    assert row in wire.closed
    wire.rtp(*A_TO_B, payload_type=97)
    [call] = wire.end()
    assert [codec for _, codec, _ in sounds(call)] == ["iLBC", "opus"]
    assert "codec_changed" in call.flags


def test_a_static_payload_type_that_was_never_negotiated_is_known(wire):
    Leg(wire).answer(ALICE, BOB)
    wire.rtp(*A_TO_B, payload_type=18)
    [call] = wire.end()
    assert sounds(call)[0][:2] == ("caller", "G729")


def test_a_refused_video_line_takes_no_stream(wire):
    both = ALICE + b"m=video 4002 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    Leg(wire).answer(both, BOB + b"m=video 0 RTP/AVP 96\r\n")
    wire.rtp("10.0.0.2:5002", "10.0.0.1:4002", payload_type=96)
    [call] = wire.end()
    assert call.streams == []


def test_nat_the_source_is_not_what_the_sdp_says(wire):
    leg = Leg(wire)
    leg.answer(sdp("192.168.1.5:4000"), BOB)
    wire.rtp("10.0.0.1:31000", "10.0.0.2:5000", ssrc=1)
    wire.rtp("10.0.0.2:5000", "10.0.0.1:31000", ssrc=2)
    [call] = wire.end()
    assert [stream.party for stream in call.streams] == ["caller", "callee"]


def test_a_stream_with_one_end_of_ours_is_not_stolen_from_the_call_with_both(wire):
    Leg(wire, "first").answer(ALICE, BOB)
    hosts = ("10.0.0.3:5060", "10.0.0.2:5060")
    Leg(wire, "second", hosts=hosts).answer(sdp("10.0.0.3:4000"), BOB)
    wire.rtp(*A_TO_B)
    first, second = wire.end()
    assert (len(first.streams), len(second.streams)) == (1, 0)


def test_a_stream_that_hangs_by_its_source_alone_is_not_stolen_by_who_names_its_other_end(wire):
    Leg(wire, "first").answer(ALICE, BOB)
    wire.rtp(A_TO_B[0], "192.0.2.77:9000")
    hosts = ("192.0.2.77:5060", "10.0.0.9:5060")
    Leg(wire, "second", hosts=hosts).answer(sdp("192.0.2.77:9000"), sdp("10.0.0.9:7000"))
    wire.attached()
    assert wire.closed == {}
    assert [len(call.streams) for call in wire.end()] == [1, 0]


def test_the_next_call_takes_the_ports_over(wire):
    first, second = Leg(wire, "first"), Leg(wire, "second")
    talk(wire, first)
    first.bye()
    [ended] = [call.ended_ns for call in wire.calls._table]
    wire.wait(0.5)
    wire.attached()
    second.invite(ALICE)
    second.reply(200, body=BOB)
    wire.attached()
    assert all(ended < at_ns < ended + 2 * SECOND for at_ns in wire.closed.values())
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    second.bye()
    assert [len(call.streams) for call in wire.end()] == [2, 2]


def test_ports_that_two_calls_named_are_the_newer_ones(wire):
    """The first one's BYE was lost, and no media of it was heard."""
    Leg(wire, "first").answer(ALICE, BOB)
    wire.wait(10)
    Leg(wire, "second").answer(ALICE, BOB)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    assert [len(call.streams) for call in wire.end()] == [0, 2]


def test_signalling_that_runs_ahead_of_media_by_a_block(wire):
    """In a replayed file both calls are over before the first packet is looked at."""
    first, second = Leg(wire, "first"), Leg(wire, "second")
    first.answer(ALICE, BOB)
    heard_ns = wire.now_ns + 100_000_000
    wire.now_ns += 5 * SECOND
    first.bye()
    wire.now_ns += SECOND
    second.answer(ALICE, BOB)
    again_ns = wire.now_ns + 100_000_000
    wire.now_ns += 5 * SECOND
    second.bye()
    now_ns = wire.now_ns
    for wire.now_ns in (heard_ns, again_ns):
        wire.rtp(*A_TO_B, ssrc=1)
    wire.now_ns = now_ns
    assert [len(call.streams) for call in wire.end()] == [1, 1]


def test_calls_that_share_their_ports_at_the_same_time_are_told_apart_by_ssrc(wire):
    legs = [Leg(wire, f"call-{number}") for number in range(3)]
    for number, leg in enumerate(legs):
        leg.answer(ALICE, BOB)
        wire.rtp(*A_TO_B, ssrc=number)
        wire.rtp(*B_TO_A, ssrc=number)
        wire.wait(1)
    for leg in legs:
        leg.bye()
    calls = wire.end()
    assert [[stream.ssrc for stream in call.streams] for call in calls] == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("theirs", "flags"),
    [
        ("UNENCRYPTED_SRTP", {"srtp_sdes"}),
        ("KDR=4", {"srtp_sdes"}),
        ("UNAUTHENTICATED_SRTP", {"srtp_sdes", "srtp_no_key"}),
    ],
)
def test_a_side_without_a_key_that_can_be_used_is_told_of(wire, theirs: str, flags: set[str]):
    key = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR"
    leg = Leg(wire)
    leg.answer(sdp("10.0.0.1:4000", more=(key,)), sdp("10.0.0.2:5000", more=(f"{key} {theirs}",)))
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    leg.bye()
    (call,) = wire.end()
    assert set(call.flags) == flags


@pytest.mark.parametrize("phone", ["10.0.0.1:4000", "203.0.113.7:30000"])
def test_a_redial_within_the_grace_of_the_call_before_takes_its_streams_at_once(wire, phone):
    """One SSRC goes on from call to call; the phone may be behind NAT, one end is known then."""
    first = Leg(wire, "first")
    first.answer(ALICE, BOB)
    row = wire.rtp(phone, "10.0.0.2:5000", ssrc=1, seconds=9)
    wire.wait(5)
    first.bye()
    wire.wait(0.3)
    again_ns = wire.now_ns
    second = Leg(wire, "second")
    second.answer(ALICE, BOB)
    wire.attached()
    assert 0 <= wire.closed[row] - again_ns < SECOND // 10


FAX = "v=0\r\no=- 1 2 IN IP4 {0}\r\ns=-\r\nc=IN IP4 {0}\r\nt=0 0\r\nm=image {1} udptl t38\r\n"


def reoffer(leg: Leg, offer: bytes, answer: bytes, status: int = 200) -> None:
    leg.cseq += 1
    leg.request("INVITE", "callee", offer)
    leg.reply(status, by="caller", body=answer)
    leg.request("ACK", "callee")


def test_a_fax_within_a_call_marks_it_for_good_and_its_sound_goes_on(wire):
    leg = Leg(wire)
    talk(wire, leg)
    reoffer(leg, FAX.format("10.0.0.2", 5000).encode(), FAX.format("10.0.0.1", 4000).encode())
    wire.wait(30)
    reoffer(leg, BOB, ALICE)
    wire.rtp(*A_TO_B, ssrc=3)
    wire.rtp(*B_TO_A, ssrc=4)
    wire.wait(5)
    leg.bye()
    (call,) = wire.end()
    assert call.flags == ["fax"]
    assert sounds(call) == [
        (party, "PCMU", 250) for party in ("caller", "callee", "caller", "callee")
    ]


def test_fax_packets_that_begin_as_rtp_does_are_no_sound(wire):
    """UDPTL numbers its packets: from 0x8000 on each looks like the first of some stream."""
    leg = Leg(wire)
    talk(wire, leg)
    reoffer(leg, FAX.format("10.0.0.2", 5000).encode(), FAX.format("10.0.0.1", 4000).encode())
    for number in range(20):
        wire.rtp(*A_TO_B, ssrc=0x12340000 + 977 * number, payload_type=number, seconds=0)
        wire.rtp(*B_TO_A, ssrc=0x56780000 + 977 * number, payload_type=number, seconds=0)
        wire.wait(0.3)
    racing = wire.rtp(*B_TO_A, ssrc=4)  # before the offer that explains it, and on behind it
    reoffer(leg, BOB, ALICE)
    wire.rtp(*A_TO_B, ssrc=3)
    assert racing in wire.attached()
    wire.wait(5)
    leg.bye()
    (call,) = wire.end()
    assert [stream.ssrc for stream in call.streams] == [1, 2, 4, 3]


def test_a_fax_that_was_refused_marks_nothing(wire):
    leg = Leg(wire)
    talk(wire, leg)
    reoffer(leg, FAX.format("10.0.0.2", 5000).encode(), b"", 488)
    leg.bye()
    (call,) = wire.end()
    assert call.flags == []


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("a=fingerprint:sha-256 " + ":".join(["AB"] * 32), "srtp_dtls"),
        ("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + "QUJD" * 10, "srtp_sdes"),
    ],
)
def test_what_was_encrypted_stays_marked_where_the_call_goes_on_in_plain(wire, line, flag):
    leg = Leg(wire)
    secure = [sdp(at, more=(line,)) for at in ("10.0.0.1:4000", "10.0.0.2:5000")]
    leg.answer(*secure)
    wire.rtp(*A_TO_B, ssrc=1)
    wire.rtp(*B_TO_A, ssrc=2)
    wire.wait(5)
    reoffer(leg, BOB, ALICE)
    leg.bye()
    (call,) = wire.end()
    assert call.flags == [flag]
