"""Packets in, chunks out: ordered, counted, and belonging to whoever signalling says."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.media import engine
from capture.model import Attach, Block, NewStream
from spanvault.media.chunk import CAPTURE_LOSS
from tests.support.frames import EPOCH, SECOND
from tests.support.mediatalk import RECORDING, Conversation, between
from tests.support.rtpstreams import (
    GATEWAY,
    PHONE,
    Sent,
    Truth,
    jitter,
    steady,
    truth,
)

# --- order and counts ----------------------------------------------------------------------------


def test_late_packet_closes_the_gap() -> None:
    talk = Conversation()
    talk.hear(steady([1, 2, 4, 3, 5]))
    assert talk.flush() == [1, 2, 3, 4, 5]
    assert talk.counted() == Truth(packets=5, lost=0, duplicates=0, late=1)


def test_a_stream_is_told_of_at_its_first_packet() -> None:
    talk = Conversation()
    talk.hear([Sent(9, 1.5, ssrc=0, payload_type=0)])
    (new,) = talk.new
    came_ns = EPOCH + 1_500_000_000
    assert new._replace(row=0) == NewStream(0, came_ns, PHONE, GATEWAY, 0, 0, timestamp=9 * 160)
    assert talk.flush() == [9]
    assert talk.counted() == Truth(1, 0, 0, 0)


def test_copies_are_left_out_and_counted() -> None:
    talk = Conversation()
    talk.hear(steady([1, 1, 2, 3, 2, 3, 4]))
    assert talk.flush() == [1, 2, 3, 4]
    assert talk.counted() == Truth(packets=4, lost=0, duplicates=3, late=0)


def test_a_copy_of_what_has_left_is_still_known() -> None:
    talk = Conversation()
    talk.hear(steady(range(1, 41)))
    talk.flush()
    talk.hear(steady([40, 39, 41], begin=1.0))
    assert talk.flush() == [41]
    assert talk.counted() == Truth(packets=41, lost=0, duplicates=2, late=0)


def test_a_packet_later_than_its_second_is_kept() -> None:
    talk = Conversation()
    talk.hear(steady([1, 2, 4]))
    talk.flush()
    assert talk.counted() == Truth(packets=3, lost=1, duplicates=0, late=0)
    talk.hear(steady([5, 3], begin=1.0))
    assert talk.flush() == [3, 5]
    assert talk.counted() == Truth(packets=5, lost=0, duplicates=0, late=1)


def test_the_same_number_with_another_timestamp_is_another_packet() -> None:
    talk = Conversation()
    talk.hear([Sent(1, 0.0), Sent(2, 0.02), Sent(2, 0.04, timestamp=99_999)])
    assert talk.flush() == [1, 2, 2]


def test_numbers_and_timestamps_wrap() -> None:
    talk = Conversation()
    sent = steady(range(65530, 65545))
    talk.hear(sent)
    assert talk.flush() == [number & 0xFFFF for number in range(65530, 65545)]
    assert talk.counted() == Truth(packets=15, lost=0, duplicates=0, late=0)
    extended = talk.chunks[-1].frames["sequence"]
    assert (np.diff(extended.astype(np.int64)) == 1).all()


def test_a_late_packet_from_before_the_first_is_placed() -> None:
    talk = Conversation()
    talk.hear(steady([0, 65535, 65534, 1]))
    assert talk.flush() == [65534, 65535, 0, 1]
    assert talk.counted() == Truth(packets=4, lost=0, duplicates=0, late=2)
    extended = talk.chunks[-1].frames["sequence"]
    assert extended.tolist() == [65534, 65535, 65536, 65537]  # storaged/FORMAT.md: from 65536 on


@pytest.mark.parametrize("start", [100, 30_000, 60_000])
def test_a_restart_of_the_sequence_is_no_loss(start: int) -> None:
    talk = Conversation()
    talk.hear(steady([*range(10_000, 10_010), *range(start, start + 10)]))
    assert talk.flush() == [*range(10_000, 10_010), *range(start, start + 10)]
    assert talk.counted() == Truth(packets=20, lost=0, duplicates=0, late=0)


def test_a_stray_number_loses_nothing() -> None:
    talk = Conversation()
    talk.hear(steady([1, 2, 40_000, 3, 4]))
    assert talk.flush() == [1, 2, 40_000, 3, 4]
    assert talk.counted().lost == 0


def test_more_than_a_cycle_in_one_block() -> None:
    talk = Conversation()
    talk.hear([Sent(number, 0.001 * number) for number in range(200_000)])
    talk.flush()
    assert talk.counted() == Truth(packets=200_000, lost=0, duplicates=0, late=0)


def test_a_long_block_is_cut_into_seconds() -> None:
    talk = Conversation()
    talk.hear(steady(range(500)))
    talk.flush()
    (chunks,) = talk.chunks
    assert chunks.table["frames"].tolist() == [50] * 10
    assert chunks.table["packets"].tolist() == list(range(50, 550, 50))
    assert (np.diff(chunks.table["start_ns"]) == SECOND).all()
    assert set(chunks.table["ssrc"].tolist()) == {0x1234}


def test_each_chunk_counts_what_came_up_to_it() -> None:
    talk = Conversation()
    numbers_ = [number for number in range(150) if number not in (10, 60, 61)]
    talk.hear([Sent(number, number * 0.02) for number in numbers_] + [Sent(149, 2.99)])
    talk.flush()
    (chunks,) = talk.chunks
    assert chunks.table["lost"].tolist() == [1, 3, 3]
    assert chunks.table["packets"].tolist() == [49, 97, 147]
    assert chunks.table["duplicates"].tolist() == [0, 0, 1]


def test_payloads_of_every_length_are_kept_byte_by_byte() -> None:
    talk = Conversation()
    random = np.random.default_rng(1)
    sizes = [0, 1, 20, 31, 32, 33, 160, 161, 500, 1400, 1452]
    sent = [
        Sent(number, number * 0.01, payload=random.bytes(sizes[number % len(sizes)]))
        for number in range(300)
    ]
    talk.hear(sent)
    talk.flush()
    assert [payload for *_, payload in talk.frames()] == [each.content for each in sent]


def test_payload_types_are_counted() -> None:
    talk = Conversation()
    talk.hear([Sent(n, n * 0.02, payload_type=101 if n % 5 == 0 else 8) for n in range(10)])
    talk.flush()
    talk.hear([Sent(10, 1.0, payload_type=13)])
    talk.flush()
    assert talk.media.totals(talk.new[0].row).payload_types == {8: 8, 101: 2, 13: 1}


@settings(max_examples=80, deadline=None)
@given(order=st.permutations(range(50)), start=st.integers(0, 65535))
def test_any_shuffle_within_a_second_gives_the_same_frames(order: list[int], start: int) -> None:
    talk = Conversation()
    talk.hear([Sent(start + number, 0.02 * place) for place, number in enumerate(order)])
    talk.flush()
    frames = talk.frames()
    assert [number for number, *_ in frames] == [(start + n) & 0xFFFF for n in range(50)]
    assert [payload for *_, payload in frames] == [
        f"packet {start + n}".encode() for n in range(50)
    ]
    assert talk.counted()[:3] == (50, 0, 0)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 400),
    start=st.integers(0, 70_000),
    loss=st.floats(0, 0.5),
    copies=st.floats(0, 0.5),
    delay=st.floats(0, 0.5),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_counts_equal_the_truth(
    seed: int, count: int, start: int, loss: float, copies: float, delay: float, cuts: list[int]
) -> None:
    """Whatever the network does, and however the packets fall into blocks and seconds."""
    random = np.random.default_rng(seed)
    sent = [Sent(start + number, number * 0.02) for number in range(count)]
    sent = [each for each in sent if random.random() >= loss] or sent[:1]
    sent = [each._replace(at=each.at + delay * random.random()) for each in sent]
    sent += [each._replace(at=each.at + 0.3 * random.random()) for each in sent
             if random.random() < copies]  # fmt: skip
    sent.sort(key=lambda each: each.at)
    talk = Conversation()
    left: list[int] = []
    for begin, end in pairwise(sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})):
        talk.hear(sent[begin:end])
        left += talk.tick(sent[end - 1].at)
    left += talk.flush()
    assert sorted(left) == sorted({each.sequence & 0xFFFF for each in sent})
    assert talk.counted() == truth(sent)
    totals = talk.media.totals(talk.new[0].row)
    assert math.isclose(totals.jitter, jitter(sent), rel_tol=1e-9, abs_tol=1e-6)
    assert (totals.first_ns, totals.last_ns) == (sent[0].time_ns, sent[-1].time_ns)
    last = [each.table[-1] for each in talk.chunks if len(each.table)][-1]
    assert (last["packets"], last["lost"]) == (totals.packets, totals.lost)
    starts = [int(each) for chunks in talk.chunks for each in chunks.table["start_ns"]]
    assert len(set(starts)) == len(starts)


def test_jitter_uses_the_clock_that_signalling_names() -> None:
    talk = Conversation(attach=False)
    sent = [Sent(n, 0.02 * n + 0.001 * (n % 3), 960 * n, payload_type=96) for n in range(200)]
    talk.hear(sent)
    talk.media.attach(Attach(talk.new[0].row, RECORDING, 0, 48_000))
    talk.flush()
    (chunks,) = talk.chunks
    assert math.isclose(talk.media.totals(talk.new[0].row).jitter, jitter(sent, 48_000))
    assert np.isclose(chunks.table["jitter"][0], jitter(sent[:50], 48_000))


@pytest.mark.parametrize("late", [0.000_01, 0.004], ids=["at once", "behind the next one"])
def test_jitter_of_a_port_that_mirrors_twice_is_that_of_the_packets(late: float) -> None:
    sent = [Sent(n, 0.003 * n + 0.001 * (n % 3), 160 * n) for n in range(500)]
    copies = [each._replace(at=each.at + late) for each in sent]
    talk = Conversation()
    for first in range(0, 500, 100):  # some seconds are of copies and of packets, the last of both
        part = [*sent[first : first + 100], *copies[max(0, first - 50) : first + 50]]
        talk.hear(sorted(part, key=lambda each: each.at))
        talk.flush()
    talk.hear(copies[450:])
    talk.flush()
    totals = talk.media.totals(talk.new[0].row)
    assert (totals.packets, totals.duplicates) == (500, 500)
    assert math.isclose(totals.jitter, jitter(sent), rel_tol=1e-9)


def test_streams_are_counted_apart() -> None:
    talk = Conversation()
    sent = [
        Sent(number * (ssrc + 1), number * 0.02 + ssrc * 1e-5, ssrc=ssrc)
        for ssrc in range(300)
        for number in range(20)
    ]
    talk.hear(sorted(sent, key=lambda each: each.at))
    talk.flush()
    assert len(talk.new) == 300
    for place, stream in enumerate(talk.new):
        assert talk.counted(place) == truth([each for each in sent if each.ssrc == stream.ssrc])


# --- seconds, batches, the capture's own loss ----------------------------------------------------


def test_a_second_leaves_when_the_next_is_half_over() -> None:
    talk = Conversation()
    for second in range(3):
        talk.hear(steady(range(50 * second, 50 * second + 50), begin=float(second)))
    assert talk.tick(1.47) == []
    assert talk.tick(1.5) == list(range(50))
    assert talk.tick(2.6) == list(range(50, 100))
    assert talk.flush() == list(range(100, 150))


def test_a_second_whose_last_block_made_it_longer_leaves_no_later() -> None:
    talk = Conversation()
    talk.hear(steady(range(49)))
    talk.hear(steady(range(49, 54), begin=0.98))  # one block, until 1.06
    talk.hear(steady(range(54, 75), begin=1.08))
    assert talk.tick(1.5) == list(range(54))


def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    talk = Conversation()
    for hour in range(6, 0, -1):
        talk.hear(steady(range(-50 * hour + 1000, -50 * hour + 1050), begin=3600.0 * hour))
        talk.tick(3600.0 * hour)
    assert len(talk.frames()) >= 100
    talk.flush()
    assert len(talk.frames()) == 300
    starts = [int(each) for chunks in talk.chunks for each in chunks.table["start_ns"]]
    assert starts == sorted(set(starts))


def test_loss_in_the_capture_is_marked_and_not_the_networks() -> None:
    talk = Conversation()
    talk.hear(steady(range(50)))
    talk.hear(steady(range(55, 100), begin=1.1), dropped=5)
    talk.hear(steady(range(100, 150), begin=2.2))
    talk.flush()
    flags = np.concatenate([each.table["flags"] for each in talk.chunks])
    assert flags.tolist() == [0, CAPTURE_LOSS, 0]
    assert talk.media.counters["capture_dropped"] == 5


def test_loss_among_frames_that_are_no_media_marks_the_media_around_it() -> None:
    talk = Conversation()
    talk.hear(steady(range(50)))
    talk.media.lost(2, *between(0.5, 0.6))
    talk.hear(steady(range(50, 100), begin=1.1))
    talk.media.lost(3, *between(2.15, 2.16))  # between two seconds: it reaches to the next
    talk.hear(steady(range(100, 150), begin=2.2))
    talk.hear(steady(range(150, 200), begin=3.3))
    talk.flush()
    flags = np.concatenate([each.table["flags"] for each in talk.chunks])
    assert flags.tolist() == [CAPTURE_LOSS, 0, CAPTURE_LOSS, 0]
    assert talk.media.counters["capture_dropped"] == 5


def test_a_stream_that_was_silent_over_a_lost_link_is_marked_whenever_it_goes_on() -> None:
    talk = Conversation()
    talk.hear(steady(range(50)))
    talk.tick(3)
    assert talk.media.losses(unheard(1.1, 3.0))
    talk.hear([*steady(range(60, 100), begin=8.0), Sent(9, 8.9, ssrc=7)])  # one begins behind it
    talk.hear(steady(range(100, 150), begin=9.1))
    talk.flush()
    rows = [row for each in talk.chunks for row in each.table]
    assert [int(row["flags"]) for row in rows if row["ssrc"] != 7] == [0, CAPTURE_LOSS, 0]
    assert [int(row["flags"]) for row in rows if row["ssrc"] == 7] == [0]


def unheard(begin: float, end: float) -> Block:
    """A frame behind a time in which none reached us."""
    none = np.zeros(1, np.int64)
    span = between(begin, end)
    return Block(np.zeros(1, np.uint8), none, none, none, none, 1, unheard=((span[0], span[1]),))


# --- whose it is ---------------------------------------------------------------------------------


def test_unclaimed_packets_wait_and_then_leave_with_all_that_came_since() -> None:
    talk = Conversation(attach=False)
    for second in range(5):
        talk.hear(steady(range(50 * second, 50 * second + 50), begin=float(second)))
        assert talk.tick(second + 0.98) == []
    talk.attach(talk.new[0], number=3)
    left = talk.tick(5.5) + talk.flush()
    assert left == list(range(250))
    assert talk.counted() == Truth(250, 0, 0, 0)
    assert {int(each["stream"]) for chunks in talk.chunks for each in chunks.table} == {3}


def test_unclaimed_packets_are_let_go_after_a_time() -> None:
    talk = Conversation(attach=False, unmatched_s=5.0)
    talk.hear(steady(range(50)))
    talk.tick(3)
    talk.tick(8)
    talk.attach(talk.new[0])
    assert talk.flush() == []
    assert talk.media.counters["unmatched_dropped"] == 50
    assert talk.media.counters["attached_too_late"] == 1


def test_unclaimed_packets_take_bounded_memory() -> None:
    talk = Conversation(attach=False, unmatched_mb=1)
    payload = bytes(1400)
    for second in range(20):
        talk.hear([Sent(100 * second + n, second + n * 0.01, payload=payload) for n in range(100)])
        talk.tick(second + 0.99)
    assert sum(held.used for held in talk.media._unclaimed.waiting) <= 1 << 20
    talk.attach(talk.new[0])
    left = talk.tick(21.5) + talk.flush()
    assert left == list(range(left[0], 2000))
    assert 600 < len(left) < 1000


def test_a_flood_of_invented_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_UNATTACHED", 100)
    monkeypatch.setattr(engine, "MAX_EVICTED", 10)
    talk = Conversation(attach=False)
    talk.hear(steady(range(5)))
    talk.attach(talk.new[0])
    for second in range(1, 5):
        talk.hear([Sent(1, second + n * 1e-4, ssrc=1_000_000 * second + n) for n in range(5000)])
        talk.tick(second + 0.9)
    assert len(talk.media._unattached) <= 100
    assert talk.media.streams.capacity <= 1024
    assert talk.media.counters["unmatched_ignored"] > 19_000
    talk.flush()
    assert talk.counted() == Truth(5, 0, 0, 0)


def test_much_that_leaves_at_once_leaves_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole streams each, in order, nothing twice and nothing left out."""
    monkeypatch.setattr("capture.media.chunks.PORTION", 20)
    monkeypatch.setattr("capture.media.chunks.PART_BYTES", 100)
    talk = Conversation()
    sent = [each._replace(ssrc=ssrc) for ssrc in range(1, 9) for each in steady(range(10))]
    talk.hear(sorted(sent, key=lambda one: one.at))
    assert talk.flush() == list(range(10)) * 8
    assert len(talk.chunks) > 2
    assert len(talk.frames()) == 80
