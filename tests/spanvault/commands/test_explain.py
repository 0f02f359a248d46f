"""`spanvault explain`: ladders that fit, documents for programs, and words for every fault."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from spanvault.commands.ladder import ladder
from spanvault.explained import AGAIN, Explained, Flow, Step
from spanvault.messages import Call
from tests.support.callgen import START_NS, answered, phones, sample, write_pcap
from tests.support.command import start
from tests.support.folders import SAMPLE


def explain(*arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    told = {"TZ": "UTC", "COLUMNS": "100", **variables}
    return start("explain", *arguments, variables=told, text=True)


def test_the_overview_lists_calls_and_what_was_counted() -> None:
    done = explain(SAMPLE, COLUMNS="140")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line]
    assert [line[0] for line in lines if line[0].startswith("sample")] == [
        "sample-1@spanvault.example",
        "sample-2@spanvault.example",
    ]
    assert ["RTP", "streams", "2", "of", "calls,", "0", "of", "none"] in lines
    assert "\x1b" not in done.stdout


def test_a_ladder_shows_who_sent_what_and_what_followed() -> None:
    done = explain(SAMPLE, "sample-1", "--no-tshark")
    assert done.returncode == 0, done.stderr
    assert re.search(r"10\.20\.0\.10 +10\.20\.0\.11", done.stdout)
    assert re.search(r" 0\.000 +│─+ INVITE sip:4989777000@10\.20\.0\.11 ─+►│", done.stdout)
    assert re.search(r" 1\.000 +│◄─+ 200 OK \(INVITE\) ─+│", done.stdout)
    assert re.search(r" 1\.050 +│═+ RTP PCMA, 400 packets, 8\.0 s ═+►│", done.stdout)
    assert "· answered" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_documents_one_a_line() -> None:
    done = explain(SAMPLE, "sample-1", "--json", "--no-tshark")
    call, summary = map(json.loads, done.stdout.splitlines())
    assert (call["kind"], call["call"]["outcome"]) == ("call", "answered")
    assert call["steps"][0]["time_at"] == "2026-11-18T11:06:40.000000Z"
    assert call["flows"][0]["ssrc"] == "0x5a000000"
    assert (summary["kind"], summary["found"], summary["tshark"]) == ("summary", True, "")
    assert '"keys"' not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        ((SAMPLE, "nobody@"), {}, 1, "no call of the capture has a Call-ID"),
        (("missing.pcap",), {}, 1, "missing.pcap: no such file"),
        ((Path(__file__),), {}, 1, "not a capture file"),
        ((SAMPLE, "sample-1"), {"PATH": "/nonexistent"}, 0, "apt install tshark"),
    ],
)  # fmt: skip
def test_faults_say_what_to_do(
    arguments: tuple[Any, ...], variables: dict[str, str], code: int, words: str
) -> None:
    done = explain(*arguments, **variables)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_names_from_the_wire_steer_no_terminal(tmp_path: Path) -> None:
    frames = answered(START_NS, *phones(0.1), "evil\x1b[2Jcall")
    write_pcap(tmp_path / "evil.pcap", frames)
    done = explain(tmp_path / "evil.pcap", "evil", "--no-tshark")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def document(hosts: int) -> Explained:
    steps = [
        Step(
            START_NS + number, "INVITE sip:" + "x" * 150, f"10.0.0.{number % hosts}:5060",
            f"10.0.0.{(number + 1) % hosts}:5060", "udp", "audio " * 40, ["because " * 30],
        )
        for number in range(8)
    ]  # fmt: skip
    flow = Flow("10.0.0.0:1", "10.0.0.1:2", 7, START_NS, START_NS, 9, 1, 0, "PCMA/8000")
    flow.differences = ["packets: 9, tshark 8"]
    call = Call(b"", "", ["c"], "a", "b", START_NS)
    event = Step(START_NS, "… 3 more messages are not shown")
    return Explained(call, 8, [*steps, event], 3, [flow])


@pytest.mark.parametrize("hosts", [1, 2, 3, 9])
@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_no_line_is_longer_than_the_terminal(hosts: int, width: int) -> None:
    lines = [line for line, _ in ladder(document(hosts), width)]
    assert max(map(len, lines)) <= max(40, width)
    assert sum("≠" in line for line in lines) == 1
    assert any("3 more messages" in line for line in lines)


def test_hosts_of_one_network_are_told_apart_in_their_lanes() -> None:
    ends = [f"[fd17:625c:f037:2:a00:27ff:feb9:{host}]:5060" for host in (1521, 3519, 4222)]
    steps = [
        Step(START_NS, "INVITE", *ends[:2], "udp"), Step(START_NS, "INVITE", *ends[1:], "udp")
    ]  # fmt: skip
    heads, style = next(ladder(Explained(Call(b"", "", ["c"], "a", "b", START_NS), 2, steps), 100))
    assert style == "bold"
    assert [name[-5:] for name in heads.split()] == ["1521]", "3519]", "4222]"]


def test_what_is_sent_again_and_again_is_one_line() -> None:
    ends = ("10.0.0.1:5060", "10.0.0.2:5060", "udp")
    invite = Step(START_NS, "INVITE sip:1002", *ends, "", ["a new call"])
    times = [int(seconds * 1e9) for seconds in (0.5, 1.5, 3.5)]
    copies = [Step(START_NS + at, "INVITE sip:1002", *ends, "", [AGAIN]) for at in times]
    call = Call(b"", "", ["c"], "a", "b", START_NS)
    lines = [line for line, _ in ladder(Explained(call, 4, [invite, *copies]), 100)]
    assert sum("INVITE" in line for line in lines) == 1
    assert any("sent again ×3, the last 3.5 s later" in line for line in lines)


def test_a_file_without_calls_says_so(tmp_path: Path) -> None:
    frames, path = sample(0.5), tmp_path / "it.pcap"
    write_pcap(path, [frame for frame in frames if b"SIP/2.0" not in frame.data])
    done = explain(path, "--no-tshark")
    assert done.stdout.startswith("No calls: no SIP message that can be read is in it.")
    write_pcap(path, [frames[0]._replace(data=frames[0].data.replace(b"INVITE", b"NOTIFY"))])
    done = explain(path, "--no-tshark")
    assert done.stdout.startswith("No calls: none of the 1 SIP messages begins one")


def test_signalling_in_one_file_and_media_in_another(tmp_path: Path) -> None:
    frames = sample(0.5)
    for name, is_sip in (("sip.pcap", True), ("rtp.pcap", False)):
        write_pcap(tmp_path / name, [f for f in frames if (b"SIP/2.0" in f.data) is is_sip])
    both = explain(tmp_path / "sip.pcap", tmp_path / "rtp.pcap", "sample-1", COLUMNS="140")
    assert both.returncode == 0, both.stderr
    assert "RTP PCMA" in both.stdout
    alone = explain(tmp_path / "sip.pcap", tmp_path / "gone.pcap")
    assert "gone.pcap: no such file" in alone.stderr
