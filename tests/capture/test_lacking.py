"""What a status line says of a mirror that gives half of what it should."""

import pytest

from capture.lacking import CALLS, PATIENCE_S, QUIET_S, Lacking
from spanvault.messages import Call

WELL = {"frames": 9000, "sip_messages": 7, "rtp": 8000}


def call(*flags: str, outcome: str = "answered") -> Call:
    return Call(
        bytes(16), "span", ["c@example"], "1001", "1002", 0,
        outcome=outcome, flags=list(flags), final=True,  # type: ignore[arg-type]
    )  # fmt: skip


def said(counters: dict[str, int], calls: list[Call], secure: bool = False) -> str:
    lacking = Lacking("eth1")
    assert lacking.look(0.0, {}) == ""
    lacking.heard(calls)
    assert lacking.look(PATIENCE_S - 1, counters) == ""
    return lacking.look(PATIENCE_S, counters, secure)


@pytest.mark.parametrize(
    ("counters", "words"),
    [
        ({}, "NOTHING is heard on eth1: is it the port"),
        ({"frames": 0}, "NOTHING is heard on eth1: is it the port"),
        ({"frames": 300}, "NO SIP and no RTP among 300 frames: does eth1 get the mirror"),
        ({"frames": 900, "rtp": 600}, "RTP, and NO SIP: mirror the signalling"),
        ({"frames": 900, "rtp": 3}, ""),
        ({"frames": 900, "sip_messages": 30}, ""),  # registrations, and nobody calls
        (WELL, ""),
    ],
)
def test_by_what_is_heard_at_all(counters: dict[str, int], words: str) -> None:
    told = said(counters, [])
    assert (told.startswith(words), bool(told)) == (True, bool(words))


def test_where_sip_is_under_tls_that_is_what_is_told_of_alone() -> None:
    assert said({"frames": 900, "rtp": 600}, [], secure=True) == ""


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([call("no_media")], "1 of the last 1 answered calls without any RTP: mirror the path"),
        ([call("one_way"), call()], "1 of the last 2 answered calls with one party only: set"),
        ([call("one_way"), call(), call()], ""),  # somebody was on hold to the end
        ([call("no_media", "fax")], ""),
        ([call("no_media", outcome="busy")], ""),
        ([call("one_way")] * 3 + [call()] * CALLS, ""),  # it was mended
    ],
)
def test_by_the_calls_that_ended_last(calls: list[Call], words: str) -> None:
    told = said(WELL, calls)
    assert (told.startswith(words), bool(told)) == (True, bool(words))


def test_a_mirror_that_is_switched_off_is_missed_and_the_line_goes_when_it_is_back() -> None:
    lacking = Lacking("eth1")
    lacking.look(0.0, WELL)
    assert lacking.look(QUIET_S - 1, WELL) == ""
    assert lacking.look(QUIET_S, WELL) == "NOTHING was heard on eth1 for 300 s: is the mirror on?"
    assert lacking.look(QUIET_S + 1, {**WELL, "frames": 9001}) == ""
