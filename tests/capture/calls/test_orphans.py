"""RTP without signalling is kept, bounded, and taken over by the call that turns out to be it."""

import struct

import pytest

from capture.calls.calls import Calls
from capture.media.engine import NO_TOTALS
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Call, Related
from storaged.recordings.reading import sources_of
from tests.support.callgen import SECOND, START_NS, phones, udp_frame
from tests.support.running import Run
from tests.support.unsignalled import both, signalled, speech, tone

ONE, OTHER = phones(0.1)
DAY_NS = 86_400 * SECOND


def said(run: Run, call: Call) -> dict[tuple[str, str], list[bytes]]:
    """The payloads of each party and source, wherever they are stored, in order of storage."""
    found: dict[tuple[str, str], list[bytes]] = {}
    for source in sources_of(call):
        for chunk in run.chunks:
            if chunk.recording_id != source.recording_id:
                continue
            number = int(chunk.header["stream"])
            ours = number if source.numbers is None else source.numbers.get(number)
            if ours is not None:
                stream = call.streams[ours]
                found.setdefault((stream.party, stream.source), []).extend(
                    bytes(each) for each in chunk.payloads()
                )
    return found


def whole(run: Run, call: Call, seconds: float, first: int = 0) -> None:
    """Every packet of both is there, once, under the right party."""
    numbers = range(first, first + round(seconds * 50))
    heard = {key: sorted(payloads) for key, payloads in said(run, call).items()}
    assert heard == {
        (party, f"{who.address}:{who.rtp_port}"): sorted(tone(who, n) for n in numbers)
        for party, who in (("caller", ONE), ("callee", OTHER))
    }


def counted(call: Call) -> list[tuple[str, int, int]]:
    return [(stream.party, stream.packets, stream.lost) for stream in call.streams]


def split(calls: list[Call]) -> tuple[list[Call], list[Call]]:
    """Those with signalling, and those without."""
    return [c for c in calls if c.call_ids], [c for c in calls if not c.call_ids]


# --- kept ---------------------------------------------------------------------


def test_a_conversation_without_signalling_is_one_recording_of_both_directions():
    run = Run().part(both(ONE, OTHER, 40)).wait(40)
    (call,) = run.calls()
    assert counted(call) == [("unknown", 2000, 0), ("unknown", 2000, 0)]
    assert (call.outcome, call.end_reason, call.flags) == ("unknown", "timeout", ["no_signalling"])
    ends = {f"{who.address}:{who.rtp_port}" for who in (ONE, OTHER)}
    assert {call.caller, call.callee} == ends == {stream.source for stream in call.streams}
    assert (call.call_ids, call.final) == ([], True)
    assert call.expires_ns == call.started_ns + 7 * DAY_NS
    assert len(run.heard(call, 0)) == len(run.heard(call, 1)) == 2000 * 160
    assert call.streams[0].codecs[8].name == "PCMA"


def test_it_is_not_decided_before_signalling_had_its_time():
    run = Run().part(both(ONE, OTHER, 20))
    assert run.records == []
    run.part(both(ONE, OTHER, 10, at=20, first=1000))
    assert [call.flags for call in run.calls()] == [["no_signalling"]]


def test_a_short_one_is_kept_too_and_at_the_end_of_a_file_at_once(tmp_path):
    for run in (
        Run().part(both(ONE, OTHER, 3)).wait(60),
        Run().play(tmp_path, both(ONE, OTHER, 3)).end(),
    ):
        (call,) = run.calls()
        assert counted(call) == [("unknown", 150, 0), ("unknown", 150, 0)]
        assert call.final


def test_one_that_precedes_hours_of_silence_in_a_file_is_kept(tmp_path):
    frames = both(ONE, OTHER, 3) + both(*phones(0.1, 5), 3, at=5 * 3600)
    run = Run().play(tmp_path, frames).end()
    assert [counted(call) for call in run.calls()] == [[("unknown", 150, 0)] * 2] * 2


def test_a_stopped_capture_leaves_nothing_unkept_and_goes_on_with_it():
    first = Run().part(both(ONE, OTHER, 5))
    first.take(first.recorder.pause())
    second = Run(first_id=100)
    second.recorder.calls.restore(first.recorder.calls.snapshot())
    second.part(both(ONE, OTHER, 5, at=6, first=250)).wait(40)
    (before,), (after,) = first.calls(), second.calls()
    assert before.id == after.id
    assert after.flags == ["capture_restarted", "no_signalling"]
    assert [stream.packets for stream in after.streams] == [250] * 4


def test_a_new_ssrc_of_the_same_sender_is_the_same_conversation():
    moved = ONE.__class__(ONE.number, ONE.address, ONE.rtp_port, 77, ONE.samples)
    frames = speech(ONE, OTHER, 10) + speech(moved, OTHER, 10, at=12)
    (call,) = Run().part(frames).wait(60).calls()
    assert [stream.ssrc for stream in call.streams] == [ONE.ssrc, 77]


def test_two_voices_at_once_on_the_same_ports_are_two_conversations():
    second = ONE.__class__(ONE.number, ONE.address, ONE.rtp_port, 77, ONE.samples)
    frames = sorted(speech(ONE, OTHER, 10) + speech(second, OTHER, 10, at=2))
    calls = Run().part(frames).wait(60).calls()
    assert [[stream.ssrc for stream in call.streams] for call in calls] == [[ONE.ssrc], [77]]


def test_silence_ends_it_and_what_follows_is_another():
    frames = both(ONE, OTHER, 10) + both(ONE, OTHER, 10, at=60, first=9000)
    calls = Run().part(frames).wait(60).calls()
    assert [counted(call) for call in calls] == [[("unknown", 500, 0)] * 2] * 2


def test_one_that_never_ends_is_cut_into_recordings():
    run = Run(orphan_minutes=1.0).part(both(ONE, OTHER, 150)).wait(60)
    calls = run.calls()
    assert len(calls) == 3
    assert sum(packets for call in calls for _, packets, _ in counted(call)) == 2 * 7500
    assert all(lost == 0 for call in calls for _, _, lost in counted(call))


# --- not kept ---------------------------------------------------------------------


def frames_of(payloads: list[bytes]) -> list:
    ends = ("10.1.0.1", 4000), ("10.1.0.2", 5000)
    return [udp_frame(START_NS + n * SECOND // 50, *ends, part) for n, part in enumerate(payloads)]


def packet(sequence: int, timestamp: int, ssrc: int = 7, payload_type: int = 8) -> bytes:
    head = (0x80, payload_type, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc)
    return struct.pack("!BBHII", *head) + bytes(160)


NO_RTP = {
    "too few": [packet(n, 160 * n) for n in range(60)],
    "a sequence that jumps about": [packet(n * 7919, 160 * n) for n in range(500)],
    "a sequence that stands still": [packet(9, 160 * n) for n in range(500)],
    "no time": [packet(n, 0) for n in range(500)],
    "an SSRC a packet": [packet(n, 160 * n, ssrc=n) for n in range(500)],
    "television": [packet(n, 3600 * n, payload_type=33) for n in range(500)],
}


@pytest.mark.parametrize("kind", NO_RTP)
def test_what_is_no_conversation_makes_no_recording(kind):
    run = Run().part(frames_of(NO_RTP[kind])).wait(60)
    assert (run.records, run.chunks) == ([], [])
    assert run.recorder.counters()["unmatched_dropped"]


def test_none_is_kept_where_the_settings_say_so():
    run = Run(orphans=0).part(both(ONE, OTHER, 40)).wait(60).end()
    assert (run.records, run.chunks) == ([], [])


def test_there_are_no_more_at_once_than_the_settings_say():
    frames = sorted(frame for n in range(5) for frame in both(*phones(0.1, n), 4))
    run = Run(orphans=3).part(frames).wait(60)
    assert len(run.calls()) == 3
    assert run.recorder.counters()["orphans_over_number"] == 4


def test_nor_do_they_take_more_than_their_rate():
    frames = sorted(frame for n in range(5) for frame in both(*phones(0.1, n), 4))
    run = Run(orphan_mbit=0.5).part(frames).wait(60)
    assert len(run.calls()) == 3  # each 2 × 80 kbit/s
    assert run.recorder.counters()["orphans_over_rate"] == 4


def test_one_that_begins_slowly_and_then_floods_has_to_go():
    slow = speech(ONE, OTHER, 40)
    ends = (ONE.address, ONE.rtp_port), (OTHER.address, OTHER.rtp_port)
    fast = [
        udp_frame(START_NS + 40 * SECOND + n * SECOND // 1000, *ends,
                  packet(3000 + n, 160 * (2000 + n), ONE.ssrc))
        for n in range(20_000)
    ]  # fmt: skip
    run = Run().part(slow + fast)
    (call,) = run.calls()
    assert call.end_reason == "evicted"
    assert counted(call)[0][1] < 2000 + 15_000


def test_a_flood_of_streams_pushes_out_neither_a_call_nor_a_conversation_that_proved_itself():
    talk = sorted(
        [*signalled(ONE, OTHER, "call@x", 0, ("invite", "ok", "ack")), *both(ONE, OTHER, 40, at=1)]
    )
    unsignalled = both(*phones(0.1, 3), 40)
    flood = [
        udp_frame(START_NS + n * SECOND // 1500, ("10.9.0.1", 4000 + n % 50_000),
                  ("10.9.0.2", 5000), packet(n, 160 * n, ssrc=n))
        for n in range(60_000)
    ]  # fmt: skip
    run = Run().part(sorted([*talk, *unsignalled, *flood])).wait(60)
    (call,), (kept,) = split(run.calls())
    assert [stream.packets for stream in call.streams] == [2000, 2000]
    assert [stream.packets for stream in kept.streams] == [2000, 2000]


# --- joined ---------------------------------------------------------------------

LATE = {
    "re-INVITE and its answer": ("reinvite", "ok"),
    "only the caller's re-INVITE": ("reinvite",),
    "only a 200 OK": ("ok",),
}


@pytest.mark.parametrize("at", [10, 50])
@pytest.mark.parametrize("kinds", LATE.values(), ids=LATE)
def test_a_call_that_is_first_heard_in_its_midst_takes_what_was_kept(kinds, at):
    frames = sorted(
        [
            *both(ONE, OTHER, 80),
            *signalled(ONE, OTHER, "late@x", at, kinds),
            *signalled(ONE, OTHER, "late@x", 80.5, ("bye", "okbye")),
        ]
    )
    run = Run().part(frames).wait(20)
    (call,), kept = split(run.calls())
    assert (call.outcome, call.end_reason) == ("answered", "bye")
    whole(run, call, 80)
    assert sum(stream.packets for stream in call.streams) == 2 * 80 * 50
    assert sum(stream.lost for stream in call.streams) == 0
    assert len(kept) == (at > 30)
    for one in kept:
        assert one.related == [Related("joined", "late@x")]
        assert call.related == [Related("joined", one.id.hex())]
        assert (one.end_reason, one.expires_ns, one.final) == ("joined", None, True)
        stored = {stream.stored_in for stream in call.streams}
        assert stored == {None, one.id}


def test_a_bye_alone_takes_what_was_kept_between_its_hosts():
    frames = [*both(ONE, OTHER, 60), *signalled(ONE, OTHER, "bye@x", 60.1, ("bye", "okbye"))]
    run = Run().part(frames).wait(20)
    (call,), (kept,) = split(run.calls())
    assert (call.flags, kept.end_reason) == (["started_mid_call"], "joined")
    whole(run, call, 60)


def test_a_message_without_sdp_takes_what_was_kept_and_what_follows():
    frames = sorted(
        [
            *both(ONE, OTHER, 90),
            *signalled(ONE, OTHER, "info@x", 50, ("info",)),
            *signalled(ONE, OTHER, "info@x", 90.1, ("bye", "okbye")),
        ]
    )
    run = Run().part(frames).wait(20)
    (call,), (kept,) = split(run.calls())
    assert kept.end_reason == "joined"
    whole(run, call, 90)


def test_both_legs_of_a_b2bua_list_what_was_kept():
    pbx, _ = phones(0.1, 9)
    frames = sorted(
        [
            *both(ONE, OTHER, 60),
            *signalled(ONE, pbx, "leg-1@x", 40, ("reinvite", "ok"), (ONE, OTHER)),
            *signalled(pbx, OTHER, "leg-2@x", 40.2, ("reinvite", "ok"), (ONE, OTHER)),
            *signalled(ONE, pbx, "leg-1@x", 60.1, ("bye", "okbye")),
            *signalled(pbx, OTHER, "leg-2@x", 60.2, ("bye", "okbye")),
        ]
    )
    run = Run().part(frames).wait(20)
    legs, kept = split(run.calls())
    assert (len(legs), len(kept)) == (2, 1)
    for leg in legs:
        whole(run, leg, 60)


def test_a_restart_between_does_not_hinder_it():
    first = Run().part(both(ONE, OTHER, 40))
    first.take(first.recorder.pause())
    second = Run(first_id=100)
    second.recorder.calls.restore(first.recorder.calls.snapshot())
    frames = sorted(
        [
            *signalled(ONE, OTHER, "late@x", 45, ("reinvite", "ok")),
            *both(ONE, OTHER, 20, at=40, first=2000),
            *signalled(ONE, OTHER, "late@x", 60.1, ("bye", "okbye")),
        ]
    )
    second.part(frames).wait(20)
    second.chunks = first.chunks + second.chunks
    (call,), (kept,) = split(second.calls())
    assert (call.end_reason, kept.end_reason) == ("bye", "joined")
    whole(second, call, 60)


@pytest.mark.parametrize("pause", [3, 20])
def test_a_call_that_begins_on_the_same_ports_does_not_get_what_was_there_before(pause):
    """The one before was not signalled; the phones use port and SSRC again."""
    frames = [
        *both(ONE, OTHER, 60),
        *signalled(ONE, OTHER, "next@x", 60 + pause, ("invite", "ok", "ack")),
        *both(ONE, OTHER, 10, at=61 + pause, first=50_000),
        *signalled(ONE, OTHER, "next@x", 72 + pause, ("bye", "okbye")),
    ]
    run = Run().part(frames).wait(60)
    (call,), (kept,) = split(run.calls())
    whole(run, call, 10, first=50_000)
    assert counted(kept) == [("unknown", 3000, 0)] * 2
    assert kept.related == call.related == []


def test_a_call_never_takes_a_voice_that_goes_on_at_its_port():
    """A gateway that has all its calls on one port: two of them, one without signalling."""
    mine = [phone.__class__(phone.number, phone.address, phone.rtp_port, phone.ssrc + 999,
                            phone.samples) for phone in (ONE, OTHER)]  # fmt: skip
    frames = sorted(
        [
            *both(ONE, OTHER, 80),
            *signalled(ONE, OTHER, "mine@x", 50, ("invite", "ok", "ack")),
            *both(*mine, 20, at=51),
            *signalled(ONE, OTHER, "mine@x", 71.5, ("bye", "okbye")),
        ]
    )
    run = Run().part(frames).wait(60)
    (call,), kept = split(run.calls())
    assert sorted(stream.ssrc for stream in call.streams) == sorted(one.ssrc for one in mine)
    assert sum(stream.packets for one in kept for stream in one.streams) == 2 * 80 * 50


# --- behind a BYE ---------------------------------------------------------------------------------


def call_with_a_tail(answered: bool, tail_s: float) -> Run:
    kinds = ("bye", "okbye") if answered else ("bye",)
    frames = [
        *signalled(ONE, OTHER, "tail@x", 0, ("invite", "ok", "ack")),
        *both(ONE, OTHER, 10, at=1),
        *signalled(ONE, OTHER, "tail@x", 11.01, kinds),
        *speech(OTHER, ONE, tail_s, at=11.03, first=500),
    ]
    return Run().part(sorted(frames)).wait(60)


def test_who_never_got_the_bye_is_heard_until_he_stops():
    (call,) = call_with_a_tail(answered=False, tail_s=10).calls()
    assert sorted(counted(call)) == [("callee", 1000, 0), ("caller", 500, 0)]
    assert call.ended_ns == START_NS + round(11.01 * SECOND)


def test_what_goes_on_behind_an_answered_bye_is_kept_apart():
    (call,), (kept,) = split(call_with_a_tail(answered=True, tail_s=10).calls())
    packets = {stream.party: stream.packets for stream in call.streams}
    assert packets == {"caller": 500, "callee": 600}  # two seconds of grace
    assert counted(kept) == [("unknown", 400, 0)]
    assert kept.related == [Related("continued", "tail@x")]


def test_a_table_with_recordings_that_have_no_call_id_is_restored():
    run = Run().part(both(ONE, OTHER, 40))
    calls = Calls(CaptureConfig(), lambda row: NO_TOTALS, lambda: bytes(16))
    calls.restore(run.recorder.calls.snapshot())
    assert calls.active == 1
