"""A recording client's leg: whom it recorded, on which side they are heard, and hostile XML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.signalling import siprec
from spanvault.messages import Call, Participant
from tests.support.conversation import SECOND, Wire

CLIENT, SERVER = "10.0.0.1:5060", "10.0.0.9:5060"

RFC_7865 = """<?xml version="1.0" encoding="UTF-8"?>
<recording xmlns="urn:ietf:params:xml:ns:recording:1">
  <datamode>complete</datamode>
  <group group_id="g1"><associate-time>2010-12-16T23:41:07Z</associate-time></group>
  <session session_id="s1"><sipSessionID>ab30317f;remote=47755a</sipSessionID>
    <group-ref>g1</group-ref></session>
  <participant participant_id="p1"><nameID aor="sip:+4930111@biloxi.com;user=phone">
    <name xml:lang="it">Bob</name></nameID></participant>
  <participant participant_id="p2"><nameID aor="tel:+4989222"/></participant>
  <stream stream_id="m1" session_id="s1"><label>96</label></stream>
  <stream stream_id="m2" session_id="s1"><label>97</label></stream>
  <sessionrecordingassoc session_id="s1"/>
  <participantsessionassoc participant_id="p1" session_id="s1"/>
  <participantstreamassoc participant_id="p1"><send>m1</send><recv>m2</recv>
  </participantstreamassoc>
  <participantstreamassoc participant_id="p2"><send>m2</send><recv>m1</recv>
  </participantstreamassoc>
</recording>"""
DRAFT = """<recording xmlns="urn:ietf:params:xml:ns:recording:1">
  <session id="s1"/>
  <participant id="part1"><nameID aor="sip:alice@example.com"><name>Alice</name></nameID>
  </participant>
  <participant id="part2"><nameID aor="sip:bob@example.com"><name>Bob</name></nameID>
  </participant>
  <stream id="stream1" session="s1"><label>96</label></stream>
  <stream id="stream2" session="s1"><label>97</label></stream>
  <participantstreamassoc id="a1"><participant>part1</participant><stream>stream1</stream>
  </participantstreamassoc>
  <participantstreamassoc id="a2"><participant>part2</participant><stream>stream2</stream>
  </participantstreamassoc>
</recording>"""


def sdp(host: str, ports: tuple[int, int], direction: str, labels: bool = True) -> str:
    lines = ["v=0", f"o=- 1 1 IN IP4 {host}", "s=-", f"c=IN IP4 {host}", "t=0 0"]
    for port, label in zip(ports, (96, 97), strict=True):
        lines += [f"m=audio {port} RTP/AVP 8", f"a={direction}"]
        lines += [f"a=label:{label}"] if labels else []
    return "\r\n".join([*lines, ""])


def request(method: str, number: int, tag: str = "", metadata: str = "", body: str = "") -> bytes:
    parts = [("application/sdp", body), ("application/rs-metadata+xml", metadata)]
    content = "".join(
        f"--part\r\nContent-Type: {kind}\r\n\r\n{text}\r\n" for kind, text in parts if text
    )
    head = [
        f"{method} sip:recorder@10.0.0.9 SIP/2.0",
        f"Via: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK{method}",
        "From: <sip:sbc@10.0.0.1>;tag=c", f"To: <sip:recorder@10.0.0.9>{tag}", "Call-ID: recording",
        f"CSeq: {number} {method}", "Content-Type: multipart/mixed;boundary=part",
    ]  # fmt: skip
    return "\r\n".join([*head, "", f"{content}--part--\r\n"]).encode()


def response(number: int, method: str, body: str) -> bytes:
    return "\r\n".join([
        "SIP/2.0 200 OK", "From: <sip:sbc@10.0.0.1>;tag=c", "To: <sip:recorder@10.0.0.9>;tag=s",
        "Call-ID: recording", f"CSeq: {number} {method}", "Content-Type: application/sdp", "", body,
    ]).encode()  # fmt: skip


def recorded(wire: Wire, metadata: str, later: str = "") -> Call:
    """A leg with both voices, each in its own m= line."""
    offer = sdp("10.0.0.1", (4000, 4002), "sendonly")
    answer = sdp("10.0.0.9", (5000, 5002), "recvonly", labels=False)
    wire.hear(CLIENT, SERVER, request("INVITE", 1, "", metadata, offer))
    wire.hear(SERVER, CLIENT, response(1, "INVITE", answer))
    wire.rtp("10.0.0.1:4002", "10.0.0.9:5002", ssrc=2, payload_type=8)
    wire.rtp("10.0.0.1:4000", "10.0.0.9:5000", ssrc=1, payload_type=8)
    if later:
        wire.hear(CLIENT, SERVER, request("UPDATE", 2, ";tag=s", later))
    wire.now_ns += 5 * SECOND
    wire.hear(CLIENT, SERVER, request("BYE", 3, ";tag=s"))
    (call,) = wire.end()
    return call


@pytest.mark.parametrize(
    ("metadata", "parties"),
    [(RFC_7865, ("+4930111", "+4989222")), (DRAFT, ("alice", "bob"))],
    ids=["RFC 7865", "draft"],
)
def test_the_record_names_whom_the_client_recorded(
    wire: Wire, metadata: str, parties: tuple[str, str]
) -> None:
    call = recorded(wire, metadata)
    assert (call.caller, call.callee) == parties
    assert {stream.ssrc: stream.party for stream in call.streams} == {1: "caller", 2: "callee"}
    assert "siprec" in call.flags
    assert {"one_way", "hold"}.isdisjoint(call.flags)
    assert call.siprec is not None
    assert call.siprec.sessions == ["s1"]


def test_sessions_groups_and_participants_are_kept(wire: Wire) -> None:
    told = recorded(wire, RFC_7865).siprec
    assert told is not None
    assert (told.groups, told.participants) == (
        ["g1"],
        [
            Participant("sip:+4930111@biloxi.com;user=phone", "Bob", "caller"),
            Participant("tel:+4989222", "", "callee"),
        ],
    )


def test_metadata_that_comes_later_is_merged(wire: Wire) -> None:
    first = RFC_7865[: RFC_7865.index("  <participant part")] + "</recording>"
    rest = RFC_7865.replace("complete", "partial")
    call = recorded(wire, first, later=rest)
    assert (call.caller, call.callee) == ("+4930111", "+4989222")
    assert {stream.ssrc: stream.party for stream in call.streams} == {1: "caller", 2: "callee"}


def test_a_third_speaker_takes_no_side() -> None:
    third = RFC_7865.replace("</recording>", """
        <participant participant_id="p3"><nameID aor="sip:carol@x"/></participant>
        <stream stream_id="m3" session_id="s1"><label>98</label></stream>
        <participantstreamassoc participant_id="p3"><send>m3</send></participantstreamassoc>
        </recording>""")  # fmt: skip
    parties = siprec.parse(third.encode()).parties()
    assert parties == {"96": "caller", "97": "callee", "98": "unknown"}


@pytest.mark.parametrize("broken", [RFC_7865[:600], "<recording", "", "no xml", "<other/>"])
def test_damaged_metadata_spoils_itself_only(wire: Wire, broken: str) -> None:
    call = recorded(wire, broken)
    assert (call.caller, call.callee, call.outcome) == ("sbc", "recorder", "answered")
    assert len(call.streams) == 2
    assert "siprec" not in call.flags


BOMB = '<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + RFC_7865[38:].replace(
    "Bob", "&b;"
)


@pytest.mark.parametrize(
    ("hostile", "fault"),
    [
        (BOMB, "document type"),
        ('<!DOCTYPE r SYSTEM "file:///etc/passwd"><recording/>', "document type"),
        ("<recording>" + "<a>" * 100, "nested too deep"),
        ("<recording>" + "<a/>" * 5000 + "</recording>", "too many elements"),
        ("<recording>" + " " * 100_000 + "</recording>", "bytes"),
        ('<?xml version="1.0" encoding="ATF-8"?><recording/>', "unknown encoding"),
    ],
    ids=["entities", "external", "deep", "many", "large", "encoding"],
)
def test_hostile_xml_is_refused(hostile: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        siprec.parse(hostile.encode())


def test_what_is_told_is_bounded() -> None:
    many = "".join(
        f'<participant participant_id="{n}"><nameID aor="sip:{"x" * 9000}@{n}\x7f"/></participant>'
        for n in range(300)
    )
    found = siprec.parse(f"<recording>{many[:60_000]}</recording>".rsplit("<part", 1)[0].encode()
                         + b"</recording>")  # fmt: skip
    assert len(found.participants) <= siprec.MAX_OF_EACH
    assert all(len(aor) <= siprec.MAX_TEXT for aor, _ in found.participants.values())


def test_a_restart_keeps_what_was_told(wire: Wire) -> None:
    offer = sdp("10.0.0.1", (4000, 4002), "sendonly")
    wire.hear(CLIENT, SERVER, request("INVITE", 1, "", RFC_7865, offer))
    wire.restart()
    (call,) = wire.end()
    assert (call.caller, call.callee) == ("+4930111", "+4989222")


@given(st.binary(max_size=300), st.integers(0, len(RFC_7865)))
def test_any_bytes_raise_only_value_error(noise: bytes, at: int) -> None:
    whole = RFC_7865.encode()
    for data in (noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            siprec.parse(data).told()
        except ValueError:
            continue


# What vendors' manuals show, cut to what matters. AudioCodes with Avaya: a prefix never declared.
AUDIOCODES = """<?xml version="1.0" encoding="UTF-8"?>
<recording xmlns='urn:ietf:params:xml:ns:recording'><datamode>complete</datamode>
  <group id="00-3a36c4e3"><associate-time>2010-01-24T01:11:57Z</associate-time></group>
  <session id="00-d0d71a52"><group-ref>00-3a36c4e3</group-ref>
    <ac:AvayaUCID xmlns="urn:ietf:params:xml:ns:Avaya">FA080030C4E34B5B9E59</ac:AvayaUCID>
  </session>
  <participant id="1056" session="00-d0d71a52"><nameID aor="1056@192.168.241.20"></nameID>
    <send>00-1CF23A36C4E3</send><recv>00-583A3A36C4E3</recv></participant>
  <participant id="182052092" session="00-d0d71a52"><nameID aor="182052092@voip.example"></nameID>
    <send>00-583A3A36C4E3</send><recv>00-1CF23A36C4E3</recv></participant>
  <stream id="00-1CF23A36C4E3" session="00-d0d71a52"><label>96</label></stream>
  <stream id="00-583A3A36C4E3" session="00-d0d71a52"><label>97</label></stream>
</recording>"""
ORACLE = """<?xml version='1.0' encoding='UTF-8'?>
<recording xmlns='urn:ietf:params:xml:ns:recording'><dataMode>complete</dataMode>
  <session id="79b2"><extensiondata xmlns:apkt="http:/acmepacket.com/siprec/extensiondata">
    <apkt:ucid>00FA0800012CAB553FA9ED;encoding=hex</apkt:ucid></extensiondata></session>
  <participant id="10ac" session="79b2"><aor>sip:1056@168.192.24.40</aor><name>sipp </name>
    <send>4a72</send></participant>
  <participant id="797c" session="79b2"><nameID aor="sip:182052092@192.168.24.60"/>
    <send>0786</send></participant>
  <stream id="4a72" session="79b2"><label>96</label><mode>separate</mode></stream>
  <stream id="0786" session="79b2"><label>97</label><mode>separate</mode></stream>
</recording>"""


@pytest.mark.parametrize("metadata", [AUDIOCODES, ORACLE], ids=["AudioCodes", "Oracle"])
def test_what_vendors_send_is_understood(wire: Wire, metadata: str) -> None:
    call = recorded(wire, metadata)
    assert (call.caller, call.callee) == ("1056", "182052092")
    assert {stream.ssrc: stream.party for stream in call.streams} == {1: "caller", 2: "callee"}


def test_voices_of_whom_nothing_is_told_are_apart_all_the_same(wire: Wire) -> None:
    """As a gateway sends it: two labelled m= lines, and metadata without a participant."""
    call = recorded(wire, "<recording><datamode>complete</datamode></recording>")
    assert {stream.ssrc: stream.party for stream in call.streams} == {1: "caller", 2: "callee"}


def test_who_is_told_keeps_his_side_and_the_other_line_takes_the_free_one() -> None:
    one = RFC_7865.replace("<send>m2</send>", "").replace("<send>m1</send>", "<send>m2</send>")
    assert siprec.parse(one.encode()).parties(["96", "97"]) == {"96": "callee", "97": "caller"}
