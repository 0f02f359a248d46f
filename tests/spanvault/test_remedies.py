"""What an administrator reads beside a flag."""

from pathlib import Path

from spanvault.remedies import FLAGS, of_flags
from tests.conformance.recorded import Recorded, spanvault
from tests.support.callgen import START_NS, around, phones, sdp, write_pcap
from tests.support.folders import REPOSITORY


def test_show_says_what_can_be_done(tmp_path: Path):
    caller, callee = phones(0.1)
    secure = [
        sdp(phone).replace("RTP/AVP", "UDP/TLS/RTP/SAVP") + "a=fingerprint:sha-256 AA:BB\r\n"
        for phone in (caller, callee)
    ]
    write_pcap(
        tmp_path / "call.pcap",
        around([], START_NS, caller, callee, "dtls", (secure[0], secure[1]), 1.0),
    )
    (call,) = Recorded(tmp_path / "call.pcap", tmp_path).calls
    done = spanvault("show", call["id"], "--store", tmp_path / "store", home=tmp_path)
    told = " ".join(done.stdout.split())
    assert call["flags"] == ["no_media", "srtp_dtls"]
    for flag in call["flags"]:
        assert f"{flag}: {FLAGS[flag].split(':')[0]}" in told


def test_what_is_known_better_takes_its_place():
    assert of_flags(["early_media", "one_way"], {"one_way": "that host is not mirrored"}) == [
        "one_way: that host is not mirrored"
    ]


def test_every_flag_that_has_a_remedy_is_explained_in_the_docs():
    text = (REPOSITORY / "docs" / "calls.md").read_text()
    assert [flag for flag in FLAGS if f"| `{flag}` |" not in text] == []
