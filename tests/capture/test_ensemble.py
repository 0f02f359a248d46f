"""What several ears hear of the same calls is put together as if one had heard it all."""

import random
from collections.abc import Callable, Iterable
from itertools import count, groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture import worker
from capture.calls import byhosts
from capture.ear import Ear, Report
from capture.ensemble import Ensemble
from capture.model import Block
from capture.recorder import Heard, Recorder
from capture.worker import Told
from spanvault.daemon.config import CaptureConfig
from spanvault.media.chunk import Chunk
from spanvault.messages import Call
from tests.support.callgen import SECOND, START_NS, Frame, answered, busy, phones
from tests.support.frames import block

STEP_NS = SECOND // 25  # of a ring block
SETTINGS = CaptureConfig(name="test")
TALK_S = 2.5
END_NS = START_NS + 12 * SECOND

Share = Callable[[Frame], int]


def traffic() -> list[Frame]:
    """Six calls that overlap, one of which takes over the phones of an earlier one."""
    frames = []
    for number in range(5):
        pair = phones(TALK_S, number)
        frames += answered(START_NS + number * SECOND // 3, *pair, f"{number}@test")
    frames += busy(START_NS + SECOND, *phones(0.1, 7), "busy@test")
    again = phones(TALK_S, 0)
    frames += answered(START_NS + 6 * SECOND, *again, "again@test")
    return sorted(frames)


FRAMES = traffic()


def is_sip(frame: Frame) -> bool:
    return b"SIP/2.0" in frame.data


def by_flow(frame: Frame) -> int:
    """As the kernel does: by addresses and ports, the same in both directions."""
    ends = sorted((frame.data[26:30] + frame.data[34:36], frame.data[30:34] + frame.data[36:38]))
    return sum(map(sum, ends))


class Run:
    """What was given out, in order."""

    def __init__(self) -> None:
        ids = count(1)
        self.new_id = lambda: next(ids).to_bytes(16, "big")
        self.records: list[Call] = []
        self.chunks: list[Chunk] = []
        self.late: list[bytes] = []  # recordings that got chunks behind their last record

    def take(self, heard: Heard) -> None:
        final = {call.id for call in self.records if call.final}
        for media in heard.media:
            self.chunks += media.chunks()
            self.late += [c.recording_id for c in media.chunks() if c.recording_id in final]
        self.records += heard.calls

    def facts(self) -> dict[str, object]:
        """Of each Call-ID, what must not depend on who heard it."""
        last = {call.id: call for call in self.records}
        return {call.call_ids[0]: self._of(call) for call in last.values()}

    def _of(self, call: Call) -> object:
        stored = [(ssrc, *frame) for ssrc, frame in self._frames(call.id)]
        streams = sorted(
            (s.ssrc, s.party, s.packets, s.lost, s.duplicates, s.late, s.first_ns, s.last_ns,
             sorted(s.payload_types.items()))
            for s in call.streams
        )  # fmt: skip
        times = call.started_ns, call.answered_ns, call.ended_ns
        return call.outcome, call.end_reason, call.final, call.flags, times, streams, sorted(stored)

    def _frames(self, recording: bytes) -> Iterable[tuple[int, tuple]]:
        for chunk in self.chunks:
            if chunk.recording_id == recording:
                for frame, payload in zip(chunk.frames, chunk.payloads(), strict=True):
                    yield int(chunk.header["ssrc"]), (int(frame["sequence"]), bytes(payload))


def steps(frames: Iterable[Frame]) -> dict[int, Block]:
    """Ring blocks, by their number."""
    by_step = groupby(frames, key=lambda frame: (frame.time_ns - START_NS) // STEP_NS)
    parts = ((step, list(part)) for step, part in by_step)
    return {
        step: block([f.data for f in part], times=[f.time_ns for f in part]) for step, part in parts
    }


def alone(frames: list[Frame]) -> Run:
    run = Run()
    recorder, blocks = Recorder(SETTINGS, run.new_id), steps(frames)
    for step in range((END_NS - START_NS) // STEP_NS):
        if step in blocks:
            run.take(recorder.receive(blocks[step]))
        run.take(recorder.tick(START_NS + step * STEP_NS))
    run.take(recorder.pause())
    return run


class Together:
    """Some ears and the ensemble, with messages under way between them."""

    def __init__(self, frames: list[Frame], share: Share, ears: int) -> None:
        self.run = Run()
        self.ensemble = Ensemble(SETTINGS, ears, self.run.new_id)
        self.ears = [Ear(SETTINGS) for _ in range(ears)]
        self._blocks = [steps(f for f in frames if share(f) % ears == n) for n in range(ears)]
        self._on_the_way: list[list[Report]] = [[] for _ in range(ears)]

    def hear(self, ear: int, step: int) -> None:
        """What an ear hears in one step, and what it says of it."""
        if step in self._blocks[ear]:
            self.ears[ear].receive(self._blocks[ear][step])
        self.ears[ear].tick(START_NS + step * STEP_NS)
        self._on_the_way[ear].append(over_the_wire(self.ears[ear].report()))

    def listen(self, ear: int) -> None:
        """All that an ear has said arrives; every ear gets its orders."""
        reports, self._on_the_way[ear] = self._on_the_way[ear], []
        for report in reports:
            self.run.take(self.ensemble.receive(ear, report))
        self.order()

    def order(self) -> None:
        for number, ear in enumerate(self.ears):
            if orders := self.ensemble.orders(number):
                ear.obey(orders)

    def end(self) -> Run:
        for number, ear in enumerate(self.ears):
            self.listen(number)
            ear.stop()
            self._on_the_way[number].append(over_the_wire(ear.report()))
        for number in range(len(self.ears)):
            self.listen(number)
        self.ensemble.conclude()
        for number, ear in enumerate(self.ears):
            ear.finish(self.ensemble.orders(number, last=True))
            self.run.take(self.ensemble.receive(number, over_the_wire(ear.report())))
        self.run.take(self.ensemble.pause())
        return self.run


def over_the_wire(report: Report) -> Report:
    told = Told(report.word, 3, 2, 1, "trouble")
    found, decoded = worker.decode([bytes(each) for each in worker.encode(told, report)])
    assert found == told
    return decoded


def together(frames: list[Frame], share: Share, ears: int) -> Run:
    both = Together(frames, share, ears)
    for step in range((END_NS - START_NS) // STEP_NS):
        for ear in range(ears):
            both.hear(ear, step)
            both.listen(ear)
    return both.end()


TRUTH = alone(FRAMES).facts()


def test_the_truth_is_seven_calls_that_were_heard():
    assert len(TRUTH) == 7
    assert sum(len(facts[-1]) for facts in TRUTH.values()) == 6 * 2 * 125


@pytest.mark.parametrize(
    ("share", "ears"),
    [(by_flow, 2), (by_flow, 5), (is_sip, 2), (lambda frame: 0, 3), (lambda frame: 0, 1)],
    ids=["by flow", "by flow, five", "SIP apart from RTP", "some hear nothing", "one"],
)
def test_however_the_flows_are_shared_the_recording_is_the_same(share, ears):
    run = together(FRAMES, share, ears)
    assert run.facts() == TRUTH
    assert run.late == []


def test_a_redial_behind_a_lost_bye_is_another_recording_for_several_ears() -> None:
    first = answered(START_NS, *phones(TALK_S), "first@test")[:-2]
    again = answered(first[-1].time_ns + SECOND // 5, *phones(TALK_S), "again@test")
    run = together([*first, *again], by_flow, 2)
    calls = sorted({call.id: call for call in run.records}.values(), key=lambda c: c.started_ns)
    assert [[stream.packets for stream in call.streams] for call in calls] == [[125, 125]] * 2


def test_a_last_record_waits_for_media_that_another_ear_has_not_counted_yet():
    early = [
        frame._replace(time_ns=frame.time_ns - 21 * SECOND // 10) if b"BYE" in frame.data else frame
        for frame in answered(START_NS, *phones(4.0), "talks on@test")
    ]
    run = together(sorted(early), is_sip, 2)
    assert run.facts() == alone(sorted(early)).facts()
    assert len(run.facts()["talks on@test"][-1]) > 2 * 190
    assert run.late == []


def test_media_that_is_claimed_with_the_last_record_leaves_before_it(monkeypatch):
    monkeypatch.setattr(byhosts, "MAX_COMPARED", 0)  # of a trunk's streams
    frames = [
        frame
        for frame in answered(START_NS, *phones(4.0), "mid-call@test")
        if not is_sip(frame) or b"BYE" in frame.data
    ]
    run = together(frames, is_sip, 2)
    assert run.facts() == alone(frames).facts()
    assert len(run.facts()["mid-call@test"][-1]) == 2 * 200
    assert run.late == []


def test_what_no_call_has_claimed_at_the_stop_is_kept():
    """RTP alone, by several ears: both directions are one recording, as one ear keeps it."""
    frames = [frame for frame in answered(START_NS, *phones(4.0), "none@test") if not is_sip(frame)]
    (call,) = {call.id: call for call in alone(frames).records}.values()
    for share, ears in ((by_flow, 2), (lambda frame: frame.data[29], 3)):
        run = together(frames, share, ears)
        (ours,) = {call.id: call for call in run.records}.values()
        assert sorted(s.packets for s in ours.streams) == [200, 200]
        assert (ours.flags, ours.outcome) == (call.flags, call.outcome)
        assert sum(len(chunk.frames) for chunk in run.chunks) == 2 * 200
        assert run.late == []


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), held_up=st.floats(0.1, 0.7))
def test_words_that_are_held_up_change_nothing(seed, held_up):
    chance = random.Random(seed)
    both = Together(FRAMES, by_flow, 3)
    waited = [0] * 3
    for step in range((END_NS - START_NS) // STEP_NS):
        for ear in range(3):
            both.hear(ear, step)
            waited[ear] += 1
            if chance.random() > held_up or waited[ear] * STEP_NS > SECOND // 3:
                both.listen(ear)
                waited[ear] = 0
    run = both.end()
    assert run.facts() == TRUTH
    assert run.late == []


def test_nothing_is_decided_before_every_ear_has_told_of_that_time():
    both = Together(FRAMES, is_sip, 2)
    for step in range(50):
        both.hear(1, step)
        both.listen(1)
    assert both.ensemble.calls.active == 0
    for step in range(25):
        both.hear(0, step)
    both.listen(0)
    assert both.ensemble.calls.active == 3


def test_a_clock_that_is_set_back_stops_nothing():
    back_ns = 3600 * SECOND
    before = [frame for frame in FRAMES if frame.time_ns < START_NS + 3 * SECOND]
    both = Together(before, by_flow, 2)
    for step in range(75):
        for ear in range(2):
            both.hear(ear, step)
            both.listen(ear)
    moved = [frame._replace(time_ns=frame.time_ns - back_ns) for frame in FRAMES]
    later = [frame for frame in moved if frame.time_ns >= START_NS + 3 * SECOND - back_ns]
    both._blocks = [steps(f for f in later if by_flow(f) % 2 == ear) for ear in range(2)]
    first = -back_ns // STEP_NS
    for step in range(first + 75, first + (END_NS - START_NS) // STEP_NS):
        for ear in range(2):
            both.hear(ear, step)
            both.listen(ear)
    run = both.end()
    ends = {name: facts[:3] for name, facts in run.facts().items() if name != "busy@test"}
    assert ends == {name: TRUTH[name][:3] for name in ends}
    assert len(ends) == 6
    assert sum(len(facts[-1]) for facts in run.facts().values()) == 6 * 2 * 125


def test_a_loss_in_one_ring_is_on_every_call_that_was_up():
    both = Together(FRAMES, by_flow, 2)
    for step in range(50):
        for ear in range(2):
            if step == 30 and ear == 1:
                both._blocks[1][step].dropped = 7
            both.hear(ear, step)
            both.listen(ear)
    flags = {name: facts[3] for name, facts in both.end().facts().items()}
    assert {name for name, flag in flags.items() if "capture_loss" in flag} >= {"0@test", "1@test"}
