"""Who may ask what, and who is given what was dialled."""

from typing import Any, get_args

import pytest

from spanvault import messages as m
from spanvault import wire
from spanvault.media import chunk
from spanvault.transport import Identity
from storaged.requests import policy
from tests.support.desk import Counter
from tests.support.vault import at, call_id, chunk_keys, make_call, make_media, payload

ONE, TWO = call_id(1), call_id(2)


def request_of(kind: type) -> Any:
    """One request of a kind, otherwise valid."""
    change = m.Change(1, "keys", name="root")
    return {
        m.Status: m.Status(), m.Search: m.Search(), m.Get: m.Get(ONE), m.Fetch: m.Fetch(ONE),
        m.Several: m.Several([ONE]),
        m.Verify: m.Verify(ONE), m.Feed: m.Feed(0), m.ReadObject: m.ReadObject(ONE, 0, 1),
        m.Receipt: m.Receipt(ONE, "t", 0, "", 0), m.Import: m.Import("00" * 16, change),
        m.Health: m.Health("capture", "ok"), m.Erase: m.Erase([ONE], "asked for"),
        m.ErasureReceipt: m.ErasureReceipt(ONE, "t", 0, ""), m.Erasures: m.Erasures(),
        m.Certify: m.Certify(ONE), m.Keys: m.Keys(), m.Unlock: m.Unlock("core", ONE),
        m.Lock: m.Lock("core"), m.Rotate: m.Rotate("base", "root"),
        m.Recipients: m.Recipients("core", ONE), m.Return: m.Return("t", change),
        m.Mend: m.Mend([ONE]), m.Move: m.Move([ONE], "core", "asked for"),
        m.OfferShare: m.OfferShare("core", "paper"), m.Check: m.Check("keys"),
    }[kind]  # fmt: skip


COPIES = {m.Status, m.Health, m.Feed, m.ReadObject, m.Receipt, m.ErasureReceipt, m.Return}
MAY = {
    "capture": {m.Health},
    "replicator": COPIES,
    "operator": {*get_args(m.Request)} - {m.Receipt, m.ErasureReceipt, m.Return},
}


@pytest.mark.parametrize("role", ["capture", "replicator", "operator", "storaged", "unheard-of"])
@pytest.mark.parametrize("kind", get_args(m.Request))
def test_what_a_role_may_not_is_denied(counter, role, kind):
    counter.parts.commit([(ONE, 1, 0)], [make_call(1)])
    reply = counter.ask(request_of(kind), who=Identity(role, "x"))
    denied = isinstance(reply, m.Failure) and reply.code == "denied"
    assert denied != (kind in MAY.get(role, ()))
    assert counter.lines[-1]["result"] == ("denied" if denied else counter.lines[-1]["result"])


def test_replicator_may_not_listen():
    assert not policy.MAY["replicator"] & {m.Search, m.Several, m.Get, m.Fetch, m.Verify, m.Import}


def test_health_is_kept_with_its_age_under_the_name_its_key_proved(counter):
    counter.ask(m.Health("capture", "recording"), who=Identity("capture", "span1"))
    (daemon,) = counter.ask(m.Status()).daemons
    assert (daemon["identity"], daemon["state"]) == ("capture/span1", "recording")
    assert daemon["age_s"] >= 0


# --- digits ---------------------------------------------------------------------------------------

DIALLER = Identity("operator", "bob", frozenset({"digits"}))
DIGITS = chunk.EVENTS + 1


def fetched(counter: Counter) -> list[int]:
    """The streams whose chunks come without a wish."""
    _, bulk = wire.decode_reply(counter.answer(m.Fetch(ONE)).frames())
    return [int(one.header["stream"]) for one in wire.decode_media(bulk).chunks()]


def test_digits_are_given_to_whom_they_are_granted_and_apart(counter):
    counter.parts.commit([(ONE, 1, 0), (ONE, DIGITS, 0), (ONE, 1, 1)], [make_call(1)])
    wish = m.Fetch(ONE, digits=True)
    assert fetched(counter) == [1, 1]
    assert counter.ask(wish).code == "denied"
    for role in ("capture", "replicator"):
        who = Identity(role, "x", frozenset({"digits"}))
        assert counter.ask(wish, who=who).code == "denied"
    _, bulk = wire.decode_reply(counter.answer(wish, who=DIALLER).frames())
    assert chunk_keys(wire.decode_media(bulk)) == [
        (ONE, DIGITS, 0, payload(ONE, DIGITS, 0, 320))
    ]  # fmt: skip
    said = [(line["who"], line.get("digits"), line["result"]) for line in counter.lines]
    assert said == [
        ("operator/alice", None, "ok"),
        ("operator/alice", True, "denied"),
        ("capture/x", True, "denied"),
        ("replicator/x", True, "denied"),
        ("operator/bob", True, "ok"),
    ]


def test_digits_of_a_stream_that_two_calls_share(counter):
    beside = m.Stream(DIGITS, "caller", "events", 1, "", "", {}, stored_in=TWO, stored_as=DIGITS)
    counter.parts.commit([(TWO, DIGITS, 0)], [make_call(2), make_call(1, beside=[beside])])
    reply, bulk = wire.decode_reply(counter.answer(m.Fetch(ONE, digits=True), who=DIALLER).frames())
    assert [key[:2] for key in chunk_keys(wire.decode_media(bulk))] == [(ONE, DIGITS)]
    assert (reply.cursor, reply.faults, fetched(counter)) == (None, [], [])


def test_what_another_program_put_among_the_sound_stays_closed(counter):
    """A reader trusts a chunk's number, not the frame that it lies in."""
    writer = counter.parts.writer
    counter.parts.commit([(ONE, 1, 0)], [make_call(1, final=False)])
    grown = writer._recordings.find(ONE)
    for piece in make_media([(ONE, DIGITS, 1)]).chunks():
        counter.parts.pool.append(ONE, grown.writer.data([chunk.pack(piece)], *at(1)))
    counter.parts.commit([(ONE, 1, 2)], [make_call(1, revision=1)])
    assert fetched(counter) == [1, 1]
