"""SIP as it is on the wire: well-formed, odd, damaged."""

import re
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sipmessage import CSeq
from sipmessage.address import ADDRESS_EXCEPTION

from capture.signalling import sip
from capture.signalling.sip import Replaces, parse, parse_party, parse_replaces
from tests.support.folders import SHARED

INVITE = b"""INVITE sip:bob@biloxi.example SIP/2.0\r
Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK776\r
From: "Alice" <sip:alice@atlanta.example>;tag=1928\r
To: <sip:bob@biloxi.example>\r
Call-ID: a84b4c76e66710\r
CSeq: 314 INVITE\r
Content-Type: application/sdp\r
Content-Length: 6\r
\r
v=0\r
XX"""


def message(*lines: str, body: bytes = b"", start: str = "INVITE sip:b@x SIP/2.0") -> bytes:
    kept = [line for line in lines if line]
    head = [start, "Call-ID: 1@x", "CSeq: 1 INVITE", *kept, "", ""]
    return "\r\n".join(head).encode() + body


def test_an_invite():
    invite = parse(INVITE)
    assert (invite.method, invite.status, invite.uri) == ("INVITE", None, "sip:bob@biloxi.example")
    assert (invite.call_id, invite.cseq, invite.branch) == ("a84b4c76e66710", 314, "z9hG4bK776")
    assert (invite.from_.user, invite.from_.tag) == ("alice", "1928")
    assert (invite.to.user, invite.to.tag) == ("bob", "")
    assert invite.sdp == b"v=0\r\nX"  # Content-Length cuts what a datagram drags behind


def test_a_response_names_the_method_it_answers():
    ringing = parse(message("To: <sip:b@x>;tag=9", start="SIP/2.0 180 Ringing"))
    assert (ringing.method, ringing.status, ringing.to.tag) == ("INVITE", 180, "9")


@pytest.mark.parametrize(
    ("header", "user", "tag"),
    [
        ("<sip:alice@a.example>;tag=1", "alice", "1"),
        ("sip:alice@a.example;tag=1", "alice", "1"),
        ("<sip:+4930123;phone-context=x@a.example;user=phone>;tag=1", "+4930123", "1"),
        ("<tel:+4930123>;tag=1", "+4930123", "1"),
        ("<sip:gateway.example:5060>;tag=1", "gateway.example", "1"),
        ("<sip:1001@[fd00::1]:5060>;tag=1", "1001", "1"),
        ("<sip:%2B49@x>;tag=1", "+49", "1"),
        ('"an "odd" name" <sip:alice@x>;tag=1', "alice", "1"),
        ('"Li <x>; tag=2" <sip:alice@x>;tag=1', "alice", "1"),
        ('"a \\"<b>\\"" <sip:alice@x>;tag=1', "alice", "1"),
        ("<sip:a b@x>;tag=1", "a b", "1"),
        ("<sip:alice@x>;self=me;tag=1", "alice", "1"),
        ("<sip:alice@x", "alice", ""),
        ('"Alice" %sp:alice@x>;tag=1', "alice", "1"),
        ("<sip:al%1b[31mice@x>;tag=1", "al[31mice", "1"),
        ("", "", ""),
    ],
)
def test_who_calls(header, user, tag):
    party = parse(message(f"From: {header}")).from_
    assert (party.user, party.tag) == (user, tag)


def test_compact_names_of_any_case_and_folded_values():
    found = parse(
        b"INVITE sip:b@x SIP/2.0\r\nV: SIP/2.0/UDP h;\r\n branch=z9\r\nI : 1@x\r\n"
        b"f:\r\n\t<sip:a@x>\r\n ;tag=7\r\nT: <sip:b@x>\r\ncseq: 1\r\n INVITE\r\nl: 0\r\n\r\n"
    )
    assert (found.call_id, found.from_.tag, found.branch, found.method) == (
        "1@x", "7", "z9", "INVITE",
    )  # fmt: skip


def test_bare_line_feeds():
    found = parse(INVITE.replace(b"\r\n", b"\n"))
    assert (found.call_id, found.cseq) == ("a84b4c76e66710", 314)
    assert found.sdp is not None


def test_what_keeps_a_nat_open_may_stand_before_a_message():
    assert parse(b"\r\n\r\n" + INVITE) == parse(INVITE)


def test_bytes_that_are_not_utf8_spoil_only_themselves():
    found = parse(INVITE.replace(b'"Alice"', b'"\xe4\xff"'))
    assert found.from_.user == "alice"


@pytest.mark.parametrize("broken", ["CSeq: x", "CSeq: 1", "Via: nonsense", "Content-Length: -5"])
def test_a_broken_header_spoils_only_itself(broken):
    lines = ["INVITE sip:b@x SIP/2.0", "Call-ID: 1@x", "From: <sip:a@x>;tag=1", broken, "", ""]
    assert parse("\r\n".join(lines).encode()).from_.tag == "1"


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"\r\n\r\n", "keep-alive"),
        (b"\0\0\0\0", "keep-alive"),
        (b"HELLO", "neither"),
        (b"GET / HTTP/1.1\r\n\r\n", "neither"),
        (b"SIP/2.0 999 What\r\nCall-ID: 1\r\n\r\n", "status"),
        (b"INVITE sip:b@x SIP/2.0\r\nCSeq: 1 INVITE\r\n\r\n", "Call-ID"),
        (b"SIP/2.0 200 OK\r\nCall-ID: 1\r\n\r\n", "CSeq"),
    ],
)
def test_what_is_no_sip_message(payload, fault):
    with pytest.raises(ValueError, match=fault):
        parse(payload)


def test_a_body_that_is_cut_is_kept_from_a_datagram_and_refused_from_a_stream():
    cut = message("Content-Type: application/sdp", "Content-Length: 100", body=b"v=0\r\n")
    assert parse(cut).sdp == b"v=0\r\n"
    with pytest.raises(ValueError, match="100 bytes, 5 are there"):
        parse(cut, datagram=False)


def test_the_description_out_of_a_multipart_body():
    body = (
        b"--b1\r\nContent-Type: application/rs-metadata+xml\r\n\r\n<recording/>\r\n"
        b"--b1\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--b1--\r\n"
    )
    sdp = parse(message('Content-Type: multipart/mixed; boundary="b1"', body=body)).sdp
    assert sdp is not None
    assert sdp.strip() == b"v=0"


def test_transfers_and_their_dialogs():
    refer = parse(
        message(
            "Refer-To: <sip:1003@x?Replaces=77%40y%3Bto-tag%3Da%3Bfrom-tag%3Db>",
            start="REFER sip:b@x SIP/2.0",
        )
    )
    assert refer.refer_to is not None
    assert refer.refer_to.user == "1003"
    assert refer.refer_replaces == Replaces("77@y", "a", "b")
    assert parse(message("Replaces: 77@y;from-tag=b;to-tag=a")).replaces == refer.refer_replaces


def test_a_hop_over_tls_and_the_cause_of_a_refusal():
    found = parse(message("Via: SIP/2.0/TLS h;branch=1", "Reason: Q.850;cause=17;text=busy"))
    assert found.secure
    assert found.cause == 17


@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "a",
        "a;",
        "a=a;",
        ";",
        ";tag=",
        '"',
        '\\"',
        "<",
        "a@",
        "a.",
        "a-",
        ",",
        "%41",
        "Q.850;",
        "[",
    ],
)
@pytest.mark.parametrize("before", ["", "<sip:", '"', "sip:a@", "<sip:a@b>", "Q.850;"])
def test_no_header_takes_long(piece, before):
    value = before + piece * (60_000 // len(piece))
    names = ("From", "To", "Via", "CSeq", "Replaces", "Refer-To", "Content-Type", "Reason")
    begun = time.process_time()
    read_all(message(*(f"{name}: {value}" for name in names), start=f"BYE {value} SIP/2.0"))
    read_all(message(start=f"BYE {value}"))
    assert time.process_time() - begun < 0.1


@given(st.binary(max_size=400))
def test_any_bytes_raise_only_value_error(data):
    read_all(data)


HEADERS = ("From", "To", "Via", "CSeq", "Replaces", "Refer-To", "Content-Type", "Reason", "Contact")


@given(st.lists(st.tuples(st.sampled_from(HEADERS), st.text(max_size=60)), max_size=6), st.binary())
def test_any_headers_raise_only_value_error(headers, body):
    lines = [f"{name}: {value}" for name, value in headers]
    read_all("\r\n".join(["BYE sip:b SIP/2.0", "Call-ID: 1", *lines, "", ""]).encode() + body)


def test_a_call_id_without_end_is_one_call_and_no_other():
    def call_id(text: str) -> str:
        return parse(f"BYE sip:b@x SIP/2.0\r\nCall-ID: {text}\r\n\r\n".encode()).call_id

    long = "x" * 2000
    assert call_id(long + "1") == call_id(long + "1") != call_id(long + "2")
    assert len(call_id(long)) == 1024
    assert parse_replaces(f"{long}1;to-tag=1").call_id == call_id(long + "1")


CUT = message("Content-Type: application/sdp", "Content-Length: 400")


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b"v=0\r\nc=IN IP4 10.0.0.1", b"v=0\r\nc=IN IP4"),  # it may have been 10.0.0.11
        (b"v=0\r\nm=audio 400", b"v=0\r\n"),
        (b"v=0\r\nm=audio 4000 RTP/AVP 0 10", b"v=0\r\nm=audio 4000 RTP/AVP 0"),
        (b"v=0\r\na=rtpmap:8 PCMA/80", b"v=0\r\na=rtpmap:8"),
        (b"v=0\r\nm=audio 4000 RTP/AVP 0\r\n", b"v=0\r\nm=audio 4000 RTP/AVP 0\r\n"),
    ],
)
def test_a_description_that_the_snap_length_cut_keeps_its_whole_words(body, read):
    assert parse(CUT + body, cut=True).sdp == read
    assert parse(CUT + body).sdp == body


def test_a_header_that_the_snap_length_cut_is_none():
    cut = b"INVITE sip:b@x SIP/2.0\r\nCall-ID: 1\r\nFrom: <sip:a@x>;tag=12"
    assert parse(cut, cut=True).from_.tag == ""
    assert parse(cut).from_.tag == "12"
    with pytest.raises(ValueError, match="without Call-ID"):
        parse(cut[:34], cut=True)


@pytest.mark.parametrize("name", ["From", "To", "CSeq", "Replaces", "Refer-To"])
def test_a_damaged_header_is_not_remembered(name):
    """An error that outlived its message would hold it, and all who asked for it, for ever."""
    for _ in range(2):
        found = parse(message(f"{name}: <sip:al ice@x;;=>;\x80=,,<", f"{name}: x;=;;"))
        for each in ("from_", "to", "replaces", "refer_to"):
            getattr(found, each)
        gone = weakref.ref(found)
        del found
        assert gone() is None
    assert ADDRESS_EXCEPTION.__traceback__ is None


# Addresses as they are, and a little beside: every part may be missing, doubled or odd.
ADDRESSES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", '"A <b>;c" ', '"a\\" ', '"" ', "A b-1 ", "ä ", " ", '"a" "b" ']),
        st.sampled_from(["<", "", "<<", " <"]),
        st.sampled_from(["sip:", "sips:", "SIP:", "tel:", "", "sip:sip:"]),
        st.one_of(st.just(""), st.text("a1+.-_%4:;@#ß", max_size=5), st.just("+4930123@")),
        st.sampled_from(
            ["h", "h.de", "a-b.c1", "1.2.3.4", "1.2.3.4.5", "[::1]", "h--x", "", "9.d."]
        ),
        st.sampled_from(["", ":5060", ":05060", ":0", ":", ":66666666"]),
        st.sampled_from(
            ["", ";lr", ";self", ";self=1", ";user=phone", ";a=1;a=2", ";selfish", ";"]
        ),
        st.sampled_from([">", "", ">>", "> ", ">\n"]),
        st.sampled_from(
            ["", ";tag=a.1*~+", ";tag=", ";tag=%41", ";Tag=x", ";tag=a;tag=b", "; tag=x"]
        ),
        st.sampled_from(["", ";x", "\n", " ", ","]),
    ),
)


@given(ADDRESSES)
def test_an_address_that_is_read_at_a_glance_is_what_the_grammar_makes_of_it(value):
    assert parse_party(value) == sip._typed_party(value)


@given(st.from_regex(r"[0-9]{1,11} {0,2}[A-Za-z!]{0,4}\n?", fullmatch=True))
def test_a_cseq_that_is_read_at_a_glance_is_what_the_grammar_makes_of_it(value):
    try:
        known = CSeq.parse(value)
    except ValueError:
        return
    assert sip._cseq(value) == (min(known.sequence, 0xFFFFFFFF), known.method)


@given(st.text("a\r\n \t:", max_size=12))
def test_lines_end_as_they_may(head):
    unfolded = re.sub(r"\r?\n[ \t]+", " ", head)
    assert list(sip._lines(head.encode())) == re.split(r"\r\n|\n|\r", unfolded)


@pytest.mark.shared
def test_torture_messages_and_fuzz_seeds_raise_only_value_error():
    folder = SHARED / "captures" / "messages"
    if not folder.is_dir():
        pytest.skip(f"no messages in {folder}")
    readable = [read_all(path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
    assert sum(readable) > 80


def read_all(data: bytes) -> bool:
    """Read everything there is; whether it was a SIP message at all."""
    try:
        found = parse(data)
    except ValueError:
        return False
    for name in ("from_", "to", "branch", "replaces", "refer_to", "refer_replaces", "secure"):
        getattr(found, name)
    return (found.cause, found.sdp, hash(found.from_)) is not None
