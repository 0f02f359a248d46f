"""The torture messages of RFC 4475 and RFC 5118: read as far as they make sense, else survived.

RFC 4475's lie in tests/data/rfc4475, byte by byte as its appendix has them; RFC 5118's stand here.
What a server must refuse, a recorder still reads: it can ask nobody to say it again.
"""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from capture.packets.slowpath import SlowPath
from capture.signalling.sdp import parse as parse_sdp
from capture.signalling.sip import SipMessage, parse
from tests.support import folders
from tests.support.conversation import Wire
from tests.support.frames import block

FOLDER = folders.DATA / "rfc4475"
MESSAGES = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.dat"))}
LONG_CALLER = "amazinglylongcallername" * 5
LONG_TAG = "12" + "982" * 50 + "424"
ODD_METHOD = "!interesting-Method0123456789_*+`.%indeed'~"
ODD_USER = "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/"

# What must be read: method or status, who calls, the caller's tag, who is called, m= lines.
READ = {
    # 3.1.1 Valid messages
    "wsinv": ("INVITE", "jdrosen", "98asjd8", "vivekg", 2),
    "intmeth": (ODD_METHOD, "mundane", "_token~1'+`*%!-.", ODD_USER, 0),
    "esc01": ("INVITE", "I have spaces", "938", "user", 2),
    "escnull": ("REGISTER", "null--null", "839923423", "null--null", 0),
    "esc02": ("RE%47IST%45R", "resource", "f232jadfj23", "resource", 0),
    "lwsdisp": ("OPTIONS", "caller", "323", "user", 0),
    "longreq": ("INVITE", LONG_CALLER, LONG_TAG, "user", 2),
    "dblreq": ("REGISTER", "j.user", "43251j3j324", "j.user", 0),
    "semiuri": ("OPTIONS", "caller", "33242", "j_user", 0),
    "transports": ("OPTIONS", "caller", "323", "user", 0),
    "mpart01": ("MESSAGE", "fluffy", "2fb0dcc9", "kumiko", 0),
    "unreason": (200, "user", "11141343", "user", 2),
    "noreason": (100, "user", "39ansfi3", "user", 0),
    # 3.1.2 Invalid messages
    "badinv01": ("INVITE", "caller", "134161461246", "j.user", 2),
    "clerr": ("INVITE", "caller", "93942939o2", "j.user", 2),
    "ncl": ("INVITE", "caller", "32394234", "j.user", 2),
    "scalar02": ("REGISTER", "user", "239232jh3", "user", 0),
    "scalarlg": (503, "other", "2easdjfejw", "user", 0),
    "quotbal": ("INVITE", "caller", "93334", "j.user", 2),
    "ltgtruri": ("INVITE", "caller", "39291", "user", 2),
    "lwsruri": ("INVITE", "caller", "231413434", "user", 2),
    "lwsstart": ("INVITE", "caller", "8814", "user", 2),
    "trws": ("OPTIONS", "local-resource", "329429089", "remote-target", 0),
    "escruri": ("INVITE", "caller", "341518", "user", 2),
    "baddate": ("INVITE", "caller", "2234923", "user", 2),
    "regbadct": ("REGISTER", "user", "998332", "user", 0),
    "badaspec": ("OPTIONS", "a.g.bell", "433423", "t.watson", 0),
    "baddn": ("OPTIONS", "a.g.bell", "43", "t.watson", 0),
    "mismatch01": ("OPTIONS", "caller", "34525", "j.user", 0),
    "mismatch02": ("NEWMETHOD", "caller", "34525", "j.user", 2),
    "bigcode": (429, "user", "39ansfi3", "user", 0),
    # 3.2 Transaction layer, 3.3 Application layer, 3.4 Backward compatibility
    "badbranch": ("OPTIONS", "caller", "33242", "user", 0),
    "unkscm": ("OPTIONS", "caller", "384", "user", 0),
    "novelsc": ("OPTIONS", "caller", "384", "user", 0),
    "unksm2": ("REGISTER", "http", "3234233", "isbn", 0),
    "bext01": ("OPTIONS", "caller", "242etr", "j_user", 0),
    "invut": ("INVITE", "caller", "8392034", "j.user", 0),
    "regaut01": ("REGISTER", "j.user", "87321hj23128", "j.user", 0),
    "multi01": ("INVITE", "caller", "3413415", "user", 2),
    "mcl01": ("OPTIONS", "other", "3923942", "user", 0),
    "bcast": (200, "user", "11141343", "user", 2),
    "zeromf": ("OPTIONS", "caller", "3ghsd41", "user", 0),
    "cparam01": ("REGISTER", "watson", "DkfVgjkrtMwaerKKpe", "watson", 0),
    "cparam02": ("REGISTER", "watson", "838293", "watson", 0),
    "regescrt": ("REGISTER", "user", "8", "user", 0),
    "sdp01": ("INVITE", "caller", "234", "j_user", 2),
    "inv2543": ("INVITE", "+13035551111", "", "+16505552222", 1),
}  # fmt: skip
REFUSED = {
    "badvers": "neither a SIP request nor a response",  # SIP/7.0
    "insuf": "SIP message without Call-ID",
}


def facts(found: SipMessage) -> tuple[str | int, str, str, str, int]:
    lines = len(parse_sdp(found.sdp).media) if found.sdp else 0
    start = found.method if found.status is None else found.status
    return start, found.from_.user, found.from_.tag, found.to.user, lines


def test_all_49_messages_are_here() -> None:
    assert len(MESSAGES) == 49
    assert READ.keys() | REFUSED.keys() == MESSAGES.keys()


@pytest.mark.parametrize("name", READ)
def test_rfc_4475(name: str) -> None:
    assert facts(parse(MESSAGES[name])) == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_rfc_4475_beyond_repair(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        parse(MESSAGES[name])


# --- RFC 5118 -------------------------------------------------------------------------------------


def said(*lines: str) -> bytes:
    return "\r\n".join([*lines, ""]).encode()


COMMON = (
    "To: sip:user@example.com",
    "From: sip:user@example.com;tag=81x2",
    "Via: SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111",
    "Call-ID: SSG9559905523997077@hlau_4100",
    "Max-Forwards: 70",
    'Contact: "Caller" <sip:caller@[2001:db8::1]>',
    "CSeq: 98176 REGISTER",
    "Content-Length: 0",
    "",
)
IPV6 = {
    "4.1 a reference": (
        said("REGISTER sip:[2001:db8::10] SIP/2.0", *COMMON),
        "sip:[2001:db8::10]",
    ),
    "4.2 without brackets": (
        said("REGISTER sip:2001:db8::10 SIP/2.0", *COMMON),
        "sip:2001:db8::10",
    ),
    "4.3 an ambiguous port": (
        said("REGISTER sip:[2001:db8::10:5070] SIP/2.0", *COMMON),
        "sip:[2001:db8::10:5070]",
    ),
    "4.4 a port": (
        said("REGISTER sip:[2001:db8::10]:5070 SIP/2.0", *COMMON),
        "sip:[2001:db8::10]:5070",
    ),
    "4.5 received in brackets": (
        said(
            "BYE sip:[2001:db8::10] SIP/2.0",
            "To: sip:user@example.com;tag=bd76ya",
            "From: sip:user@example.com;tag=81x2",
            "Via: SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKas3-111",
            "Call-ID: SSG9559905523997077@hlau_4100",
            "Max-Forwards: 70",
            "CSeq: 321 BYE",
            "Content-Length: 0",
            "",
        ),
        "sip:[2001:db8::10]",
    ),
    "4.5 received without": (
        said(
            "OPTIONS sip:[2001:db8::10] SIP/2.0",
            "To: sip:user@example.com",
            "From: sip:user@example.com;tag=81x2",
            "Via: SIP/2.0/UDP [2001:db8::9:1];received=2001:db8::9:255;branch=z9hG4bKas3-111",
            "Call-ID: SSG95523997077@hlau_4100",
            "Max-Forwards: 70",
            'Contact: "Caller" <sip:caller@[2001:db8::9:1]>',
            "CSeq: 921 OPTIONS",
            "Content-Length: 0",
            "",
        ),
        "sip:[2001:db8::10]",
    ),
    "4.7 both kinds of Via": (
        said(
            "BYE sip:user@host.example.net SIP/2.0",
            "Via: SIP/2.0/UDP [2001:db8::9:1]:6050;branch=z9hG4bKas3-111",
            "Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKjhja8781hjuaij65144",
            "Via: SIP/2.0/TCP [2001:db8::9:255];branch=z9hG4bK451jj;received=192.0.2.200",
            "Call-ID: 997077@lau_4100",
            "Max-Forwards: 70",
            "CSeq: 89187 BYE",
            "To: sip:user@example.net;tag=9817--94",
            "From: sip:user@example.com;tag=81x2",
            "Content-Length: 0",
            "",
        ),
        "sip:user@host.example.net",
    ),
    "4.10 three colons": (
        said(
            "OPTIONS sip:user@[2001:db8:::192.0.2.1] SIP/2.0",
            "To: sip:user@[2001:db8:::192.0.2.1]",
            "From: sip:user@example.com;tag=810x2",
            "Via: SIP/2.0/UDP lab1.east.example.com;branch=z9hG4bKas3-111",
            "Call-ID: G9559905523997077@hlau_4100",
            "CSeq: 689 OPTIONS",
            "Max-Forwards: 70",
            "Content-Length: 0",
            "",
        ),
        "sip:user@[2001:db8:::192.0.2.1]",
    ),
    "4.10 two colons": (
        said(
            "OPTIONS sip:user@[2001:db8::192.0.2.1] SIP/2.0",
            "To: sip:user@[2001:db8::192.0.2.1]",
            "From: sip:user@example.com;tag=810x2",
            "Via: SIP/2.0/UDP lab1.east.example.com;branch=z9hG4bKas3-111",
            "Call-ID: G9559905523997077@hlau_4100",
            "CSeq: 689 OPTIONS",
            "Max-Forwards: 70",
            "Content-Length: 0",
            "",
        ),
        "sip:user@[2001:db8::192.0.2.1]",
    ),
}


@pytest.mark.parametrize("name", IPV6)
def test_rfc_5118(name: str) -> None:
    data, uri = IPV6[name]
    found = parse(data)
    assert (found.uri, found.from_.user, found.to.user) == (uri, "user", "user")
    assert found.branch == "z9hG4bKas3-111"


def invited(host: str, length: int, *body: str) -> bytes:
    return said(
        "INVITE sip:user@[2001:db8::10] SIP/2.0",
        "To: sip:user@[2001:db8::10]",
        "From: sip:user@example.com;tag=81x2",
        f"Via: SIP/2.0/UDP [{host}];branch=z9hG4bKas3-111",
        "Call-ID: SSG9559905523997077@hlau_4100",
        f'Contact: "Caller" <sip:caller@[{host}]>',
        "CSeq: 8612 INVITE",
        "Max-Forwards: 70",
        "Content-Type: application/sdp",
        f"Content-Length: {length}",  # as the RFC has it: not what the body measures
        "",
        *body,
    )


VIDEO = ("m=audio 6000 RTP/AVP 2", "a=rtpmap:2 G726-32/8000", "m=video 6024 RTP/AVP 107",
         "a=rtpmap:107 H263-1998/90000")  # fmt: skip
BODIES = {
    "4.6 IPv6": (
        invited(
            "2001:db8::20", 268,
            "v=0", "o=assistant 971731711378798081 0 IN IP6 2001:db8::20",
            "s=Live video feed for today's meeting", "c=IN IP6 2001:db8::20",
            "t=3338481189 3370017201", *VIDEO,
        ),
        ["2001:db8::20", "2001:db8::20"],
    ),
    "4.8 both": (
        invited(
            "2001:db8::9:1", 181,
            "v=0", "o=bob 280744730 28977631 IN IP4 host.example.com", "s=", "t=0 0",
            "m=audio 22334 RTP/AVP 0", "c=IN IP4 192.0.2.1", "m=video 6024 RTP/AVP 107",
            "c=IN IP6 2001:db8::1", "a=rtpmap:107 H263-1998/90000",
        ),
        ["192.0.2.1", "2001:db8::1"],
    ),
    "4.9 IPv4 in IPv6": (
        invited(
            "::ffff:192.0.2.2", 236,
            "v=0", "o=assistant 971731711378798081 0 IN IP6 ::ffff:192.0.2.2",
            "s=Call me soon, please!", "c=IN IP6 ::ffff:192.0.2.2", "t=3338481189 3370017201",
            *VIDEO,
        ),
        ["192.0.2.2", "192.0.2.2"],  # what crosses the wire is IPv4
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_rfc_5118_descriptions(name: str) -> None:
    data, addresses = BODIES[name]
    sdp = parse(data).sdp
    assert sdp is not None
    media = parse_sdp(sdp).media
    assert [str(ipaddress.ip_address(each.address or b"")) for each in media] == addresses


# --- damage ---------------------------------------------------------------------------------------

WHOLE = [
    "INVITE sip:bob@example.com SIP/2.0",
    "Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1",
    'From: "Alice" <sip:alice@example.com>;tag=1928',
    "To: <sip:bob@example.com>;tag=77",
    "Call-ID: a84b4c76e66710",
    "CSeq: 314 INVITE",
    "Replaces: 12@x;to-tag=a;from-tag=b",
    "Reason: Q.850;cause=17",
    "Content-Type: application/sdp",
]
SAID = {  # by header: what is read of it
    "Via": lambda message: message.branch,
    "From": lambda message: message.from_,
    "To": lambda message: message.to,
    "Call-ID": lambda message: message.call_id,
    "CSeq": lambda message: message.cseq,
    "Replaces": lambda message: message.replaces,
    "Reason": lambda message: message.cause,
    "Content-Type": lambda message: message.sdp,
}


@given(
    st.sampled_from(sorted(SAID)), st.text(st.characters(exclude_characters="\r\n"), max_size=60)
)
def test_a_damaged_header_spoils_only_itself(name: str, value: str) -> None:
    def read(*lines: str) -> SipMessage:
        return parse(("\r\n".join([*lines, "", ""]) + "v=0\r\n").encode("utf-8", "replace"))

    damaged = [f"{name}: {value}" if line.startswith(name) else line for line in WHOLE]
    try:
        found = read(*damaged)
    except ValueError:
        assert name == "Call-ID"  # without one it is of no call
        assert not value.strip()
        return
    whole = read(*WHOLE)
    for other, said in SAID.items():
        assert other == name or said(found) == said(whole)
    assert found.method == "INVITE"


# --- all of them, on the way of a real message ----------------------------------------------------


EVERY = MESSAGES | {name: data for name, (data, _) in (IPV6 | BODIES).items()}
BEFORE, AFTER = (
    f"BYE sip:b@x SIP/2.0\r\nCall-ID: {name}\r\nContent-Length: 0\r\n\r\n".encode()
    for name in ("before", "after")
)
# These claim a body that reaches into what follows; nothing tells it apart (RFC 4475 §3.1.2.2). And
# baddn ends without an empty line.
SWALLOW = {"clerr", "baddn", "4.6 IPv6", "4.8 both", "4.9 IPv4 in IPv6"}


@pytest.mark.parametrize("name", EVERY)
def test_through_tcp_between_two_good_messages(name: str) -> None:
    sent = BEFORE + EVERY[name] + AFTER
    frames = [
        bytes(IP() / TCP(sport=5060, dport=5061, seq=at, flags="A") / Raw(sent[at : at + 700]))
        for at in range(0, len(sent), 700)
    ]
    found = SlowPath().receive(block(frames, link_type=101), range(len(frames)))
    heard = [each.payload for each in found]
    assert heard[0] == BEFORE
    assert name in SWALLOW or heard[-1] == AFTER


@pytest.mark.parametrize("name", EVERY)
def test_through_the_call_table(name: str) -> None:
    wire = Wire()
    for _ in range(2):
        wire.hear("10.0.0.1:5060", "10.0.0.2:5060", EVERY[name])
    try:
        message = parse(EVERY[name])
    except ValueError:
        assert wire.end() == []
        return
    of_a_call = message.method in ("INVITE", "BYE")
    assert [call.call_ids for call in wire.end()] == [[message.call_id]] * of_a_call
