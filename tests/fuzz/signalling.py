"""SIP and what comes in it: messages, descriptions, recording metadata, keys, saved calls.

Seeds are RFC 4475's torture messages, those of a forged call, and a line of each kind.
Conversations in any order: dialogs.py. Long messages: swollen.py. SIP over TLS: tlsheard.py.
"""

import base64
from pathlib import Path
from typing import Final

from capture.packets import websocket
from capture.recorder import Recorder
from capture.signalling import sdp, sip, siprec
from spanvault.audio import codecs
from spanvault.daemon.config import CaptureConfig
from spanvault.media import sdes
from tests.fuzz import mutators
from tests.fuzz.capturefiles import call
from tests.fuzz.choices import cut, joined
from tests.support.callgen import SECOND
from tests.support.conversation import Wire
from tests.support.frames import block

DATA: Final = Path(__file__).parents[1] / "data"
SIP_PROPERTIES: Final = (
    "from_", "to", "branch", "replaces", "refer_to", "refer_replaces", "secure", "cause", "sdp",
)  # fmt: skip
SDP_PROPERTIES: Final = ("accepted", "held", "nowhere", "rtp")


def messages() -> list[bytes]:
    """RFC 4475's, those of a forged call, and one that names nobody."""
    said = [frame.data[42:] for frame in call() if b"SIP/2.0" in frame.data]
    said.append(b"BYE sip:b@x SIP/2.0\r\nCall-ID: 1\r\nCSeq: 1 BYE\r\n\r\n")
    return [*said, *(path.read_bytes() for path in sorted((DATA / "rfc4475").iterdir()))]


def hidden() -> list[bytes]:
    """A caller who is not to be shown, on both sides of a B2BUA: only other headers say who."""
    said = (
        'From: "Anonymous" <sip:anonymous@anonymous.invalid>;tag={0}\r\nTo: <sip:2@x>\r\n'
        "Call-ID: {0}\r\nCSeq: 1 INVITE\r\nSession-ID: {1}a0;remote={1}00\r\n"
        'P-Asserted-Identity: "A, B" <sip:+493012345678@x;user=phone>, <tel:+493012345678>\r\n'
        "Remote-Party-ID: <sip:012345678@x>;party=calling\r\nX-Cisco-Org: {1}\r\n\r\n"
    )
    invites = ["INVITE sip:2@x SIP/2.0\r\n" + said.format(leg, "0" * 30) for leg in "ab"]
    return [each.encode() for each in invites]


def dialogues() -> list[bytes]:
    """Messages that follow each other."""
    some = messages()
    return [joined(some[:6]), joined(some[6:16]), joined(hidden())]


def descriptions() -> list[bytes]:
    """The bodies of those messages; a line of each kind."""
    bodies = [body for each in messages() if (body := each.partition(b"\r\n\r\n")[2])]
    mapped = b"c=IN IP6 ::ffff:10.0.0.5"
    return [*bodies, b"\r\n".join([*mutators.DESCRIBED, mapped, b""])]


def read_sip(data: bytes) -> None:
    found = sip.parse(data, cut=bool(data[:1] == b"c"))
    for name in SIP_PROPERTIES:
        getattr(found, name)
    if found.sdp:
        read_sdp(found.sdp)


def read_sdp(data: bytes) -> None:
    for line in sdp.parse(data).media:
        for name in SDP_PROPERTIES:
            getattr(line, name)
        for codec in line.codecs.values():
            assert not codecs.decodable(codec) or codecs.sound_rate(codec) > 0


def hear_calls(data: bytes) -> None:
    """Messages from either side, one after the other, into a call table; then time passes."""
    table = Wire()
    ends = ("10.0.0.1:5060", "10.0.0.2:5060")
    for number, message in enumerate(cut(data)):
        table.hear(ends[number % 2], ends[1 - number % 2], message)
    table.wait(400)
    table.calls.restore(table.calls.snapshot())
    table.end()


def read_table(data: bytes) -> None:
    """The saved call table, as an older or newer capture may have left it."""
    wire = Wire()
    wire.calls.restore(data)
    wire.wait(400)
    wire.end()


def tables() -> list[bytes]:
    """Of a call that rings, of one that talks, of one that is over."""
    made = []
    for frames in (3, 30, len(call())):
        recorder = Recorder(CaptureConfig(name="fuzz"), lambda: bytes(16))
        part = call()[:frames]
        recorder.receive(block([each.data for each in part], times=[each.time_ns for each in part]))
        recorder.tick(part[-1].time_ns + SECOND)
        made.append(recorder.calls.snapshot())
    return made


def read_metadata(data: bytes) -> None:
    found = siprec.parse(data)
    found.merge(siprec.parse(data))
    found.told(), found.names()


def metadata() -> list[bytes]:
    """RFC 7865's elements, and a draft's."""
    head = b'<recording xmlns="urn:ietf:params:xml:ns:recording:1"><session session_id="s"/>'
    return [
        head
        + b"""<participant participant_id="p"><nameID aor="sip:a@b"><name>A</name></nameID>
        </participant><stream stream_id="m"><label>1</label></stream>
        <participantstreamassoc participant_id="p"><send>m</send></participantstreamassoc>
        </recording>""",
        head
        + b"""<participant id="p"/><stream id="m"><label>1</label></stream>
        <participantstreamassoc><participant>p</participant><stream>m</stream>
        </participantstreamassoc></recording>""",
    ]


def read_keys(data: bytes) -> None:
    sdes.parse(data.decode("utf-8", "replace"))


def secrets() -> list[bytes]:
    """A key of each suite, with and without lifetime, identifier and session parameters."""
    keys = {
        name: base64.b64encode(bytes(each.key + each.salt)).decode()
        for name, each in sdes.SUITES.items()
    }
    return [
        line.encode()
        for name, key in keys.items()
        for line in (
            f"1 {name} inline:{key}|2^20|1:4 WSH=64", f"2 {name} inline:{key}|7:128;inline:{key}",
            f"3 {name} inline:{key} KDR=9 UNENCRYPTED_SRTP",
        )
    ]  # fmt: skip


def read_websocket(data: bytes) -> None:
    websocket.begins(data)
    websocket.Messages().receive(data, lambda name: None)
