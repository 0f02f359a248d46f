"""Changes to text and to parts that keep what lies around them whole: lines, lengths, counts.

libFuzzer changes bytes: most of what it makes of a message is refused at its first line, or differs
in a word that nobody reads. Here a header is repeated, moved, folded, emptied; its value is
libFuzzer's. Frames and captures: tests.fuzz.rewriting.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from tests.fuzz.choices import cut, joined

Plain = Callable[[bytes], bytes]  # libFuzzer's own mutation
Mutator = Callable[[bytes, random.Random, Plain], bytes]

HEADERS: Final = [
    line.encode()
    for line in (
        "Via: SIP/2.0/TCP [2001:db8::1]:5061;rport=9;received=10.0.0.9;branch=z9hG4bK77",
        "v: SIP / 2.0 / UDP a.example ;branch=z9hG4bK1, SIP/2.0/UDP b;branch=z9hG4bK2",
        'From: "A \\"B\\" <c>" <sip:a%40b;p=1@[::1]:5060;transport=tcp?h=v>;tag=1;x="y;z"',
        "f: tel:+49-30-1234;phone-context=example.org;tag=f", "To: sip:b@example.org;tag=b",
        "t: <sips:b@example.org>", "Call-ID: 1", "i: a@b", "CSeq: 2 BYE", "CSeq: 1 INVITE",
        "CSeq: 4294967296 ACK", "Contact: *", "m: <sip:a@10.0.0.7:5070;lr>;expires=0",
        "Content-Type: multipart/mixed;boundary=x", "c: application/sdp",
        "Content-Type: application/rs-metadata+xml", "Content-Encoding: gzip",
        "Content-Length: 0", "l: 99999", "Content-Length: -1", "Max-Forwards: 0",
        "Refer-To: <sip:c@x?Replaces=1%3Bto-tag%3Db%3Bfrom-tag%3D1>", "r: sip:c@x;method=BYE",
        "Replaces: 1;to-tag=b;from-tag=1;early-only", "Join: 1;to-tag=b;from-tag=1",
        "Referred-By: <sip:r@x>", "Require: 100rel, replaces, siprec", "RSeq: 1",
        "RAck: 1 1 INVITE", "Session-Expires: 90;refresher=uas", "Min-SE: 4294967295",
        "P-Asserted-Identity: <sip:+4930@x;user=phone>, <tel:+4930>", "Privacy: id;header",
        "Remote-Party-ID: <sip:1@x>;party=calling;screen=yes", "Diversion: <sip:d@x>;reason=no",
        "History-Info: <sip:h@x?Reason=SIP%3Bcause%3D302>;index=1.1", "Session-ID: 0;remote=ab",
        'Reason: Q.850;cause=16;text="x"', "Retry-After: 5", "Record-Route: <sip:p@x;lr>",
        "Proxy-Authorization: Digest a=b", "Supported:", "Event: dialog", "Expires: 1e9",
    )
]  # fmt: skip
STARTS: Final = [
    start.encode()
    for start in (
        "INVITE sip:b@x SIP/2.0", "ACK sip:b@x SIP/2.0", "BYE sip:b@x SIP/2.0",
        "CANCEL sip:b@x SIP/2.0", "UPDATE sip:b@x SIP/2.0", "PRACK sip:b@x SIP/2.0",
        "REFER sip:b@x SIP/2.0", "NOTIFY sip:b@x SIP/2.0", "INFO tel:+49;x SIP/2.0",
        "SIP/2.0 100 Trying", "SIP/2.0 183 Session Progress", "SIP/2.0 200 OK", "SIP/2.0 302",
        "SIP/2.0 401 Who", "SIP/2.0 487 Request Terminated", "SIP/2.0 699 x", "sip/2.0 200 ok",
    )
]  # fmt: skip
DESCRIBED: Final = [
    line.encode()
    for line in (
        "v=0", "o=- 18446744073709551615 2 IN IP4 10.0.0.1", "c=IN IP4 0.0.0.0", "t=0 0",
        "c=IN IP6 2001:db8::1/3", "c=IN IP4 224.2.1.1/127/3", "b=AS:64", "s=-", "a=inactive",
        "m=audio 4000/2 RTP/AVP 0 8 96 101", "m=audio 0 RTP/SAVP 0", "m=image 4002 udptl t38",
        "m=video 4004 RTP/SAVPF 97", "m=audio 9 UDP/TLS/RTP/SAVPF 111", "m=message 1 TCP/MSRP *",
        "m=application 5060 TCP/BFCP *", "a=rtpmap:96 opus/48000/2", "a=rtpmap:0 PCMU/8000",
        "a=rtpmap:101 telephone-event/8000", "a=fmtp:101 0-15,32-36", "a=fmtp:96 useinbandfec=1",
        "a=rtpmap:97 H264/90000", "a=fmtp:97 packetization-mode=1;sprop-parameter-sets=Z0IACg==",
        "a=rtpmap:98 red/8000", "a=fmtp:98 0/8", "a=rtcp:4001 IN IP4 10.0.0.3", "a=rtcp-mux",
        "a=sendonly", "a=recvonly", "a=sendrecv", "a=ptime:20", "a=maxptime:1e3", "a=label:1",
        "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + "A" * 40 + "|2^20|1:4",
        "a=crypto:2 AES_256_CM_HMAC_SHA1_80 inline:" + "B" * 62, "a=setup:actpass",
        "a=crypto:3 AEAD_AES_128_GCM inline:" + "C" * 38 + " UNENCRYPTED_SRTP",
        "a=fingerprint:sha-256 AB:CD", "a=zrtp-hash:1.10 fe", "a=group:BUNDLE 0 1", "a=mid:0",
        "a=candidate:1 1 UDP 1 10.0.0.4 4010 typ host", "a=ice-ufrag:x", "a=ssrc:1 cname:x",
        "a=rtpmap:102 AMR-WB/16000", "a=fmtp:102 octet-align=1;crc=1;robust-sorting=1",
        "a=rtpmap:103 mpeg4-generic/44100", "a=fmtp:103 mode=AAC-hbr;config=1588",
        "a=rtpmap:104 MP4A-LATM/90000", "a=fmtp:104 cpresent=0;config=40002620",
        "a=rtpmap:105 iLBC/8000", "a=fmtp:105 mode=20", "a=rtpmap:106 speex/44100",
        "a=record:on", "a=content:slides", "a=T38FaxVersion:0", "a=extmap:1 urn:x", "a=ssrc:x",
    )
]  # fmt: skip
ODD: Final = (
    b"", b" ", b"0", b"-1", b"65536", b"4294967296", b"9" * 40, b'"', b"<", b"\xff\xfe", b"\0",
    b";", b",", b"%", b"%00", b"=", b"[::", b"a" * 300, "ü".encode(), b"\xe2\x80\xa8", b"1e400",
)  # fmt: skip
STEPS: Final = (1, -1, 2, 1000, -(10**9), 10**12, 1 << 31, 1 << 62, -(1 << 63))
WORD: Final = re.compile(rb"[^\s;,=<>:@/]+")
LENGTH: Final = re.compile(rb"(?im)^(content-length|l)[ \t]*:[^\r\n]*")


def message(data: bytes, chance: random.Random, plain: Plain) -> bytes:
    """A SIP message with lines of its head or body changed; mostly with the right length."""
    gap = b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n"
    head, between, body = data.partition(gap)
    if body and chance.random() < 0.4:
        body = description(body, chance, plain)
    elif not chance.randrange(16):
        start, end, rest = head.partition(gap[:2] if gap[0] == 13 else gap[:1])
        head = chance.choice([*STARTS, plain(start)]) + end + rest
    else:
        head = lines(head, HEADERS, chance, plain)
    if chance.random() < 0.7:
        said = b"Content-Length: %d" % len(body)
        head = LENGTH.sub(lambda _: said, head)
    return head + between + body


def description(data: bytes, chance: random.Random, plain: Plain) -> bytes:
    """An SDP with lines changed."""
    return lines(data, DESCRIBED, chance, plain)


def lines(data: bytes, known: Sequence[bytes], chance: random.Random, plain: Plain) -> bytes:
    """Some lines of a text changed, moved, repeated, left out. known: lines to come among them."""
    end = b"\r\n" if b"\r\n" in data else b"\n"
    kept = data.split(end)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(kept))
        match chance.randrange(9):
            case 0:
                kept[at] = plain(kept[at])
            case 1 | 2:
                kept[at] = _word(kept[at], chance, plain)
            case 3:
                kept.insert(at + 1, kept[chance.randrange(len(kept))])
            case 4 if len(kept) > 1:
                del kept[at]
            case 5:
                other = chance.randrange(len(kept))
                kept[at], kept[other] = kept[other], kept[at]
            case 6:
                before, colon, behind = kept[at].partition(b":")
                kept[at] = before + colon + end + chance.choice((b" ", b"\t")) + behind
            case 7:
                kept[at] += chance.choice((b";", b",", b" ", b"=")) + chance.choice(known)
            case _:
                kept.insert(at + 1, chance.choice(known))
    return end.join(kept)


def _word(line: bytes, chance: random.Random, plain: Plain) -> bytes:
    """One word of a line in other words."""
    found = list(WORD.finditer(line))
    if not found:
        return plain(line)
    one = chance.choice(found)
    new = plain(one[0]) if chance.random() < 0.5 else chance.choice(ODD)
    return line[: one.start()] + new + line[one.end() :]


def packed(data: bytes, chance: random.Random, plain: Plain) -> bytes:
    """MessagePack with a value of it changed, repeated or left out, at any depth."""
    try:
        whole = [msgspec.msgpack.decode(data)]
    except (ValueError, RecursionError):
        return plain(data)
    places = list(_places(whole))
    for _ in range(chance.choice((1, 1, 3))):
        within, at = chance.choice(places)
        with suppress(LookupError, TypeError):  # an earlier change took it away
            within[at] = _other(within[at], chance, plain)
    return msgspec.msgpack.encode(whole[0])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list and map in a value, with each index or key."""
    keys = range(len(value)) if isinstance(value, list) else value
    for key in list(keys) if isinstance(value, list | dict) else ():
        yield value, key
        yield from _places(value[key])


def _other(value: Any, chance: random.Random, plain: Plain) -> Any:
    """Another value of its kind; sometimes of another."""
    if not chance.randrange(8):
        return chance.choice((None, True, -1, 0, 1 << 63, 0.5, float("nan"), "", b"", [], {}, [[]]))
    match value:
        case bool():
            return not value
        case int():
            return max(-(1 << 63), min(value + chance.choice(STEPS), (1 << 64) - 1))
        case str():
            return plain(value.encode()).decode("utf-8", "replace")
        case bytes():
            return plain(value)
        case list() if value:
            at = chance.randrange(len(value))
            return value[:at] + chance.choice(([], [value[at]] * 2)) + value[at + 1 :]
    return value


def parts(mutate: Mutator | None = None, head: int = 0) -> Mutator:
    """Of parts led by their lengths (choices.cut): one changed by `mutate`, or the order of them.

    mutate: libFuzzer's own if None.  head: bytes before the first part.
    """

    def change(data: bytes, chance: random.Random, plain: Plain) -> bytes:
        front, kept = data[:head], cut(data[head:])
        if not kept or not chance.randrange(12):
            front = plain(front)[:head].ljust(head, b"\0")
            kept = kept or [plain(b"")]
        at, other = chance.randrange(len(kept)), chance.randrange(len(kept))
        match chance.randrange(10):
            case 0:
                kept.insert(at, kept[other])
            case 1 if len(kept) > 1:
                del kept[at]
            case 2:
                kept[at], kept[other] = kept[other], kept[at]
            case 3:
                kept.insert(at, plain(b""))
            case _:
                kept[at] = mutate(kept[at], chance, plain) if mutate else plain(kept[at])
        return front + joined(each[:65_535] for each in kept)

    return change


def behind(head: int, mutate: Mutator) -> Mutator:
    """What lies behind some bytes; now and then those."""

    def change(data: bytes, chance: random.Random, plain: Plain) -> bytes:
        front, rest = data[:head], data[head:]
        if not chance.randrange(16):
            return plain(front)[:head].ljust(head, b"\0") + rest
        return front + mutate(rest, chance, plain)

    return change
