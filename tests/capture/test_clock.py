"""The capture's clock is set in mid-call: calls go on, lengths stay, and the record says so."""

from itertools import pairwise

import pytest

from capture.clock import Clock, Reading, stretches
from spanvault.messages import Stream
from tests.support.callgen import SECOND, START_NS, Dialogue, Frame, answered, phones, sdp, talk
from tests.support.frames import block
from tests.support.running import Run

MINUTE, HOUR = 60, 3600
CALLER, CALLEE = phones(3.0)


def set_at(frames: list[Frame], at_s: float, step_s: float) -> list[Frame]:
    """The same frames, stamped by a clock that is set so many seconds behind START_NS."""
    at_ns, step_ns = START_NS + int(at_s * SECOND), int(step_s * SECOND)
    return [
        frame._replace(time_ns=frame.time_ns + (step_ns if frame.time_ns > at_ns else 0))
        for frame in frames
    ]


def held() -> list[Frame]:
    """A call that talks for a second, is put on hold for ten, and talks for another."""
    words, ms = Dialogue(CALLER, CALLEE, "held@example"), SECOND // 1000
    quiet = [sdp(phone) + "a=inactive\r\n" for phone in (CALLER, CALLEE)]

    def agree(at_ms: int, cseq: int, bodies: list[str]) -> list[Frame]:
        at_ns = START_NS + at_ms * ms
        return [
            words.request(at_ns, "INVITE", cseq, body=bodies[0]),
            words.response(at_ns + 20 * ms, "200 OK", f"{cseq} INVITE", body=bodies[1]),
            words.request(at_ns + 30 * ms, "ACK", cseq),
        ]

    spoken = [*talk(START_NS, CALLER, CALLEE), *talk(START_NS, CALLEE, CALLER)]
    half = START_NS + 1500 * ms
    before = [f._replace(time_ns=f.time_ns + 50 * ms) for f in spoken if f.time_ns < half]
    after = [f._replace(time_ns=f.time_ns + 10_060 * ms) for f in spoken if f.time_ns >= half]
    loud = [sdp(CALLER), sdp(CALLEE)]
    return sorted(
        [
            *agree(0, 1, loud), *before, *agree(1560, 2, quiet), *agree(11_500, 3, loud), *after,
            words.request(START_NS + 13_100 * ms, "BYE", 4),
            words.response(START_NS + 13_110 * ms, "200 OK", "4 BYE"),
        ]
    )  # fmt: skip


def told(run: Run) -> list:
    """Of each call: outcome, how long from beginning to answer and end, of each stream."""
    return [
        (
            call.outcome,
            call.end_reason,
            round((call.answered_ns - call.started_ns) / SECOND, 1),
            round((call.ended_ns - call.started_ns) / SECOND, 1),
            [(s.packets, s.lost, lasts(s)) for s in call.streams],
            "early_media" in call.flags,
        )
        for call in run.end().calls()
    ]


def lasts(stream: Stream) -> float:
    return round((stream.last_ns - stream.first_ns) / SECOND, 1)


@pytest.mark.parametrize("whole", [True, False], ids=["a file", "a port"])
@pytest.mark.parametrize("step_s", [-12 * HOUR, -HOUR, -30, -2, 2, 30, HOUR, 30 * HOUR])
@pytest.mark.parametrize("at_s", [1.3, 2.5, 3.9], ids=["at first", "amidst", "at last"])
def test_what_is_said_tells_how_far_a_clock_was_set(at_s, step_s, whole):
    frames = answered(START_NS, CALLER, CALLEE, "a@example")
    expected = told(play(frames, whole))
    run = play(set_at(frames, at_s, step_s), whole)
    assert told(run) == expected
    (call,) = run.calls()
    assert ("clock_set" in call.flags, run.recorder.counters()["clock_steps"]) == (True, 1)
    assert call.started_ns == START_NS
    arrivals = sorted(int(ns) for each in run.chunks for ns in each.frames["arrival_ns"])
    assert max(later - earlier for earlier, later in pairwise(arrivals)) < SECOND // 10


def play(frames: list[Frame], whole: bool = True) -> Run:
    run = Run()
    if not whole:
        return run.part(frames)
    run.take(run.recorder.receive(heard(frames)))
    return run


def heard(frames: list[Frame]):
    return block([frame.data for frame in frames], times=[frame.time_ns for frame in frames])


@pytest.mark.parametrize("step_s", [-HOUR, -30, 3 * HOUR, 9 * 365 * 24 * HOUR])
def test_who_rings_for_hours_rings_by_a_clock_that_was_set(step_s):
    frames = answered(START_NS, CALLER, CALLEE, "a@example")
    run = play(set_at(frames, 0.5, step_s))
    outcome, reason, rings_s, lasts_s, streams, early = told(run)[0]
    assert (outcome, reason, early) == ("answered", "bye", False)
    assert (rings_s, lasts_s) == (0.0, 3.1)  # how long it rang is lost, and nothing else
    assert streams == [(150, 0, 3.0)] * 2


@pytest.mark.parametrize("step_s", [-HOUR, -30, 2])
@pytest.mark.parametrize("at_s", [5, 11.55])
def test_a_clock_that_is_set_while_on_hold_changes_no_sound(at_s, step_s):
    (call,) = play(set_at(held(), at_s, step_s)).end().calls()
    assert (call.outcome, call.end_reason, call.started_ns) == ("answered", "bye", START_NS)
    assert sum(stream.packets for stream in call.streams) == 300
    assert {"hold", "early_media"} & set(call.flags) == {"hold"}


def test_a_hold_without_a_sound_is_no_clock_that_was_set():
    """Not even where its phones stop their timestamps meanwhile."""
    run = play(held())
    (call,) = run.end().calls()
    assert (run.recorder.counters().get("clock_steps"), "clock_set" in call.flags) == (None, False)
    assert round((call.ended_ns - call.started_ns) / SECOND, 1) == 13.1


@pytest.mark.parametrize("step_s", [-HOUR, -30, 30, HOUR])
def test_a_call_behind_the_step_is_told_by_the_clock_as_it_was_set(step_s):
    first = answered(START_NS, CALLER, CALLEE, "a@example")
    second = [f._replace(time_ns=f.time_ns + 5 * SECOND) for f in
              answered(START_NS, *phones(3.0, 1), "b@example")]  # fmt: skip
    run = play(set_at([*first, *second], 2.5, step_s)).end()
    assert [call.started_ns for call in run.calls()] == [
        START_NS, START_NS + (5 + step_s) * SECOND,
    ]  # fmt: skip
    assert ["clock_set" in call.flags for call in run.calls()] == [True, False]
    later = {call.id for call in run.calls() if call.call_ids == ["b@example"]}
    arrivals = [f["arrival_ns"].min() for c in run.chunks if c.recording_id in later
                for f in (c.frames,)]  # fmt: skip
    assert abs(min(arrivals) - START_NS - (5 + step_s) * SECOND) < 2 * SECOND


@pytest.mark.parametrize("gap_s", [2, 30, 600])
def test_a_capture_that_paused_is_no_clock_that_was_set(gap_s):
    """Its RTP went on: timestamps and numbers are as far on as the arrivals."""
    frames = answered(START_NS, *phones(gap_s + 4.0), "a@example")
    kept = [f for f in frames if not 2 <= (f.time_ns - START_NS) / SECOND < 2 + gap_s]
    run = play(kept)
    (call,) = run.end().calls()
    assert "clock_set" not in call.flags
    assert round((call.ended_ns - call.started_ns) / SECOND) == gap_s + 5


def test_a_burst_that_waited_somewhere_is_no_clock_that_was_set():
    frames = answered(START_NS, CALLER, CALLEE, "a@example")
    late_ns = START_NS + int(3.5 * SECOND)
    stuck = [
        f._replace(time_ns=late_ns + number * 1000) if START_NS + 2 * SECOND < f.time_ns < late_ns
        else f for number, f in enumerate(frames)
    ]  # fmt: skip
    (call,) = play(sorted(stuck)).end().calls()
    assert "clock_set" not in call.flags


def test_a_host_that_tells_is_believed_without_a_sound():
    clock = Clock()
    clock.hosted = True
    assert clock.follow(HOUR * SECOND) == 0
    clock.tell(HOUR * SECOND)
    assert (clock.follow(SECOND // 50), clock.awaits) == (0, True)
    assert clock.follow(HOUR * SECOND + 7) == HOUR * SECOND
    assert (clock.offset_ns, clock.awaits, clock.follow(SECOND)) == (HOUR * SECOND, False, 0)


def test_a_call_that_was_up_as_the_clock_was_set_outlives_a_restart():
    frames = set_at(answered(START_NS, CALLER, CALLEE, "a@example"), 2.0, HOUR)
    half = len(frames) * 3 // 4
    first, second = Run(), Run()
    first.part(frames[:half])
    first.take(first.recorder.pause())
    second.recorder.calls.restore(first.recorder.calls.snapshot())
    (call,) = second.part(frames[half:]).end().calls()
    assert call.started_ns == START_NS
    assert round((call.ended_ns - call.started_ns) / SECOND, 1) == 4.0
    assert (call.outcome, call.end_reason) == ("answered", "bye")


@pytest.mark.parametrize("step_s", [-40 * 24 * HOUR, -HOUR, -30, 30, HOUR, 40 * 24 * HOUR])
def test_a_clock_that_is_set_while_the_capture_is_down_splits_no_call(step_s):
    frames = answered(START_NS, CALLER, CALLEE, "a@example")
    half, ahead_ns = len(frames) // 2, START_NS
    first, second = Run(), Run(first_id=100)
    first.part(frames[:half])
    first.take(first.recorder.pause())
    table = first.recorder.calls.snapshot(Reading("boot", ahead_ns))
    second.recorder.calls.restore(table, Reading("boot", ahead_ns + step_s * SECOND))
    behind = [frame._replace(time_ns=frame.time_ns + step_s * SECOND) for frame in frames[half:]]
    (call,) = second.part(behind).end().calls()
    assert set(call.flags) == {"capture_restarted", "clock_set"}
    assert (call.outcome, call.end_reason, call.started_ns) == ("answered", "bye", START_NS)
    assert round((call.ended_ns - call.started_ns) / SECOND, 1) == 4.0
    later = call.streams[2:]
    assert [round((stream.last_ns - START_NS) / SECOND, 1) for stream in later] == [4.0, 4.0]


def test_a_clock_is_known_to_be_set_within_one_boot_alone():
    before = Reading("boot", 5 * SECOND)
    assert Reading("boot", 7 * SECOND).set_since(before) == 2 * SECOND
    assert Reading("boot", 5 * SECOND + 400_000_000).set_since(before) == 0  # NTP at work
    assert Reading("another", 7 * SECOND).set_since(before) == 0
    assert Reading("", 7 * SECOND).set_since(Reading("", 0)) == 0
    assert Reading("boot", 7 * SECOND).set_since(None) == 0


def test_an_orphan_neither_stalls_nor_ends_as_the_clock_is_set():
    phones_ = phones(20.0)
    sound = sorted([*talk(START_NS, *phones_), *talk(START_NS, *phones_[::-1])])
    for step_s in (-HOUR, 30, HOUR):
        run = Run(unmatched_s=5.0).part(set_at(sound, 12.0, step_s))
        (call,) = run.end().calls()
        assert ("no_signalling" in call.flags, call.end_reason) == (True, "capture_end")
        assert [stream.lost for stream in call.streams] == [0, 0]
        assert {round((s.last_ns - s.first_ns) / SECOND) for s in call.streams} == {20}


def test_stretches_keep_every_frame_in_its_order():
    times = [0.0, 0.9, 0.8, 1.1, 0.95, 7.0, 0.5, 0.6, 2.6]
    frames = [bytes([number]) * 20 for number in range(len(times))]
    whole = block(frames, times=[int(START_NS + each * SECOND) for each in times])
    whole.dropped = 3
    parts = list(stretches(whole))
    assert [len(part.start) for part in parts] == [3, 2, 1, 2, 1]
    assert [part.dropped for part in parts] == [3, 0, 0, 0, 0]
    assert [int(part.data[at]) for part in parts for at in part.start] == list(range(len(times)))


def test_times_that_jump_to_and_fro_over_decades_stay_within_bounds():
    """As of a damaged file: jumps back are followed, so that each jump ahead adds to our time."""
    run, decades_ns = Run(), 70 * 365 * 24 * HOUR * SECOND
    frames = [
        frame._replace(time_ns=frame.time_ns + (decades_ns if number % 2 else 0))
        for number, frame in enumerate(answered(START_NS, CALLER, CALLEE, "jumps@example"))
    ]
    for frame in frames:
        run.recorder.receive(block([frame.data], times=[frame.time_ns]))
    assert run.recorder.clock.steps > 6
    run.recorder.finish()
