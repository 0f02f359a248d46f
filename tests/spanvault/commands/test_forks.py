"""Calls that ring at several phones, some of which speak early: who is heard, on which side.

From a capture through a store to an export, also where a relay for media stands beside the proxy.
Sources: RFC 3261 §13.2.2.4 (two answers), §16.7 (a
proxy's forks), RFC 3960 (early media).
"""

from collections.abc import Callable
from typing import Final

import pytest

from tests.support.callgen import Phone
from tests.support.forking import Fork
from tests.support.spoken import Heard, record


def one_of_two(call: Fork) -> None:
    """Both play something early; the second one answers."""
    call.invite(0, call.one, call.two)
    call.reply(50, call.one, "183 Session Progress", body=True)
    call.speak(100, 2000, call.one)
    call.reply(300, call.two, "183 Session Progress", body=True)
    call.speak(400, 5000, call.two)
    call.reply(2000, call.two, "200 OK", body=True)
    call.call_off(2010, call.one)
    call.ack(2020, call.two)
    call.speak(2040, 3360, call.caller, call.two)
    call.bye(5500, call.two)


def one_of_three(call: Fork) -> None:
    """The third one rings in silence."""
    call.invite(0, call.one, call.two, call.three)
    for at_ms, phone in ((40, call.one), (60, call.two)):
        call.reply(at_ms, phone, "183 Session Progress", body=True)
        call.speak(at_ms + 60, 1500, phone)
    call.reply(80, call.three, "180 Ringing")
    call.reply(2000, call.three, "200 OK", body=True)
    call.call_off(2010, call.one)
    call.call_off(2011, call.two)
    call.ack(2020, call.three)
    call.speak(2040, 3000, call.three)
    call.speak(2060, 3000, call.caller, call.three)
    call.bye(5500, call.three)


def two_answer(call: Fork) -> None:
    """The caller keeps one, and hangs up on the other."""
    call.invite(0, call.one, call.two)
    call.reply(40, call.one, "180 Ringing")
    call.reply(60, call.two, "180 Ringing")
    call.reply(1000, call.one, "200 OK", body=True)
    call.reply(1010, call.two, "200 OK", body=True)
    call.speak(1020, 400, call.one)
    call.speak(1040, 4000, call.two)
    call.ack(1030, call.one)
    call.ack(1040, call.two)
    call.bye(1400, call.one)
    call.speak(1100, 3940, call.caller, call.two)
    call.bye(5100, call.two, cseq=3)


def next_after_busy(call: Fork) -> None:
    """One after the other: the first one's announcement, then 486, then the next is rung."""
    call.invite(0, call.one)
    call.reply(50, call.one, "183 Session Progress", body=True)
    call.speak(100, 1200, call.one)
    call.fail(1400, call.one, "486 Busy Here")
    call.reply(1500, call.two, "183 Session Progress", body=True)
    call.speak(1600, 4000, call.two)
    call.reply(2500, call.two, "200 OK", body=True)
    call.ack(2520, call.two)
    call.speak(2540, 3060, call.caller, call.two)
    call.bye(5700, call.two)


def none_answers(call: Fork) -> None:
    """Both are heard, and the caller gives up: nobody's early media is less than another's."""
    call.invite(0, call.one, call.two)
    for at_ms, phone in ((40, call.one), (60, call.two)):
        call.reply(at_ms, phone, "183 Session Progress", body=True)
        call.speak(at_ms + 60, 1500, phone)
    call.refuse(2000, call.one, "487 Request Terminated")


def redirected(call: Fork) -> None:
    """302 comes to the caller, who calls again under the same Call-ID."""
    call.invite(0, call.one)
    call.reply(50, call.one, "183 Session Progress", body=True)
    call.speak(100, 1000, call.one)
    call.refuse(1200, call.one, "302 Moved Temporarily", contact=call.two)
    call.invite(1250, call.two, cseq=2)
    call.reply(1300, call.two, "183 Session Progress", body=True, cseq=2)
    call.speak(1400, 4000, call.two)
    call.reply(2400, call.two, "200 OK", body=True, cseq=2)
    call.ack(2420, call.two, cseq=2)
    call.speak(2440, 2960, call.caller, call.two)
    call.bye(5500, call.two, cseq=3)


FORKS: Final[dict[str, Callable[[Fork], None]]] = {
    "one of two": one_of_two,
    "one of three": one_of_three,
    "two answer": two_answer,
    "next after busy": next_after_busy,
    "redirected": redirected,
    "none": none_answers,
}
SIDES: Final = ("the caller's side", "both sides", "both sides of a relay")
CASES: Final = [(name, side) for name in FORKS for side in SIDES]


@pytest.fixture(scope="module")
def calls() -> dict[tuple[str, str], Fork]:
    found = {}
    for number, (name, side) in enumerate(CASES):
        both, relay = side != SIDES[0], side == SIDES[2]
        found[name, side] = Fork(number, f"{number}", both_sides=both, relay=relay)
        FORKS[name](found[name, side])
    return found


@pytest.fixture(scope="module")
def lines(
    calls: dict[tuple[str, str], Fork], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Heard]:
    frames = [sorted(call.frames) for call in calls.values()]
    return dict(zip(calls, record(tmp_path_factory.mktemp("forks"), frames), strict=True))


@pytest.mark.parametrize(("name", "side"), CASES)
def test_each_voice_is_heard_once_where_it_belongs(
    calls: dict[tuple[str, str], Fork], lines: dict[tuple[str, str], Heard], name: str, side: str
):
    wanted, sound = calls[name, side].sound(), lines[name, side].sound
    assert abs(len(sound) - len(wanted)) <= 8  # 1 ms
    size = min(len(sound), len(wanted))
    assert (sound[:size] == wanted[:size]).all()


@pytest.mark.parametrize(("name", "side"), CASES)
def test_the_call_and_who_did_not_get_it(
    calls: dict[tuple[str, str], Fork], lines: dict[tuple[str, str], Heard], name: str, side: str
):
    call, line = calls[name, side], lines[name, side].line
    assert (line["caller"], line["callee"]) == (call.caller.number, "4930555")
    ended = ("cancelled", "cancel") if name == "none" else ("answered", "bye")
    assert (line["outcome"], line["end_reason"]) == ended
    assert line["related"] == []
    early = [] if name == "two answer" else ["early_media"]
    assert line["flags"] == [*early, "forked"]
    heard = [(one["party"], one["source"], one["lost_fork"]) for one in line["channels"]]
    assert sorted(heard) == sorted(
        ("caller" if speaker is call.caller else "callee",
         f"{source.address}:{source.rtp_port}", rung in lost(name, call))
        for speaker, source, rung in call.flows
    )  # fmt: skip
    assert not any(one["lost"] or one["duplicates"] for one in line["channels"])


def lost(name: str, call: Fork) -> list[Phone]:
    """Who was heard and did not answer."""
    both = [call.one, call.two]
    return {"two answer": [], "one of three": both, "none": []}.get(name, [call.one])
