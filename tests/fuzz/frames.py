"""Frames and capture files: a decoder of frames, a peeler of tunnels, the whole capture core.

Seeds are a SIP message and an RTP packet in all that can lie around them, and a short call in every
format of file. How both are changed: rewriting.py. Captures through the commands: product.py.
"""

import bz2
import gzip
import lzma
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from capture.explain.__main__ import Explainer
from capture.packets.decode import Decoder
from capture.packets.slowpath import SlowPath
from capture.packets.tunnels import LINK_TYPES, peel
from capture.recorder import Recorder
from capture.sources import files
from spanvault.daemon.config import CaptureConfig
from spanvault.media import chunk
from tests.fuzz.capturefiles import call
from tests.fuzz.choices import cut, joined
from tests.fuzz.signalling import messages
from tests.support.callgen import SECOND, START_NS, udp_frame
from tests.support.frames import block, pcap, rtp
from tests.support.rarewrapping import RARE
from tests.support.wrapping import WRAPPINGS, wrapped

LINKS: Final = sorted(LINK_TYPES)
MAX_FRAMES: Final = 96  # more than wait behind a hole


def peel_one(data: bytes) -> None:
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


def hear_frames(data: bytes) -> None:
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
    return [*moved, *(ethernet + joined(each) for each in _broken()), *dressed]


def _tcp() -> Iterator[bytes]:
    said = b"".join(messages()[:6])
    for at in range(0, len(said), 500):
        yield _segment(at, said[at : at + 500])


def _broken() -> list[list[bytes]]:
    """Connections that are not whole.

    A segment that never comes, before more than wait for it; one that comes late, and twice; an
    end, and another beginning; a WebSocket in small frames, then what is none; a length of
    nonsense.
    """
    said = messages()[0]
    begun, ahead = said[:60], range(100, 100 + 25 * 70, 25)
    socket = b"\x81\xfe" + struct.pack(">H", len(said)) + bytes(4) + said
    parts = b"\x01\x05INVIT\x00\x03E s\xc1\x01x\x80\x0bip:b SIP/2.0\x89\0"
    return [
        [_segment(0, begun), *(_segment(at, said[at % 200 :][:25]) for at in ahead)],
        [_segment(0, begun), _segment(120, said[120:]), *[_segment(60, said[60:120])] * 2],
        [_segment(0, said), _segment(len(said), b"", 0x04), _segment(0, said), _segment(0, said)],
        [_segment(0, socket), _segment(len(socket), parts),
         _segment(len(socket) + len(parts), b"\x7f\xff")],
        [_segment(0, b"INVITE sip:b SIP/2.0\r\nl: x\r\n\r\n" + said)],
    ]  # fmt: skip


def _segment(at: int, part: bytes, flags: int = 0x18) -> bytes:
    head = struct.pack(">HHIIHHHH", 5060, 5060, at, 0, 0x5000 | flags, 0, 0, 0)
    total = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(part), 0, 0, 64, 6, 0)
    return bytes(12) + b"\x08\0" + total + bytes(8) + head + part


# --- captures -------------------------------------------------------------------------------------


def written(data: bytes) -> Path:
    path = Path(f"/dev/shm/spanvault-fuzz-{os.getpid()}")
    path.write_bytes(data)
    return path


def hear_file(data: bytes) -> None:
    """A file through the whole capture core."""
    path = written(data)
    numbers = count(1)
    recorder = Recorder(CaptureConfig(name="fuzz"), lambda: next(numbers).to_bytes(16))
    try:
        with suppress(ValueError):
            for taken in files.blocks(path):
                _check(recorder.receive(taken).media)
        _check(recorder.finish().media)
    finally:
        path.unlink()


def hear_packed(data: bytes) -> None:
    hear_file(compress_one(data))


def _check(media: Iterable[chunk.Media]) -> None:
    """What leaves must add up; that it does not is a fault of ours."""
    for each in media:
        try:
            each.check()
        except ValueError as error:
            raise AssertionError(str(error)) from error


def hear_edited(data: bytes) -> None:
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
    hear_file(pcap([(max(0, at) % (1 << 62), bytes(content)) for at, content in frames]))


def edits() -> list[bytes]:
    """Some of each kind."""
    return [struct.pack(">BBHH", kind, 9 * kind, 50, 40_000) * 4 for kind in range(4)]


def compress_one(data: bytes) -> bytes:
    """A compressed capture: damaged before it was packed, or (the first byte is 3) behind."""
    pack = (gzip.compress, lzma.compress, bz2.compress, bytes)[(data or b"\0")[0] % 4]
    return pack(data[1:])


def compressed(captures: Iterable[bytes]) -> list[bytes]:
    """Captures to begin with, before and behind packing."""
    made = [bytes([kind]) + each for kind in range(3) for each in captures]
    return [*made, *(b"\3" + compress_one(each) for each in made)]


def explain(data: bytes) -> None:
    """A file through the account of it; the first four bytes are the Call-ID asked for."""
    path = written(data[4:])
    for each in Explainer([path], data[:4].decode("latin-1") or None, tshark=False).documents():
        msgspec.json.encode(each)
