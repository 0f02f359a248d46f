"""What a status line says of a mirror that gives half of what it should."""

import pytest

from capture.lacking import CALLS, PATIENCE_S, QUIET_S, SIGNALLING_S, Lacking
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
    early = lacking.look(PATIENCE_S, counters, secure)
    if not counters.get("frames"):
        return early
    assert "SIP" not in early  # nobody signals for a while, on a quiet night
    lacking.look(SIGNALLING_S - 1, {"frames": 1})
    return lacking.look(SIGNALLING_S, counters, secure)


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
        ([call("no_media")] * 5, "5 of the last 5 answered calls without any RTP: mirror the path"),
        ([call("one_way"), call()] * 3, "3 of the last 6 answered calls with one party only: set"),
        ([call("one_way"), call(), call()] * 2, ""),  # some were on hold to the end
        ([call("one_way")] * 4, ""),  # announcements, before anybody talked
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
