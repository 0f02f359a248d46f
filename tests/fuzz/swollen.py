"""Messages made to take long: a piece of a few bytes over and over, in a header, a body or a line.

What a fuzzer mutates is the piece and its place; it would not come to 60 KB of them by itself. A
pattern that goes back and forth over such a text takes seconds where it should take a millisecond.
"""

from typing import Final

from capture.model import Datagram
from capture.packets.framing import Plain
from capture.signalling.siptls import SipTls
from tests.fuzz.choices import Choices
from tests.fuzz.signalling import read_sip
from tests.support.conversation import Wire, endpoint

HEADERS: Final = (
    b"From", b"To", b"Via", b"Contact", b"Call-ID", b"CSeq", b"Content-Type", b"Content-Length",
    b"Refer-To", b"Replaces", b"Join", b"Reason", b"P-Asserted-Identity", b"Remote-Party-ID",
    b"Diversion", b"History-Info", b"Session-ID", b"AV-Global-Session-ID", b"Cisco-Guid",
    b"P-Charging-Vector", b"Route", b"X",
)  # fmt: skip
LINES: Final = (
    b"m=", b"m=audio 4000 RTP/AVP ", b"c=IN IP4 ", b"o=", b"a=", b"a=candidate:", b"a=crypto:1 ",
    b"a=rtpmap:", b"a=fmtp:0 ", b"a=extmap:", b"a=label:",
)  # fmt: skip
KINDS: Final = (b"application/sdp", b"application/rs-metadata+xml", b"multipart/mixed;boundary=a")
START: Final = (b"INVITE sip:b@x SIP/2.0", b"REFER sip:b@x SIP/2.0", b"BYE sip:b@x SIP/2.0")
ENDS: Final = ("10.0.0.1:5060", "10.0.0.2:5060")
VALUE, BODY = 4_000, 60_000  # bytes of the pieces; of a header 4,096 are read
TIMES: Final = 8  # headers alike
HEADER, LINE, WHOLE = range(3)  # where the piece goes: a header, a line of SDP, a body


def built(data: bytes) -> bytes:
    """The message. data chooses where the piece goes, what lies around it, and the piece."""
    choose = Choices(data)
    start, where, place = choose.of(START), choose.number(3), choose.number(256)
    before, behind, piece = choose.bytes(40), choose.bytes(40), choose.bytes(40) or b" "
    long = before + piece * ((VALUE if where == HEADER else BODY) // len(piece)) + behind
    method = start.partition(b" ")[0]
    lines = [start, b"Via: SIP/2.0/UDP a;branch=z9hG4bK1"]
    if where == HEADER:
        lines += [HEADERS[place % len(HEADERS)] + b": " + long] * TIMES
    # Those of a message that is one; where the long one is such, it came first, and counts.
    lines += [
        b"From: <sip:anonymous@anonymous.invalid>;tag=1", b"To: <sip:b@x>", b"Call-ID: 1",
        b"CSeq: 1 " + method,
    ]  # fmt: skip
    if where == HEADER:
        return b"\r\n".join([*lines, b"", b""])
    kind = KINDS[0] if where == LINE else KINDS[place % len(KINDS)]
    if where == LINE:
        long = b"v=0\r\nm=audio 4000 RTP/AVP 0\r\n" + LINES[place % len(LINES)] + long
    return b"\r\n".join([*lines, b"Content-Type: " + kind, b"", b""]) + long


def hear(data: bytes) -> None:
    """Through everything that reads a message: framing, SIP, call table, who speaks over TLS."""
    message = built(data)
    stream = Plain()
    for _ in range(2):
        stream.receive(message, lambda name: None)
    SipTls().heard(Datagram(0, endpoint(ENDS[0]), endpoint(ENDS[1]), message, "udp"))
    wire = Wire()
    wire.hear(*ENDS, message)
    wire.end()
    read_sip(message)


def told(where: int, place: int, piece: bytes, before: bytes = b"", behind: bytes = b"") -> bytes:
    """The choices that lead to such a message."""
    parts = b"".join(bytes([len(part)]) + part for part in (before, behind, piece))
    return bytes([0, where, place]) + parts


def seeds() -> list[bytes]:
    """What took longest before it was mended, and some of each place."""
    named = {name: place for place, name in enumerate(HEADERS)}
    slow = [
        told(HEADER, named[b"Session-ID"], b" ", b"a", b"b"),
        told(HEADER, named[b"Cisco-Guid"], b"1"),
        told(HEADER, named[b"P-Asserted-Identity"], b" ", b"sip:", b","),
        told(HEADER, named[b"X"], b"sips:["),
        told(WHOLE, 0, b"sips:["),
    ]
    headers = [told(HEADER, place, piece) for place in named.values() for piece in (b'\\"', b";a=")]
    lines = [told(LINE, place, b" 1") for place in range(len(LINES))]
    return [*slow, *headers, *lines, told(WHOLE, 1, b"<a/>", b"<recording>"),
            told(WHOLE, 2, b"--a\r\nContent-Type: multipart/mixed;boundary=a\r\n\r\n")]  # fmt: skip
