"""Messages that are lost, late, doubled or out of order cost no sound, and give it to nobody else.

Each call loses each of its messages in turn; others are shuffled within 200 ms, doubled, and follow
each other on the same ports, SSRCs and Call-IDs.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.callgen import Frame
from tests.support.conversation import Leg, Wire, sdp
from tests.support.perturbed import ALICE, KINDS, Call, late
from tests.support.running import Run

LOST = [(kind, n) for kind, make in KINDS.items() for n in range(len(make().messages))]


def heard(run: Run) -> list[dict[str, list[bytes]]]:
    """What each party said, packet by packet, in each call that has signalling, oldest first."""
    found = []
    for call in sorted(run.calls(), key=lambda call: call.started_ns):
        said: dict[str, list[bytes]] = {"caller": [], "callee": [], "unknown": []}
        for chunk in run.chunks:
            if chunk.recording_id == call.id:
                party = call.streams[int(chunk.header["stream"])].party
                said[party] += [bytes(payload) for payload in chunk.payloads()]
        assert call.call_ids, "kept without signalling"
        found.append({party: sorted(payloads) for party, payloads in said.items() if payloads})
    return found


def wanted(call: Call) -> dict[str, list[bytes]]:
    return {party: call.payloads(party) for party in ("caller", "callee")}


def played(frames: Sequence[Frame]) -> Run:
    return Run().part(sorted(frames)).end()


@pytest.mark.parametrize(("kind", "lost"), LOST, ids=str)
def test_no_single_message_costs_sound(kind: str, lost: int):
    call = KINDS[kind]()
    run = played(call.heard(one for n, one in enumerate(call.messages) if n != lost))
    assert heard(run) == [wanted(call)]
    (line,) = run.calls()
    assert (line.outcome, line.call_ids) == ("answered", ["0"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(st.data())
def test_messages_out_of_order_or_doubled_cost_no_sound(data: st.DataObject):
    call = KINDS[data.draw(st.sampled_from(sorted(KINDS)))]()
    count = len(call.messages)
    delays_ms = data.draw(st.lists(st.integers(0, 200), min_size=count, max_size=count))
    again = data.draw(st.lists(st.sampled_from(range(count)), max_size=3))
    nat = data.draw(st.sampled_from([None, replace(ALICE, address="203.0.113.5", rtp_port=61_002)]))
    # Behind NAT only Bob's word tells of media: there none is lost.
    lost = data.draw(st.none() | st.integers(0, count - 1)) if nat is None else None
    call = replace(call, nat=nat)
    messages = late(call.messages, delays_ms)
    copies = [messages[n]._replace(at_ms=messages[n].at_ms + 30) for n in again]
    kept = [one for n, one in enumerate(messages) if n != lost]
    assert heard(played(call.heard([*kept, *copies]))) == [wanted(call)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["another Call-ID", "the same Call-ID"]),
    st.data(),
)
def test_the_next_call_on_the_same_ports_a_second_later(
    first: str, second: str, named: str, data: st.DataObject
):
    """With the same SSRCs, too; any message of either may be lost."""
    one = replace(KINDS[first](), call_id="same" if named == "the same Call-ID" else "")
    over_ms = max(message.at_ms for message in one.messages)
    other = replace(KINDS[second](), number=1, at_ms=over_ms + 1000, call_id=one.call_id)
    lost = data.draw(st.integers(0, len(one.messages) + len(other.messages) - 1))
    kept = [message for n, message in enumerate(one.messages) if n != lost]
    then = [message for n, message in enumerate(other.messages, len(one.messages)) if n != lost]
    assert heard(played([*one.heard(kept), *other.heard(then)])) == [wanted(one), wanted(other)]


def test_a_late_copy_of_one_attempts_end_does_not_end_the_next(wire: Wire):
    """A phone that keeps Call-ID and From tag: the callee's tag tells, answered or not."""
    leg = Leg(wire)
    leg.invite(sdp("10.0.0.1:4000"))
    leg.reply(183, body=sdp("10.0.0.2:5000"), tag="one")
    leg.reply(486, tag="one")
    leg.cseq = 2
    leg.invite(sdp("10.0.0.1:4000"))
    leg.reply(183, body=sdp("10.0.0.2:5000"), tag="two")
    leg.reply(486, tag="one", cseq=1)
    assert [call.over for call in wire.calls.live()] == [True, False]


def test_one_damaged_tag_begins_no_call_and_two_others_do(wire: Wire):
    leg = Leg(wire)
    leg.invite(sdp("10.0.0.1:4000"))
    leg.reply(183, body=sdp("10.0.0.2:5000"))
    leg.tags["caller"] = "damaged"
    leg.reply(200, body=sdp("10.0.0.2:5000"))
    assert [call.dialog.outcome for call in wire.calls.live()] == ["answered"]
    leg.tags["caller"] = "of another"
    leg.reply(200, body=sdp("10.0.0.2:5000"), tag="of another, too")
    assert len(list(wire.calls.live())) == 2
