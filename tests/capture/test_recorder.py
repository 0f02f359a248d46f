"""A capture and the recording it must give: all rooms of capture together, on forged calls."""

import socket
from dataclasses import replace

import pytest

from tests.support.callgen import (
    SECOND,
    START_NS,
    Dialogue,
    answered,
    busy,
    phones,
    sdp,
    talk,
    udp_frame,
)
from tests.support.frames import block
from tests.support.running import Run
from tests.support.voices import payloads

CALLER, CALLEE = phones(3.0)


def test_a_call_becomes_one_final_record_and_every_byte_that_was_said(tmp_path):
    run = Run().play(tmp_path, answered(START_NS, CALLER, CALLEE, "a@example")).end()
    (call,) = run.calls()
    assert (call.caller, call.callee, call.outcome) == (CALLER.number, CALLEE.number, "answered")
    assert (call.end_reason, call.final) == ("bye", True)
    said = {"caller": CALLER, "callee": CALLEE}
    for stream in call.streams:
        expected = payloads(said[stream.party].samples)
        assert run.heard(call, stream.number) == b"".join(expected)
        assert (stream.packets, stream.lost, stream.duplicates) == (len(expected), 0, 0)


def test_a_busy_line_has_a_record_and_no_media(tmp_path):
    run = Run().play(tmp_path, busy(START_NS, CALLER, CALLEE, "b@example")).end()
    (call,) = run.calls()
    assert (call.outcome, call.streams, run.chunks) == ("busy", [], [])


def test_the_last_record_comes_when_all_media_has_left(tmp_path):
    frames = answered(START_NS, CALLER, CALLEE, "a@example")
    run = Run().play(tmp_path, frames)
    while not run.records or not run.records[-1].final:
        run.take(run.recorder.tick(run.recorder.now_ns + SECOND))
    (call,) = run.calls()
    assert sum(stream.packets for stream in call.streams) == sum(
        len(chunk.frames) for chunk in run.chunks
    )
    before = len(run.chunks)
    run.end()
    assert len(run.chunks) == before


def test_mirrored_twice_is_recorded_once(tmp_path):
    frames = answered(START_NS, CALLER, CALLEE, "a@example")
    twice = sorted([*frames, *(frame._replace(time_ns=frame.time_ns + 3_000) for frame in frames)])
    run = Run().play(tmp_path, twice).end()
    (call,) = run.calls()
    packets = len(payloads(CALLER.samples))
    assert [(s.packets, s.duplicates) for s in call.streams] == [(packets, packets)] * 2
    assert run.heard(call, 0) in (b"".join(payloads(who.samples)) for who in (CALLER, CALLEE))


def test_a_restarted_recorder_goes_on_with_the_call(tmp_path):
    frames = answered(START_NS, CALLER, CALLEE, "a@example")
    half = len(frames) // 2
    first = Run().play(tmp_path, frames[:half])
    first.take(first.recorder.pause())
    second = Run()
    second.recorder.calls.restore(first.recorder.calls.snapshot())
    second.play(tmp_path, frames[half:]).end()
    (call,) = second.calls()
    assert call.id == first.calls()[0].id
    assert (call.outcome, call.end_reason, call.final) == ("answered", "bye", True)
    assert "capture_restarted" in call.flags
    numbers = [stream.number for stream in call.streams]
    assert len(numbers) == len(set(numbers)) == 4  # each party: before and after
    heard = b"".join(first.heard(call, n) + second.heard(call, n) for n in numbers)
    assert len(heard) == 2 * len(b"".join(payloads(CALLER.samples)))


@pytest.mark.parametrize("kind", ["nothing", "noise", "rtp nobody asked for"])
def test_other_traffic_is_no_call(tmp_path, kind):
    ends = ("10.0.0.1", 4000), ("10.0.0.2", 5000)
    data = {"nothing": [], "noise": [bytes(range(200))] * 50}.get(
        kind, [b"\x80\x08" + n.to_bytes(2, "big") + bytes(168) for n in range(200)]
    )
    frames = [udp_frame(START_NS + n * SECOND // 50, *ends, part) for n, part in enumerate(data)]
    run = Run().play(tmp_path, frames).end()
    assert run.records == []
    assert run.chunks == []


def test_a_clock_set_back_by_an_hour_holds_nothing_up(tmp_path):
    run = Run().play(tmp_path, busy(START_NS, CALLER, CALLEE, "b@example"))
    frames = answered(START_NS - 3600 * SECOND, CALLER, CALLEE, "a@example")
    run.play(tmp_path, frames)
    for _ in range(3):
        run.take(run.recorder.tick(run.recorder.now_ns + SECOND))
    assert run.chunks  # before the end: seconds go on being flushed
    run.end()
    call = next(call for call in run.calls() if call.call_ids == ["a@example"])
    assert (call.outcome, [stream.lost for stream in call.streams]) == ("answered", [0, 0])


def later(frames: list, seconds: float) -> list:
    return [frame._replace(time_ns=frame.time_ns + int(seconds * SECOND)) for frame in frames]


def heard_of(run: Run) -> list:
    """Each call's outcome and packets a stream, by the time it began."""
    calls = sorted(run.calls(), key=lambda call: call.started_ns)
    return [(call.end_reason, [stream.packets for stream in call.streams]) for call in calls]


def test_calls_hours_apart_in_one_block_keep_their_media(tmp_path):
    frames = [
        frame
        for number, hours in enumerate((0, 5, 40))
        for frame in later(answered(START_NS, CALLER, CALLEE, f"{number}@example"), hours * 3600)
    ]
    assert heard_of(Run().play(tmp_path, frames).end()) == [("bye", [150, 150])] * 3


def test_a_call_whose_bye_was_lost_ends_before_the_next_on_its_ports(tmp_path):
    lost_bye = answered(START_NS, CALLER, CALLEE, "a@example")[:-2]
    frames = lost_bye + later(answered(START_NS, CALLER, CALLEE, "b@example"), 5 * 3600)
    run = Run().play(tmp_path, frames).end()
    assert heard_of(run) == [("timeout", [150, 150]), ("bye", [150, 150])]


def test_a_same_ssrc_goes_to_the_next_call_on_its_ports(tmp_path):
    lost_bye = answered(START_NS, CALLER, CALLEE, "a@example")[:-2]
    frames = lost_bye + later(answered(START_NS, CALLER, CALLEE, "b@example"), 8)
    run = Run().play(tmp_path, frames).end()
    assert [packets for _, packets in heard_of(run)] == [[150, 150], [150, 150]]


def redialled(gap_s: float, **second: int) -> list:
    """A call whose BYE is lost; so long after its last packet the same two set up another one.

    second: how its packets are numbered, as changes to what `talk` does.
    """
    first = answered(START_NS, CALLER, CALLEE, "a@example")[:-2]
    again = later(answered(START_NS, CALLER, CALLEE, "b@example"), 0)
    at_ns = first[-1].time_ns + int(gap_s * SECOND)
    return first + [
        frame._replace(
            time_ns=frame.time_ns - START_NS + at_ns, data=renumbered(frame.data, **second)
        )
        for frame in again
    ]


def renumbered(frame: bytes, numbers: int = 0, stamps: int = 0) -> bytes:
    """Its RTP sequence number and timestamp moved on; other frames as they were."""
    if frame[42:44] != b"\x80\x08":
        return frame
    number = int.from_bytes(frame[44:46]) + numbers & 0xFFFF
    stamp = int.from_bytes(frame[46:50]) + stamps & 0xFFFFFFFF
    return frame[:44] + number.to_bytes(2) + stamp.to_bytes(4) + frame[50:]


@pytest.mark.parametrize("whole", [True, False], ids=["a block", "in parts"])
@pytest.mark.parametrize("gap_s", [0.002, 0.02, 0.3, 0.9, 2.5])
@pytest.mark.parametrize("second", [{}, {"numbers": 150, "stamps": 24_000}, {"numbers": 20_000}])
def test_a_redial_on_the_same_ports_and_ssrc_is_another_recording(tmp_path, gap_s, second, whole):
    frames = redialled(gap_s, **second)
    run = (Run().play(tmp_path, frames) if whole else Run().part(frames)).end()
    assert [packets for _, packets in heard_of(run)] == [[150, 150], [150, 150]]
    first, next_ = sorted(run.calls(), key=lambda call: call.started_ns)
    assert max(stream.last_ns for stream in first.streams) < next_.started_ns
    assert min(stream.first_ns for stream in next_.streams) > next_.started_ns


def translated(frames: list, phone) -> list:
    """What a phone sends comes from the outside of its NAT, and goes there; its SDP does not."""
    inside = socket.inet_aton(phone.address) + phone.rtp_port.to_bytes(2)
    outside = socket.inet_aton("203.0.113.7") + (30_000).to_bytes(2)

    def outer(frame: bytes) -> bytes:
        if frame[42:44] != b"\x80\x08":
            return frame
        for host, port in ((26, 34), (30, 36)):
            if frame[host : host + 4] + frame[port : port + 2] == inside:
                frame = frame[:host] + outside[:4] + frame[host + 4 :]
                frame = frame[:port] + outside[4:] + frame[port + 2 :]
        return frame

    return [frame._replace(data=outer(frame.data)) for frame in frames]


@pytest.mark.parametrize("phone", [CALLER, CALLEE], ids=["caller", "callee"])
@pytest.mark.parametrize("gap_s", [0.002, 0.3, 0.9, 2.5])
@pytest.mark.parametrize("second", [{"numbers": 150, "stamps": 24_000}, {"numbers": 20_000}])
def test_a_redial_from_behind_nat_is_another_recording(tmp_path, phone, gap_s, second):
    run = Run().part(translated(redialled(gap_s, **second), phone)).end()
    assert [packets for _, packets in heard_of(run)] == [[150, 150], [150, 150]]
    first, next_ = sorted(run.calls(), key=lambda call: call.started_ns)
    assert max(stream.last_ns for stream in first.streams) < next_.started_ns


def test_a_second_call_from_behind_the_same_nat_takes_nothing_of_the_first(tmp_path):
    """One gateway's port carries both, told apart by SSRC; the first pauses in the set-up."""
    long, other = phones(6.0), phones(3.0)
    twin = tuple(replace(phone, ssrc=phone.ssrc + 100) for phone in other)
    frames = [
        frame
        for frame in answered(START_NS, *long, "a@example")
        if not 2.2 <= (frame.time_ns - START_NS) / SECOND < 2.5
        or frame.data[42] != 0x80
        or frame.data[26:30] == socket.inet_aton(long[0].address)
    ]
    frames = sorted(frames + later(answered(START_NS, *twin, "b@example"), 2.0))
    run = Run().part(translated(frames, long[0])).end()
    assert heard_of(run) == [("bye", [300, 285]), ("bye", [150, 150])]


def test_who_calls_back_at_once_and_plays_a_tone_first_is_another_recording(tmp_path):
    first = answered(START_NS, CALLER, CALLEE, "a@example")[:-2]
    back = answered(first[-1].time_ns + SECOND // 10, CALLEE, CALLER, "b@example")
    words = Dialogue(CALLEE, CALLER, "b@example")
    rings_ns = back[2].time_ns
    back[2] = words.response(rings_ns, "183 Session Progress", body=sdp(CALLER))
    tone = replace(CALLER, samples=CALLER.samples[:4800])
    early = [
        frame._replace(data=renumbered(frame.data, numbers=-30, stamps=-16_000))
        for frame in talk(rings_ns + 30_000_000, tone, CALLEE)
    ]
    run = Run().play(tmp_path, sorted([*first, *back, *early]))
    assert [packets for _, packets in heard_of(run.end())] == [[150, 150], [180, 150]]


def test_a_second_call_on_the_ports_of_a_call_that_goes_on_takes_nothing_of_it(tmp_path):
    """As load generators call: told apart by SSRC alone. The first loses 300 ms in the set-up."""
    long, other = phones(6.0), phones(3.0)
    twin = tuple(replace(phone, ssrc=phone.ssrc + 100) for phone in other)
    frames = [
        frame
        for frame in answered(START_NS, *long, "a@example")
        if not 2.2 <= (frame.time_ns - START_NS) / SECOND < 2.5 or frame.data[42] != 0x80
    ]
    frames = sorted(frames + later(answered(START_NS, *twin, "b@example"), 2.0))
    run = Run().play(tmp_path, frames).end()
    assert heard_of(run) == [("bye", [285, 285]), ("bye", [150, 150])]


@pytest.mark.parametrize("step_s", [-86400, -3600, -30, 30, 3600, 86400])
def test_a_clock_set_in_mid_call_leaves_one_whole_call(tmp_path, step_s):
    frames = answered(START_NS, CALLER, CALLEE, "a@example")
    half = len(frames) // 2
    run = Run().play(tmp_path, [*frames[:half], *later(frames[half:], step_s)]).end()
    assert heard_of(run) == [("bye", [150, 150])]


def test_a_capture_that_is_killed_has_counted_up_to_its_last_saved_second():
    frames = answered(START_NS, *phones(20.0), "killed@example.org")
    killed_ns = START_NS + 15 * SECOND
    before = [frame for frame in frames if frame.time_ns <= killed_ns]
    table, killed, restarted = b"", Run(), Run()
    for frame in before:
        if killed.recorder.receive(block([frame.data], times=[frame.time_ns])).ticked:
            table = killed.recorder.calls.snapshot()
    restarted.recorder.calls.restore(table)
    for frame in frames[len(before) :]:
        restarted.take(restarted.recorder.receive(block([frame.data], times=[frame.time_ns])))
    (call,) = restarted.end().calls()
    old, new = (
        sum(stream.packets for stream in call.streams if (stream.number < 2) == early)
        for early in (True, False)
    )
    heard = len(before) - 5  # but for INVITE, 100, 180, 200, ACK
    assert heard - 2 * 2 * 50 <= old <= heard  # two seconds, of two parties
    assert new == len(frames) - len(before) - 2
    assert call.flags == ["capture_restarted"]
