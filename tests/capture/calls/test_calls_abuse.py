"""What nobody should send: the call table bears it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.calls import calltable
from capture.calls.calls import Calls
from capture.model import Datagram
from spanvault.daemon.config import CaptureConfig
from spanvault.messages import Call
from tests.support.conversation import (
    A_TO_B,
    ALICE,
    BOB,
    NOTHING,
    SECOND,
    START_NS,
    Leg,
    Wire,
    endpoint,
    talk,
)


def test_a_flood_of_invites_does_not_push_out_a_call_that_is_recorded(wire, monkeypatch):
    monkeypatch.setattr(calltable, "MAX_CALLS", 100)
    leg = Leg(wire)
    talk(wire, leg)
    for number in range(300):
        Leg(wire, f"flood-{number}").invite(ALICE)
    assert wire.calls.active == 100
    assert wire.calls.counters["calls_evicted"] == 201
    wire.rtp(*A_TO_B, ssrc=9)
    leg.bye()
    call = next(call for call in wire.end() if call.call_ids == ["call-1"])
    assert (call.outcome, call.end_reason) == ("answered", "bye")


def test_one_call_id_cannot_be_used_for_calls_without_end(wire):
    for number in range(100):
        leg = Leg(wire)
        leg.tags["caller"] = f"tag-{number}"
        leg.invite(ALICE)
    assert wire.calls.active == calltable.MAX_SAME_CALL_ID


def test_what_is_remembered_of_past_calls_is_little_however_long_their_tags_are(wire):
    leg = Leg(wire)
    leg.tags["caller"] = "from" * 1000
    leg.invite(ALICE)
    for number in range(60):
        leg.reply(200, body=BOB, tag=f"{number:04}" * 1000)
    leg.bye()
    wire.end()
    assert len(wire.calls.snapshot()) < 8000
    leg.reply(200, body=BOB, tag="9999")
    leg.bye()
    assert (wire.calls.active, wire.calls.counters["sip_late"] > 0) == (0, True)


def test_lost_frames_are_marked_on_every_call_that_was_up(wire):
    Leg(wire).answer(ALICE, BOB)
    wire.calls.dropped()
    Leg(wire, "later").answer(ALICE, BOB)
    assert ["capture_loss" in call.flags for call in wire.end()] == [True, False]


def test_a_call_first_heard_in_its_midst_just_after_a_loss_may_owe_that_to_us(wire):
    Leg(wire).answer(ALICE, BOB)
    wire.calls.dropped()
    Leg(wire, "soon").bye()
    wire.wait(60)
    Leg(wire, "much-later").bye()
    marked = {call.call_ids[0] for call in wire.end() if "capture_loss" in call.flags}
    assert marked == {"call-1", "soon"}


def test_frames_that_the_slow_path_dropped_are_marked_on_the_calls_it_heard(wire):
    Leg(wire).answer(ALICE, BOB)
    receive = wire.calls.receive
    wire.calls.receive = lambda datagram: receive(datagram._replace(slow=True))
    Leg(wire, "tunnelled").answer(ALICE, BOB)
    wire.calls.dropped(slow=True)
    flags = {call.call_ids[0]: call.flags for call in wire.end()}
    assert ["capture_loss" in flags[name] for name in ("call-1", "tunnelled")] == [False, True]


HUNG_UP = 100  # calls, ten times what a second may bring


@pytest.fixture
def hung_up(wire, monkeypatch) -> list[str]:
    """Many calls end at once, and are over. Their Call-IDs, in order."""
    monkeypatch.setattr("capture.calls.calls.MAX_RECORDS", 10)
    legs = [Leg(wire, f"call-{number}") for number in range(HUNG_UP)]
    for leg in legs:
        leg.answer(ALICE, BOB)
    wire.wait(1)
    assert len(wire.history) == HUNG_UP  # first records wait for nothing: media follows them
    for leg in legs:
        leg.bye()
    wire.history.clear()
    wire.now_ns += 10 * SECOND
    return [leg.call_id for leg in legs]


def names(records: list[Call]) -> list[str]:
    return [record.call_ids[0] for record in records]


def test_calls_that_end_together_leave_in_turn_a_bounded_number_a_second(wire, hung_up):
    while wire.calls.active:
        before = len(wire.history)
        wire.wait(1)
        assert 1 <= len(wire.history) - before <= HUNG_UP // 8
    assert names(wire.history) == hung_up
    assert all(record.final for record in wire.history)


def test_a_stop_in_their_midst_keeps_none_back(wire, hung_up):
    wire.wait(1)
    wire.history += wire.calls.records(everything=True)
    assert names(wire.history) == hung_up


def test_a_kill_in_their_midst_loses_none(wire, hung_up):
    wire.wait(1)
    wire.restart()
    while wire.calls.active:
        wire.wait(1)
    ended = {record.call_ids[0] for record in wire.history if record.final}
    assert ended == set(hung_up)
    assert sorted(wire.records) == sorted({record.id for record in wire.history})


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_datagrams_are_survived(payloads):
    calls = Calls(CaptureConfig(name="x"), lambda row: NOTHING, lambda: bytes(16))
    hosts = (endpoint("10.0.0.1:5060"), endpoint("10.0.0.2:5060"))
    for payload in payloads:
        calls.receive(Datagram(START_NS, *hosts, payload, "udp"))
    calls.tick(START_NS + SECOND)
    assert calls.active == 0


PIECES = st.sampled_from(["invite", "180", "200", "486", "ack", "bye", "rtp", "wait", "cancel"])


@given(st.lists(st.tuples(PIECES, st.integers(0, 2)), max_size=40))
def test_any_order_of_messages_ends_with_one_final_record_a_call(steps):
    wire = Wire()
    legs = [Leg(wire, f"call-{number}") for number in range(3)]
    acts = {
        "invite": lambda leg: leg.invite(ALICE),
        "180": lambda leg: leg.reply(180),
        "200": lambda leg: leg.reply(200, body=BOB),
        "486": lambda leg: leg.reply(486),
        "ack": lambda leg: leg.ack(),
        "bye": lambda leg: leg.bye(),
        "rtp": lambda leg: wire.rtp(*A_TO_B, ssrc=int(leg.call_id[-1])),
        "wait": lambda leg: wire.wait(1),
        "cancel": lambda leg: leg.request("CANCEL", in_dialog=False),
    }
    for piece, number in steps:
        acts[piece](legs[number])
    calls = wire.end()
    assert all(call.final and call.ended_ns is not None for call in calls)
    finals = [call.id for call in wire.history if call.final]
    assert len(finals) == len(set(finals)) == len(calls)
    assert wire.calls.active == 0
    assert wire.calls._association._by_endpoint == {}
    stored = [stream for call in calls for stream in call.streams if stream.stored_in is None]
    assert len(stored) <= len(wire.totals)
