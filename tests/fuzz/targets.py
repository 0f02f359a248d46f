"""What is fuzzed: each target takes any bytes, and may raise ValueError at most.

Seeds are real: torture messages, wrapped calls, capture files. Who mutates them: __main__.py (with
coverage, by atheris), test_targets.py (a little, in every test run).
"""

import base64
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from capture.explain.__main__ import Explainer
from capture.packets import hep, websocket
from capture.packets.decode import Decoder
from capture.packets.offload import segments
from capture.packets.slowpath import SlowPath
from capture.packets.tunnels import LINK_TYPES, peel
from capture.recorder import Recorder
from capture.signalling import sdp, sip, siprec
from capture.sources import files
from spanvault import chunk, config, digits, rtcp, sdes, wire
from spanvault.audio import codecs, red
from spanvault.config import CaptureConfig
from spanvault.messages import Hello, Status, StatusReply, Welcome
from tests.fuzz import asked, dialogs, disk, films, mutators, payloads, rewriting, tlsheard
from tests.fuzz.capturefiles import call, captures
from tests.fuzz.choices import cut, joined
from tests.support.callgen import SECOND, START_NS, udp_frame
from tests.support.conversation import Wire
from tests.support.digits import press
from tests.support.frames import block, pcap, rtp
from tests.support.rarewrapping import RARE
from tests.support.rtcpforge import Block, description, goodbye, packet, sender_report
from tests.support.wrapping import WRAPPINGS, wrapped

DATA: Final = Path(__file__).parents[1] / "data"
LINKS: Final = sorted(LINK_TYPES)
SIP_PROPERTIES: Final = (
    "from_", "to", "branch", "replaces", "refer_to", "refer_replaces", "secure", "cause", "sdp",
)  # fmt: skip
SDP_PROPERTIES: Final = ("accepted", "held", "nowhere", "rtp")
MAX_FRAMES: Final = 64


class Target(NamedTuple):
    """run: takes any bytes.  seeds: real input to begin with.  longest: bytes of an input.

    mutate: makes another input of one; None: libFuzzer does, which knows no headers or packets.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    longest: int = 4_000
    mutate: mutators.Mutator | None = None


# --- messages -------------------------------------------------------------------------------------


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


def descriptions() -> list[bytes]:
    """The bodies of those messages; a line of each kind."""
    bodies = [body for each in messages() if (body := each.partition(b"\r\n\r\n")[2])]
    mapped = b"c=IN IP6 ::ffff:10.0.0.5"
    return [*bodies, b"\r\n".join([*mutators.DESCRIBED, mapped, b""])]


def _sip(data: bytes) -> None:
    found = sip.parse(data, cut=bool(data[:1] == b"c"))
    for name in SIP_PROPERTIES:
        getattr(found, name)
    if found.sdp:
        _sdp(found.sdp)


def _sdp(data: bytes) -> None:
    for line in sdp.parse(data).media:
        for name in SDP_PROPERTIES:
            getattr(line, name)
        for codec in line.codecs.values():
            assert not codecs.decodable(codec) or codecs.sound_rate(codec) > 0


def _calls(data: bytes) -> None:
    """Messages from either side, one after the other, into a call table; then time passes."""
    table = Wire()
    ends = ("10.0.0.1:5060", "10.0.0.2:5060")
    for number, message in enumerate(cut(data)):
        table.hear(ends[number % 2], ends[1 - number % 2], message)
    table.wait(400)
    table.calls.restore(table.calls.snapshot())
    table.end()


def _table(data: bytes) -> None:
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


# --- frames ---------------------------------------------------------------------------------------


def _peel(data: bytes) -> None:
    peel(memoryview(data[1:]), LINK_TYPES[_link(data)])


def _link(data: bytes) -> int:
    """The first byte chooses the link type."""
    return LINKS[(data or b"\0")[0] % len(LINKS)]


def clothes() -> list[bytes]:
    """A SIP message and an RTP packet in everything that can lie around them, by link type."""
    return [bytes([kind]) + each for kind, frames in _dressed() for each in frames]


def _dressed() -> Iterator[tuple[int, list[bytes]]]:
    """For each wrapping the link type as _link() reads it, and what becomes of the two."""
    inner = [call()[0], udp_frame(START_NS, ("10.0.0.1", 1), ("10.0.0.2", 2), rtp())]
    for kind, wrap in (WRAPPINGS | RARE).values():
        yield LINKS.index(kind), [outer.data for frame in inner for outer in wrap(frame)]


def _frames(data: bytes) -> None:
    """Several frames of one link type through both decoders."""
    frames = [frame for frame in cut(data[1:])[:MAX_FRAMES] if frame]
    if not frames:
        return
    taken = block(frames, _link(data))
    decoder, slow = Decoder(seed=1), SlowPath()
    decoded = decoder.decode(taken)
    decoder.admit(slow.receive(taken, decoded.refused.rows, decoded.refused.inner))


def parted() -> list[bytes]:
    """Frames in all their clothes, fragments and TCP segments, each led by its length."""
    ethernet = bytes([LINKS.index(1)])
    dressed = [bytes([kind]) + joined(frames) for kind, frames in _dressed()]
    fragments = wrapped(call()[:2], WRAPPINGS["fragments of VXLAN of fragments"].wrap)
    moved = [ethernet + joined(frame.data for frame in fragments), ethernet + joined(_tcp())]
    return [*moved, *dressed]


def _tcp() -> Iterator[bytes]:
    said = b"".join(messages()[:6])
    for at in range(0, len(said), 500):
        part = said[at : at + 500]
        head = struct.pack(">HHIIHHHH", 5060, 5060, at, 0, 0x5018, 0, 0, 0)
        total = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(part), 0, 0, 64, 6, 0)
        yield bytes(12) + b"\x08\0" + total + bytes(8) + head + part


# --- captures -------------------------------------------------------------------------------------


def _file(data: bytes) -> Path:
    path = Path(f"/dev/shm/spanvault-fuzz-{os.getpid()}")
    path.write_bytes(data)
    return path


def _capture(data: bytes) -> None:
    """A file through the whole capture core."""
    path = _file(data)
    numbers = count(1)
    recorder = Recorder(CaptureConfig(name="fuzz"), lambda: next(numbers).to_bytes(16))
    try:
        with suppress(ValueError):
            for taken in files.blocks(path):
                _check(recorder.receive(taken).media)
        _check(recorder.finish().media)
    finally:
        path.unlink()


def _packed(data: bytes) -> None:
    _capture(asked.packed(data))


def _check(media: Iterable[chunk.Media]) -> None:
    """What leaves must add up; that it does not is a fault of ours."""
    for each in media:
        try:
            each.check()
        except ValueError as error:
            raise AssertionError(str(error)) from error


def _edited(data: bytes) -> None:
    """A forged call with frames changed, dropped, repeated and moved in time, as data says."""
    frames = [[time_ns, bytearray(content)] for time_ns, content in call()]
    for at in range(0, len(data) - 5, 6):
        kind, number, place, value = struct.unpack_from(">BBHH", data, at)
        frame = frames[number % len(frames)]
        if kind % 4 == 0:
            frame[1][place % len(frame[1])] = value & 0xFF
        elif kind % 4 == 1:
            frame[0] += (value - 32_768) * (SECOND >> (place % 30))
        elif kind % 4 == 2:
            frames.append([frame[0], bytearray(frame[1])])
        else:
            frame[1] = frame[1][: place % len(frame[1]) + 1]
        frames = frames[:200]
    _capture(pcap([(max(0, at) % (1 << 62), bytes(content)) for at, content in frames]))


def edits() -> list[bytes]:
    """Some of each kind."""
    return [struct.pack(">BBHH", kind, 9 * kind, 50, 40_000) * 4 for kind in range(4)]


# --- our own --------------------------------------------------------------------------------------


def _wire(data: bytes) -> None:
    frames = cut(data)
    for decode in (
        wire.decode_request, wire.decode_reply, wire.decode_to_ingest, wire.decode_from_ingest,
    ):  # fmt: skip
        with suppress(ValueError):
            decode(frames)


def _media(data: bytes) -> None:
    media = wire.decode_media(cut(data))
    media.check()
    for each in media.chunks():
        list(chunk.unpack(chunk.pack(each)))


def sent() -> list[bytes]:
    """A message of each kind of traffic."""
    return [
        joined(map(bytes, wire.encode(each)))
        for each in (
            Hello(capture="a"),
            Status(),
            StatusReply("s", "ready", {}, []),
            Welcome("s", "k", b"i", "1"),
        )
    ]


def media() -> list[bytes]:
    """What a short call gives."""
    recorder = Recorder(CaptureConfig(name="fuzz"), lambda: bytes(16))
    path = _file(pcap(call()))
    heard = [each for taken in files.blocks(path) for each in recorder.receive(taken).media]
    path.unlink()
    return [
        joined((each.table.tobytes(), each.frames.tobytes(), bytes(each.payload)))
        for each in [*heard, *recorder.finish().media]
        if len(each.table)
    ]


def _rtcp(data: bytes) -> None:
    assert 0 <= rtcp.sender_of(rtcp.parse(data, cut=True)) < 1 << 32
    rtcp.parse(data)


def _red(data: bytes) -> None:
    """A packet; parts of it as packets of one stream, of which each sound is taken once."""
    times = [(160 * (part or b"\0")[0], part[1:]) for part in cut(data)]
    for fresh in red.Recovery(lambda kind: kind == 101).unwrap(times):
        assert all(piece.payload for piece in fresh)
    red.parse(data)


def redundant() -> list[bytes]:
    """A packet with an older one in it, one without; both of a stream, the second heard twice."""
    both, alone = b"\x88\0\x28\x05\x08hello there", b"\x08plain"
    return [both, alone, joined([b"\1" + both, b"\2" + both, b"\2" + alone, b"\3\x80"])]


def _siprec(data: bytes) -> None:
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


def _sdes(data: bytes) -> None:
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


def _config(data: bytes) -> None:
    path = _file(data)
    for kind in set(config.FILES.values()):
        with suppress(ValueError):
            config.load(path, kind)


def settings() -> list[bytes]:
    """The samples."""
    return [path.read_bytes() for path in sorted((DATA.parents[1] / "etc").glob("*.toml"))]


def _explain(data: bytes) -> None:
    """A file through the account of it; the first four bytes are the Call-ID asked for."""
    path = _file(data[4:])
    for each in Explainer([path], data[:4].decode("latin-1") or None, tshark=False).documents():
        msgspec.json.encode(each)


def _digits(data: bytes) -> None:
    heard = digits.decode(
        [
            digits.Heard(int.from_bytes(part[:4], "big"), 0, part[4:5] > b"\x7f", part[5:])
            for part in cut(data)
        ],
        8000,
    )
    assert all(each.name for each in heard)


def _websocket(data: bytes) -> None:
    websocket.begins(data)
    websocket.Messages().receive(data, lambda name: None)


TARGETS: Final[dict[str, Target]] = {
    "sip": Target(_sip, messages, mutate=mutators.message),
    "sdp": Target(_sdp, descriptions, mutate=mutators.description),
    "calls": Target(_calls, lambda: [joined(messages()[:6]), joined(messages()[6:16]),
                                      joined(hidden())], 8_000,
                    mutators.parts(mutators.message)),
    "peel": Target(_peel, clothes, mutate=mutators.behind(1, rewriting.frame)),
    "frames": Target(_frames, parted, 8_000, mutators.parts(rewriting.frame, head=1)),
    "hep": Target(lambda data: hep.packet(memoryview(data)), lambda: [
        outer.data[42:] for name in ("HEP2", "HEP3", "HEP3, compressed")
        for outer in WRAPPINGS[name].wrap(call()[0])
    ]),
    "digits": Target(_digits, lambda: [
        joined(bytes(4) + bytes((255 * marker,)) + payload for marker, payload in press("5"))
    ]),
    "rtcp": Target(_rtcp, lambda: [
        sender_report(1, [Block(2)]) + description((1, "name")) + goodbye(1, reason="gone"),
        packet(207, 0, bytes(12), padding=4),
    ]),
    "offload": Target(segments, lambda: [b"".join(rtp(n, 160 * n) for n in range(12))]),
    "siprec": Target(_siprec, metadata),
    "sdes": Target(_sdes, secrets),
    "tls": Target(tlsheard.hear, tlsheard.heard, mutate=mutators.parts(mutators.message)),
    "red": Target(_red, redundant),
    "config": Target(_config, settings),
    "explain": Target(_explain, lambda: [b"fuzz" + each for each in captures()], 20_000,
                      mutators.behind(4, rewriting.capture)),
    "websocket": Target(_websocket, lambda: [b"\x81\x05hello\x89\0", b"\x81\x85\1\2\3\4hello"]),
    "capture": Target(_capture, captures, 20_000, rewriting.capture),
    "edited": Target(_edited, edits),
    "wire": Target(_wire, sent, mutate=mutators.parts()),
    "media": Target(_media, media, 8_000, mutators.parts()),
    "dialogs": Target(dialogs.tell, dialogs.stories, 400),
    "payloads": Target(payloads.unpack, payloads.spoken),
    "pictures": Target(payloads.show, payloads.pictures, mutate=mutators.parts(head=1)),
    "srtp": Target(payloads.open_srtp, payloads.packets),
    "srtcp": Target(payloads.open_srtcp, payloads.packets),
    "whole": Target(payloads.strip, payloads.whole, mutate=mutators.parts()),
    "places": Target(payloads.place, payloads.packets),
    "table": Target(_table, tables, 8_000, mutators.packed),
    "object": Target(disk.read_object, disk.objects),
    "sealed": Target(disk.read_sealed, disk.plaintexts),
    "root": Target(disk.read_root, disk.roots),
    "page": Target(disk.read_page, disk.pages),
    "keyfile": Target(disk.read_key_file, disk.key_files),
    "rows": Target(disk.read_rows, disk.rows),
    "log": Target(disk.read_log, disk.logs),
    "store": Target(disk.store, disk.batches),
    "bundle": Target(disk.read_bundle, disk.bundles),
    "notes": Target(disk.read_notes, disk.notes),
    "packed": Target(_packed, lambda: asked.compressed(captures()[:1]), 20_000,
                     mutators.behind(1, rewriting.capture)),
    "requests": Target(asked.request, asked.requests),
    "memories": Target(asked.memories, lambda: [bytes(20), bytes(range(1, 60))]),
    "replica": Target(asked.replica, asked.replicas),
    "intake": Target(asked.waiting, asked.batches),
    "ledger": Target(asked.entries, asked.ledgers),
    "reindex": Target(asked.reindex, lambda: [bytes(5), bytes([1, 0, 99, 3, 2, 1, 2])], 200),
    "words": Target(asked.words, asked.phrases, 1_000),
    "answers": Target(asked.answers, asked.spoken),
    "decoded": Target(asked.decoded, asked.payloads),
    "filmed": Target(films.write, films.told, 1_000),
}  # fmt: skip


def survive(name: str, data: bytes) -> None:
    """Run a target. Raises whatever it raises but ValueError."""
    with suppress(ValueError):
        TARGETS[name].run(data)
