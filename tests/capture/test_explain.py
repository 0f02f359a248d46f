"""The account of a capture: what was concluded of each message and stream, and why."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from capture.calls.joining import MAX_STREAMS
from capture.explain.__main__ import Explainer
from capture.explain.tshark import View, state
from spanvault.explained import Explained, OnlyTheirs, Summary, Unowned
from tests.support.callgen import (
    ANSWERED_NS,
    SECOND,
    START_NS,
    Dialogue,
    Frame,
    answered,
    around,
    phones,
    sdp,
    talk,
    write_pcap,
)
from tests.support.folders import SAMPLE
from tests.support.frames import ethernet, ipv4
from tests.support.wrapping import WRAPPINGS, wrapped

CALL = "call@explain.example"


def told(
    folder: Path, frames: list[Frame], wanted: str | None = CALL
) -> tuple[list[Explained], list[Unowned], Summary]:
    path = folder / "it.pcap"
    write_pcap(path, sorted(frames))
    *documents, summary = Explainer([path], wanted, tshark=False).documents()
    assert isinstance(summary, Summary)
    calls = [each for each in documents if isinstance(each, Explained)]
    return calls, [each for each in documents if isinstance(each, Unowned)], summary


def steps(call: Explained) -> list[tuple[str, list[str]]]:
    return [(step.words.split(" sip:")[0], step.concluded) for step in call.steps]


def test_each_step_says_what_followed(tmp_path: Path) -> None:
    caller, callee = phones(0.4)
    ((call,), unowned, summary) = told(tmp_path, answered(START_NS, caller, callee, CALL))
    assert steps(call) == [
        ("INVITE", [
            "a new call: an INVITE outside any dialog",
            "offer of the caller recorded",
            "media map: the caller receives audio at 10.20.0.10:20000 from 11:06:40.000 on",
        ]),
        ("100 Trying (INVITE)", ["the call is under way"]),
        ("180 Ringing (INVITE)", []),
        ("200 OK (INVITE)", [
            "answered",
            "answer of the callee to the offer: PCMA/8000",
            "media map: the callee receives audio at 10.20.0.11:20002 from 11:06:41.000 on",
        ]),
        ("ACK", []),
        ("BYE", ["the call is over: answered, by bye"]),
        ("200 OK (BYE)", []),
    ]  # fmt: skip
    assert call.steps[0].description == "audio 10.20.0.10:20000 PCMA/8000"
    assert [(flow.party, flow.packets, flow.concluded[0]) for flow in call.flows] == [
        ("caller", 20, "attached, the caller speaks: SDP names both of its ends"),
        ("callee", 20, "attached, the callee speaks: SDP names both of its ends"),
    ]
    assert (unowned, summary.found, summary.streams, summary.unowned) == ([], True, 2, 0)


def test_what_is_sent_again_is_told_as_such(tmp_path: Path) -> None:
    caller, callee = phones(0.2)
    frames = answered(START_NS, caller, callee, CALL)
    again = frames[0]._replace(time_ns=frames[0].time_ns + SECOND // 2)
    ((call,), _, _) = told(tmp_path, [*frames, again])
    assert call.steps[3].concluded[0] == "sent again (retransmission): changes nothing"


def test_a_stream_behind_nat_says_by_which_end_it_was_found(tmp_path: Path) -> None:
    caller, callee = phones(0.4)
    behind = replace(caller, address="203.0.113.9", rtp_port=41_000)  # what its packets come from
    media = talk(START_NS + ANSWERED_NS, behind, callee)
    bodies = (sdp(caller), sdp(callee))
    ((call,), _, _) = told(tmp_path, around(media, START_NS, caller, callee, CALL, bodies, 0.4))
    assert call.flows[0].concluded[0] == (
        "attached, the caller speaks: SDP names where it goes; "
        "its source is not named (NAT, or symmetric RTP)"
    )


def test_streams_of_nobody_say_why(tmp_path: Path) -> None:
    caller, callee = phones(0.4)
    stranger, other = phones(0.4, 7)
    frames = answered(START_NS, caller, callee, CALL)
    late = talk(START_NS + 30 * SECOND, caller, callee)
    elsewhere = talk(START_NS + SECOND, stranger, other)
    moved = talk(START_NS + SECOND, replace(caller, rtp_port=999, ssrc=5), stranger)
    _, unowned, summary = told(tmp_path, [*frames, *late, *elsewhere, *moved], wanted=None)
    why = {each.flow.ssrc: each.why for each in unowned}
    assert why[caller.ssrc] == (
        "call call@explain.example named 10.20.0.11:20002, but had ended at 11:06:41.450: "
        "RTP belongs to a call for 2 s after its end"
    )
    assert why[stranger.ssrc].endswith("encrypted, or began before the capture")
    assert why[5].endswith("of the same host only other ports are named, as 20000")
    assert (summary.unowned, len(unowned)) == (3, 3)
    assert [each.flow.packets for each in unowned] == [20, 20, 20]


def test_a_call_is_shown_with_streams_between_its_hosts_alone(tmp_path: Path) -> None:
    caller, callee = phones(0.4)
    stranger, other = phones(0.4, 7)
    frames = answered(START_NS, caller, callee, CALL)
    frames += talk(START_NS + SECOND, replace(caller, rtp_port=999, ssrc=5), stranger)
    frames += talk(START_NS + SECOND, stranger, other)
    _, unowned, _ = told(tmp_path, frames, "call@")
    assert [each.flow.ssrc for each in unowned] == [5]


def test_hold_and_resume(tmp_path: Path) -> None:
    caller, callee = phones(0.4)
    words, ms = Dialogue(caller, callee, CALL), SECOND // 1000
    frames = answered(START_NS, caller, callee, CALL)[:-2]
    for number, direction in enumerate(("sendonly", "sendrecv"), 2):
        at = START_NS + number * SECOND
        frames.append(words.request(at, "INVITE", number, sdp(caller) + f"a={direction}\r\n"))
        reply = words.response(at + 5 * ms, "200 OK", f"{number} INVITE", sdp(callee))
        frames.append(reply)
    ((call,), _, _) = told(tmp_path, frames)
    said = [sentence for step in call.steps for sentence in step.concluded]
    assert said.count("a re-INVITE: the call goes on") == 2
    assert [each for each in said if "hold" in each] == ["on hold", "resumed: no longer on hold"]
    assert call.steps[-1].words == "ended by the capture: capture_end"


def test_only_what_is_asked_for_is_kept(tmp_path: Path) -> None:
    calls = [f"{number}@explain.example" for number in range(20)]
    frames = [
        frame
        for number, call in enumerate(calls)
        for frame in answered(START_NS + number * SECOND, *phones(0.1, number), call)
    ]
    found, _, summary = told(tmp_path, frames, "7@")
    assert [each.call.call_ids for each in found] == [["7@explain.example"]]
    assert summary.calls == 20
    overview, _, _ = told(tmp_path, frames, None)
    assert [each.steps for each in overview] == [[]] * 20


def test_the_overview_counts_what_lies_around_and_what_is_damaged(tmp_path: Path) -> None:
    caller, callee = phones(0.2)
    frames = answered(START_NS, caller, callee, CALL)
    words = Dialogue(caller, callee, "other")
    frames.append(words.request(START_NS, "OPTIONS"))
    broken = words.request(START_NS, "INVITE").data.replace(b"Call-ID: other", b"Call-IX: other")
    frames.append(Frame(START_NS, broken))
    frames += [Frame(START_NS, ethernet(ipv4(bytes(60), protocol=132)))] * 3
    _, _, summary = told(tmp_path, wrapped(frames, WRAPPINGS["VXLAN"].wrap), None)
    assert {"vxlan"} <= {each.what for each in summary.encapsulations}
    counted = {each.what: each.count for each in summary.counts}
    assert counted["SIP messages outside of calls (OPTIONS 1)"] == 1
    assert counted["damaged SIP messages and keep-alives"] == 1
    assert counted["frames of IP protocol 132 (SCTP): what is in them is not read"] == 3


def test_a_cut_file_is_explained_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "cut.pcap"
    path.write_bytes(SAMPLE.read_bytes()[:-100])
    *documents, summary = Explainer([path], None, tshark=False).documents()
    assert isinstance(summary, Summary)
    assert len(documents) == 2
    assert "cut off" in summary.faults[0]


def test_states_are_those_of_wireshark() -> None:
    def after(*messages: tuple[str, str]) -> str:
        now = ""
        for method, status in messages:
            now = state(now, method, status)
        return now

    invite, ringing, ok = ("INVITE", ""), ("INVITE", "180"), ("INVITE", "200")
    assert after(invite) == "call setup"
    assert after(invite, ringing) == "ringing"
    assert after(invite, ("INVITE", "407"), invite, ok) == "in call"
    assert after(invite, ok, ("BYE", "")) == "completed"
    assert after(invite, ringing, ("CANCEL", ""), ("INVITE", "487")) == "cancelled"
    assert after(invite, ("INVITE", "486")) == "rejected"
    assert after(("ACK", "")) == "mid-call"


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
def test_tshark_sees_the_same_and_differences_are_marked(tmp_path: Path) -> None:
    *documents, summary = Explainer([SAMPLE], None, tshark=True).documents()
    calls = [each for each in documents if isinstance(each, Explained)]
    assert [each.theirs and each.theirs.state for each in calls] == ["completed", "rejected"]
    assert [each.differences for each in calls] == [[], []]
    assert [flow.theirs and flow.theirs.packets for flow in calls[0].flows] == [400, 400]
    assert not any(isinstance(each, OnlyTheirs) for each in documents)
    assert isinstance(summary, Summary)
    assert (summary.tshark[:7], summary.without_tshark) == ("tshark ", "")


@pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")
def test_what_only_tshark_counts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(self: View, path: Path) -> None:
        whole(self, path)
        flow = next(iter(self.flows.values()))
        flow.packets += 3
        self.flows["10.0.0.1:1", "10.0.0.2:2", 9] = flow

    whole = View._read_calls
    monkeypatch.setattr(View, "_read_calls", more)
    documents = list(Explainer([SAMPLE], None, tshark=True).documents())
    flows = [flow for each in documents if isinstance(each, Explained) for flow in each.flows]
    assert ["packets: 400 with copies, tshark 403"] in [flow.differences for flow in flows]
    assert [each.flow is not None for each in documents if isinstance(each, OnlyTheirs)] == [True]


def test_without_tshark_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    *_, summary = Explainer([SAMPLE], None, tshark=True).documents()
    assert isinstance(summary, Summary)
    assert (
        summary.without_tshark
        == "tshark is not installed, so its view is missing: apt install tshark"
    )


def test_streams_beyond_what_a_call_may_have_are_told_of(tmp_path: Path) -> None:
    caller, callee = phones(0.1)
    frames = answered(START_NS, caller, callee, CALL)
    many = [replace(caller, ssrc=1000 + number) for number in range(MAX_STREAMS)]
    frames += [each for one in many for each in talk(START_NS + ANSWERED_NS, one, callee)]
    _, unowned, summary = told(tmp_path, frames, wanted=None)
    assert summary.streams == MAX_STREAMS
    assert len(unowned) == summary.unowned == 2
    assert {(each.why, each.flow.packets) for each in unowned} == {
        ("its call has more streams than are kept of one", 5)
    }


def apart(folder: Path, frames: list[Frame], later_s: int = 0) -> list[Path]:
    """Signalling in one file; media in another, so much later."""
    signalling = [frame for frame in frames if b"SIP/2.0" in frame.data]
    media = [
        frame._replace(time_ns=frame.time_ns + later_s * SECOND)
        for frame in frames
        if b"SIP/2.0" not in frame.data
    ]
    paths = [folder / "media.pcap", folder / "signalling.pcap"]
    write_pcap(paths[0], media)
    write_pcap(paths[1], signalling)
    return paths


@pytest.mark.parametrize("as_folder", [True, False])
def test_signalling_and_media_captured_apart_are_one_capture(
    tmp_path: Path, as_folder: bool
) -> None:
    paths = apart(tmp_path, answered(START_NS, *phones(0.4), CALL))
    call, summary = Explainer([tmp_path] if as_folder else paths, None, None).documents()
    assert isinstance(call, Explained)
    assert isinstance(summary, Summary)
    assert [(flow.source, flow.packets) for flow in call.flows] == [
        ("10.20.0.10:20000", 20), ("10.20.0.11:20002", 20),
    ]  # fmt: skip
    assert (summary.streams, summary.unowned, summary.faults) == (2, 0, [])
    assert summary.without_tshark.startswith("tshark is not asked: it reads one file")


def test_files_of_different_times_are_told_apart(tmp_path: Path) -> None:
    paths = apart(tmp_path, answered(START_NS, *phones(0.4), CALL), later_s=3600)
    *_, summary = Explainer(paths, None, tshark=False).documents()
    assert isinstance(summary, Summary)
    assert summary.frames == 7
    (fault,) = summary.faults
    assert fault.startswith("The files are of different times")


def test_a_folder_without_captures_is_named(tmp_path: Path) -> None:
    (summary,) = Explainer([tmp_path], None, tshark=False).documents()
    assert isinstance(summary, Summary)
    assert "no capture file lies in this folder" in summary.faults[0]


SIP_BOTH_WAYS = "SIP is heard both ways"


def silent(folder: Path, frames: list[Frame]) -> str:
    """What is said of a call of which a party, or all, was not heard."""
    ((call,), _, _) = told(folder, frames)
    (remedy,) = [each for each in call.remedies if each.startswith(("one_way", "no_media"))]
    return remedy


def test_who_was_not_heard_is_named_and_where_his_media_was_awaited(tmp_path: Path) -> None:
    caller, callee = phones(0.4)
    bodies = (sdp(caller), sdp(callee))
    media = talk(START_NS + ANSWERED_NS, callee, caller)
    frames = around(media, START_NS, caller, callee, CALL, bodies, 0.4)
    said = silent(tmp_path, frames)
    assert "The caller was not heard: no RTP goes to 10.20.0.11:20002, where the callee" in said
    assert SIP_BOTH_WAYS in said
    from_callee = [f for f in frames if f.data[26:30] == bytes([10, 20, 0, 11])]
    only = silent(tmp_path, from_callee)
    assert "SIP is heard one way only, too" in only


@pytest.mark.parametrize(
    ("says", "party", "because"),
    [
        ("recvonly", "caller", "Its own SDP says recvonly"),
        ("sendonly", "callee", "The callee's SDP says sendonly"),
    ],
)
def test_a_party_that_sends_nothing_by_its_sdp_is_no_fault_of_the_mirror(
    tmp_path: Path, says: str, party: str, because: str
) -> None:
    caller, callee = phones(0.4)
    bodies = {"caller": sdp(caller), "callee": sdp(callee)}
    bodies[party] += f"a={says}\r\n"
    media = talk(START_NS + ANSWERED_NS, callee, caller)
    both = (bodies["caller"], bodies["callee"])
    said = silent(tmp_path, around(media, START_NS, caller, callee, CALL, both, 0.4))
    assert because in said
    assert SIP_BOTH_WAYS not in said


def test_a_call_without_any_media_says_where_it_was_to_go(tmp_path: Path) -> None:
    caller, callee = phones(0.4)
    bodies = (sdp(caller), sdp(callee))
    said = silent(tmp_path, around([], START_NS, caller, callee, CALL, bodies, 0.4))
    assert "no RTP goes to 10.20.0.10:20000 or 10.20.0.11:20002, which its SDP names" in said
    assert "mirror that path, too" in said


def test_of_thousands_of_messages_the_first_and_the_last_are_shown(tmp_path: Path) -> None:
    caller, callee = phones(0.2)
    frames, words = answered(START_NS, caller, callee, CALL), Dialogue(caller, callee, CALL)
    refreshed = [words.request(START_NS + 1100 * 10**6, "UPDATE", n) for n in range(10, 3010)]
    ((call,), _, _) = told(tmp_path, [*frames, *refreshed])
    assert (len(call.steps), call.messages) == (1001, 3007)
    assert call.steps[0].words.startswith("INVITE")
    assert call.steps[-1].words == "200 OK (BYE)"
    assert call.steps[700].words == "… 2007 more messages are not shown"
    assert call.passed_over == 2007
