"""Objects, segment by segment and frame by frame: FORMAT.md §4, WIRE.md §4."""

import hashlib
import hmac
import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from . import Fault

MAGIC = bytes.fromhex("89 53 56 52 0D 0A 1A 0A")
HEADER, LOCATOR = 104, 32
DATA, LAST, EVENTS = 0, 1, 2
FIRST_EVENTS = 32768  # streams of telephone events are numbered from here
MARKER, CUT, WHOLE = 1, 2, 4  # flags of a frame


# A frame in a trailer: offset, segment, sequence; its first and last chunk's start, where it opens.
Listed = tuple[tuple[int, int, int], tuple[int, int] | None]


class Chunk(NamedTuple):
    """About a second of one stream."""

    stream: int
    ssrc: int
    start_ns: int
    frames: list[tuple[int, int, int, int, int]]  # sequence, timestamp, arrival ns, type, flags
    payloads: list[bytes]

    def packets(self) -> list[bytes]:
        """Each frame as the RTP packet that was heard: FORMAT.md §4.4."""
        found = []
        for (sequence, timestamp, _, kind, flags), kept in zip(
            self.frames, self.payloads, strict=True
        ):
            second = (flags & MARKER) << 7 | kind
            head = struct.pack(">BBHII", 0x80, second, sequence & 0xFFFF, timestamp, self.ssrc)
            found.append(kept if flags & WHOLE else head + kept)
        return found


class Opened:
    """What is in an object. faults: codes, in order of place."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.record: bytes | None = None
        self.sealed = False
        self.faults: list[str] = []


class Segment(NamedTuple):
    """A header, and the keys of what follows it, by flag; none if it does not open."""

    recording: bytes
    key_id: int
    number: int
    keys: dict[int, AESGCM]
    aad: bytes


def key_id_of(data: bytes) -> int:
    """Which DEK an object wants. Raises Fault."""
    return _header(data, 0, None).key_id


def open_object(data: bytes, dek: bytes) -> Opened:
    """Everything that opens. Raises Fault if not even the first header can be used."""
    found = Opened()
    segment = _header(data, 0, dek)
    first, begun, at, sequence = segment, 0, HEADER, 0
    headers, frames = [0], list[Listed]()
    if not segment.keys:
        found.faults.append("commitment")
    while at < len(data):
        if data[at : at + 8] == MAGIC:
            if len(data) - at < HEADER:
                break  # a torn tail
            try:
                next_one = _header(data, at, dek)
                if (next_one.recording, next_one.key_id) != (first.recording, first.key_id):
                    raise Fault("other recording", at)
            except Fault as fault:
                found.faults.append(fault.code)
                at = _next_header(data, at)
                continue
            segment, begun = next_one, at
            if not segment.keys:
                found.faults.append("commitment")
            if segment.number != len(headers):
                found.faults.append("segment")
            headers.append(at)
            at, sequence, found.sealed = at + HEADER, 0, False
            continue
        if found.sealed:
            found.faults.append("structure")
            at = _next_header(data, at)
            continue
        if len(data) - at < 5:
            break
        length, flag = struct.unpack_from("<IB", data, at)
        if flag > EVENTS or not 16 <= length <= (64 << 20) + 16:
            found.faults.append("structure")
            at = _next_header(data, at)
            continue
        end = at + 5 + length
        if end + (LOCATOR if flag == LAST else 0) > len(data):
            if data.find(MAGIC, at) >= 0:
                found.faults.append("structure")
                at = _next_header(data, at)
                continue
            break
        plain = _open(segment, sequence, flag, data[at + 5 : end])
        if plain is None and segment.keys:
            found.faults.append("frame")
        if flag != LAST:
            known = len(found.chunks)
            if plain is not None:
                _take_chunks(plain, first.recording, flag, found)
            starts = [one.start_ns for one in found.chunks[known:]]
            times = (min(starts), max(starts)) if starts else None
            frames.append(((at, segment.number, sequence), times))
            at, sequence = end, sequence + 1
            continue
        if plain is not None:
            _take_trailer(plain, headers, frames, found)
        locator = data[end : end + LOCATOR]
        wanted = struct.pack("<QQQ", begun, at, sequence) + b"SVRLAST\n"
        if locator != wanted:
            found.faults.append("locator")
        # Where none is, it is rather a DATA frame whose flag was changed.
        found.sealed = locator[-8:] == wanted[-8:] or end + LOCATOR == len(data)
        at, sequence = end + LOCATOR * found.sealed, sequence + 1
    return found


def _header(data: bytes, at: int, dek: bytes | None) -> Segment:
    """FORMAT.md §4.2 and §4.3."""
    head = data[at : at + HEADER]
    if len(head) < HEADER:
        raise Fault("cut", at)
    if head[:8] != MAGIC:
        raise Fault("magic", at)
    version, suite, _, zero, number = struct.unpack_from("<HHBBH", head, 8)
    if version != 1:
        raise Fault("version", at)
    if suite != 1:
        raise Fault("suite", at)
    if zero or head[44:48] != bytes(4):
        raise Fault("reserved", at)
    recording = head[16:32]
    (key_id,) = struct.unpack_from("<Q", head, 32)
    keys: dict[int, AESGCM] = {}
    if dek is not None:

        def derive(name: bytes) -> bytes:
            return HKDF(hashes.SHA256(), 32, head[56:72], name + recording).derive(dek)

        if hmac.compare_digest(derive(b"commit"), head[72:104]):
            audio = AESGCM(derive(b"audio"))
            keys = {DATA: audio, LAST: audio, EVENTS: AESGCM(derive(b"events"))}
    return Segment(recording, key_id, number, keys, hashlib.sha256(head).digest())


def _open(segment: Segment, sequence: int, flag: int, sealed: bytes) -> bytes | None:
    """FORMAT.md §4.4."""
    if not segment.keys:
        return None
    try:
        nonce = sequence.to_bytes(11, "big") + bytes((flag,))
        return segment.keys[flag].decrypt(nonce, sealed, segment.aad)
    except InvalidTag:
        return None


def _next_header(data: bytes, at: int) -> int:
    behind = data.find(MAGIC, at + 1)
    return behind if behind >= 0 else len(data)


def _take_chunks(plain: bytes, recording: bytes, flag: int, found: Opened) -> None:
    """WIRE.md §4; which chunks a frame may hold: FORMAT.md §4.4."""
    at = 0
    while at < len(plain):
        if len(plain) - at < 64:
            found.faults.append("chunk")
            return
        stream, _, ssrc, count, size, start_ns = struct.unpack_from("<HHIIIq", plain, at + 16)
        frames_at = at + 64
        payload_at = frames_at + 20 * count
        misplaced = (stream >= FIRST_EVENTS) != (flag == EVENTS)
        if plain[at : at + 16] != recording or misplaced or payload_at + size > len(plain):
            found.faults.append("chunk")
            return
        frames, payloads = [], []
        byte = payload_at
        for number in range(count):
            *frame, length = struct.unpack_from("<IIqBBH", plain, frames_at + 20 * number)
            frames.append(tuple(frame))
            payloads.append(plain[byte : byte + length])
            byte += length
        if byte != payload_at + size:
            found.faults.append("chunk")
            return
        found.chunks.append(Chunk(stream, ssrc, start_ns, frames, payloads))
        at = byte


def _take_trailer(plain: bytes, headers: list[int], frames: list[Listed], found: Opened) -> None:
    try:
        (count,) = struct.unpack_from("<I", plain)
        at = 4 + 8 * count
        listed_headers = list(struct.unpack_from(f"<{count}Q", plain, 4))
        (rows,) = struct.unpack_from("<I", plain, at)
        listed = [struct.unpack_from("<QIIqq", plain, at + 4 + 32 * row) for row in range(rows)]
        at += 4 + 32 * rows
        (size,) = struct.unpack_from("<I", plain, at)
    except struct.error:
        found.faults.append("trailer")
        return
    told = [(row[:3], row[3:]) for row in listed]
    true = [(place, times or row[1]) for (place, times), row in zip(frames, told, strict=False)]
    if listed_headers != headers or told != true or rows != len(frames) \
            or at + 4 + size != len(plain):  # fmt: skip
        found.faults.append("trailer")
    found.record = plain[at + 4 : at + 4 + size]
