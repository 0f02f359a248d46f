"""What lies in a packet: how codecs pack frames, SRTP, pictures, and the place of all in time."""

import struct
from contextlib import suppress
from typing import Final

import msgspec
import numpy as np

from spanvault.audio import aac, amr, codecs, framing, mpeg, timeline
from spanvault.media import payloadtypes, rtp, srtcp, srtp
from spanvault.media.chunk import CHUNK, FRAME, MARKER, TRUNCATED, WHOLE, Chunk
from spanvault.media.sdes import SUITES, parse
from spanvault.messages import Codec, MediaKey
from spanvault.video.orientation import extension
from spanvault.video.units import KINDS, Assembler, Packet
from tests.fuzz.choices import Choices, cut, joined
from tests.support.callgen import SECOND, START_NS
from tests.support.srtpsender import Sender

SECRET: Final = bytes(range(64))
EXTENSION: Final = b"\xbe\xde\0\1\x10abc"  # of a header, RFC 8285 §4.2
PLAIN: Final = [  # decoded by arithmetic, in this process
    codec
    for codec in payloadtypes.STATIC.values()
    if codecs.decodable(codec) and not codecs.is_foreign(codec)
]


def unpack(data: bytes) -> None:
    """A payload through everything that cuts payloads up; the first byte chooses variants."""
    choice, payload = (data or b"\0")[0], data[1:]
    wide, aligned, crc = (bool(choice & bit) for bit in (1, 2, 4))
    for split in (framing.g729, framing.g723, framing.dvi4, framing.every(choice + 1)):
        with suppress(ValueError):
            assert sum(map(len, split(payload))) <= 8 * len(payload) + 64
    with suppress(ValueError):
        list(amr.either(payload, wide=wide, aligned=aligned, crc=crc))
    for cutter in (aac.latm, lambda each: aac.generic(each, "aac-hbr")):
        with suppress(ValueError):
            list(cutter(payload))
    frames = mpeg.Frames()
    for part in cut(payload):
        with suppress(ValueError):
            list(frames.split(part))
    text = payload.decode("utf-8", "replace")
    for mux in (False, True):
        with suppress(ValueError):
            aac.configuration(text, mux=mux)
    for codec in PLAIN:
        with suppress(ValueError):
            codecs.open_decoder(codec).decode(payload)


def show(data: bytes) -> None:
    """Packets of a video stream; the first byte chooses the codec, parts lead with their flags."""
    names = sorted(KINDS)
    name = names[(data or b"\0")[0] % len(names)]
    parameters = "sprop-parameter-sets=Z0IACpZTBYmI,aMljiA==;sprop-vps=QAEMAf//AWAAAAMA"
    assembler = Assembler(Codec(name, 90_000, parameters=parameters))
    given, taken, sequence = 0, 0, 65_536
    for part in cut(data[1:]):
        flags = (part or b"\0")[0]
        sequence += flags & 3
        payload = part[1:]
        taken += len(payload) + 64
        marker, short, ticks = bool(flags & 4), bool(flags & 8), flags >> 4
        extension(payload, flags >> 4)
        packet = Packet(sequence, ticks, marker, short, ticks, payload)
        given += sum(len(unit.data) for unit in assembler.receive(packet))
    given += sum(len(unit.data) for unit in assembler.finish())
    assert given <= 16 * taken + 4096, "pictures out of nothing"


def pictures() -> list[bytes]:
    h264 = [b"\x04\x65abc", b"\x04\x78\0\x03\x65ab\0\2\x41x", b"\1\x7c\x85abc", b"\5\x7c\x45abc"]
    h264 += [
        b"\x30\x90" + bytes(11) + words
        for words in (b"\xbe\xde\0\1\x10\1\x30\3", b"\x10\0\0\1\3\1\2\0")
    ]
    vp8 = [b"\5\x10\x10\0\0\x9d\x01\x2a\x10\0\x10\0", b"\x25\x90\x80\1abc"]
    vp9 = [b"\5\x8e\x05\x18\0\xb0\0\x90\1\x14\1\x82abc", b"\5\xdc\x85\x01\2\x86abc"]
    h265 = [b"\5\x26\1abc", b"\5\x60\1\0\3\x26\1a", b"\1\x62\1\x93abc", b"\5\x62\1\x53abc"]
    return [bytes([at]) + joined(parts) for at, parts in enumerate((h264, h265, vp8, vp9))]


def open_srtp(data: bytes) -> None:
    """Packets of anybody under keys of each suite, and some that were sealed with them."""
    choose = Choices(data)
    name = choose.of(sorted(SUITES))
    session = choose.of(("", "", "UNENCRYPTED_SRTP", "KDR=1")) if "_CM_" in name else ""
    secret = SECRET[: SUITES[name].key + SUITES[name].salt]
    cryptex = choose.number(4) == 1
    sender = Sender(name, key=secret, session=session, cryptex=cryptex)
    (key,) = parse(sender.crypto.partition(":")[2])
    keys = [msgspec.structs.replace(key, mki=choose.of((0, 0, 0, 4)))]
    frames, payloads, said = np.zeros(6, FRAME), [], {b""}
    for row in frames:
        row["sequence"], row["timestamp"] = 65_536 + choose.number(1 << 16), choose.number(1 << 16)
        row["payload_type"], row["flags"] = choose.number(256), choose.number(256)
        payload = choose.bytes(80)
        if choose.number(2):
            said.add(payload)
            payload = _sealed(sender, row, payload, EXTENSION if cryptex else b"")
        payloads.append(payload)
    frames["length"] = list(map(len, payloads))
    header = np.zeros(1, CHUNK)
    header["frames"], header["payload_bytes"] = len(frames), sum(map(len, payloads))
    opening = srtp.Opening(keys)
    for each in opening.open([Chunk(header[0], frames, memoryview(b"".join(payloads)))]):
        assert {bytes(one) for one in each.payloads()} <= said, "opened what nobody sealed"


def _sealed(sender: Sender, row: np.void, payload: bytes, extension: bytes) -> bytes:
    """A packet of SSRC 0 as its chunk keeps it: whole, or without its header."""
    if extension:
        row["flags"] |= WHOLE
    flags, kind = int(row["flags"]), int(row["payload_type"])
    first, second = 0x90 if extension else 0x80, kind | (0x80 if flags & MARKER else 0)
    number = int(row["sequence"]) & 0xFFFF
    head = struct.pack(">BBHII", first, second, number, int(row["timestamp"]), 0)
    packet = sender.seal(head + extension + payload)
    return packet if flags & WHOLE else packet[len(head) :]


def open_srtcp(data: bytes) -> None:
    """Encrypted reports of anybody, under keys of each suite."""
    choose = Choices(data)
    suite = SUITES[name := choose.of(sorted(SUITES))]
    key = MediaKey(name, SECRET[: suite.key + suite.salt], choose.of((0, 0, 4)))
    opener = srtcp.Opener([key])
    for _ in range(4):
        assert opener.open(choose.bytes(120)) is None, "opened though nobody sealed it"


def strip(data: bytes) -> None:
    """Whole RTP packets, as SRTP that was opened gives them, to their payloads."""
    packets = cut(data)[:20]
    frames = np.zeros(len(packets), FRAME)
    frames["length"] = list(map(len, packets))
    frames["flags"] = [WHOLE | TRUNCATED * (len(packet) % 2) for packet in packets]
    header = np.zeros(1, CHUNK)
    header["frames"], header["payload_bytes"] = len(packets), sum(map(len, packets))
    for each in rtp.payloads([Chunk(header[0], frames, memoryview(b"".join(packets)))]):
        assert sum(map(len, each.payloads())) <= sum(map(len, packets))


def whole() -> list[bytes]:
    """RTP packets with CSRCs, an extension, padding."""
    first = bytes([0x80, 8]) + bytes(10) + b"sound"
    listed, padded = bytes([0x92, 8]) + bytes(22) + b"sound", bytes([0xA0, 8]) + bytes(14) + b"\4"
    return [joined([first, listed, padded])]


def place(data: bytes) -> None:
    """Chunks of a few streams on the line of time: any clock, any jump."""
    choose, line = Choices(data), timeline.TimeLine(START_NS)
    ready: list[Chunk] = []
    for _ in range(40):
        if not choose.left:
            break
        ready += line.receive(_chunk(choose))
    ready += line.finish()
    for chunk in ready:
        places = line.places(int(chunk.header["stream"]), choose.of((8000, 48_000)), chunk.frames)
        assert len(places) == len(chunk.frames)


def _chunk(choose: Choices) -> Chunk:
    count = 1 + choose.number(20)
    frames = np.zeros(count, FRAME)
    start = START_NS + choose.number(1 << 16) * SECOND // 50
    step = choose.of((0, 1, 160, 160, 960, 60_000, 1 << 31))
    frames["sequence"] = 65_536 + choose.number(1 << 16) + np.arange(count)
    first = choose.of((0, 160, 1 << 31, (1 << 32) - 161)) + choose.number(1 << 16)
    frames["timestamp"] = (first + step * np.arange(count, dtype=np.uint64)) & 0xFFFFFFFF
    frames["arrival_ns"] = start + 20_000_000 * np.arange(count) * choose.of((0, 1, 1, 50))
    header = np.zeros(1, CHUNK)
    header["stream"], header["frames"], header["start_ns"] = choose.number(4), count, start
    return Chunk(header[0], frames, memoryview(b""))


def spoken() -> list[bytes]:
    """Payloads as codecs pack them."""
    return [
        bytes([0]) + bytes(20), b"\2\xf0\x04" + bytes(12), b"\1\x20" + bytes(24),
        b"\7\xf0\x3c\0" * 9,
        b"\0\0\x10\0\x28" + bytes(5), b"\0\xff\3" + bytes(300), b"\0400026203fc0",
        b"\0" + joined([bytes(4) + b"\xff\xfd\x14\xc4" + bytes(60), b"\0\0\0\x40" + bytes(36)]),
    ]  # fmt: skip


def packets() -> list[bytes]:
    return [
        bytes([at]) + struct.pack(">BHHBBB", 0, at, 160, 0, 0, 30) + bytes(30) for at in range(9)
    ]
